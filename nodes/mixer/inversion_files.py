"""Save Inversion and Load Inversion: inversions kept in files."""

import os

import folder_paths
import safetensors
import safetensors.torch
import torch
from comfy_api.latest import io
from typing_extensions import override

from ...pnpmix.mixer.inversion import Inversion
from ..host.checks import BadInput
from ..host.types import CATEGORY, InversionType, InvertedLatent, schema

FORMAT = "pnp-mix inversion 1"


def inversions_directory() -> str:
    return os.path.join(folder_paths.get_output_directory(), "inversions")


def saved_inversions() -> list[str]:
    files, _ = folder_paths.recursive_search(inversions_directory())
    return sorted(file.replace(os.sep, "/") for file in files if file.endswith(".safetensors"))


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
        )

    @classmethod
    @override
    def execute(cls, inversion: InvertedLatent, filename_prefix: str) -> io.NodeOutput:
        base = inversions_directory()
        try:
            folder, name, counter, _, _ = folder_paths.get_save_image_path(filename_prefix, base)
        except OSError:
            raise
        except Exception as error:  # ComfyUI raises nothing more specific
            raise BadInput(
                "Save Inversion", "filename_prefix", f"'{filename_prefix}' is outside {base}.", "Use a plain name."
            ) from error
        tensors = {key: x.contiguous() for key, x in inversion.inversion._asdict().items() if key != "seed"}
        metadata = {
            "format": FORMAT,
            "family": inversion.family,
            "seed": str(inversion.inversion.seed),
            **inversion.settings,
        }
        safetensors.torch.save_file(tensors, os.path.join(folder, f"{name}_{counter:05}_.safetensors"), metadata)
        return io.NodeOutput()


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
        return os.path.getmtime(saved_inversion(file)) if file in saved_inversions() else None

    @classmethod
    @override
    def execute(cls, file) -> io.NodeOutput:
        return io.NodeOutput(read_inversion(saved_inversion(file)))


def saved_inversion(file: str) -> str:
    """The path of a file of the list; no other file is ever opened."""
    if file not in saved_inversions():
        fault = f"'{file}' is not in {inversions_directory()}."
        raise BadInput("Load Inversion", "file", fault, "Save an inversion, then press R.")
    return os.path.join(inversions_directory(), file)


def read_inversion(path: str) -> InvertedLatent:
    name = os.path.basename(path)
    remedy = "Make it again with DDPM Invert and Save Inversion."
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 no dict
    except safetensors.SafetensorError as error:
        raise BadInput("Load Inversion", "file", f"{name} is damaged or cut short ({error}).", remedy) from error

    seed, family = metadata.pop("seed", ""), metadata.pop("family", None)
    is_inversion = metadata.pop("format", None) == FORMAT and family is not None and seed.isdecimal()
    if not is_inversion or set(tensors) != {"sigmas", "trajectory", "eps"}:
        raise BadInput("Load Inversion", "file", f"{name} is not an inversion.", remedy)
    sigmas, trajectory, eps = (tensors[key].float() for key in ("sigmas", "trajectory", "eps"))
    fits = eps.ndim == 4 and sigmas.shape == (len(eps) + 1,) and trajectory.shape == (len(eps) + 1, *eps.shape[1:])
    if not fits or not all(torch.isfinite(x).all() for x in (sigmas, trajectory, eps)):
        raise BadInput("Load Inversion", "file", f"{name} holds shapes or values that do not fit together.", remedy)
    return InvertedLatent(Inversion(sigmas, trajectory, eps, int(seed)), family, metadata)


NODES = [PnPMixSaveInversion, PnPMixLoadInversion]
