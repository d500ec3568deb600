"""The tensors of a TorchScript archive, read as data: nothing that the archive holds is run."""

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

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


class Module:
    """An object of the archive: its attributes, whatever its class is."""

    def __setstate__(self, state: dict) -> None:
        self.attributes = state


class ArchiveUnpickler(pickle.Unpickler):
    """Knows modules, lists and tensors, and refuses every other object."""

    def __init__(self, archive: zipfile.ZipFile, prefix: str):
        super().__init__(archive.open(f"{prefix}data.pkl"))
        self.archive, self.prefix = archive, prefix

    def find_class(self, module: str, name: str):
        if module.startswith("__torch__"):
            return Module
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return rebuild_tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle":
            return lambda value, *_: value  # typed lists and dicts
        raise pickle.UnpicklingError(f"it holds {module}.{name}")

    def persistent_load(self, record: tuple) -> Tensor:
        _, dtype, key, _, count = record
        if count == 0:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(bytearray(self.archive.read(f"{self.prefix}data/{key}")), dtype=dtype, count=count)


def rebuild_tensor(storage: Tensor, offset: int, size: tuple, stride: tuple, *_) -> Tensor:
    return torch.as_strided(storage, size, stride, offset)


def is_torchscript(path: str | Path) -> bool:
    """Whether the file is an archive as torch.jit.save writes it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: str | Path) -> dict[str, Tensor]:
    """What torch.jit.load(path).state_dict() gives.

    Raises:
        pickle.UnpicklingError: it holds more than modules and tensors.
        zipfile.BadZipFile: it is damaged or cut short.
    """
    with zipfile.ZipFile(path) as archive:
        (data,) = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        return dict(tensors_of(ArchiveUnpickler(archive, data.removesuffix("data.pkl")).load()))


def tensors_of(module: Module, prefix: str = ""):
    """(name, tensor) pairs, submodules after the module's own."""
    for name, value in module.attributes.items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, Module):
            yield from tensors_of(value, f"{prefix}{name}.")
