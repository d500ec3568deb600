"""Mask Noise Mixer: the sampling pass that blends the concepts into the scene, as one node or for custom sampling."""

from comfy_api.latest import io
from torch import Tensor
from typing_extensions import override

from ..common.beside import replace_kept
from ..common.overlay import concept_overlay, show_at_once
from ..common.types import CATEGORY, EXPERT, ConceptsType, InversionType, schema
from .checks import CUSTOM, NODE, OVERLAP, SPLIT, check_inputs, check_result, not_the_mixers
from .masks import rasterize
from .run import SAMPLER, MixGuider, decide, sample


def inputs() -> list[io.Input]:
    """Returns the inputs of a run, which are those of `prepared`."""
    return [
        io.Model.Input(
            "model", tooltip="The checkpoint, through Guided Appearance Attention and Background Dilution++."
        ),
        InversionType.Input("inversion", tooltip="The scene, from DDPM Invert or Load Inversion."),
        ConceptsType.Input("concepts", tooltip="The chain of Concept nodes."),
        io.Conditioning.Input("positive", tooltip="Prompt that describes the result."),
        io.Conditioning.Input("negative", tooltip="Negative prompt; it has no effect at cfg 1."),
        io.Float.Input(
            "cfg",
            default=1.0,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.01,
            tooltip="Classifier-free guidance of the concepts. At 1 sampling takes half as long.",
        ),
        io.Float.Input(
            "swap_guidance",
            default=3.5,
            min=1.0,
            max=30.0,
            step=0.1,
            round=0.01,
            tooltip="Strength of the concept's look at the first step; falls to half of this, never below 1. "
            "At 1 sampling takes two thirds as long; too high: oversaturated colors.",
        ),
        io.Boolean.Input(
            "mix_reference_noise",
            default=True,
            tooltip="Keep each reference latent on the scene outside its target mask. Off: looser, more leaks.",
            **EXPERT,
        ),
        io.Int.Input(
            "feather",
            default=0,
            min=0,
            max=512,
            tooltip="Softens the masks' borders, in image pixels. Higher: smoother seams, less exact outlines.",
        ),
        io.Combo.Input(
            "overlap",
            optional=True,
            options=OVERLAP,
            default="shared",
            tooltip="Where masks overlap: all concepts in equal shares, or only the last one in the chain.",
            **EXPERT,
        ),
        io.Boolean.Input(
            "falling_guidance",
            optional=True,
            default=True,
            tooltip="Let swap_guidance fall to half over the steps. Off: constant, with a stronger look at the end.",
            **EXPERT,
        ),
        io.Boolean.Input(
            "keep_personal",
            display_name="cache references",
            optional=True,
            default=False,
            tooltip="Cache the features of the concept images for the next run with the same images, prompts "
            "and model. On: trying other masks, alpha or guidance takes two thirds as long, and memory (up to "
            "a quarter of what is free). UNets only, not transformers.",
            **EXPERT,
        ),
    ]


def outputs() -> list[io.Output]:
    """Returns the outputs of a run, in the order of `split`."""
    return [
        io.Latent.Output(display_name="latent", tooltip="The result, for VAE Decode."),
        io.Latent.Output(display_name="references", tooltip="The reference latent of each concept, as a batch."),
        io.Mask.Output(display_name="mask", tooltip="Every pixel that may have changed, for Paste Back."),
    ]


def prepared(
    hidden,
    model,
    inversion,
    concepts,
    positive,
    negative,
    cfg,
    swap_guidance,
    mix_reference_noise,
    feather,
    overlap="shared",
    falling_guidance=True,
    keep_personal=False,
) -> tuple[MixGuider, dict]:
    """Returns the guider of a run with the inputs of a node, and what the node shows of the concepts.

    Raises:
        BadInput
    """
    numbers = dict(cfg=cfg, swap_guidance=swap_guidance, feather=feather)
    check_inputs(model, inversion, concepts, positive, negative, overlap, **numbers)
    targets, inverted = rasterize(concepts, inversion, model, overlap, feather), inversion.inversion
    settings = dict(swap_guidance=swap_guidance, mix_reference_noise=mix_reference_noise)
    settings |= dict(falling_guidance=falling_guidance, keep_personal=keep_personal)
    mix = decide(model, inverted, targets, positive, negative, cfg, **settings)
    replace_kept(inverted.eps, hidden.unique_id, hidden.prompt, mix.features)
    overlay = concept_overlay(targets.concepts, inverted.trajectory[-1], model.get_model_object("latent_format"))
    show_at_once(hidden.unique_id, overlay)
    return MixGuider(mix, model, positive, negative, cfg, hidden.unique_id), {"overlay": [overlay]}


