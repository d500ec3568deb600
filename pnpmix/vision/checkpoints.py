"""Checkpoint files: what they claim is held against what they hold, and the tensors of TorchScript archives.

An archive is read as data: nothing in it is run, and it takes no more memory than it has bytes on the disk.
"""

import math
import os
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
MAX_OBJECTS = 4 * 1024**2  # bytes of data.pkl, which names the tensors; 136 KB in big-lama.pt
MAX_NAMES = 1_000_000  # attributes of all modules
MAX_NAME = 300  # characters of a tensor's name


class Record(NamedTuple):
    """A storage: `length` numbers in the archive's entry data/<key>."""

    dtype: torch.dtype
    key: str
    length: int


class View(NamedTuple):
    """A tensor: which numbers of a record it has."""

    record: Record
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class Module:
    """An object of the archive: its attributes, whatever its class is."""

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}


def is_torchscript(path: str | Path) -> bool:
    """Whether the file is an archive as torch.jit.save writes it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def check_file(path: str | Path) -> None:
    """Refuses a checkpoint that would take more memory than it has bytes on the disk.

    Raises:
        ValueError: it is sparse, or an archive whose entries are compressed or share bytes.
        zipfile.BadZipFile: it is a damaged archive.
    """
    size = os.path.getsize(path)
    if written_bytes(path) < size / 2:
        raise ValueError("most of it was never written to the disk")
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        # TorchScript's code is compressed; it is never read
        entries = [entry for entry in archive.infolist() if entry.filename.split("/")[1:2] != ["code"]]
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise ValueError(f"{entry.filename} is compressed")
    if sum(entry.file_size for entry in entries) > size:
        raise ValueError("its entries share bytes")


def written_bytes(path: str | Path) -> int:
    """Of a file, without the holes of a sparse one; where the system cannot tell there are none."""
    with open(path, "rb", buffering=0) as file:
        size, written, end = file.seek(0, os.SEEK_END), 0, 0
        if not hasattr(os, "SEEK_DATA"):  # Windows
            return size
        while end < size:
            try:
                start = file.seek(end, os.SEEK_DATA)
            except OSError:  # nothing but a hole follows
                break
            end = file.seek(start, os.SEEK_HOLE)
            written += end - start
    return written


def read_torchscript(path: str | Path) -> dict[str, Tensor]:
    """What torch.jit.load(path).state_dict() gives, of a file that `check_file` passes.

    Raises:
        pickle.UnpicklingError: it holds more than modules and tensors, or tensors that its records do not have.
        zipfile.BadZipFile: it is damaged or cut short.
    """
    with zipfile.ZipFile(path) as archive:
        (data,) = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        if archive.getinfo(data).file_size > MAX_OBJECTS:
            raise pickle.UnpicklingError(f"{data} has more than {MAX_OBJECTS} bytes")
        views = dict(views_of(read_objects(archive.read(data))))
        records = {view.record for view in views.values()}
        if len({record.key for record in records}) < len(records):
            raise pickle.UnpicklingError("it describes a record in two ways")
        storages = {record.key: read_record(archive, data.removesuffix(".pkl"), record) for record in records}
    return {name: as_tensor(view, storages[view.record.key]) for name, view in views.items()}


def read_record(archive: zipfile.ZipFile, folder: str, record: Record) -> Tensor:
    """The (length,) numbers of a storage."""
    if record.length == 0:
        return torch.empty(0, dtype=record.dtype)
    entry = archive.getinfo(f"{folder}/{record.key}")
    if entry.file_size != record.length * record.dtype.itemsize:
        raise pickle.UnpicklingError(f"{entry.filename} has {entry.file_size} bytes, not {record.length} numbers")
    return torch.frombuffer(bytearray(archive.read(entry)), dtype=record.dtype)


def as_tensor(view: View, storage: Tensor) -> Tensor:
    last = view.offset + sum((side - 1) * step for side, step in zip(view.size, view.stride, strict=True))
    if math.prod(view.size) > 0 and not 0 <= view.offset <= last < len(storage):
        raise pickle.UnpicklingError(f"a tensor reaches beyond the {len(storage)} numbers of its record")
    return torch.as_strided(storage, view.size, view.stride, view.offset)


def views_of(root: Module) -> Iterator[tuple[str, View]]:
    """(name, tensor) pairs of a module and all below it; a module in two places is named twice."""
    pending, seen = [("", root)], 0
    while pending:
        prefix, module = pending.pop()
        seen += len(module.attributes)
        for name, value in module.attributes.items():
            if seen > MAX_NAMES or len(prefix) + len(name) > MAX_NAME:
                raise pickle.UnpicklingError("its modules hold each other without end")
            if isinstance(value, View):
                yield prefix + name, value
            elif isinstance(value, Module):
                pending.append((f"{prefix}{name}.", value))


def read_objects(data: bytes) -> Any:
    """The object that a pickle describes, in the instructions that torch.jit.save writes.

    Python's own unpickler makes room for whatever memo index it is told of, and calls what it is told to call.

    Raises:
        pickle.UnpicklingError: it has other instructions, or names what is no part of a model.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def cut(start: int) -> list[Any]:
        items = stack[start:]
        del stack[start:]
        return items

    value: Any
    for instruction, value, _ in pickletools.genops(data):
        match instruction.name:
            case "PROTO" | "STOP":
                pass
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE":
                stack.append(value)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[instruction.name])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(cut(-int(instruction.name[-1]))))
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(cut(marks.pop())))
            case "APPEND" | "APPENDS":
                items = cut(-1 if instruction.name == "APPEND" else marks.pop())
                stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                items = cut(-2 if instruction.name == "SETITEM" else marks.pop())
                stack[-1].update(pairs(items))
            case "BINPUT" | "LONG_BINPUT":
                memo[value] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case "GLOBAL":
                stack.append(known(*value.split(" ")))
            case "REDUCE" | "NEWOBJ":
                make, arguments = cut(-2)
                stack.append(make(*arguments))
            case "BUILD":
                module, attributes = cut(-2)
                stack.append(with_attributes(module, attributes))
            case "BINPERSID":
                stack.append(record_of(*stack.pop()))
            case other:
                raise pickle.UnpicklingError(f"it has the instruction {other}")
    return stack[-1]


