"""Mask Noise Mixer: the pass that blends the concepts into the background."""

import comfy.model_management
import latent_preview
import torch
from comfy_api.latest import io
from torch import Tensor
from typing_extensions import override

from ...pnpmix.latexblend.blending import Slot
from ...pnpmix.masks import (
    cell_weights,
    changed_pixels,
    expanded_box_mask,
    last_in_front,
    share_overlaps,
    to_image_size,
)
from ..common.beside import kept_beside, replace_kept
from ..common.checks import (
    BadInput,
    check_aspect,
    check_channels,
    check_choice,
    check_numbers,
    check_one_gpu,
    check_predictions,
    check_size,
    downscale_ratio,
    model_family,
)
from ..common.memory import room_for
from ..common.messages import at_fault, show
from ..common.overlay import concept_overlay, show_at_once
from ..common.types import (
    APPEARANCE,
    CATEGORY,
    DILUTION,
    EXPERT,
    Appearance,
    Concept,
    ConceptsType,
    InpaintedBackground,
    InversionType,
    InvertedLatent,
    schema,
)
from ..latexblend.layers import check_fits
from ..latexblend.patches import PLAN, is_installed
from .families import check_denoiser, check_prompt, family_of
from .kept import PersonalRows, dependencies, same
from .samplers import MixSampler, RowGuider, guided_steps, is_compiled, is_timed

