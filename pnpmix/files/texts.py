"""The kinds of text in file metadata, and what is wrong with one."""

import reprlib
import unicodedata
from typing import Annotated

from pydantic import AfterValidator, StringConstraints, ValidationError

MAX_NAME, MAX_TEXT = 300, 20_000  # characters


def printable(text: str) -> str:
    """Escapes half characters (Unicode's surrogates), which no log and no file takes."""
    return text.encode("utf-8", "backslashreplace").decode()


def odd_character(text: str) -> str | None:
    """Returns the first control or half character."""
    return next((x for x in text if unicodedata.category(x) in ("Cc", "Cs")), None)


def without_odd_characters(text: str) -> str:
    """Returns the text, and refuses control and half characters."""
    odd = odd_character(text)
    if odd is not None:
        raise ValueError(f"it contains {odd!r}")
    return text


Text = Annotated[str, StringConstraints(strict=True, max_length=MAX_TEXT)]
Label = Annotated[str, StringConstraints(strict=True, max_length=MAX_NAME), AfterValidator(without_odd_characters)]
Name = Annotated[Label, StringConstraints(min_length=1, pattern=r"\S")]


def first_fault(error: ValidationError) -> str:
    """Describes what is wrong with metadata: the entry, what was expected, and what is there."""
    fault = error.errors(include_url=False)[0]
    expected = fault["msg"].removeprefix("Value error, ")
    entry = ".".join(map(str, fault["loc"]))
    there = "" if fault["type"] == "missing" else f" (it is {reprlib.repr(fault['input'])})"
    return printable(f"entry '{entry}': {expected[:1].lower()}{expected[1:]}{there}")
