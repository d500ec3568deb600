"""Pickles of torch give their tensors, and nothing in them is run."""

import json
import os
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from pnpmix.files.pickles import read_pickle
from pnpmix.files.tensors import read_file
from torch import nn


class Odd(nn.Module):
    """Shared, transposed, empty and integer tensors, and attributes that are none."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 3), nn.BatchNorm1d(3)])
        self.shared = self.layers[0].weight
        self.turned = nn.Parameter(torch.randn(3, 4).t())
        self.empty = nn.Parameter(torch.zeros(0))
        self.register_buffer("count", torch.tensor([1, 2]))
        self.names, self.settings, self.nothing = ["a", "b"], {"x": 1.0}, None

    def forward(self, x):
        return self.layers[1](self.layers[0](x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_scripted_archive(tmp_path, dtype):
    path = tmp_path / "odd.pt"
    torch.jit.script(Odd().to(dtype)).save(path)
    same_state(read_pickle(path), torch.jit.load(path).state_dict())


def test_traced_archive(tmp_path):
    path = tmp_path / "traced.pt"
    torch.jit.trace(Odd().eval(), torch.rand(4, 2)).save(path)
    same_state(read_pickle(path), torch.jit.load(path).state_dict())


def same_state(ours: dict, theirs: dict) -> None:
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor)


CONTENT = {
    "model": {"a": torch.arange(6.0).reshape(2, 3), "half": torch.ones(2, dtype=torch.float16)},
    "turned": torch.arange(6).reshape(2, 3).t(),
    "learned": nn.Parameter(torch.ones(2)),
    "empty": torch.zeros(0, 3),
    "list": [torch.zeros(1), "text", None, True, -7, 2.5, 10**12, 2**70, (1, torch.ones(2).bfloat16())],
    "state": nn.Linear(2, 3).state_dict(),  # with attributes
}


def same(ours, theirs) -> bool:
    if isinstance(theirs, torch.Tensor):
        return ours.dtype == theirs.dtype and torch.equal(ours, theirs.detach())
    if isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(same(ours[key], x) for key, x in theirs.items())
    if isinstance(theirs, (list, tuple)):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return ours == theirs


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("new", [True, False])
def test_what_torch_saves_is_read(tmp_path, protocol, new):
    """Also as torch before 1.6 did."""
    path = tmp_path / "plain.pth"
    torch.save(CONTENT, path, pickle_protocol=protocol, _use_new_zipfile_serialization=new)
    assert same(read_pickle(path), CONTENT)


def test_what_trainers_leave_beside_the_weights_is_passed_over(tmp_path):
    torch.save({"loss": np.float64(0.5), "state_dict": {"a": torch.ones(2)}}, tmp_path / "trained.ckpt")
    assert read_pickle(tmp_path / "trained.ckpt")["state_dict"]["a"].tolist() == [1, 1]


def test_an_old_file_cut_short_is_refused(tmp_path):
    torch.save({"a": torch.zeros(100)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "old.pth").read_bytes()
    for length in (0, 10, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "old.pth").write_bytes(whole[:length])
        with pytest.raises(Exception):  # noqa: B017 of almost any kind
            read_pickle(tmp_path / "old.pth")


@pytest.mark.parametrize("kind", ["Tensor", "FloatStorage", "FloatTensor"])
def test_a_pickle_cannot_ask_for_memory(tmp_path, kind):
    """A few bytes for which torch.load itself makes a tensor of 400 MB, told to read weights only."""
    objects = b"}" + text("a") + b"ctorch\n" + kind.encode() + b"\n" + number(10**8) + b"\x85Rs"
    tracemalloc.start()
    with pytest.raises((pickle.UnpicklingError, TypeError)):
        read(tmp_path, objects)
    assert tracemalloc.get_traced_memory()[1] < 10**6, "bytes"
    tracemalloc.stop()


def test_code_in_an_archive_is_refused(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "attacked"),)

    with pytest.raises(pickle.UnpicklingError, match="mkdir"):
        read(tmp_path, pickle.dumps(Attack(), protocol=2))
    assert not (tmp_path / "attacked").exists()


MODULE, NEW = b"c__torch__\nM\n", b")\x81"  # a class; an instance of it, without arguments
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def number(value: int) -> bytes:
    return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)


def record(count: int, dtype: str = "Float") -> bytes:
    kind = b"ctorch\n" + dtype.encode() + b"Storage\n"
    return b"(" + text("storage") + kind + text("0") + text("cpu") + number(count) + b"tQ"


def tensor(record: bytes, size: int, offset: int = 0, stride: int = 1) -> bytes:
    return (
        TENSOR + b"(" + record + number(offset) + number(size) + b"\x85" + number(stride) + b"\x85" + b"\x89Nt" + b"R"
    )


def module(*attributes: bytes) -> bytes:
    return MODULE + NEW + b"}(" + b"".join(attributes) + b"ub"


def read(folder: Path, objects: bytes, numbers: bytes = bytes(16), compression: int = zipfile.ZIP_STORED) -> dict:
    """The tensors of an archive with this data.pkl and one record."""
    path = folder / "archive.pt"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + objects.removeprefix(b"\x80\x02").rstrip(b".") + b".")
        archive.writestr("archive/data/0", numbers)
        archive.writestr("archive/constants.pkl", b"")
    return read_pickle(path)


def test_the_archives_of_these_tests_are_read(tmp_path):
    numbers = torch.arange(4.0)
    objects = module(text("a"), tensor(record(4), 4), text("b"), tensor(record(4), 2, 1, 2))
    tensors = read(tmp_path, objects, numbers.numpy().tobytes())
    assert tensors["a"].tolist() == [0, 1, 2, 3] and tensors["b"].tolist() == [1, 3]
    assert tensors["a"].untyped_storage().data_ptr() == tensors["b"].untyped_storage().data_ptr(), "read once"


def test_a_tiny_archive_takes_no_memory(tmp_path):
    """An index of the memo, for which Python's own unpickler takes 4 GB."""
    tracemalloc.start()
    assert read(tmp_path, MODULE + NEW + b"}br" + (0x0FFFFFFF).to_bytes(4, "little")) == {}
    assert (tmp_path / "archive.pt").stat().st_size < 500
    assert tracemalloc.get_traced_memory()[1] < 10**6, "bytes"
    tracemalloc.stop()


