"""Conductor: generates a new image with several concepts, each in its mask."""

import comfy.model_management
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import latent_preview
import torch
import torch.nn.functional as F
from comfy_api.latest import io
from einops import rearrange
from torch import Tensor
from typing_extensions import override

from ...pnpmix.conductor.injection import any_inside, first_masks
from ...pnpmix.conductor.refinement import Masks, first_state
from ...pnpmix.masks import layer_grids, to_image_size
from ..common.beside import kept_beside, replace_kept
from ..common.checks import (
    BadInput,
    check_aspect,
    check_channels,
    check_choice,
    check_conditioning,
    check_model,
    check_numbers,
    check_one_gpu,
    check_predictions,
    check_whole_pictures,
    downscale_ratio,
    falls_to_zero,
)
from ..common.messages import at_fault, show
from ..common.overlay import concept_overlay, show_at_once
from ..common.types import (
    CONDUCTOR_CATEGORY,
    EXPERT,
    LAYOUT_GUIDANCE,
    REFINEMENT,
    ConductedConcept,
    ConductedType,
    LayoutGuidance,
    schema,
)
from .checks import check_batch, check_concept, check_guidance, check_not_compiled, check_plain_prompt
from .layers import Layer, layers_of, level_of
from .paths import KINDS, NODE, BranchGuider, ConductSampler