def known(module: str, name: str) -> Callable | torch.dtype:
    """What a name in the archive stands for here."""
    if module.startswith("__torch__"):
        return Module
    if module == "torch" and name in STORAGES:
        return STORAGES[name]
    if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
        return view_of
    if (module, name) == ("collections", "OrderedDict"):
        return lambda: {}
    if module == "torch.jit._pickle":
        return lambda value, *_: value  # typed lists and dicts
    raise pickle.UnpicklingError(f"it holds {module}.{name}")


def pairs(items: list) -> Iterator[tuple[Any, Any]]:
    """Keys and values in turn. A tuple as a key could hold itself so often that its hash never ends."""
    if any(isinstance(key, tuple) for key in items[::2]):
        raise pickle.UnpicklingError("a key is a tuple")
    return zip(items[::2], items[1::2], strict=True)


def with_attributes(module: Any, attributes: Any) -> Module:
    if not isinstance(module, Module) or not isinstance(attributes, dict):
        raise pickle.UnpicklingError("attributes are set on what is no module")
    module.attributes = attributes
    return module


def record_of(kind: Any, dtype: Any, key: Any, device: Any, length: Any) -> Record:
    if not isinstance(dtype, torch.dtype) or not isinstance(key, str) or not isinstance(length, int):
        raise pickle.UnpicklingError("a record is not described as one")
    return Record(dtype, key, length)


def view_of(record: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> View:
    if not isinstance(record, Record):
        raise pickle.UnpicklingError("a tensor has no record")
    return View(record, offset, size, stride)
