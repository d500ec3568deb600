"""What the mixer and the inversion refuse, in the order in which a user would be asked."""

import torch
from torch import Tensor

from ..common.checks import (
    BadInput,
    check_aspect,
    check_channels,
    check_choice,
    check_conditioning,
    check_model,
    check_numbers,
    check_one_gpu,
    check_size,
    check_whole_pictures,
    downscale_ratio,
    falls_to_zero,
    model_family,
)
from ..common.compiled import is_compiled
from ..common.messages import at_fault
from ..common.types import APPEARANCE, DILUTION, Appearance, Concept, InpaintedBackground, InvertedLatent
from ..latexblend.hooks import PLAN, is_installed
from ..latexblend.layers import check_fits
from .families import family_of, is_flow, noise_path, patch_size, token_grid
from .hooks.trained_concepts import is_of

NODE, OVERLAP = "Mask Noise Mixer", ["shared", "last in front"]
CUSTOM, SAMPLES, SPLIT = "Mask Noise Mixer (custom sampling)", "SamplerCustomAdvanced", "Split Mixer Result"
SAME_LEVEL = 1e-3  # relative difference of noise levels up to which schedulers round the model's own
SAME_PLACE = 0.8  # of the union of two masks, from which on they mark the same object
REMEDY = (
    "Load an SD 1.x, SD 2.x or SDXL checkpoint, or a Flux, Chroma, Qwen-Image, Z-Image, Lumina 2, SD 3 or "
    "HunyuanImage 2.1 model."
)


def check_inputs(
    model, inversion: InvertedLatent, concepts: list[Concept], positive: list, negative: list, overlap: str, **numbers
) -> None:
    """Refuses inputs of the Mask Noise Mixer with which it cannot run.

    Raises:
        BadInput
    """
    check_numbers(NODE, **numbers)
    check_choice(NODE, "overlap", overlap, OVERLAP)
    check_denoiser(NODE, model)
    check_one_gpu(NODE, model)
    check_inversion(model, inversion)
    for concept in concepts:
        with at_fault(concept.node_id):
            check_concept(concept, positive, model, inversion)
    for name, conditioning in (("positive", positive), ("negative", negative)):
        check_prompt(NODE, name, conditioning, model)
    check_dilution(model, inversion)
    check_object_masks(concepts, model)
    check_sizes(concepts, inversion, model)


def check_denoiser(node: str, model) -> None:
    """Refuses every MODEL that the inversion and the mixer cannot run with."""
    base = model.model
    check_whole_pictures(node, model)
    if family_of(base) is None:
        check_model(node, model, REMEDY)
        return
    if not is_flow(noise_path(model.get_model_object("model_sampling"))):
        fault = f"{type(base).__name__} ({base.model_type.name}) is patched to sample in a way that is not its own."
        raise BadInput(node, "model", fault, "Remove the node that changes its sampling.")
    channels, latent = base.model_config.unet_config["in_channels"], model.get_model_object("latent_format")
    if channels not in (latent.latent_channels, latent.latent_channels * patch_size(base.diffusion_model) ** 2):
        fault = f"its network takes {channels} channels, as models for inpainting and control do."
        raise BadInput(node, "model", fault, "Load the base model instead.")


def check_prompt(node: str, name: str, conditioning: list, model) -> None:
    """Refuses prompts that the inversion and the mixer cannot run with."""
    check_conditioning(node, name, conditioning, model)
    if family_of(model.model) is not None and any("reference_latents" in options for _, options in conditioning):
        fault = "it carries a reference image, whose tokens the mixer cannot tell from its own."
        raise BadInput(node, name, fault, "Wire the prompt without Reference Latent.")


def check_positions(node: str, model, latent: Tensor) -> None:
    """Refuses latents (1, C, H, W) that reach beyond the position embeddings that SD 3 has learned."""
    network = model.model.diffusion_model
    most = getattr(network, "pos_embed_max_size", None)
    if most is None or getattr(network, "pos_embed", None) is None:
        return
    if max(token_grid(network, latent.shape[2:])) > most:
        ratio = downscale_ratio(model)
        height, width = (side * ratio for side in latent.shape[2:])
        most *= patch_size(network) * ratio
        fault = f"it is {width} × {height} pixels; this model's position embeddings end at {most} pixels."
        raise BadInput(node, "latent", fault, "Scale the picture down.")


