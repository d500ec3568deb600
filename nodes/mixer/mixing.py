"""Mask Noise Mixer: the sampling pass that blends the concepts into the scene."""

from comfy_api.latest import io
from typing_extensions import override

from ...pnpmix.masks import changed_pixels
from ..common.beside import replace_kept
from ..common.messages import show
from ..common.overlay import concept_overlay, show_at_once
from ..common.types import CATEGORY, EXPERT, ConceptsType, InversionType, schema
from .checks import NODE, OVERLAP, check_inputs, image_size
from .masks import rasterize
from .run import decide, guider_of, sample


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
            inputs=[
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
                    tooltip="Let swap_guidance fall to half over the steps. Off: constant, with a stronger look at the "
                    "end.",
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
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The result, for VAE Decode."),
                io.Latent.Output(
                    display_name="references", tooltip="The reference latent of each concept, as a batch."
                ),
                io.Mask.Output(display_name="mask", tooltip="Every pixel that may have changed, for Paste Back."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    @override
    def execute(
        cls,
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
    ) -> io.NodeOutput:
        numbers = dict(cfg=cfg, swap_guidance=swap_guidance, feather=feather)
        check_inputs(model, inversion, concepts, positive, negative, overlap, **numbers)
        targets, inverted = rasterize(concepts, inversion, model, overlap, feather), inversion.inversion
        settings = dict(swap_guidance=swap_guidance, mix_reference_noise=mix_reference_noise)
        settings |= dict(falling_guidance=falling_guidance, keep_personal=keep_personal)
        mix = decide(model, inverted, targets, positive, negative, cfg, **settings)
        replace_kept(inverted.eps, cls.hidden.unique_id, cls.hidden.prompt, mix.features)
        guider = guider_of(targets, model, positive, negative, cfg)
        overlay = concept_overlay(targets.concepts, inverted.trajectory[-1], model.get_model_object("latent_format"))
        show_at_once(cls.hidden.unique_id, overlay)
        result = sample(mix, guider)
        if mix.features is not None:
            show(NODE, cls.hidden.unique_id, [mix.features.report()])
        changed = changed_pixels(targets.masks, *image_size(inversion, model))[None].to(result.device)
        return io.NodeOutput({"samples": result[:1]}, {"samples": result[1:]}, changed, ui={"overlay": [overlay]})


NODES = [PnPMixSampler]
