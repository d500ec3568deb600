"""Save Inversion and Load Inversion: inversions kept in files."""

import contextlib
import json
import os

import folder_paths
import safetensors.torch
import torch
from comfy_api.latest import io, ui
from torch import Tensor
from typing_extensions import override

from ...pnpmix.mixer.inversion import Inversion
from ..host.checks import BadInput, falls_to_zero
from ..host.files import save_new
from ..host.messages import show
from ..host.types import CATEGORY, InversionType, InvertedLatent, schema

FORMAT = "pnp-mix inversion 1"
MAX_SEED = 2**64 - 1
MAX_HEADER = 10**8  # bytes; what safetensors itself allows


def inversions_directory() -> str:
    return os.path.join(folder_paths.get_output_directory(), "inversions")


def saved_inversions() -> list[str]:
    """Without pipes and devices of that name, which would never end."""
    base = inversions_directory()
    files, _ = folder_paths.recursive_search(base)
    files = (file for file in files if file.endswith(".safetensors") and os.path.isfile(os.path.join(base, file)))
    return sorted(file.replace(os.sep, "/") for file in files)


class PnPMixSaveInversion(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return schema(
            node_id="PnPMixSaveInversion",
            search_aliases=["inversion", "keep inversion"],
            display_name="Save Inversion",
            category=CATEGORY,
            description="Keeps an inversion in the folder inversions of ComfyUI's output for later runs.",
            inputs=[
                InversionType.Input("inversion", tooltip="Made by DDPM Invert."),
                io.String.Input(
                    "filename_prefix",
                    default="background",
                    tooltip="Start of the file's name; a number follows. A / makes a folder.",
                ),
            ],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @override
    def execute(cls, inversion: InvertedLatent, filename_prefix: str) -> io.NodeOutput:
        node = "Save Inversion"
        fields = inversion.inversion._asdict().items()
        tensors = {key: x.contiguous() for key, x in fields if isinstance(x, Tensor)}
        numbers = {key: str(x) for key, x in fields if not isinstance(x, Tensor)}
        metadata = {
            "format": FORMAT,
            "family": inversion.family,
            **inversion.settings,
            **numbers,
        }
        data = safetensors.torch.save(tensors, metadata)
        name = save_new(node, filename_prefix, inversions_directory(), ".safetensors", data)
        message = f"Saved as {name} ({len(data) / 1e6:.1f} MB). Load Inversion finds it; press R there."
        show(node, cls.hidden.unique_id, [message])
        return io.NodeOutput(ui=ui.PreviewText(message))


class PnPMixLoadInversion(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return schema(
            node_id="PnPMixLoadInversion",
            search_aliases=["inversion", "cached inversion"],
            display_name="Load Inversion",
            category=CATEGORY,
            description="Takes an inversion from the inversions folder of ComfyUI's output.",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=saved_inversions(),
                    tooltip="A file written by Save Inversion. Press R to refresh the list.",
                )
            ],
            outputs=[InversionType.Output(display_name="inversion", tooltip="For the Mask Noise Mixer.")],
        )

    @classmethod
    @override
    def validate_inputs(cls, file):
        if file is None:  # a linked value is not known yet; then `execute` is the first to see it
            return True
        try:
            saved_inversion(file)
        except BadInput as error:
            return str(error)
        return True

    @classmethod
    @override
    def fingerprint_inputs(cls, file):
        with contextlib.suppress(BadInput, OSError):  # `execute` says what is wrong
            return os.path.getmtime(saved_inversion(file))

    @classmethod
    @override
    def execute(cls, file) -> io.NodeOutput:
        return io.NodeOutput(read_inversion(saved_inversion(file)))


def saved_inversion(file: str) -> str:
    """The path of a file of the list; no other file is ever opened."""
    if file not in saved_inversions():
        fault = "no file is chosen." if file is None else f"{file!r} is not in {inversions_directory()}."
        raise BadInput("Load Inversion", "file", fault, "Save an inversion, then press R.")
    return os.path.join(inversions_directory(), file)


def read_inversion(path: str) -> InvertedLatent:
    name = os.path.basename(path)
    remedy = "Make it again with DDPM Invert and Save Inversion."
    try:
        tensors, metadata = read_tensors(path)
    except OSError as error:
        fault = f"{name} cannot be read ({error.strerror})."
        raise BadInput("Load Inversion", "file", fault, "Press R, and choose another.") from error
    except Exception as error:  # damage makes json, safetensors and torch raise almost anything
        fault = f"{name} is damaged or cut short ({type(error).__name__})."
        raise BadInput("Load Inversion", "file", fault, remedy) from error

    seed, family = metadata.pop("seed", ""), metadata.pop("family", None)
    has_seed = seed.isdecimal() and len(seed) <= len(str(MAX_SEED)) and int(seed) <= MAX_SEED
    is_inversion = metadata.pop("format", None) == FORMAT and family is not None and has_seed
    if not is_inversion or set(tensors) != {"sigmas", "trajectory", "eps"}:
        raise BadInput("Load Inversion", "file", f"{name} is not an inversion.", remedy)
    sigmas, trajectory, eps = (tensors[key].float() for key in ("sigmas", "trajectory", "eps"))
    shift = metadata.get("noise_shift", "0")  # older files have none
    with contextlib.suppress(ValueError):
        shift = float(shift)
    fits = eps.ndim == 4 and sigmas.shape == (len(eps) + 1,) and trajectory.shape == (len(eps) + 1, *eps.shape[1:])
    finite = torch.isfinite(trajectory).all() and torch.isfinite(eps).all()
    shifts = isinstance(shift, float) and 0 <= shift <= 1
    if not fits or eps.numel() == 0 or not finite or not falls_to_zero(sigmas) or not shifts:
        raise BadInput("Load Inversion", "file", f"{name} holds shapes or values that do not fit together.", remedy)
    inversion = Inversion(sigmas, trajectory, eps, int(seed), shift)
    return InvertedLatent(inversion, family, metadata)


def read_tensors(path: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file; no tensors if it is not in our format.

    In memory of their own: a map of the file, as safetensors makes it, ends the whole server when the file is cut.
    """
    with open(path, "rb") as file:
        length = file.read(8)
        header = file.read(min(int.from_bytes(length, "little"), MAX_HEADER))
        metadata = json.loads(header).get("__metadata__") or {}
        if metadata.get("format") != FORMAT:  # a checkpoint of many GB, perhaps
            return {}, {}
        return safetensors.torch.load(length + header + file.read()), metadata


NODES = [PnPMixSaveInversion, PnPMixLoadInversion]