def check_sigmas(node: str, sigmas: Tensor, model) -> Tensor:
    """Returns the noise levels (L + 1,) of a SIGMAS, float32 on the CPU; refuses what is no schedule of this model."""
    sigmas = sigmas.float().cpu()
    if sigmas.ndim != 1 or not falls_to_zero(sigmas):
        fault = "they are not noise levels that fall, step by step, to 0."
        raise BadInput(node, "sigmas", fault, "Wire a scheduler node, or low_sigmas of SplitSigmas.")
    noisiest = float(model.get_model_object("model_sampling").sigma_max)
    if sigmas[0] > noisiest * (1 + SAME_LEVEL):
        fault = f"they begin at {float(sigmas[0]):.4g}, above this model's noisiest level, {noisiest:.4g}."
        raise BadInput(node, "sigmas", fault, "Wire a scheduler node for this kind of model, or lower its sigma_max.")
    return sigmas


def check_inversion(model, inversion: InvertedLatent) -> None:
    """Refuses an inversion of another model."""
    family = model_family(model)
    if inversion.family != family:
        fault = f"it was made with a model of another family ({inversion.family}, this one is {family})."
        raise BadInput(NODE, "inversion", fault, "Invert the scene with this checkpoint.")
    check_channels(NODE, "inversion", inversion.inversion.eps, model)


def check_concept(concept: Concept, positive: list, model, inversion: InvertedLatent) -> None:
    """Refuses a concept that does not go with the mixer's other inputs."""
    node = concept.label
    check_channels(node, "latent", concept.latent, model)
    remedy = "Scale the concept image to the scene's size before encoding it."
    check_size(node, "latent", concept.latent, inversion.inversion.eps, "the scene", model, remedy)
    check_learned(concept, positive, model)
    if concept.positive is None or concept.positive is positive:
        return
    check_prompt(node, "positive", concept.positive, model)
    options = concept.positive[0][1]
    special = is_timed(options) or not options.keys().isdisjoint({"area", "mask", "control", "gligen", PLAN})
    if len(concept.positive) != 1 or special:
        fault = "it is combined, timed, blended, limited to an area, or has a ControlNet; only some rows read it."
        raise BadInput(node, "positive", fault, "Wire a plain prompt, or the one that the Mask Noise Mixer uses.")


def check_learned(concept: Concept, positive: list, model) -> None:
    """Refuses a trained concept that the prompt or the model does not know."""
    node, learned = concept.label, concept.learned
    if learned is None:
        return
    if family_of(model.model) is not None:
        fault = f"'{learned.name}' was trained with another family, and this model is a transformer."
        raise BadInput(node, "learned", fault, "Unwire it, or load the checkpoint that it was trained with.")
    check_fits(node, "learned", learned, model)
    plans = [options[PLAN] for _, options in positive if PLAN in options]
    if not any(is_of(slot, concept) for plan in plans for slot in plan.slots):
        fault = f"no word of the Mask Noise Mixer's prompt becomes '{learned.name}'."
        raise BadInput(node, "learned", fault, "Wire Blend's positive to the mixer, with a Blend Concept of it.")
    if not is_installed(model):
        fault = f"the model of the Mask Noise Mixer does not know '{learned.name}'."
        raise BadInput(node, "learned", fault, "Wire the mixer's model through the same Blend as its positive.")


def check_dilution(model, inversion: InvertedLatent) -> None:
    """Refuses a clean plate of another size than the scene."""
    inpainted: InpaintedBackground | None = model.model_options.get(DILUTION)
    if inpainted is not None:
        eps, remedy = inversion.inversion.eps, "Encode the clean plate at the scene's size."
        with at_fault(inpainted.node_id):
            check_size("Background Dilution++", "latent", inpainted.latent, eps, "the scene", model, remedy)


def check_object_masks(concepts: list[Concept], model) -> None:
    """Refuses AdaIN without an object mask of each concept."""
    appearance: Appearance | None = model.model_options.get(APPEARANCE)
    if appearance is None or not appearance.adain:
        return
    for concept in concepts:
        if concept.object_mask is None:
            fault = "it is not wired, and adain of Guided Appearance Attention is on."
            remedy = "Wire the mask of the object in your picture, or switch adain off."
            with at_fault(concept.node_id):
                raise BadInput(concept.label, "object_mask", fault, remedy)


def check_sizes(concepts: list[Concept], inversion: InvertedLatent, model) -> None:
    """Refuses masks of another aspect than the picture's."""
    height, width = image_size(inversion, model)
    for concept in concepts:
        with at_fault(concept.node_id):
            for name in ("mask", "object_mask"):
                check_aspect(concept.label, name, getattr(concept, name), height, width)


def image_size(inversion: InvertedLatent, model) -> tuple[int, int]:
    """Returns the scene's height and width in pixels."""
    ratio = downscale_ratio(model)
    height, width = inversion.inversion.eps.shape[-2:]
    return height * ratio, width * ratio


