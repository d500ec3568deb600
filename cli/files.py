"""Files that are whole or not there."""

import contextlib
import os
import tempfile
from pathlib import Path

from .errors import NotWritable


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that is never seen half; of two programs that write the same, one wins.

    Raises:
        OSError: the disk is full, or the folder cannot be written to. Nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(part, 0o666 & ~file_mask())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise


def check_writable(folder: Path) -> None:
    """Makes a folder; for before the work.

    Raises:
        NotWritable: it cannot be made, or nothing can be written into it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise NotWritable(f"the folder {folder} cannot be written to ({error.strerror})") from error


def file_mask() -> int:
    """Returns what this process's new files do not allow. It can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
