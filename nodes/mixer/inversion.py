"""DDPM Invert: the noise with which the model reproduces an image."""

import comfy.samplers
import latent_preview
import torch
from comfy_api.latest import io
from comfy_api.torch_helpers.torch_compile import COMPILE_KEY, TORCH_COMPILE_KWARGS
from torch import Tensor
from typing_extensions import override

from ...pnpmix.mixer.inversion import Inversion, ddpm_invert
from ...pnpmix.schedule import without_noisiest
from ..common.checks import (
    BadInput,
    check_channels,
    check_choice,
    check_latent,
    check_numbers,
    check_predictions,
    falls_to_zero,
    model_family,
)
from ..common.compiled import fully_guarded
from ..common.hooks import with_options
from ..common.memory import is_oom, room_for, rows_that_fit
from ..common.types import APPEARANCE, CATEGORY, DILUTION, EXPERT, InversionType, InvertedLatent, schema
from .checks import check_denoiser, check_positions, check_prompt, check_sigmas, is_timed, wrappers_of
from .families import noise_path, reads_one_level
from .guider import RowGuider
from .hooks.output_caches import new_cache

# Timesteps of an inversion in one call, at most: between calls progress, preview and Cancel get their turn.
MAX_ROWS = 16


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
            description="Finds the noise with which the model reproduces this image (edit-friendly DDPM inversion).",
            inputs=[
                io.Model.Input(
                    "model", tooltip="The checkpoint or diffusion model. Use the same one for the Mask Noise Mixer."
                ),
                io.Conditioning.Input("positive", tooltip="Prompt that describes the scene."),
                io.Conditioning.Input("negative", tooltip="Negative prompt; it has no effect at cfg 1."),
                io.Latent.Input("latent", tooltip="The scene image, VAE-encoded."),
                io.Int.Input(
                    "steps",
                    default=100,
                    min=1,
                    max=1000,
                    tooltip="Steps of the whole noise schedule. More: finer changes, slower.",
                ),
                io.Int.Input(
                    "skip_steps",
                    default=32,
                    min=0,
                    max=999,
                    tooltip="How many of the noisiest steps to skip. Higher: closer to the scene's shapes, faster; "
                    "lower: more freedom for the concepts.",
                ),
                io.Float.Input(
                    "cfg",
                    default=3.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Classifier-free guidance of the scene's predictions. At 1 inversion takes half as long.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed of the scene's noise. Another seed: another variant of the concepts.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.SCHEDULER_NAMES,
                    default="ddim_uniform",
                    tooltip="How the steps are spaced over the noise levels.",
                    **EXPERT,
                ),
                io.Sigmas.Input(
                    "sigmas",
                    optional=True,
                    tooltip="A noise schedule from any scheduler node, which must fall to 0. Wired, it is used instead "
                    "of steps and scheduler, which then have no effect; skip_steps counts its steps.",
                ),
            ],
            outputs=[
                InversionType.Output(display_name="inversion", tooltip="For the Mask Noise Mixer or Save Inversion.")
            ],
        )

    @classmethod
    @override
    def execute(
        cls, model, positive, negative, latent, steps, skip_steps, cfg, seed, scheduler, sigmas=None
    ) -> io.NodeOutput:
        node = "DDPM Invert"
        check_numbers(node, steps=steps, skip_steps=skip_steps, cfg=cfg, seed=seed)
        check_denoiser(node, model)
        samples = check_latent(node, "latent", latent)
        check_channels(node, "latent", samples, model)
        check_positions(node, model, samples)
        for name, conditioning in (("positive", positive), ("negative", negative)):
            check_prompt(node, name, conditioning, model)
        settings = {"skip_steps": skip_steps, "cfg": cfg}
        if sigmas is None:
            sigmas = falling_sigmas(model, scheduler, steps, skip_steps)
            settings |= {"steps": steps, "scheduler": scheduler}
        else:
            sigmas = remaining(check_sigmas(node, sigmas, model), len(sigmas) - 1, skip_steps)

        guider = RowGuider(model, positive, negative, cfg)
        one_by_one = acts_by_time(model, [positive, negative]) or reads_one_level(model)
        sampler = InvertSampler(seed, 1 if one_by_one else MAX_ROWS)
        callback = latent_preview.prepare_callback(model, len(sigmas) - 1)
        samples = guider.framed(samples)
        room = room_for(model, min(sampler.max_rows, len(sigmas) - 1), 1, samples.shape[1:])
        guider.sample(room, samples, sampler, sigmas, callback=callback, seed=seed)

        check_predictions(node, sampler.inversion.eps)

        settings = {name: str(value) for name, value in settings.items()}
        return io.NodeOutput(InvertedLatent(sampler.inversion, model_family(model), settings))


