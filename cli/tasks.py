"""Folders of tasks to evaluate on: a table as of `run.py blend`, and such folders from public data sets."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

from pnpmix.files.texts import first_fault
from pydantic import BaseModel, TypeAdapter, ValidationError

from .files import write_whole
from .jobs import BETWEEN, OF_METHODS, BadTable, Job, JobFailed, read_table

TABLE = "tasks.csv"
MUST = ("things", "words")  # without a scene the checkpoint draws one
COLUMNS = ("name", "scene", "things", "words", "prompt", "seed", "references")
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def read_tasks(folder: Path, defaults: Job) -> list[Job | JobFailed]:
    """
    Raises:
        BadTable: the folder has no table, or not a right one.
    """
    if not (folder / TABLE).is_file():
        raise BadTable(f"there is no {TABLE} in {folder}")
    return read_table(folder / TABLE, defaults, MUST, OF_METHODS)


def pictures_of(path: Path) -> list[Path]:
    """One picture, or those of a folder in the order of their names.

    Raises:
        JobFailed: there is none.
    """
    if not path.is_dir():
        return [path]
    found = sorted(x for x in path.iterdir() if x.suffix.lower() in PICTURES)
    if not found:
        raise JobFailed(f"there is no picture in {path}")
    return found


def write_tasks(folder: Path, rows: Sequence[dict[str, str]]) -> Path:
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, restval="")
    table.writeheader()
    table.writerows(rows)
    write_whole(folder / TABLE, text.getvalue().encode())
    return folder / TABLE


def row(folder: Path, name: str, things: Sequence[Path], words: Sequence[str], prompt: str) -> dict[str, str]:
    """References are the folders that the pictures of the things lie in; paths are relative to the table."""

    def relative(paths: Sequence[Path]) -> str:
        return BETWEEN.join(os.path.relpath(path, folder) for path in paths)

    own_folders = [path.parent for path in things]
    given = {"name": name, "things": relative(things), "references": relative(own_folders)}
    return given | {"words": BETWEEN.join(words), "prompt": prompt, "seed": "0"}


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
    """A JSON file that is a list of such entries.

    Raises:
        BadTable: it is none; says which entry is not as it should be.
    """
    try:
        return TypeAdapter(list[entry]).validate_json(path.read_bytes())
    except OSError as error:
        raise BadTable(f"{path} cannot be read ({error.strerror})") from error
    except ValidationError as error:
        raise BadTable(f"{path} is not as it is published: {first_fault(error)}") from error


def dreambench(source: Path, folder: Path) -> list[dict[str, str]]:
    """Rows from UNO's dreambench_multiip.json: {"prompt", "image_paths"} each, the paths beside it, in DreamBooth's
    folders `dataset/<subject>/`, whose `prompts_and_classes.txt` says what each subject is."""
    rows = []
    for number, pair in enumerate(read_list(source, Pair), 1):
        things = [source.parent / path for path in pair.image_paths]
        words = [subject_class(path) for path in things]
        name = "+".join(path.parent.name for path in things)
        rows.append(row(folder, f"{number:03} {name}", things, words, pair.prompt))
    return rows


def subject_class(picture: Path) -> str:
    """What DreamBooth's list says that a subject is, such as "dog" for "dog6"."""
    subject, names = picture.parent.name, picture.parent.parent / "prompts_and_classes.txt"
    try:
        lines = names.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise BadTable(f"{names} cannot be read ({error})") from error
    for line in lines:
        name, _, kind = (x.strip() for x in line.partition(","))
        if name == subject:
            return kind
    raise BadTable(f"{names} does not say what '{subject}' is")


def customconcept101(source: Path, folder: Path) -> list[dict[str, str]]:
    """Rows from CustomConcept101's dataset_multiconcept.json: two concepts and a file of prompts with {0} and {1}."""
    rows = []
    for number, (*concepts, prompts) in enumerate(read_list(source, tuple[Subject, Subject, Prompts]), 1):
        words = [concept.class_prompt for concept in concepts]
        folders = [source.parent / concept.instance_data_dir for concept in concepts]
        listed = source.parent / prompts.prompt_filename_compose
        try:
            things = [pictures_of(own)[0] for own in folders]
            lines = [line.strip() for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, ValueError, JobFailed) as error:
            raise BadTable(f"{source}: entry {number}: {error}") from error
        said = [line.replace("{0}", words[0]).replace("{1}", words[1]) for line in lines]
        name = "+".join(own.name for own in folders)
        rows += [row(folder, f"{number:03} {name} {k}", things, words, text) for k, text in enumerate(said, 1)]
    return rows


MAKERS = {"dreambench": dreambench, "customconcept101": customconcept101}


def make_tasks(kind: str, source: Path, folder: Path, limit: int | None) -> Path:
    """Writes the table of a data set's pairs, of as many as the limit says, spread evenly over all; its path.

    Raises:
        BadTable: the data set does not lie there as it is published.
    """
    rows = MAKERS[kind](source.resolve(), folder.resolve())
    if limit is not None and limit < len(rows):
        rows = [rows[k * len(rows) // limit] for k in range(limit)]
    try:
        return write_tasks(folder, rows)
    except OSError as error:
        raise BadTable(f"{folder} cannot be written to ({error.strerror})") from error
