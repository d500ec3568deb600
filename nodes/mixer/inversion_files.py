"""Save Inversion and Load Inversion: inversions in files."""

import contextlib
import os
from typing import Annotated, Literal

import safetensors.torch
from comfy_api.latest import io, ui
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from typing_extensions import override

from ...pnpmix.files.tensors import described, read_safetensors
from ...pnpmix.files.texts import Name, Text
from ...pnpmix.mixer.inversion import Inversion
from ..common.checks import BadInput, falls_to_zero
from ..common.file_lists import FileList, output_folder, path_of, saved_files, validate
from ..common.files import save_new
from ..common.loading import reading
from ..common.messages import show
from ..common.types import CATEGORY, InversionType, InvertedLatent, schema

FORMAT = "pnp-mix inversion 1"
MAX_SEED = 2**64 - 1


def saved_inversions() -> FileList:
    """Returns the inversions in ComfyUI's output."""
    return saved_files("inversions", ".safetensors", "Save an inversion, then press R.")


class PnPMixSaveInversion(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return schema(
            node_id="PnPMixSaveInversion",
            search_aliases=["inversion", "keep inversion"],
            display_name="Save Inversion",
            category=CATEGORY,
            description="Saves an inversion to output/inversions, for later runs.",
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
        name = save_new(node, filename_prefix, output_folder("inversions"), ".safetensors", data)
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
            description="Loads an inversion from output/inversions.",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=saved_inversions().names,
                    tooltip="A file written by Save Inversion. Press R to refresh the list.",
                )
            ],
            outputs=[InversionType.Output(display_name="inversion", tooltip="For the Mask Noise Mixer.")],
        )

    @classmethod
    @override
    def validate_inputs(cls, file):
        return validate("Load Inversion", "file", file, saved_inversions())

    @classmethod
    @override
    def fingerprint_inputs(cls, file):
        with contextlib.suppress(BadInput, OSError):  # `execute` says what is wrong
            return os.path.getmtime(path_of("Load Inversion", "file", file, saved_inversions()))

    @classmethod
    @override
    def execute(cls, file) -> io.NodeOutput:
        return io.NodeOutput(read_inversion(path_of("Load Inversion", "file", file, saved_inversions())))


class Described(BaseModel):
    """The metadata of a saved inversion; further entries are the inputs of the node that made it."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Text]

    format: Literal[FORMAT]  # type: ignore[valid-type]
    family: Name
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)]


def read_inversion(path: str) -> InvertedLatent:
    """Reads a saved inversion, and refuses any other file."""
    node, name = "Load Inversion", os.path.basename(path)
    remedy = "Make it again with DDPM Invert and Save Inversion."
    with reading(node, "file", path, remedy):
        tensors, metadata = read_safetensors(path, lambda metadata: metadata.get("format") == FORMAT)
        if metadata.get("format") != FORMAT:
            raise BadInput(node, "file", f"{name} is not an inversion.", remedy)
        about = Described.model_validate(metadata)
        settings = {key: x for key, x in metadata.items() if key not in ("format", "family", "seed")}
        return InvertedLatent(inversion_of(tensors, about), about.family, settings)


def inversion_of(tensors: dict[str, Tensor], about: Described) -> Inversion:
    """Returns the inversion in a file's tensors.

    Raises:
        ValueError: says what does not fit.
    """
    expected = {"sigmas", "trajectory", "eps"}
    if set(tensors) != expected:
        raise ValueError(f"it has the entries {', '.join(sorted(tensors)) or 'none'}, expected: {', '.join(expected)}")
    eps = described(tensors["eps"], "eps", (None,) * 4).float()
    count, *shape = eps.shape
    trajectory = described(tensors["trajectory"], "trajectory", (count + 1, *shape)).float()
    sigmas = described(tensors["sigmas"], "sigmas", (count + 1,)).float()
    if not falls_to_zero(sigmas):
        raise ValueError("entry 'sigmas' does not fall to 0")
    return Inversion(sigmas, trajectory, eps, about.seed)


NODES = [PnPMixSaveInversion, PnPMixLoadInversion]