def deep_tuple() -> bytes:
    """A tuple that holds itself twice, sixty times over: to hash it takes 2^60 steps."""
    return b")" + b"".join(b"q" + bytes([k]) + b"h" + bytes([k]) + b"\x86" for k in range(60))


def deep_modules(levels: int) -> bytes:
    """Each holds the next one twice, so that there are 2^levels names."""
    objects = module(text("x"), tensor(record(4), 4))
    for k in range(levels):
        lower = b"h" + bytes([k])
        objects += b"q" + bytes([k]) + module(text("a"), lower, text("b"), lower)
    return objects


BROKEN = {
    "reaches beyond": module(text("a"), tensor(record(4), 5)),
    "reaches beyond the 4": module(text("a"), tensor(record(4), 4, offset=-1)),
    "of its record": module(text("a"), tensor(record(4), 2, stride=4)),
    "16 bytes, not 5 numbers": module(text("a"), tensor(record(5), 1)),
    "not 1000000000000 numbers": module(text("a"), tensor(record(10**12), 1)),
    "in two ways": module(text("a"), tensor(record(4), 1), text("b"), tensor(record(4, "Int"), 1)),
    "key is a tuple": module(deep_tuple(), number(1)),
    "not described": module(text("a"), record(4).replace(text("0"), deep_tuple())),
    "no module": TENSOR + b"}b",
    "BINBYTES": b"B" + (0).to_bytes(4, "little"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_an_archive_that_claims_what_it_does_not_hold_is_refused(tmp_path, fault):
    with pytest.raises(pickle.UnpicklingError, match=fault):
        read(tmp_path, BROKEN[fault])


def test_modules_that_hold_each_other_come_to_an_end(tmp_path):
    around = MODULE + NEW + b"q\x00}(" + text("self") + b"h\x00" + text("x") + tensor(record(4), 4) + b"ub"
    for objects in (around, deep_modules(30)):
        with pytest.raises(pickle.UnpicklingError, match="without end"):
            read(tmp_path, objects)
    assert len(read(tmp_path, deep_modules(3))) == 8


def test_a_compressed_archive_is_refused(tmp_path):
    with pytest.raises(ValueError, match="data.pkl is compressed"):
        read(tmp_path, module(), bytes(10**6), zipfile.ZIP_DEFLATED)


def test_entries_that_share_bytes_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "shared.pth", "w") as archive:
        archive.writestr("shared/data/0", bytes(1000))
        archive.filelist += archive.filelist * 9
    with pytest.raises(ValueError, match="share bytes"):
        read_pickle(tmp_path / "shared.pth")


@pytest.mark.skipif(not hasattr(os, "SEEK_DATA"), reason="this system does not tell of holes")
def test_a_file_that_is_mostly_holes_is_refused(tmp_path):
    entry = {"dtype": "U8", "shape": [10**12], "data_offsets": [0, 10**12]}
    header = json.dumps({"x": entry}).encode()
    for name in ("sparse.pth", "sparse.safetensors"):
        (tmp_path / name).write_bytes(len(header).to_bytes(8, "little") + header)
        os.truncate(tmp_path / name, 8 + len(header) + 10**12)
        with pytest.raises(ValueError, match="never written"):
            read_file(tmp_path / name)
