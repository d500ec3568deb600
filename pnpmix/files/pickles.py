"""Pickles of tensors, as torch.save and torch.jit.save write them.

They are read as data: nothing in them is run, and they take no more memory than they have bytes on the disk.
"""

import io
import math
import os
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

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
# What trainers leave beside the weights. It stays an object without any meaning
LEFT_BESIDE = {
    ("_codecs", "encode"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"),
}
MAX_OBJECTS = 4 * 1024**2  # bytes of the pickle, which names the tensors; 136 KB in big-lama.pt
MAX_DEPTH = 20  # dictionaries in dictionaries
LEGACY = 0x1950A86A20F9469CFC6C  # the number that files of torch before 1.6 begin with
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

    def __init__(self, *_: Any) -> None:
        self.attributes: dict[str, Any] = {}


def check_holes(file: BinaryIO) -> None:
    """Refuses a file that would take more memory than it has bytes on the disk.

    Raises:
        ValueError: it is sparse.
    """
    if written_bytes(file) < os.fstat(file.fileno()).st_size / 2:
        raise ValueError("most of it was never written to the disk")


def written_bytes(file: BinaryIO) -> int:
    """Returns a file's bytes without the holes of a sparse one; all of them where the system cannot tell."""
    handle, written, end = file.fileno(), 0, 0
    place = os.lseek(handle, 0, os.SEEK_CUR)
    size = os.fstat(handle).st_size
    if not hasattr(os, "SEEK_DATA"):  # Windows
        return size
    while end < size:
        try:
            start = os.lseek(handle, end, os.SEEK_DATA)
        except OSError:  # nothing but a hole follows
            break
        end = os.lseek(handle, start, os.SEEK_HOLE)
        written += end - start
    os.lseek(handle, place, os.SEEK_SET)  # where the file's buffer believes to be
    return written


def check_archive(archive: zipfile.ZipFile, size: int) -> None:
    """Refuses archives that would take more memory than bytes on the disk.

    Raises:
        ValueError: entries are compressed or share bytes.
    """
    # TorchScript's code is compressed; it is never read
    entries = [entry for entry in archive.infolist() if entry.filename.split("/")[1:2] != ["code"]]
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise ValueError(f"{entry.filename} is compressed")
    if sum(entry.file_size for entry in entries) > size:
        raise ValueError("its entries share bytes")


def read_pickle(path: str | Path) -> Any:
    """Returns what torch.load(path) gives, of tensors, numbers and texts in dictionaries and lists.

    Of TorchScript it is the state_dict().

    Raises:
        pickle.UnpicklingError: it holds more than that, or tensors that its records do not have.
        zipfile.BadZipFile, ValueError: it is damaged, cut short, or would take more memory than bytes on the disk.
        Exception: of almost any kind, where the pickle itself is damaged.
    """
    with open(path, "rb") as file:
        check_holes(file)
        if not zipfile.is_zipfile(file):
            file.seek(0)  # where the search for an archive left it
            return read_legacy(file)
        with zipfile.ZipFile(file) as archive:
            check_archive(archive, os.fstat(file.fileno()).st_size)
            return read_archive(archive)


def read_archive(archive: zipfile.ZipFile) -> Any:
    """Reads a zip archive of torch.save, or the state_dict() of TorchScript."""
    (data,) = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
    folder = data.removesuffix(".pkl")
    order = f"{folder.removesuffix('data')}byteorder"
    if order in archive.namelist() and archive.read(order) != b"little":
        raise pickle.UnpicklingError("its bytes are in another order")
    records: dict[str, Record] = {}
    content = read_objects(io.BytesIO(archive.read(data)), records)
    storages: dict[str, Tensor] = {}

    def storage(record: Record) -> Tensor:
        if record.key not in storages:
            storages[record.key] = read_record(archive, folder, record)
        return storages[record.key]

    if isinstance(content, Module):
        return {name: as_tensor(view, storage(view.record)) for name, view in views_of(content)}
    return filled(content, storage)


def read_legacy(file: BinaryIO) -> Any:
    """Reads a file of torch before 1.6: pickles one after another, then the records."""
    if read_objects(file) != LEGACY:
        raise pickle.UnpicklingError("it is no file of torch")
    _, machine = read_objects(file), read_objects(file)
    if not machine["little_endian"]:
        raise pickle.UnpicklingError("its bytes are in another order")
    records: dict[str, Record] = {}
    content, keys = read_objects(file, records), read_objects(file)
    storages = {}
    for key in keys:
        record, (length,) = records[key], struct.unpack("<q", file.read(8))
        if length != record.length:
            raise pickle.UnpicklingError(f"a record has {length} numbers, not {record.length}")
        storages[key] = as_numbers(file.read(length * record.dtype.itemsize), record)
    return filled(content, lambda record: storages[record.key])


def filled(content: Any, storage: Callable[[Record], Tensor]) -> Any:
    """Returns the content with its tensors, each dictionary and list once, however often it is held."""
    done: dict[int, Any] = {}

    def fill(value: Any, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise pickle.UnpicklingError("its dictionaries hold each other without end")
        if isinstance(value, View):
            return as_tensor(value, storage(value.record))
        if not isinstance(value, (dict, list, tuple)):
            return value
        if id(value) not in done:
            inside = value.values() if isinstance(value, dict) else value
            new = [fill(x, depth + 1) for x in inside]
            done[id(value)] = dict(zip(value, new, strict=True)) if isinstance(value, dict) else type(value)(new)
        return done[id(value)]

    return fill(content, 0)


def read_record(archive: zipfile.ZipFile, folder: str, record: Record) -> Tensor:
    """Returns the numbers (length,) of a storage."""
    if record.length == 0:
        return as_numbers(b"", record)
    entry = archive.getinfo(f"{folder}/{record.key}")
    if entry.file_size != record.length * record.dtype.itemsize:
        raise pickle.UnpicklingError(f"{entry.filename} has {entry.file_size} bytes, not {record.length} numbers")
    return as_numbers(archive.read(entry), record)


def as_numbers(data: bytes, record: Record) -> Tensor:
    """Returns the numbers (length,) in some bytes."""
    if len(data) != record.length * record.dtype.itemsize:
        raise pickle.UnpicklingError(f"a record has {len(data)} bytes, not {record.length} numbers")
    return torch.frombuffer(bytearray(data), dtype=record.dtype) if data else torch.empty(0, dtype=record.dtype)


def as_tensor(view: View, storage: Tensor) -> Tensor:
    """Returns a tensor of a storage, and refuses one that reaches beyond it."""
    last = view.offset + sum((side - 1) * step for side, step in zip(view.size, view.stride, strict=True))
    if math.prod(view.size) > 0 and not 0 <= view.offset <= last < len(storage):
        raise pickle.UnpicklingError(f"a tensor reaches beyond the {len(storage)} numbers of its record")
    return torch.as_strided(storage, view.size, view.stride, view.offset)


def views_of(root: Module) -> Iterator[tuple[str, View]]:
    """Yields (name, tensor) pairs of a module and all below it; a module in two places is named twice."""
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


def read_objects(file: BinaryIO, records: dict[str, Record] | None = None) -> Any:
    """Returns the object that the next pickle in a file describes, in the instructions that torch writes.

    Python's own unpickler makes room for whatever memo index it is told of, and calls what it is told to call; torch's
    calls what makes tensors of any size.

    Args:
        records: what it names is added here, by its key.

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
    start = file.tell()
    for instruction, value, _ in pickletools.genops(file):
        if file.tell() - start > MAX_OBJECTS:
            raise pickle.UnpicklingError(f"it has more than {MAX_OBJECTS} bytes beside its numbers")
        match instruction.name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(value)
            case "BINUNICODE" | "SHORT_BINUNICODE":
                value.encode()  # raises for half characters, which no log and no message takes
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
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case "GLOBAL":
                stack.append(known(*value.split(" ")))
            case "STACK_GLOBAL":
                stack.append(known(*cut(-2)))
            case "REDUCE" | "NEWOBJ":
                make, arguments = cut(-2)
                stack.append(make(*arguments))
            case "BUILD":
                module, attributes = cut(-2)
                stack.append(with_attributes(module, attributes))
            case "BINPERSID":
                record = record_of(*stack.pop())
                if records is None or records.setdefault(record.key, record) != record:
                    raise pickle.UnpicklingError("it describes a record in two ways")
                stack.append(record)
            case other:
                raise pickle.UnpicklingError(f"it has the instruction {other}")
    return stack[-1]


def known(module: str, name: str) -> Callable | torch.dtype:
    """Returns what a name in the pickle stands for here."""
    if module.startswith("__torch__") or (module, name) in LEFT_BESIDE:
        return Module
    if module == "torch" and name in STORAGES:
        return STORAGES[name]
    if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
        return view_of
    if (module, name) == ("torch._utils", "_rebuild_parameter"):
        return lambda view, *_: view
    if (module, name) == ("collections", "OrderedDict"):
        return dict
    if (module, name) == ("torch", "Size"):
        return tuple
    if module == "torch.jit._pickle":
        return lambda value, *_: value  # typed lists and dicts
    raise pickle.UnpicklingError(f"it holds {module}.{name}")


def pairs(items: list) -> Iterator[tuple[Any, Any]]:
    """Returns keys and values in turn. A tuple as a key could hold itself so often that its hash never ends."""
    if any(isinstance(key, tuple) for key in items[::2]):
        raise pickle.UnpicklingError("a key is a tuple")
    return zip(items[::2], items[1::2], strict=True)


def with_attributes(module: Any, attributes: Any) -> Module | dict:
    """Sets the attributes of a module."""
    if isinstance(module, dict):  # a state_dict() says which version of its classes it is of
        return module
    if not isinstance(module, Module):
        raise pickle.UnpicklingError("attributes are set on what is no module")
    module.attributes = attributes if isinstance(attributes, dict) else {}
    return module


def record_of(kind: Any, dtype: Any, key: Any, device: Any, length: Any, view: Any = None) -> Record:
    """Returns the storage that a pickle describes."""
    is_length = isinstance(length, int) and length >= 0
    if view is not None or not isinstance(dtype, torch.dtype) or not isinstance(key, str) or not is_length:
        raise pickle.UnpicklingError("a record is not described as one")
    return Record(dtype, key, length)


def view_of(record: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> View:
    """Returns the tensor that a pickle describes."""
    if not isinstance(record, Record):
        raise pickle.UnpicklingError("a tensor has no record")
    return View(record, offset, size, stride)
