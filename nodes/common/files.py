"""Saves files under names that every system takes; none is overwritten, and each is whole or absent."""

import contextlib
import errno
import itertools
import os
import re
import sys
from collections.abc import Iterator

import folder_paths

from .checks import BadInput

UNFINISHED = ".saving"
FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"|?*\ud800-\udfff]')  # on Windows, and half characters anywhere
DEVICES = re.compile(r"(CON|PRN|AUX|NUL|(COM|LPT)[1-9¹²³])\s*(\.|$)", re.IGNORECASE)  # Windows takes them for no file
REMEDIES = {
    errno.ENOSPC: "Make room on the disk.",
    errno.ENAMETOOLONG: "Use a shorter name.",
    errno.EACCES: "Allow ComfyUI to write there.",
    errno.EPERM: "Allow ComfyUI to write there.",
    errno.EROFS: "Allow ComfyUI to write there.",
}


def save_new(node: str, prefix: str, base: str, extension: str, data: bytes) -> str:
    """Writes <base>/<prefix>_00001_<extension>, or the next free number; `prefix` may have folders and %date% words.

    Returns:
        the file's path in `base`, with /.

    Raises:
        BadInput: of the input filename_prefix, for a name or a disk that does not take it. Nothing is left then.
    """
    prefix = plain_prefix(node, prefix, base)
    try:
        os.makedirs(base, exist_ok=True)
        with alone_in(base) as alone:
            if alone:
                remove_leftovers(base)
            folder, name, first = numbered_place(node, prefix, base)
            stems = (os.path.join(folder, f"{name}_{number:05}_") for number in itertools.count(first))
            path = first_free(stems, extension, data)
    except OSError as error:
        fault = f"it cannot be saved in {base} ({error.strerror})."
        remedy = REMEDIES.get(error.errno or 0, "Use another name or disk.")
        raise BadInput(node, "filename_prefix", fault, remedy) from error
    return os.path.relpath(path, base).replace(os.sep, "/")


def first_free(stems: Iterator[str], extension: str, data: bytes) -> str:
    """Writes a new file by the first of the names that is not taken, and returns its path."""
    while True:
        with contextlib.suppress(FileExistsError):
            return write_new(next(stems), extension, data)


def plain_prefix(node: str, prefix: str, base: str) -> str:
    """Removes needless parts such as ./ and a / at the end, for which ComfyUI counts files wrongly."""
    bad = FORBIDDEN.search(os.path.splitdrive(prefix)[1])
    if bad:
        fault = f"it contains {bad[0]!r}, which no file name may on every system."
        raise BadInput(node, "filename_prefix", fault, "Use a plain name.")
    try:
        plain = os.path.relpath(os.path.join(base, prefix.replace("\\", "/")), base)
    except ValueError:  # another drive
        plain = os.pardir
    *folders, name = plain.split(os.sep)
    if os.pardir in (*folders, name):
        raise outside(node, prefix, base)
    if name == os.curdir:
        raise BadInput(node, "filename_prefix", "it has no name.", "Use a plain name.")
    for part in (*folders, f"{name}_"):
        if DEVICES.match(part) or part.endswith((".", " ")):
            fault = f"'{part.removesuffix('_')}' is no name on Windows."
            raise BadInput(node, "filename_prefix", fault, "Use a plain name.")
    return plain


def numbered_place(node: str, prefix: str, base: str) -> tuple[str, str, int]:
    """Returns folder, name and the number after the highest that exists."""
    try:
        return folder_paths.get_save_image_path(prefix, base)[:3]
    except OSError:
        raise
    except Exception as error:  # ComfyUI raises nothing more specific, where a link leads elsewhere
        raise outside(node, prefix, base) from error


def outside(node: str, prefix: str, base: str) -> BadInput:
    """Returns the error for a name outside the folder."""
    return BadInput(node, "filename_prefix", f"'{prefix}' is outside {base}.", "Use a plain name.")


@contextlib.contextmanager
def alone_in(base: str) -> Iterator[bool]:
    """Waits until no other process saves there; gives False where the disk cannot tell, as some network disks."""
    if sys.platform == "win32":  # which deletes no file that is open and renames none onto another
        yield True
        return
    import fcntl

    folder = os.open(base, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)  # ends with the process, however that ends
            alone = True
        except OSError:
            alone = False
        yield alone
    finally:
        os.close(folder)


def remove_leftovers(base: str) -> None:
    """Removes what killed saves have left; files that are being written elsewhere on Windows resist."""
    for folder, _, names in os.walk(base):
        for name in names:
            if re.fullmatch(rf".+_\d{{5,}}_\{UNFINISHED}", name):
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(folder, name))


def write_new(stem: str, extension: str, data: bytes) -> str:
    """Writes stem + extension and returns it.

    Raises:
        FileExistsError: there is such a file, or another process is writing it.
    """
    unfinished, path = stem + UNFINISHED, stem + extension
    file = open(unfinished, "xb")  # noqa: SIM115 closed before it is renamed; one process alone gets this name
    try:
        with file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if os.path.lexists(path):
            raise FileExistsError(path)
        os.rename(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)
        raise
    return path
