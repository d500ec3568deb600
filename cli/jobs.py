"""What is to be blended: one job from options, or a job in each row of a table."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from .errors import BadTable, JobFailed

BETWEEN = "|"  # of several objects in a cell; no file's name has it
TEMPLATE = "Replace two objects with Grounding DINO"  # or of another number


def split(cell: object) -> object:
    """Returns the parts of a cell that lists something for each object."""
    return tuple(part.strip() for part in cell.split(BETWEEN)) if isinstance(cell, str) else cell


def beside_table(path: Path, info: ValidationInfo) -> Path:
    """Returns a path that a table names relative to its own folder, the context of the validation."""
    return (info.context or Path()) / path


def column_of(field: str) -> str:
    """Returns the name of a field's column in a table."""
    return field.replace("_", " ")


def filled(text: str) -> str:
    """Refuses an empty entry."""
    if not text:
        raise ValueError("one of them is empty")
    return text


File = Annotated[Path, AfterValidator(beside_table)]
Files = Annotated[tuple[File, ...], BeforeValidator(split)]
Words = Annotated[tuple[Annotated[str, AfterValidator(filled)], ...], BeforeValidator(split)]


class Request(BaseModel):
    """What a picture is made from. The fields are the columns of a table, their descriptions its help text."""

    model_config = ConfigDict(frozen=True, populate_by_name=True, alias_generator=column_of)

    scene: File | None = Field(None, description="your photo; default: the checkpoint draws one from prompt and seed")
    concepts: Files = Field(description="an image of each of your own objects: `my_dog.jpg|my_cat.jpg`")
    objects: Words = Field(description="what each of them replaces in the scene: `dog|cat`")
    prompt: str = Field("", description="prompt of the result; default: made of the objects")
    seed: int = Field(0, ge=0, lt=2**64, description="seed of the noise; default: 0")
    steps: int | None = Field(None, ge=2, le=1000, description="steps of the whole schedule; default: the template's")
    checkpoint: str = Field("", description="file in `models/checkpoints`; default: the template's")
    template: str = Field("", description=f"name of a template; default: {TEMPLATE}")
    target_masks: Files = Field((), description="an image for each object of the scene, white where it is; default: "
                                "found by `objects`")  # fmt: skip
    object_masks: Files = Field((), description="the same for the concept images")
    name: str = Field("", description="what the result's file is called; default: as the scene")
    references: Files = Field((), description="only of `run.py evaluate`: for each concept an image, or a folder of "
                              "images, that results are compared with; default: `concepts`")  # fmt: skip
    where: str = Field("", exclude=True)  # it stands, for messages; no column

    @field_validator("*", mode="before")
    @classmethod
    def without_null(cls, cell: object) -> object:
        if isinstance(cell, str) and "\0" in cell:
            raise ValueError("it contains the character 0")
        return cell

    @model_validator(mode="after")
    def one_for_each_object(self) -> "Request":
        count = len(self.concepts)
        if not count:
            raise ValueError("there are no concepts")
        for column, given in self:
            if isinstance(given, tuple) and given and len(given) != count:
                said = f"there are {count} concepts and {len(given)} {column_of(column)}"
                raise ValueError(f"{said}, not one for each")
        return self


class Job(Request):
    """One picture to be made of a scene."""

    scene: File = Field(description="your photo")


AnyRequest = TypeVar("AnyRequest", bound=Request)


def columns(kind: type[Request]) -> dict[str, str]:
    """Returns what the columns of a table of such jobs say, by their names."""
    return {column_of(name): x.description or "" for name, x in kind.model_fields.items() if not x.exclude}


def help_of(kind: type[Request]) -> str:
    """Returns the help text of a table's columns."""
    lines = [f"  {name}: {says.replace('`', '')}" for name, says in columns(kind).items()]
    return f"columns of the table, with {BETWEEN} between several objects in a cell:\n" + "\n".join(lines)


def read_table(path: Path, kind: type[AnyRequest], **defaults: object) -> list[AnyRequest | JobFailed]:
    """Returns the jobs of a CSV file; instead of one that is not right, what is wrong. Paths are relative to the table.

    Args:
        defaults: what cells say that are empty.

    Raises:
        BadTable: it is no table, or its columns are not the right ones.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadTable(f"{path} cannot be read as a table in UTF-8 ({error})") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        rows = list(reader)
    except csv.Error as error:  # such as a quote that is never closed, behind which all rows would be one cell
        raise BadTable(f"{path} cannot be read as a table: line {reader.line_num}: {error}") from error
    header = [name.strip().lower() for name in rows[0]] if rows else []
    known = columns(kind)
    required = [column_of(name) for name, field in kind.model_fields.items() if field.is_required()]
    faults = {
        "has columns twice": sorted({repr(name) for name in header if header.count(name) > 1}),
        "lacks the columns": [name for name in required if name not in header],
        "has columns that are not known": [repr(name) for name in header if name not in known],
    }
    if any(faults.values()):
        said = " and ".join(f"{fault}: {', '.join(names)}" for fault, names in faults.items() if names)
        raise BadTable(f"{path} {said}. It may have: {', '.join(known)}, with a comma between two of them.")
    jobs: list[AnyRequest | JobFailed] = []
    for number, row in enumerate(rows[1:], 2):
        if not any(cell.strip() for cell in row):
            continue
        try:
            if len(row) > len(header):
                raise JobFailed('it has more cells than there are columns; put text with commas in it into "…"')
            cells = {name: cell.strip() for name, cell in zip(header, row, strict=False) if cell.strip()}
            jobs.append(job_of({**defaults, **cells, "where": f"row {number}"}, kind, path.parent))
        except JobFailed as error:
            jobs.append(JobFailed(f"row {number}: {error}"))
    return jobs


def job_of(cells: Mapping[str, object], kind: type[AnyRequest], folder: Path) -> AnyRequest:
    """Returns the job that cells say, with paths relative to a folder.

    Raises:
        JobFailed: a cell is not right.
    """
    try:
        return kind.model_validate(cells, context=folder)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
    says = "it is empty" if fault["type"] == "missing" else fault["msg"].removeprefix("Value error, ")
    if not fault["loc"]:
        raise JobFailed(says)
    column = str(fault["loc"][0])
    there = f" (it is '{cells[column]}')" if cells.get(column) else ""
    raise JobFailed(f"the column '{column}': {says[:1].lower()}{says[1:]}{there}")
