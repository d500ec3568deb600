"""Folders of tasks to evaluate on, what came of each, and such folders from public data sets."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from pnpmix.files.texts import first_fault
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from .errors import BadTable, JobFailed
from .files import write_whole
from .jobs import BETWEEN, File, Job, Words, read_table

TABLE = "tasks.csv"
IMAGES = (".png", ".jpg", ".jpeg", ".webp")
Item = TypeVar("Item")


class Task(Job):
    """A job of `run.py evaluate`, which may lack a scene and may have the files of other methods."""

    scene: File | None = Field(None, description="your photo; default: the checkpoint draws one from prompt and seed")
    loras: Words = Field((), description="for each concept its file in `models/loras`; default: no rows of merged "
                         "LoRAs and Concept Conductor")  # fmt: skip
    trigger_words: Words = Field((), description="what the LoRAs call the concepts: `sks dog|cat`; default: `objects`")
    trained: Words = Field((), description="for each concept its file in `models/concepts`; default: no rows of "
                           "LaTexBlend")  # fmt: skip


class Made(NamedTuple):
    """One result of one task."""

    path: Path
    scores: dict[str, float]


class Evaluated(NamedTuple):
    """One task; where something failed, `faults` says what, by the row's name, or by "" where nothing could be run."""

    task: Task | None  # None: its row of the table is not right
    made: dict[str, Made]  # by the row's name
    faults: dict[str, str]


def read_tasks(folder: Path, **defaults: object) -> list[Task | JobFailed]:
    """Returns the tasks of a folder, as `read_table` does.

    Raises:
        BadTable: the folder has no table, or not a right one.
    """
    if not (folder / TABLE).is_file():
        raise BadTable(f"there is no {TABLE} in {folder}")
    return read_table(folder / TABLE, Task, **defaults)


def spread(items: list[Item], limit: int | None) -> list[Item]:
    """Returns at most so many of the items, spread evenly over all."""
    count = len(items) if limit is None else min(limit, len(items))
    return [items[k * len(items) // count] for k in range(count)]


def images_of(path: Path) -> list[Path]:
    """Returns one image, or those of a folder in the order of their names.

    Raises:
        JobFailed: there is none.
    """
    if not path.is_dir():
        return [path]
    found = sorted(x for x in path.iterdir() if x.suffix.lower() in IMAGES)
    if not found:
        raise JobFailed(f"there is no image in {path}")
    return found


def write_table(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    """Writes the table of rows with the same columns, such as people write; returns its path."""
    text = io.StringIO()
    table = csv.DictWriter(text, rows[0] if rows else ())
    table.writeheader()
    table.writerows(rows)
    write_whole(path, text.getvalue().encode())
    return path


# --- From public data sets, as they lie on the disk


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


def read_list(path: Path, entry: object) -> list:
    """Returns a JSON file that is a list of such entries.

    Raises:
        BadTable: it is none; says which entry is not as it should be.
    """
    try:
        return TypeAdapter(list[entry]).validate_json(path.read_bytes())
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
    """Returns rows from UNO's dreambench_multiip.json: {"prompt", "image_paths"} each, the paths beside it, in
    DreamBooth's folders `dataset/<subject>/`, whose `prompts_and_classes.txt` says what each subject is."""
    rows = []
    for number, pair in enumerate(read_list(source, Pair), 1):
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
    for number, (*concepts, prompts) in enumerate(read_list(source, tuple[Subject, Subject, Prompts]), 1):
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
