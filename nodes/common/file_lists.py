"""The files that an input offers, and the path of a chosen one: no other file is ever opened."""

import functools
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import folder_paths

from ...pnpmix.files.texts import printable
from .checks import BadInput

SHIPPED: dict[str, tuple[str, Path]] = {}  # folder of models → what comes before the names of files of this pack


class FileList(NamedTuple):
    """The files that an input lists."""

    names: list[str]
    path: Callable[[str], str | None]  # None: there is no such file
    place: str  # the folder that people see them in
    remedy: str


def model_files(folder: str, *endings: str, known: dict[str, str] | None = None) -> FileList:
    """Returns the files of one of ComfyUI's model folders, and those that this pack ships for it.

    Args:
        endings: of the files' names; none: all files.
        known: name → address of the files that fit.
    """
    label, own = SHIPPED.get(folder, ("", None))
    shipped = sorted(path.name for path in own.glob("*.safetensors")) if own else []
    names = [*shown_in_lists(folder_paths.get_filename_list(folder)), *(label + name for name in shipped)]

    def path(name: str) -> str | None:
        if own and name.startswith(label):
            return str(own / name.removeprefix(label))
        return folder_paths.get_full_path(folder, name)

    place = folder_paths.get_folder_paths(folder)[0]
    remedy = f"Put it into {place} and press R."
    if known:
        remedy = "\n".join([f"Put one of these into {place} and press R.", *map(": ".join, known.items())])
    return FileList([name for name in names if name.endswith(endings or "")], path, f"models/{folder}", remedy)


def saved_files(folder: str, ending: str, remedy: str) -> FileList:
    """Returns the files in a folder of ComfyUI's output, without pipes and devices of that name, which never end."""
    base = output_folder(folder)
    found, _ = folder_paths.recursive_search(base)
    names = [name for name in found if name.endswith(ending) and os.path.isfile(os.path.join(base, name))]
    names = shown_in_lists(sorted(name.replace(os.sep, "/") for name in names))
    return FileList(names, lambda name: os.path.join(base, name), base, remedy)


def output_folder(folder: str) -> str:
    """Returns a folder in ComfyUI's output."""
    return os.path.join(folder_paths.get_output_directory(), folder)


def path_of(node: str, name: str, file: str | None, files: FileList) -> str:
    """Returns the path of the file that an input names.

    Raises:
        BadInput: it is not there; the message says where such files go.
    """
    path = files.path(file) if file in files.names else None
    if path is None:
        fault = "no file is chosen." if file is None else f"'{file}' is not in {files.place}, or is no file."
        raise BadInput(node, name, fault, files.remedy)
    return path


def validate(node: str, name: str, file: str | None, files: FileList) -> bool | str:
    """Returns what a node's `validate_inputs` does: True or a message, which says more than ComfyUI's own."""
    if file is None:  # a linked value is not known yet; then `execute` is the first to see it
        return True
    try:
        path_of(node, name, file, files)
    except BadInput as error:
        return str(error)
    return True


def shown_in_lists(files: Sequence[str]) -> list[str]:
    """Leaves out names that hold HTML, which the lists of older editors (frontend 1.27) put into their page as such."""
    for file in files:
        if "<" in file:
            log_left_out(file)
    return [file for file in files if "<" not in file]


@functools.cache  # once for each
def log_left_out(file: str) -> None:
    """Logs, once, that a file is not listed."""
    logging.info("PnP-MIX: %s is in no list, because of the < in its name.", printable(file))