NODE, OVERLAP = "Mask Noise Mixer", ["shared", "last in front"]


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
            description="Renders each masked object of the background with the look of its concept (PnP-MIX).",
            inputs=[
                io.Model.Input(
                    "model", tooltip="The checkpoint, through Guided Appearance Attention and Background Dilution++."
                ),
                InversionType.Input("inversion", tooltip="The background, from DDPM Invert or Load Inversion."),
                ConceptsType.Input("concepts", tooltip="The chain of Concept nodes."),
                io.Conditioning.Input("positive", tooltip="Prompt that describes the finished picture."),
                io.Conditioning.Input("negative", tooltip="Negative prompt; it has no effect at cfg 1."),
                io.Float.Input(
                    "cfg",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Classifier-free guidance of the concepts. 1 takes half the time of any other value.",
                ),
                io.Float.Input(
                    "swap_guidance",
                    default=3.5,
                    min=1.0,
                    max=30.0,
                    step=0.1,
                    round=0.01,
                    tooltip="How strongly the concept's look is pursued at the first step; falls to half of this, at "
                    "least 1. 1 takes two thirds of the time; too high: garish colours.",
                ),
                io.Boolean.Input(
                    "mix_reference_noise",
                    default=True,
                    tooltip="Keep each reference on the background outside its own object. Off: looser, more leaks.",
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
                    tooltip="Where masks overlap: all concepts in equal parts, or the last one in the chain alone.",
                    **EXPERT,
                ),
                io.Boolean.Input(
                    "falling_guidance",
                    optional=True,
                    default=True,
                    tooltip="Let swap_guidance fall to half over the steps. Off: the same in every step, a stronger "
                    "look at the end.",
                    **EXPERT,
                ),
                io.Boolean.Input(
                    "keep_personal",
                    optional=True,
                    default=False,
                    tooltip="Keep what is read of the concepts' pictures, beside the inversion, for the next run with "
                    "the same pictures, prompts and model. On: trying other masks, alpha or guidance takes two thirds "
                    "of the time, and memory (up to a quarter of what is free). UNets only, not transformers.",
                    **EXPERT,
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The finished picture, for VAE Decode."),
                io.Latent.Output(display_name="references", tooltip="The branch of each concept, as a batch."),
                io.Mask.Output(
                    display_name="mask", tooltip="Every pixel that may have changed, of all concepts: for Paste Back."
                ),
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
        check_numbers(NODE, cfg=cfg, swap_guidance=swap_guidance, feather=feather)
        check_choice(NODE, "overlap", overlap, OVERLAP)
        check_denoiser(NODE, model)
        check_one_gpu(NODE, model)
        check_inversion(model, inversion)
        for concept in concepts:
            with at_fault(concept.node_id):
                check_concept(concept, positive, model, inversion)
        for name, conditioning in (("positive", positive), ("negative", negative)):
            check_prompt(NODE, name, conditioning, model)
        inpainted: InpaintedBackground | None = model.model_options.get(DILUTION)
        if inpainted is not None:
            eps, remedy = inversion.inversion.eps, "Encode the inpainted background in the background's size."
            with at_fault(inpainted.node_id):
                check_size("Background Dilution++", "latent", inpainted.latent, eps, "the background", model, remedy)

        normalised = check_object_masks(concepts, model)

        latent_shape, ratio = inversion.inversion.eps.shape[1:], downscale_ratio(model)
        grid, expand = tuple(latent_shape[1:]), inpainted.expand if inpainted else 0
        concepts = [in_pixels(concept, grid[0] * ratio, grid[1] * ratio) for concept in concepts]
        check_apart(concepts)
        if overlap == "last in front":
            concepts = visible_parts(concepts)
        masks = torch.stack([on_grid(concept, "mask", grid, ratio, feather) for concept in concepts])
        boxes = torch.stack([expanded_box_mask(concept.mask, grid, expand)[None] for concept in concepts])
        wired = [concept for concept in concepts if concept.object_mask is not None]
        object_masks = [on_grid(concept, "object_mask", grid, ratio) for concept in wired]
        guided = guided_steps(model.model_options.get(APPEARANCE), model, inversion.inversion.sigmas)
        kept, own = None, inversion.inversion.eps
        if keep_personal and any(guided):
            check_keeping(model, [positive, negative, *(x.positive for x in concepts)])
            needed = dependencies(model, concepts, positive, negative, cfg, inversion.inversion)
            kept = PersonalRows(needed, sum(guided) * len(concepts), kept_beside(own).values())
        replace_kept(own, cls.hidden.unique_id, cls.hidden.prompt, kept)
        own_prompts = [None if concept.positive is positive else concept.positive for concept in concepts]
        guider = RowGuider(model, each_to_its_own(positive, concepts), negative, cfg, own_prompts)
        sampler = MixSampler(
            inversion.inversion,
            concepts,
            share_overlaps(masks),
            boxes,
            torch.stack(object_masks) if normalised else None,
            guided,
            swap_guidance,
            mix_reference_noise,
            falling_guidance,
            kept,
        )
        sigmas = inversion.inversion.sigmas
        callback = latent_preview.prepare_callback(model, len(sigmas) - 1)
        overlay = concept_overlay(concepts, inversion.inversion.trajectory[-1], model.get_model_object("latent_format"))
        show_at_once(cls.hidden.unique_id, overlay)
        empty = guider.framed(torch.zeros(1, *latent_shape))
        noise = room_for(model, sampler.rows_a_concept * len(concepts), sampler.rows_a_concept, empty.shape[1:])
        result = guider.sample(noise, empty, sampler, sigmas, callback=callback, seed=inversion.inversion.seed)
        check_predictions(NODE, result)
        if kept is not None:
            show(NODE, cls.hidden.unique_id, [report(kept)])
        result = result.to(comfy.model_management.intermediate_device())
        changed = changed_pixels(masks, grid[0] * ratio, grid[1] * ratio)[None].to(result.device)
        return io.NodeOutput({"samples": result[:1]}, {"samples": result[1:]}, changed, ui={"overlay": [overlay]})


def check_keeping(model, conditionings: list[list | None]) -> None:
    """Refuses what makes a call's rows hard to tell, or the same row another one in the next run."""
    fault = None
    if is_compiled(model):
        fault = "a compiled model keeps nothing."
    if family_of(model.model) is not None:
        fault = "a transformer keeps nothing."
    if any(
        cond is not None and (len(cond) != 1 or is_timed(cond[0][1]) or "area" in cond[0][1]) for cond in conditionings
    ):
        fault = "a prompt is combined, timed or limited to an area, and each part of it reads other rows."
    if fault is not None:
        raise BadInput(NODE, "keep_personal", fault, "Switch it off.")


def report(kept: PersonalRows) -> str:
    """What was found from the run before, and what is kept for the next one."""
    size = f"{kept.bytes() / 1e6:.0f} MB"
    if len(kept.inputs) < kept.expected:
        size += f", which is all that fits: {len(kept.inputs)} of {kept.expected}"
    return f"Read again from the run before: {kept.found} of {kept.expected} personal rows. Kept for the next: {size}."


def check_inversion(model, inversion: InvertedLatent) -> None:
    family = model_family(model)
    if inversion.family != family:
        fault = f"it was made with a model of another family ({inversion.family}, this one is {family})."
        raise BadInput(NODE, "inversion", fault, "Invert the background with this checkpoint.")
    check_channels(NODE, "inversion", inversion.inversion.eps, model)


def check_concept(concept: Concept, positive: list, model, inversion: InvertedLatent) -> None:
    node = concept.label
    check_channels(node, "latent", concept.latent, model)
    remedy = "Scale the picture to the background's size before encoding it."
    check_size(node, "latent", concept.latent, inversion.inversion.eps, "the background", model, remedy)
    if concept.learned is not None:
        check_learned(concept, positive, model)
    if concept.positive is None or concept.positive is positive:
        return
    check_prompt(node, "positive", concept.positive, model)
    options = concept.positive[0][1]
    special = is_timed(options) or not options.keys().isdisjoint({"area", "mask", "control", "gligen", PLAN})
    if len(concept.positive) != 1 or special:
        fault = "it is combined, timed, blended, limited to an area, or has a ControlNet; other rows read another one."
        raise BadInput(node, "positive", fault, "Wire a plain prompt, or the one that the Mask Noise Mixer uses.")


def check_learned(concept: Concept, positive: list, model) -> None:
    node = concept.label
    if family_of(model.model) is not None:
        fault = f"'{concept.learned.name}' was learned with another family, and this model is a transformer."
        raise BadInput(node, "learned", fault, "Unwire it, or load the checkpoint that it was learned with.")
    check_fits(node, "learned", concept.learned, model)
    plans = [options[PLAN] for _, options in positive if PLAN in options]
    if not any(is_of(slot, concept) for plan in plans for slot in plan.slots):
        fault = f"no word of the Mask Noise Mixer's prompt becomes '{concept.learned.name}'."
        raise BadInput(node, "learned", fault, "Wire Blend's positive to the mixer, with a Blend Concept of it.")
    if not is_installed(model):
        fault = f"the model of the Mask Noise Mixer does not know '{concept.learned.name}'."
        raise BadInput(node, "learned", fault, "Wire the mixer's model through the same Blend as its positive.")


def is_of(slot: Slot, concept: Concept) -> bool:
    """Whether a word of the prompt becomes what this concept has learned; a file may have been loaded twice."""
    return concept.learned is not None and same(slot.features, concept.learned.features)


def each_to_its_own(positive: list, concepts: list[Concept]) -> list:
    """The CONDITIONING, in which each learned concept acts in the rows of its own concept alone."""
    if all(concept.learned is None for concept in concepts):
        return positive
    limited = []
    for context, options in positive:
        if PLAN in options:
            plan = options[PLAN]
            owners = [frozenset(k for k, x in enumerate(concepts) if is_of(slot, x)) or None for slot in plan.slots]
            slots = [slot._replace(owners=own) for slot, own in zip(plan.slots, owners, strict=True)]
            options = {**options, PLAN: plan._replace(slots=slots)}
        limited.append([context, options])
    return limited


def in_pixels(concept: Concept, height: int, width: int) -> Concept:
    """With masks of the picture's size."""
    with at_fault(concept.node_id):
        for name in ("mask", "object_mask"):
            check_aspect(concept.label, name, getattr(concept, name), height, width)
    own = None if concept.object_mask is None else to_image_size(concept.object_mask, height, width)
    return concept._replace(mask=to_image_size(concept.mask, height, width), object_mask=own)


SAME_PLACE = 0.8  # of the union of two masks, from which on they mark the same object


def check_apart(concepts: list[Concept]) -> None:
    """Refuses two concepts for one object, as two searches for the same word give them."""
    for k, concept in enumerate(concepts):
        for other in concepts[:k]:
            one, two = concept.mask >= 0.5, other.mask >= 0.5
            if (one & two).sum() > SAME_PLACE * (one | two).sum():
                fault = f"it marks the same object as the mask of {other.label}."
                remedy = (
                    "Mark another object. For two of a kind write the word twice in Grounded Mask, and choose pick: in "
                    "order."
                )
                with at_fault(concept.node_id):
                    raise BadInput(concept.label, "mask", fault, remedy)


def visible_parts(concepts: list[Concept]) -> list[Concept]:
    """With masks of what those later in the chain do not cover."""
    masks = last_in_front(torch.stack([concept.mask for concept in concepts]))
    for concept, mask in zip(concepts, masks, strict=True):
        if mask.max() < 0.5:
            remedy = "Move it to a later place in the chain, or set overlap to shared."
            with at_fault(concept.node_id):
                raise BadInput(concept.label, "mask", "concepts in front of it cover all of it.", remedy)
    return [concept._replace(mask=mask) for concept, mask in zip(concepts, masks, strict=True)]


def on_grid(concept: Concept, name: str, grid: tuple[int, int], ratio: int, feather: int = 0) -> Tensor:
    """(1, *grid) weights of one of the concept's masks.

    Raises:
        BadInput: no cell of the grid is left of it.
    """
    weights = cell_weights(getattr(concept, name), grid, feather)[None]
    if not weights.any():
        fault = f"nothing of it is left on the latent grid of {grid[0]} × {grid[1]} cells."
        with at_fault(concept.node_id):
            remedy = f"Mark an object of at least {ratio} pixels, or let Fit Picture crop around the object."
            raise BadInput(concept.label, name, fault, remedy)
    return weights


def check_object_masks(concepts: list[Concept], model) -> bool:
    """Whether AdaIN is on, for which each concept needs one."""
    appearance: Appearance | None = model.model_options.get(APPEARANCE)
    if appearance is None or not appearance.adain:
        return False
    for concept in concepts:
        if concept.object_mask is None:
            fault = "it is not wired, and adain of Guided Appearance Attention is on."
            remedy = "Wire the mask of the object in your picture, or switch adain off."
            with at_fault(concept.node_id):
                raise BadInput(concept.label, "object_mask", fault, remedy)
    return True


NODES = [PnPMixSampler]