def check_apart(concepts: list[Concept]) -> None:
    """Refuses two concepts, with their masks in pixels, for one object, as two searches for the same word give them."""
    masks = [concept.mask >= 0.5 for concept in concepts]
    for k, concept in enumerate(concepts):
        for other, mask in zip(concepts[:k], masks, strict=False):
            if (masks[k] & mask).sum() > SAME_PLACE * (masks[k] | mask).sum():
                fault = f"it marks the same object as the mask of {other.label}."
                remedy = (
                    "Mark another object. For two of a kind write the word twice in Grounded Mask, and choose pick: in "
                    "order."
                )
                with at_fault(concept.node_id):
                    raise BadInput(concept.label, "mask", fault, remedy)


def check_caching(model, conditionings: list[list | None]) -> None:
    """Refuses what makes the batch rows of a call hard to tell, or the same row another one in the next run."""
    fault = None
    if is_compiled(model):
        fault = "a compiled model cannot cache features."
    if family_of(model.model) is not None:
        fault = "a transformer cannot cache features."
    if any(
        cond is not None and (len(cond) != 1 or is_timed(cond[0][1]) or "area" in cond[0][1]) for cond in conditionings
    ):
        fault = "a prompt is combined, timed or limited to an area, and each part of it reads other rows."
    if fault is not None:
        raise BadInput(NODE, "keep_personal", fault, "Switch it off.")


def check_covered(concepts: list[Concept]) -> None:
    """Refuses a concept, with its mask in pixels, of which those in front of it leave nothing."""
    for concept in concepts:
        if concept.mask.max() < 0.5:
            remedy = "Move it to a later place in the chain, or set overlap to shared."
            with at_fault(concept.node_id):
                raise BadInput(concept.label, "mask", "concepts in front of it cover all of it.", remedy)


def check_start(noise: Tensor, latent: Tensor, denoise_mask: Tensor | None, empty: Tensor) -> None:
    """Refuses to sample from anything but the inversion.

    Args:
        empty: the latent that stands for it, zeros.
    """
    if noise.any():
        fault = "it adds noise; here all noise comes from DDPM Invert and Concept."
        raise BadInput(SAMPLES, "noise", fault, "Wire DisableNoise.")
    if latent.shape != empty.shape or latent.any() or denoise_mask is not None:
        raise not_the_mixers("latent_image")


def check_schedule(sigmas: Tensor, inverted: Tensor) -> None:
    """Refuses noise levels (M + 1,) that are not the inversion's, or the first of these (N + 1,)."""
    if len(sigmas) < 2 or not torch.equal(sigmas.cpu(), inverted[: len(sigmas)]):
        fault = "they are not the noise levels of the inversion, all of them or at least the first two."
        remedy = f"Wire the sigmas of {CUSTOM}; SplitSigmas may cut off their end."
        raise BadInput(SAMPLES, "sigmas", fault, remedy)


def check_result(samples: Tensor, concepts: int) -> None:
    """Refuses a latent (B, ...) that is not a run's output with the reference latents of all concepts."""
    if len(samples) != 1 + concepts:
        fault = f"it is a batch of {len(samples)}, expected: the result and {concepts} reference latents."
        raise BadInput(SPLIT, "latent", fault, f"Wire an output of {SAMPLES} that used this guider.")


def not_the_mixers(name: str, node: str = SAMPLES) -> BadInput:
    """Returns the error that this input has to come from the mixer for custom sampling."""
    return BadInput(node, name, "it is not the mixer's.", f"Wire the output of {CUSTOM}.")


def check_on_grid(concept: Concept, name: str, weights: Tensor, ratio: int) -> None:
    """Refuses a mask of which nothing is left on the latent grid."""
    if not weights.any():
        height, width = weights.shape[-2:]
        fault = f"it is too small: it covers none of the {height} × {width} latent tokens."
        with at_fault(concept.node_id):
            remedy = f"Mark an object of at least {ratio} pixels, or let Fit Picture crop around the object."
            raise BadInput(concept.label, name, fault, remedy)


def wrappers_of(model) -> list:
    """Returns the keys of all that wrap a part of its sampling."""
    return [key for by_key in model.wrappers.values() for key, functions in by_key.items() if functions]


def is_timed(options: dict) -> bool:
    """Says whether a conditioning, or a ControlNet in it, is for a part of the schedule only."""
    control = options.get("control")
    while control is not None:
        if tuple(control.timestep_percent_range) != (0.0, 1.0):
            return True
        control = control.previous_controlnet
    return not options.keys().isdisjoint({"start_percent", "end_percent", "hooks"})
