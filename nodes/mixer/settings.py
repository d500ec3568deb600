"""Guided Appearance Attention and Background Dilution++, which the mixer reads. Bypass one for the paper's ablation."""

from comfy_api.latest import io
from typing_extensions import override

from ..common.checks import BadInput, check_channels, check_choice, check_latent, check_numbers
from ..common.types import APPEARANCE, CATEGORY, DILUTION, EXPERT, Appearance, InpaintedBackground, schema
from ..common.unread import with_settings
from .checks import check_denoiser
from .families import guided_blocks

LAYERS, POSITIONS, OUTSIDE = ["all", "decoder", "vital"], ["target", "kept"], ["scaled", "blended"]


def for_the_mixer() -> io.Output:
    """Returns the output of a node that only adds settings to a MODEL."""
    return io.Model.Output(
        display_name="model",
        tooltip="For the Mask Noise Mixer. A KSampler, and any other sampler, behaves as if the model were unpatched.",
    )


class PnPMixAppearance(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return schema(
            node_id="PnPMixAppearance",
            search_aliases=[
                "cross-image attention",
                "self-attention",
                "appearance transfer",
                "style transfer",
                "ip adapter",
                "face",
                "identity",
                "adain",
                "pnp-mix",
            ],
            display_name="Guided Appearance Attention",
            category=CATEGORY,
            description="Lets each object of the scene read the look of its concept in the model's attention.",
            inputs=[
                io.Model.Input("model", tooltip="The checkpoint, with LoRAs and other patches as you like."),
                io.Float.Input(
                    "alpha",
                    default=0.15,
                    min=0.0,
                    max=2.0,
                    step=0.01,
                    round=0.001,
                    tooltip="How much the concept's look is exaggerated. 0: as it is; too high: oversaturated colors.",
                ),
                io.Combo.Input(
                    "layers",
                    options=LAYERS,
                    default="all",
                    tooltip="Attention layers that read the concept. decoder (a transformer's second half) keeps "
                    "more of "
                    "the object's shape. vital: the nine that matter most for the look, for Flux.1 only.",
                    **EXPERT,
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="When guidance starts (fraction of the schedule). Later: more of the object's own shape.",
                    **EXPERT,
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="When guidance ends (fraction of the schedule). Earlier: faster, less detail of the "
                    "concept.",
                    **EXPERT,
                ),
                io.Boolean.Input(
                    "adain",
                    optional=True,
                    default=False,
                    tooltip="Also give each object the color statistics of its concept's object (AdaIN), in every "
                    "guided step. Needs the object_mask of each Concept. On: colors closer to the concept's.",
                ),
                io.Combo.Input(
                    "position",
                    optional=True,
                    options=POSITIONS,
                    default="target",
                    tooltip="For transformers, which use positional embeddings. target: the concept's object is "
                    "seen at "
                    "the position of the target, if its object_mask is wired; kept: where it is in its own image.",
                    **EXPERT,
                ),
            ],
            outputs=[for_the_mixer()],
        )

    @classmethod
    @override
    def execute(cls, model, alpha, layers, start_percent, end_percent, adain=False, position="target") -> io.NodeOutput:
        node = "Guided Appearance Attention"
        check_numbers(node, alpha=alpha, start_percent=start_percent, end_percent=end_percent)
        check_denoiser(node, model)
        check_choice(node, "layers", layers, LAYERS)
        check_choice(node, "position", position, POSITIONS)
        guided_blocks(node, model, layers)
        if start_percent > end_percent:
            fault = f"{start_percent:g} is after end_percent {end_percent:g}."
            raise BadInput(node, "start_percent", fault, "Set it to at most end_percent.")
        appearance = Appearance(alpha, layers, start_percent, end_percent, adain, position)
        return io.NodeOutput(with_settings(model, APPEARANCE, appearance))


class PnPMixDilution(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return schema(
            node_id="PnPMixDilution",
            search_aliases=["background dilution", "concept leakage", "bleeding", "pnp-mix"],
            display_name="Background Dilution++",
            category=CATEGORY,
            description="Surrounds each object with the clean plate, so that concepts do not leak into each other.",
            inputs=[
                io.Model.Input("model", tooltip="The checkpoint, with LoRAs and other patches as you like."),
                io.Latent.Input("latent", tooltip="The clean plate (the scene without its objects), VAE-encoded."),
                io.Float.Input(
                    "beta",
                    default=0.8,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="Weight of the clean plate around the objects. Higher: fewer leaks, less context.",
                ),
                io.Int.Input(
                    "expand",
                    default=16,
                    min=0,
                    max=4096,
                    tooltip="Grows the box around each object, in image pixels. Higher: more surroundings remain.",
                ),
                io.Combo.Input(
                    "outside",
                    options=OUTSIDE,
                    default="scaled",
                    tooltip="Outside the box: beta × clean plate (the paper's equation), or that plus (1 − beta) × the "
                    "reference latent (its text).",
                    **EXPERT,
                ),
            ],
            outputs=[for_the_mixer()],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @override
    def execute(cls, model, latent, beta, expand, outside) -> io.NodeOutput:
        node = "Background Dilution++"
        check_numbers(node, beta=beta, expand=expand)
        check_denoiser(node, model)
        check_choice(node, "outside", outside, OUTSIDE)
        samples = check_latent(node, "latent", latent)
        check_channels(node, "latent", samples, model)
        inpainted = InpaintedBackground(samples, beta, expand, outside, cls.hidden.unique_id)
        return io.NodeOutput(with_settings(model, DILUTION, inpainted))


NODES = [PnPMixAppearance, PnPMixDilution]