class PnPMixConductor(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return schema(
            node_id="PnPMixConductor",
            shows_result=True,
            search_aliases=[
                "concept conductor",
                "multi concept",
                "multi lora",
                "regional lora",
                "multi character",
                "character consistency",
                "several characters",
                "sampler",
                "pnp-mix",
            ],
            display_name=NODE,
            category=CONDUCTOR_CATEGORY,
            description="Generates a new image with several LoRA concepts, each in its mask (Concept Conductor).",
            inputs=[
                io.Model.Input("model", tooltip="The checkpoint, through Layout Alignment and Mask Refinement."),
                io.Conditioning.Input(
                    "positive", tooltip="The whole image, with general words such as a dog and a cat."
                ),
                io.Conditioning.Input("negative", tooltip="Negative prompt; it has no effect at cfg 1."),
                ConductedType.Input("concepts", tooltip="The chain of Conducted Concepts. Later ones are in front."),
                io.Latent.Input(
                    "latent",
                    tooltip="Size and number of the new images. With a noise mask (Set Latent Noise Mask), the image "
                    "to edit: it changes only in the mask.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed of the noise. Another seed: another image with the same layout.",
                ),
                io.Int.Input(
                    "steps",
                    default=200,
                    min=1,
                    max=1000,
                    tooltip="Number of DDIM steps. More: finer, closer to the layout, slower.",
                ),
                io.Float.Input(
                    "cfg",
                    default=7.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Classifier-free guidance. Higher: closer to the prompts. At 1 sampling takes half as "
                    "long.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.SCHEDULER_NAMES,
                    default="ddim_uniform",
                    tooltip="How the steps are spaced over the noise levels.",
                    **EXPERT,
                ),
                io.Combo.Input(
                    "inject",
                    options=list(KINDS),
                    default="both",
                    tooltip="Attention layers of the decoder that the concepts are injected in. self: shapes; cross: "
                    "colors and surfaces.",
                    **EXPERT,
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The new images, for VAE Decode."),
                io.Mask.Output(
                    display_name="masks", tooltip="The final mask of each concept, as a batch: image by image."
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    @override
    def execute(cls, model, positive, negative, concepts, latent, seed, steps, cfg, scheduler, inject) -> io.NodeOutput:
        check_numbers(NODE, seed=seed, steps=steps, cfg=cfg)
        check_choice(NODE, "inject", inject, list(KINDS))
        check_model(NODE, model)
        check_whole_pictures(NODE, model)
        check_one_gpu(NODE, model)
        check_not_compiled(NODE, model)
        for name, conditioning in (("positive", positive), ("negative", negative)):
            check_conditioning(NODE, name, conditioning, model)
            check_plain_prompt(NODE, name, conditioning)
        messages = []
        for concept in concepts:
            with at_fault(concept.node_id):
                messages += check_concept(concept, model)
        show(NODE, cls.hidden.unique_id, messages)
        samples = check_batch(NODE, "latent", latent)
        ratio = latent.get("downscale_ratio_spacial")  # for which newer hosts' empty latents say that they were made
        samples = comfy.sample.fix_empty_latent_channels(model, samples, *([] if ratio is None else [ratio]))
        check_channels(NODE, "latent", samples, model)
        guidance: LayoutGuidance | None = model.model_options.get(LAYOUT_GUIDANCE)
        if guidance is not None:
            check_guidance(guidance, model, samples)
        sigmas = falling_sigmas(model, scheduler, steps)

        ratio, grid = downscale_ratio(model), tuple(samples.shape[-2:])
        size = grid[0] * ratio, grid[1] * ratio
        concepts = [in_pixels(concept, *size) for concept in concepts]
        masks = masks_on_grids(concepts, grid, len(samples), layers_of(model.model.diffusion_model).attention, model)
        latent_format = model.get_model_object("latent_format")
        overlays = [concept_overlay(concepts, torch.zeros(samples.shape[1:]), latent_format)]
        show_at_once(cls.hidden.unique_id, overlays[-1])

        def show_masks(denoised: Tensor, refined: Masks) -> None:
            """Shows the refined masks in the editor."""
            own = zip(concepts, refined.final[grid][:, 0].float().cpu(), strict=True)
            now = [concept._replace(mask=to_pixels(mask, *size)) for concept, mask in own]
            overlays.append(concept_overlay(now, denoised[0].cpu(), latent_format))
            show_at_once(cls.hidden.unique_id, overlays[-1])

        guider = BranchGuider(model, positive, negative, cfg, concepts, guidance)
        kept = {} if guidance is None else kept_keys(guidance, model, cls.hidden)
        sampler = ConductSampler(masks, inject, guidance, kept, model.model_options.get(REFINEMENT), show_masks)
        noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
        callback = latent_preview.prepare_callback(model, len(sigmas) - 1)
        result = guider.sample(
            noise, samples, sampler, sigmas, denoise_mask=latent.get("noise_mask"), callback=callback, seed=seed
        )
        check_predictions(NODE, result)
        device = comfy.model_management.intermediate_device()
        final = rearrange(sampler.masks.final[grid].float(), "concepts batch h w -> (batch concepts) h w").to(device)
        found = torch.stack([to_pixels(mask, *size) for mask in final])
        return io.NodeOutput({"samples": result.to(device)}, found, ui={"overlay": [overlays[-1]]})


def falling_sigmas(model, scheduler: str, steps: int) -> Tensor:
    """Returns the noise levels (steps + 1,) of a scheduler, and refuses one that does not fall to 0."""
    check_choice(NODE, "scheduler", scheduler, comfy.samplers.SCHEDULER_NAMES)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps).float().cpu()
    if not falls_to_zero(sigmas):
        raise BadInput(NODE, "scheduler", f"'{scheduler}' does not fall to 0 with {steps} steps.", "Use ddim_uniform.")
    return sigmas


def in_pixels(concept: ConductedConcept, height: int, width: int) -> ConductedConcept:
    """Returns the concept with its mask scaled to the image's size."""
    with at_fault(concept.node_id):
        check_aspect(f"Conducted Concept '{concept.name}'", "mask", concept.mask, height, width)
    return concept._replace(mask=to_image_size(concept.mask, height, width))


def to_pixels(mask: Tensor, height: int, width: int) -> Tensor:
    """Scales a mask (h, w) of the latent grid to image pixels (height, width)."""
    return F.interpolate(mask[None, None], size=(height, width))[0, 0]


def masks_on_grids(
    concepts: list[ConductedConcept], grid: tuple[int, int], batch: int, attention: Layer, model
) -> Masks:
    """Returns the masks on every grid of the UNet.

    Raises:
        BadInput: nothing of a concept's mask is left on the latent grid.
    """
    soft = first_masks(torch.stack([concept.mask for concept in concepts]), grid, batch)
    grids = layer_grids(grid)
    masks = first_state(soft, grids, grids[level_of(attention, model.model.diffusion_model)])
    for k, concept in enumerate(concepts):
        if not any_inside({grid: masks.final[grid][k]}):
            fault = f"it is too small: it covers none of the {grid[0]} × {grid[1]} latent tokens."
            with at_fault(concept.node_id):
                raise BadInput(f"Conducted Concept '{concept.name}'", "mask", fault, "Paint a larger area.")
    return masks


def kept_keys(guidance: LayoutGuidance, model, hidden) -> dict:
    """Returns the cache for features of the layout image, which lasts from run to run while the model is the same."""
    ours = {LAYOUT_GUIDANCE, REFINEMENT}
    options = {name: value for name, value in model.model_options.items() if name not in ours}
    # not patches_uuid: the host gives a MODEL another one whenever the concepts' LoRAs are put on and taken off again
    patches = {name: tuple(own) for name, own in model.patches.items()}
    made_with = [model.model, patches, comfy.patcher_extension.copy_nested_dicts(options), model.wrappers]
    picture = guidance.reference.layout.trajectory
    before = [keys for made, keys in kept_beside(picture).values() if is_same(made, made_with)]
    keys = before[0] if before else {}
    replace_kept(picture, hidden.unique_id, hidden.prompt, (made_with, keys))
    return keys


def is_same(before: list, now: list) -> bool:
    """Tells whether a MODEL is patched as it was when the cache was made."""
    try:
        return before[0] is now[0] and same_patches(before[1], now[1]) and before[2:] == now[2:]
    except Exception:  # of tensors and the like among the patches, which know no plain equality
        return False


def same_patches(before: dict[str, tuple], now: dict[str, tuple]) -> bool:
    """Tells whether the weights have the same patches, which clones of a MODEL share."""
    if before.keys() != now.keys():
        return False
    pairs = [(before[name], now[name]) for name in now]
    return all(len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True)) for a, b in pairs)


NODES = [PnPMixConductor]
