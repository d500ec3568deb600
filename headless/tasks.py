"""Folders of tasks to evaluate on: a table as of `run.py blend`, and such folders from public data sets."""

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

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


def read_json(path: Path) -> list:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadTable(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(content, list):
        raise BadTable(f"{path} is no list of pairs")
    return content


def dreambench(source: Path, folder: Path) -> list[dict[str, str]]:
    """Rows from UNO's dreambench_multiip.json: {"prompt", "image_paths"} each, the paths beside it, in DreamBooth's
    folders `dataset/<subject>/`, whose `prompts_and_classes.txt` says what each subject is."""
    rows = []
    for number, pair in enumerate(read_json(source), 1):
        try:
            things, prompt = [source.parent / path for path in pair["image_paths"]], pair["prompt"]
        except (KeyError, TypeError):
            raise BadTable(f'{source}: entry {number} has no "prompt" and "image_paths"') from None
        words = [subject_class(path) for path in things]
        name = "+".join(path.parent.name for path in things)
        rows.append(row(folder, f"{number:03} {name}", things, words, prompt))
    return rows


def subject_class(picture: Path) -> str:
    """What DreamBooth's list says that a subject is, such as "dog" for "dog6"."""
    subject, names = picture.parent.name, picture.parent.parent / "prompts_and_classes.txt"
    try:
        lines = names.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BadTable(f"{names} cannot be read ({error})") from error
    for line in lines:
        name, _, kind = (x.strip() for x in line.partition(","))
        if name == subject:
            return kind
    raise BadTable(f"{names} does not say what '{subject}' is")


def customconcept101(source: Path, folder: Path) -> list[dict[str, str]]:
    """Rows from CustomConcept101's dataset_multiconcept.json: two concepts and a file of prompts with {0} and {1}."""
    rows = []
    for number, pair in enumerate(read_json(source), 1):
        try:
            *concepts, prompts = pair
            words = [concept["class_prompt"] for concept in concepts]
            folders = [source.parent / concept["instance_data_dir"] for concept in concepts]
            listed = source.parent / prompts["prompt_filename_compose"]
            things = [pictures_of(own)[0] for own in folders]
            lines = [line.strip() for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()]
            said = [line.format(*words) for line in lines]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise BadTable(f"{source}: entry {number} is no pair of concepts ({error!r})") from error
        except (OSError, JobFailed) as error:
            raise BadTable(f"{source}: entry {number}: {error}") from error
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
    return write_tasks(folder, rows)