def falling_sigmas(model, scheduler: str, steps: int, skip_steps: int) -> torch.Tensor:
    """Returns the noise levels (N + 1,) of a scheduler, the end of the whole schedule."""
    node = "DDPM Invert"
    check_choice(node, "scheduler", scheduler, comfy.samplers.SCHEDULER_NAMES)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps)
    sigmas = remaining(sigmas.float().cpu(), steps, skip_steps)
    if not falls_to_zero(sigmas):
        raise BadInput(node, "scheduler", f"'{scheduler}' does not fall to 0 with {steps} steps.", "Use ddim_uniform.")
    return sigmas


def remaining(sigmas: torch.Tensor, steps: int, skip_steps: int) -> torch.Tensor:
    """Returns the end (N + 1,) of a schedule of `steps`, without those that are skipped, and refuses to skip all."""
    sigmas = without_noisiest(sigmas, steps, skip_steps) if skip_steps < steps else sigmas[-1:]
    if len(sigmas) < 2:
        fault, remedy = f"it leaves no step of {steps}.", f"Set it below {steps}, or raise steps."
        raise BadInput("DDPM Invert", "skip_steps", fault, remedy)
    return sigmas


class InvertSampler(comfy.samplers.Sampler):
    """Inverts the latent image (edit-friendly DDPM inversion) and leaves the result in `inversion`, on the CPU."""

    inversion: Inversion

    def __init__(self, seed: int, max_rows: int):
        self.seed, self.max_rows = seed, max_rows

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask=None, disable_pbar=False
    ):
        model_wrap.bring_conditionings(sigmas.device)
        model_options = fully_guarded(extra_args["model_options"], model_wrap.inner_model.diffusion_model)

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            # no timestep follows from another, so that nothing of one is of use to the next
            cache = new_cache(model_options["transformer_options"], model_wrap.inner_model.model_sampling)
            options = with_options(model_options, cache)
            return model_wrap(x, sigma, model_options=options, seed=extra_args["seed"])

        inversion = ddpm_invert(
            denoise,
            model_wrap.flat(latent_image)[0],
            sigmas,
            self.seed,
            timesteps_per_call=max(1, min(self.max_rows, rows_that_fit(model_wrap, noise.shape[1:]))),
            callback=lambda done, denoised: callback(done - 1, *[model_wrap.framed(denoised)] * 2, len(sigmas) - 1),
            is_oom=is_oom,
            path=noise_path(model_wrap.inner_model.model_sampling),
        )
        self.inversion = Inversion(
            inversion.sigmas.cpu(), inversion.trajectory.cpu(), inversion.eps.cpu(), inversion.seed
        )
        return latent_image


def acts_by_time(model, conditionings: list[list]) -> bool:
    """Says whether anything may look at the noise level of a call: it would see only the first of several."""
    known = {"transformer_options", APPEARANCE, DILUTION, TORCH_COMPILE_KWARGS}
    patched = model.model_options.keys() - known or any(model.model_options["transformer_options"].values())
    wrapped = any(key != COMPILE_KEY for key in wrappers_of(model))
    return bool(patched or wrapped or any(is_timed(options) for cond in conditionings for _, options in cond))


NODES = [PnPMixDDPMInvert]
