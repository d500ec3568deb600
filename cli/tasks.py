"""Tasks to evaluate on, the folders that they are read from, and what came of each."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic import Field

from .errors import BadTable, JobFailed
from .files import write_whole
from .jobs import File, Job, Request, Words, read_table

TABLE = "tasks.csv"
IMAGES = (".png", ".jpg", ".jpeg", ".webp")
Item = TypeVar("Item")


class Task(Request):
    """What `run.py evaluate` is asked for: a job that may lack a scene and may have the files of other methods."""

    loras: Words = Field((), description="for each concept its file in `models/loras`; default: no rows of merged "
                         "LoRAs and Concept Conductor")  # fmt: skip
    trigger_words: Words = Field((), description="what the LoRAs call the concepts: `sks dog|cat`; default: `objects`")
    trained: Words = Field((), description="for each concept its file in `models/concepts`; default: no rows of "
                           "LaTexBlend")  # fmt: skip


class CompleteTask(Task, Job):
    """A task that has its scene."""

    scene: File = Field(description="your photo")


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
