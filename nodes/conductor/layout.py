"""Layout Reference: an image whose layout the new one should have."""

import comfy.samplers
import latent_preview
import torch
from comfy_api.latest import io
from typing_extensions import override

from ...pnpmix.conductor.layout import Layout, ddim_invert, inversion_levels, noised
from ..common.checks import (
    check_channels,
    check_choice,
    check_conditioning,
    check_latent,
    check_model,
    check_numbers,
    check_predictions,
    model_family,
)
from ..common.types import CONDUCTOR_CATEGORY, EXPERT, LayoutReference, LayoutType, schema
from .checks import check_plain_prompt
from .guiders import PlainGuider

METHODS = ["ddim", "noised"]


class PnPMixLayoutReference(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return schema(
            node_id="PnPMixLayoutReference",
            search_aliases=["layout", "ddim inversion", "composition", "reference", "concept conductor", "pnp-mix"],
            display_name="Layout Reference",
            category=CONDUCTOR_CATEGORY,
            description="A photo, a generated image or a rough collage whose layout the new image should have.",
            inputs=[
                io.Model.Input("model", tooltip="The same checkpoint as for the Conductor."),
                io.Conditioning.Input("positive", tooltip="Prompt that describes the layout image in general words."),
                io.Latent.Input("latent", tooltip="The layout image, VAE-encoded, at the new image's size."),
                io.Combo.Input(
                    "method",
                    options=METHODS,
                    default="ddim",
                    tooltip="ddim: DDIM inversion with the model, as in the paper. noised: only adds noise, which "
                    "takes "
                    "no time and gives a looser layout.",
                ),
                io.Int.Input(
                    "steps",
                    default=999,
                    min=1,
                    max=999,
                    tooltip="Number of inversion steps. Fewer: faster, less exact. Use a multiple of the Conductor's "
                    "steps, or 999.",
                    **EXPERT,
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=False,
                    tooltip="Seed of the noise; the method ddim uses none.",
                    **EXPERT,
                ),
            ],
            outputs=[LayoutType.Output(display_name="layout", tooltip="For Layout Alignment.")],
        )

    @classmethod
    @override
    def execute(cls, model, positive, latent, method, steps, seed) -> io.NodeOutput:
        node = "Layout Reference"
        check_numbers(node, steps=steps, seed=seed)
        check_model(node, model)
        check_choice(node, "method", method, METHODS)
        samples = check_latent(node, "latent", latent)
        check_channels(node, "latent", samples, model)
        check_conditioning(node, "positive", positive, model)
        check_plain_prompt(node, "positive", positive)
        levels = inversion_levels(model.get_model_object("model_sampling").sigmas.float().cpu(), steps)
        if method == "noised":
            layout = noised(model.model.process_latent_in(samples), levels, seed)
        else:
            sampler = LayoutSampler()
            callback = latent_preview.prepare_callback(model, steps)
            PlainGuider(model, positive).sample(torch.zeros_like(samples), samples, sampler, levels, callback=callback)
            layout = sampler.layout
            check_predictions(node, layout.trajectory)
        return io.NodeOutput(LayoutReference(layout, positive, model_family(model)))


class LayoutSampler(comfy.samplers.Sampler):
    """Runs DDIM inversion in place of sampling; the result is left in `layout`, on the CPU."""

    layout: Layout

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask=None, disable_pbar=False
    ):
        def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            return model_wrap(x, sigma, **extra_args)

        def preview(step: int, denoised: torch.Tensor) -> None:
            callback(step, denoised, denoised, len(sigmas) - 1)

        layout = ddim_invert(denoise, latent_image, sigmas, preview)
        self.layout = Layout(*(x.cpu() for x in layout))
        return latent_image


NODES = [PnPMixLayoutReference]
