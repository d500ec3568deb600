"""Folders of tasks from public data sets, as they lie on the disk; nothing is downloaded."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pnpmix.files.texts import first_fault
from pydantic import BaseModel, TypeAdapter, ValidationError

from .errors import BadTable, JobFailed
from .jobs import BETWEEN
from .tasks import TABLE, images_of, spread, write_table


class Pair(BaseModel):
    """An entry of dreambench_multiip.json."""

    prompt: str
    image_paths: list[str]


class Subject(BaseModel):
    """A concept in an entry of dataset_multiconcept.json."""

    class_prompt: str
    instance_data_dir: str


class Prompts(BaseModel):
    """The last of such an entry: a file of prompts with {0} and {1} for the concepts."""

    prompt_filename_compose: str


PAIRS = TypeAdapter(list[Pair])
CONCEPT_PAIRS = TypeAdapter(list[tuple[Subject, Subject, Prompts]])
Entry = TypeVar("Entry")


def read_list(path: Path, entries: TypeAdapter[list[Entry]]) -> list[Entry]:
    """Returns a JSON file that is a list of such entries.

    Raises:
        BadTable: it is none; says which entry is not as it should be.
    """
    try:
        return entries.validate_json(path.read_bytes())
    except OSError as error:
        raise BadTable(f"{path} cannot be read ({error.strerror})") from error
    except ValidationError as error:
        raise BadTable(f"{path} is not as it is published: {first_fault(error)}") from error


def read_lines(path: Path) -> list[str]:
    """Returns the lines of a text file that are not blank.

    Raises:
        BadTable: it cannot be read.
    """
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise BadTable(f"{path} cannot be read ({error})") from error


def row(folder: Path, number: int, name: str, images: Sequence[Path], words: Sequence[str], text: str) -> dict:
    """Returns a row of a table in `folder`. References are the folders that the concept images lie in."""

    def relative(paths: Sequence[Path]) -> str:
        return BETWEEN.join(os.path.relpath(path, folder) for path in paths)

    given = {"name": f"{number:03} {name}", "concepts": relative(images), "objects": BETWEEN.join(words)}
    return given | {"prompt": text, "references": relative([path.parent for path in images])}


def dreambench(source: Path, folder: Path) -> list[dict[str, str]]:
    """Returns rows from UNO's dreambench_multiip.json.

    Each has {"prompt", "image_paths"}, the paths beside it, in DreamBooth's folders
    `dataset/<subject>/`, whose `prompts_and_classes.txt` says what each subject is.
    """
    rows = []
    for number, pair in enumerate(read_list(source, PAIRS), 1):
        images = [source.parent / path for path in pair.image_paths]
        name = "+".join(path.parent.name for path in images)
        rows.append(row(folder, number, name, images, list(map(class_of, images)), pair.prompt))
    return rows


def class_of(image: Path) -> str:
    """Returns what DreamBooth's list says that a subject is, such as "dog" for "dog6"."""
    subject, names = image.parent.name, image.parent.parent / "prompts_and_classes.txt"
    for line in read_lines(names):
        name, _, kind = (x.strip() for x in line.partition(","))
        if name == subject:
            return kind
    raise BadTable(f"{names} does not say what '{subject}' is")


def customconcept101(source: Path, folder: Path) -> list[dict[str, str]]:
    """Returns rows from CustomConcept101's dataset_multiconcept.json: two concepts and a file of prompts each."""
    rows = []
    for number, (*concepts, prompts) in enumerate(read_list(source, CONCEPT_PAIRS), 1):
        words = [concept.class_prompt for concept in concepts]
        folders = [source.parent / concept.instance_data_dir for concept in concepts]
        name = "+".join(own.name for own in folders)
        try:
            images = [images_of(own)[0] for own in folders]
        except (OSError, ValueError, JobFailed) as error:
            raise BadTable(f"{source}: entry {number}: {error}") from error
        for k, line in enumerate(read_lines(source.parent / prompts.prompt_filename_compose), 1):
            text = line.replace("{0}", words[0]).replace("{1}", words[1])
            rows.append(row(folder, number, f"{name} {k}", images, words, text))
    return rows


MAKERS = {"dreambench": dreambench, "customconcept101": customconcept101}


def make_tasks(kind: str, source: Path, folder: Path, limit: int | None) -> Path:
    """Writes the table of a data set's pairs, of at most so many, into a folder; returns its path.

    Raises:
        BadTable: the data set does not lie there as it is published, or the folder cannot be written to.
    """
    rows = MAKERS[kind](source.resolve(), folder.resolve())
    try:
        return write_table(folder / TABLE, spread(rows, limit))
    except OSError as error:
        raise BadTable(f"{folder} cannot be written to ({error.strerror})") from error
