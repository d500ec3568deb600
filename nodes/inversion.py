"""DDPM Invert, and inversions kept in files."""

import os

import comfy.model_management
import comfy.samplers
import folder_paths
import latent_preview
import safetensors
import safetensors.torch
import torch
from comfy_api.latest import io
from typing_extensions import override

from ..pnpmix.inversion import Inversion
from .checks import BadInput, check_channels, check_choice, check_conditioning, check_latent, check_model, model_family
from .sampling import MAX_ROWS, InvertSampler, RowGuider, acts_by_time
from .types import CATEGORY, InversionType, InvertedLatent, schema


class PnPMixDDPMInvert(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return schema(
            node_id="PnPMixDDPMInvert",
            search_aliases=[
                "inversion",
                "edit-friendly inversion",
                "ddpm inversion",
                "invert image",
                "noise maps",
                "pnp-mix",
            ],
            display_name="DDPM Invert",
            category=CATEGORY,
            description="Finds the noise that leads the model back to this picture (Edit-Friendly DDPM inversion).",
            inputs=[
                io.Model.Input(
                    "model", tooltip="SD 1.x, SD 2.x or SDXL checkpoint. Use the same one in the Mask Noise Mixer."
                ),
                io.Conditioning.Input("positive", tooltip="Prompt that describes the background."),
                io.Conditioning.Input("negative", tooltip="Negative prompt; it has no effect at cfg 1."),
                io.Latent.Input("latent", tooltip="The background, VAE-encoded. One picture."),
                io.Int.Input(
                    "steps",
                    default=100,
                    min=1,
                    max=1000,
                    tooltip="Steps of the whole noise schedule. More steps: finer changes, and more time.",
                ),
                io.Int.Input(
                    "skip_steps",
                    default=32,
                    min=0,
                    max=999,
                    tooltip="How many of the noisiest steps to leave out. Higher: closer to the background's "
                    "shapes, and faster; lower: more freedom for the concepts.",
                ),
                io.Float.Input(
                    "cfg",
                    default=3.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Classifier-free guidance of the background's predictions. 1 takes half the time.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed of the background's noise. Another seed: another variant of the concepts.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.SCHEDULER_NAMES,
                    default="ddim_uniform",
                    tooltip="How the steps are spread over the noise levels.",
                ),
            ],
            outputs=[
                InversionType.Output(display_name="inversion", tooltip="For the Mask Noise Mixer or Save Inversion.")
            ],
        )

    @classmethod
    @override
    def execute(cls, model, positive, negative, latent, steps, skip_steps, cfg, seed, scheduler) -> io.NodeOutput:
        node = "DDPM Invert"
        check_model(node, model)
        samples = check_latent(node, "latent", latent)
        check_channels(node, "latent", samples, model)
        for name, conditioning in (("positive", positive), ("negative", negative)):
            check_conditioning(node, name, conditioning)
        sigmas = falling_sigmas(model, scheduler, steps, skip_steps)

        guider = RowGuider(model, positive, negative, cfg)
        sampler = InvertSampler(seed, max_rows=1 if acts_by_time(model, [positive, negative]) else MAX_ROWS)
        callback = latent_preview.prepare_callback(model, len(sigmas) - 1)
        noise = torch.zeros((min(4, len(sigmas) - 1), *samples.shape[1:]))  # ComfyUI frees memory for this shape
        guider.sample(noise, samples, sampler, sigmas, callback=callback, seed=seed)

        settings = {"steps": steps, "skip_steps": skip_steps, "cfg": cfg, "scheduler": scheduler}
        settings = {name: str(value) for name, value in settings.items()}
        return io.NodeOutput(InvertedLatent(sampler.inversion, model_family(model), settings))


def falling_sigmas(model, scheduler: str, steps: int, skip_steps: int) -> torch.Tensor:
    """(steps - skip_steps + 1,) noise levels: the end of the whole schedule."""
    node = "DDPM Invert"
    if skip_steps >= steps:
        raise BadInput(node, "skip_steps", f"it leaves no step of {steps}.", f"Set it below {steps}, or raise steps.")
    check_choice(node, "scheduler", scheduler, comfy.samplers.SCHEDULER_NAMES)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps)
    sigmas = sigmas[-(steps - skip_steps + 1) :].float().cpu()
    if sigmas[-1] != 0 or len(sigmas) < 2 or (sigmas[1:] > sigmas[:-1]).any() or (sigmas[:-1] <= 0).any():
        raise BadInput(node, "scheduler", f"'{scheduler}' does not fall to 0 with {steps} steps.", "Use ddim_uniform.")
    return sigmas


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
