"""Blending Guidance: moves the latent in the first steps, so that concepts stay separate."""

import comfy.samplers
import torch
from comfy_api.latest import io
from torch import Tensor
from typing_extensions import override

from ...pnpmix.attention import attention_probabilities
from ...pnpmix.latexblend.guidance import blending_loss, guide
from ..common.attention import differentiable_attention
from ..common.checks import check_model, check_numbers, check_one_gpu
from ..common.compiled import uncompiled
from ..common.gradients import checkpointed, with_gradients
from ..common.hooks import with_options
from ..common.loading import resident
from ..common.types import EXPERT, LATEXBLEND_CATEGORY, schema
from .hooks import MAPS, PLAN

NODE, KEY = "Blending Guidance", "pnpmix_blending_guidance"


class PnPMixBlendingGuidance(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return schema(
            node_id="PnPMixBlendingGuidance",
            search_aliases=["latexblend", "attention guidance", "missing object", "pnp-mix"],
            display_name=NODE,
            category=LATEXBLEND_CATEGORY,
            description="For three or more concepts: in the first steps, moves the latent so that no concept is "
            "omitted or mixed with another. These steps take about four times as long.",
            inputs=[
                io.Model.Input("model", tooltip="The model of Blend."),
                io.Float.Input(
                    "scale",
                    default=1.0,
                    min=0.0,
                    max=1000.0,
                    step=0.1,
                    round=0.001,
                    tooltip="Step size of the guidance. 0: off; too high: blotches and oversaturated colors.",
                ),
                io.Float.Input(
                    "g1",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Weight of the term that joins each identifier with its noun. Higher: fewer concepts "
                    "omitted.",
                    **EXPERT,
                ),
                io.Float.Input(
                    "g2",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Weight of the term that separates concepts. Higher: less mixing, objects farther apart.",
                    **EXPERT,
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="When guidance starts (fraction of the steps).",
                    **EXPERT,
                ),
                io.Float.Input(
                    "end_percent",
                    default=0.2,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="When guidance ends (fraction of the steps). Higher: more guided steps, slower.",
                    **EXPERT,
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="For the sampler.")],
        )

    @classmethod
    @override
    def execute(cls, model, scale, g1, g2, start_percent, end_percent) -> io.NodeOutput:
        check_numbers(NODE, scale=scale, g1=g1, g2=g2, start_percent=start_percent, end_percent=end_percent)
        check_model(NODE, model)
        check_one_gpu(NODE, model)
        guided = (resident(NODE, model) if scale else model).clone()
        sampling = model.get_model_object("model_sampling")
        start, end = (float(sampling.percent_to_sigma(percent)) for percent in (start_percent, end_percent))

        def post_cfg(args: dict) -> Tensor:
            denoised, sigma = args["denoised"], args["sigma"]
            conds = [entry for entry in args["cond"] or [] if entry.get(PLAN) is not None]
            if scale == 0 or not conds or not end <= float(sigma.max()) <= start:
                return denoised
            gradient = loss_gradient(args["model"], conds, args["input"], sigma, args["model_options"], g1, g2)
            return guide(denoised, gradient.to(denoised), sigma, scale)

        guided.set_model_sampler_post_cfg_function(post_cfg)
        return io.NodeOutput(guided)


class Look:
    """Collects the loss of each layer that blends, one conditioning after another."""

    def __init__(self, g1: float, g2: float):
        self.g1, self.g2, self.open = g1, g2, True
        self.losses: list[tuple[str, Tensor]] = []

    def look(self, name: str, query: Tensor, key: Tensor, heads: int, grid: tuple[int, int], slots: list) -> None:
        """Adds the loss of a layer."""
        loss = blending_loss(attention_probabilities(query, key, heads), grid, slots, self.g1, self.g2).sum()
        if self.open:  # else it is only computed again, for the backward pass
            self.losses.append((name, loss))

    def mean(self) -> Tensor:
        """Returns the mean over the layers; several conditionings are summed."""
        return torch.stack([loss for _, loss in self.losses]).sum() / len({name for name, _ in self.losses})


def loss_gradient(
    model, conds: list[dict], x: Tensor, sigma: Tensor, model_options: dict, g1: float, g2: float
) -> Tensor:
    """Returns ∇_x L (B, C, H, W), from one pass of the conditionings, without their ControlNets."""
    unet = model.diffusion_model
    with with_gradients(unet), checkpointed(unet):
        look, latent = Look(g1, g2), x.detach().clone().requires_grad_(True)
        override = {MAPS: look, "optimized_attention_override": differentiable_attention}
        own = [without_inference(entry) for entry in conds]
        options = uncompiled(with_options(model_options, override))
        comfy.samplers.calc_cond_batch(model, [own], latent, sigma.clone(), options)
        look.open = False
        if not look.losses:
            return torch.zeros_like(x)
        return torch.autograd.grad(look.mean(), latent)[0].detach()


def without_inference(entry: dict) -> dict:
    """Returns a conditioning with ordinary tensors, through which a gradient may pass."""
    own = {name: x for name, x in entry.items() if name != "control"}
    own["model_conds"] = {
        name: cond._copy_with(cond.cond.clone()) if isinstance(cond.cond, Tensor) else cond
        for name, cond in entry["model_conds"].items()
    }
    if "mask" in own:
        own["mask"] = own["mask"].clone()
    return own


NODES = [PnPMixBlendingGuidance]