def split(result: Tensor, guider: MixGuider) -> tuple[dict, dict, Tensor]:
    """Returns the outputs of a run from its result (1 + n, C, H, W), or (1 + n, C, 1, H, W)."""
    changed = guider.mix.targets.changed.to(result.device)
    return {"samples": result[:1]}, {"samples": result[1:]}, changed


class PnPMixSampler(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return schema(
            node_id="PnPMixSampler",
            shows_result=True,
            search_aliases=[
                "multi concept",
                "multi-concept",
                "multi subject",
                "blend concepts",
                "regional prompt",
                "swap object",
                "replace object",
                "composite",
                "sampler",
                "pnp-mix",
            ],
            display_name=NODE,
            category=CATEGORY,
            description="Redraws each masked object of the scene with the look of its concept (PnP-MIX).",
            inputs=inputs(),
            outputs=outputs(),
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    @override
    def execute(cls, **given) -> io.NodeOutput:
        guider, shown = prepared(cls.hidden, **given)
        return io.NodeOutput(*split(sample(guider), guider), ui=shown)


class PnPMixCustomSampler(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return schema(
            node_id="PnPMixCustomSampler",
            shows_result=True,
            search_aliases=[
                "custom sampler",
                "sampler custom advanced",
                "guider",
                "sigmas",
                "sampler wrapper",
                "pnp-mix",
            ],
            display_name=CUSTOM,
            category=CATEGORY,
            description="Mask Noise Mixer for SamplerCustomAdvanced with DisableNoise, and for what other packs put "
            "between, such as sampler wrappers. The result is the same.",
            inputs=inputs(),
            outputs=[
                io.Guider.Output(
                    display_name="guider", tooltip="For SamplerCustomAdvanced, and for Split Mixer Result."
                ),
                io.Sampler.Output(display_name="sampler", tooltip="For SamplerCustomAdvanced."),
                io.Sigmas.Output(
                    display_name="sigmas",
                    tooltip="The inversion's noise levels, for SamplerCustomAdvanced. The first of them alone give the "
                    "latents at the last noise level that remains.",
                ),
                io.Latent.Output(
                    display_name="latent",
                    tooltip="For SamplerCustomAdvanced: empty, because sampling starts from the inversion.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    @override
    def execute(cls, **given) -> io.NodeOutput:
        guider, shown = prepared(cls.hidden, **given)
        sigmas = guider.mix.inversion.sigmas.clone()  # other nodes may write into it
        return io.NodeOutput(guider, SAMPLER, sigmas, {"samples": guider.empty}, ui=shown)


class PnPMixSplitResult(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return schema(
            node_id="PnPMixSplitResult",
            search_aliases=["custom sampling", "reference latents", "pnp-mix"],
            display_name=SPLIT,
            category=CATEGORY,
            description="Splits what SamplerCustomAdvanced returns into the outputs of Mask Noise Mixer.",
            inputs=[
                io.Latent.Input("latent", tooltip="An output of SamplerCustomAdvanced."),
                io.Guider.Input("guider", tooltip="The guider that it sampled with."),
            ],
            outputs=outputs(),
        )

    @classmethod
    @override
    def execute(cls, latent, guider) -> io.NodeOutput:
        if not isinstance(guider, MixGuider):
            raise not_the_mixers("guider", SPLIT)
        check_result(latent["samples"], guider.count)
        return io.NodeOutput(*split(latent["samples"], guider))


NODES = [PnPMixSampler, PnPMixCustomSampler, PnPMixSplitResult]
