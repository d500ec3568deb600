"""The format safetensors, and the one check of what an entry holds."""

import json
import math
import os
import struct
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import torch
from pydantic import BaseModel, Field, TypeAdapter
from torch import Tensor

from .pickles import check_holes, read_pickle

MAX_HEADER = 32 * 1024**2  # bytes; of a checkpoint with ten thousand entries 1 MB
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
SAFETENSORS = (".safetensors", ".sft")
METADATA = "__metadata__"

Count = Annotated[int, Field(strict=True, ge=0, lt=2**48)]


class Entry(BaseModel):
    """A tensor in the header of a safetensors file."""

    dtype: str
    shape: list[Count] = Field(max_length=16)
    data_offsets: tuple[Count, Count]


ENTRIES, TEXTS = TypeAdapter(dict[str, Entry]), TypeAdapter(dict[str, str])


def read_file(path: str | Path) -> Any:
    """Returns the content of a file of tensors in either format, in memory of its own.

    Raises:
        OSError: it cannot be read.
        Exception: of almost any kind, where it is damaged or something else.
    """
    if str(path).lower().endswith(SAFETENSORS):
        return read_safetensors(path)[0]
    return read_pickle(path)


def read_safetensors(
    path: str | Path, wanted: Callable[[dict[str, str]], bool] = lambda metadata: True
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns tensors and metadata of a safetensors file.

    In memory of their own: a map of the file, as the package safetensors makes it, ends the whole process where the
    file is cut short or written anew in place.

    Args:
        wanted: of its metadata; of others the tensors, perhaps many GB, come without their numbers (device meta).

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, cut short, or would take more memory than it has bytes on the disk.
    """
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", exactly(file, 8))
        if length > MAX_HEADER:
            raise ValueError(f"its header has {length} bytes, not at most {MAX_HEADER}")
        header = json.loads(exactly(file, length))
        if not isinstance(header, dict):
            raise ValueError("its header is no dictionary")
        metadata = TEXTS.validate_python(header.pop(METADATA, None) or {}, strict=True)
        entries, start = ENTRIES.validate_python(header), 8 + length
        check_places(entries, os.fstat(file.fileno()).st_size - start)
        if not wanted(metadata):
            empty = partial(torch.empty, device="meta")
            return {name: empty(x.shape, dtype=DTYPES[x.dtype]) for name, x in entries.items()}, metadata
        check_holes(file)
        return {name: read_entry(file, start, entry) for name, entry in entries.items()}, metadata


def exactly(file: BinaryIO, count: int) -> bytes:
    """Reads so many bytes."""
    data = file.read(count)
    if len(data) != count:
        raise ValueError("it is cut short")
    return data


def check_places(entries: dict[str, Entry], size: int) -> None:
    """Refuses tensors that leave gaps, share bytes, or are not as large as their bytes."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda pair: pair[1].data_offsets):
        first, last = entry.data_offsets
        if entry.dtype not in DTYPES:
            raise ValueError(f"entry '{name}' has numbers of the type {entry.dtype}, which is not known")
        if first != end or last - first != math.prod(entry.shape) * DTYPES[entry.dtype].itemsize:
            raise ValueError(f"entry '{name}' of shape {tuple(entry.shape)} has the bytes {first} to {last}")
        end = last
    if end != size:
        raise ValueError(f"it has {size} bytes of numbers, its header says {end}")


def read_entry(file: BinaryIO, start: int, entry: Entry) -> Tensor:
    """Returns the tensor of an entry."""
    first, last = entry.data_offsets
    x = torch.empty(last - first, dtype=torch.uint8)
    file.seek(start + first)
    if last > first and file.readinto(x.numpy()) != last - first:  # type: ignore[attr-defined]
        raise ValueError("it is cut short")
    return x.view(DTYPES[entry.dtype]).reshape(entry.shape)


def is_plain(x: Tensor) -> bool:
    """Tells whether the file holds each number of a tensor: not sparse, without data, or one number repeated."""
    dense = x.layout == torch.strided and not x.is_meta and not x.is_nested and not x.is_quantized
    return dense and x.numel() * x.element_size() <= x.untyped_storage().nbytes()


def described(x: object, name: str, shape: Sequence[int | None] | None = None) -> Tensor:
    """Returns an entry that holds at least one floating-point number, all of them finite.

    Args:
        shape: None for a side of any length; without it any shape at all.

    Raises:
        ValueError: names the entry and says what was expected.
    """
    if not isinstance(x, Tensor):
        raise ValueError(f"entry '{name}' is a {type(x).__name__}, a tensor was expected")
    if not is_plain(x):
        raise ValueError(f"entry '{name}' is no plain tensor")
    if not x.is_floating_point():
        raise ValueError(f"entry '{name}' has numbers of type {x.dtype}, floating-point ones were expected")
    sides = shape is None or (
        x.ndim == len(shape) and all(side in (own, None) for own, side in zip(x.shape, shape, strict=True))
    )
    if not sides or x.numel() == 0:
        expected = "at least one number" if shape is None else " × ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"entry '{name}' has shape {tuple(x.shape)}, expected: {expected or 'a single number'}")
    if not torch.isfinite(x.float()).all():
        raise ValueError(f"entry '{name}' contains NaN or infinity")
    return x.detach()
