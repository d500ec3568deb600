"""TorchScript archives give their tensors, and nothing in them is run."""

import io
import os
import pickle
import zipfile

import pytest
import torch
from pnpmix.vision.checkpoints import is_torchscript, read_torchscript
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
    assert is_torchscript(path)
    same_state(read_torchscript(path), torch.jit.load(path).state_dict())


def test_traced_archive(tmp_path):
    path = tmp_path / "traced.pt"
    torch.jit.trace(Odd().eval(), torch.rand(4, 2)).save(path)
    same_state(read_torchscript(path), torch.jit.load(path).state_dict())


def same_state(ours: dict, theirs: dict) -> None:
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor)


def test_other_files_are_no_archives(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "plain.pth")
    (tmp_path / "text.pt").write_text("no model")
    assert not is_torchscript(tmp_path / "plain.pth")
    assert not is_torchscript(tmp_path / "text.pt")


def test_code_in_an_archive_is_refused(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "attacked"),)

    stream = io.BytesIO()
    pickle.dump(Attack(), stream)
    with zipfile.ZipFile(tmp_path / "attack.pt", "w") as archive:
        archive.writestr("attack/data.pkl", stream.getvalue())
        archive.writestr("attack/constants.pkl", b"")
    assert is_torchscript(tmp_path / "attack.pt")
    with pytest.raises(pickle.UnpicklingError, match="mkdir"):
        read_torchscript(tmp_path / "attack.pt")
    assert not (tmp_path / "attacked").exists()
