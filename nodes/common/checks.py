"""Checks of what comes in. Every message names the node, the input, the fault and the remedy."""

import math
from collections.abc import Sequence

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_base import SD3, SDXL, Flux, SDXLRefiner
from comfy.model_sampling import EPS, IMG_TO_IMG
from torch import Tensor

from ...pnpmix.files.texts import MAX_NAME, odd_character, printable
from ...pnpmix.masks import to_image_size


class BadInput(Exception):
    """What a user can correct: the message names the node, the input, the fault and the remedy."""

    def __init__(self, node: str, name: str, fault: str, remedy: str):
        super().__init__(printable(f"{node}, input '{name}': {fault} {remedy}"))


def check_text(node: str, name: str, text: str) -> None:
    """Refuses half characters (Unicode's surrogates), at which tokenizers and logs stumble."""
    if printable(text) != text:
        raise BadInput(node, name, "it contains half of a character, such as \\ud800.", "Write it anew.")


def check_name(node: str, name: str, text: str) -> None:
    """Refuses what no file and no log takes: a text from a widget may hold anything that JSON has."""
    odd = odd_character(text)
    if odd is not None or len(text) > MAX_NAME:
        fault = f"it has {len(text)} characters." if odd is None else f"it contains {odd!r}."
        raise BadInput(node, name, fault, "Use a plain name.")


def check_model(node: str, model, remedy: str = "Load an SD 1.x, SD 2.x or SDXL checkpoint.") -> None:
    """Refuses every MODEL that is not a UNet denoising its own latent from eps, v or EDM predictions."""
    base, sampling = model.model, model.get_model_object("model_sampling")
    if isinstance(sampling, IMG_TO_IMG):
        fault = f"{type(base).__name__} turns a picture into another one in a single step, and denoises nothing."
        raise BadInput(node, "model", fault, remedy)
    # in ComfyUI the samplings with x = x0 + sigma * eps are subclasses of EPS
    if not isinstance(base.diffusion_model, UNetModel) or not isinstance(sampling, EPS):
        name = f"{type(base).__name__} ({base.model_type.name})"
        fault = f"{name} is a flow-matching or transformer model, and none that this node knows."
        raise BadInput(node, "model", fault, remedy)
    channels = base.model_config.unet_config["in_channels"]
    latent = model.get_model_object("latent_format").latent_channels
    if channels != latent:
        raise BadInput(
            node,
            "model",
            f"its UNet takes {channels} channels instead of {latent}, as inpainting checkpoints do.",
            "Load the base checkpoint instead.",
        )


def check_one_gpu(node: str, model) -> None:
    """Refuses what computes several conditionings at once, in threads: what is noted of a call is of one only."""
    if "multigpu_clones" in model.model_options or getattr(model, "additional_models", {}).get("multigpu"):
        raise BadInput(node, "model", "several GPUs share it.", "Bypass the node that shares it.")


def check_whole_pictures(node: str, model) -> None:
    """Refuses what cuts a picture, or a batch of them, into windows."""
    if "context_handler" in model.model_options:
        fault = "context windows cut its images into parts that the sampler cannot tell apart."
        raise BadInput(node, "model", fault, "Bypass the node that sets context windows.")


def model_family(model) -> str:
    """Returns what must agree for an inversion to be usable: the architecture and what it predicts."""
    return f"{type(model.model.model_config).__name__} {model.model.model_type.name}"


# Where the host does not know it: what of ComfyUI 0.3.64's latent formats differs from 8
DOWNSCALE_RATIOS = {"SC_Prior": 42, "SC_B": 4, "LTXV": 32, "Wan22": 16, "HunyuanImage21": 32, "ChromaRadiance": 1}


def downscale_ratio(model) -> int:
    """Returns how many image pixels a latent token is wide."""
    latent_format = model.get_model_object("latent_format")
    known = DOWNSCALE_RATIOS.get(type(latent_format).__name__, 8)
    return getattr(latent_format, "spacial_downscale_ratio", known)


def check_numbers(node: str, **numbers: float) -> None:
    """Refuses NaN and infinity, which JSON and other nodes may bring and no minimum or maximum catches."""
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise BadInput(node, name, f"it is {number}.", "Enter a number, or fix the node that it comes from.")


def falls_to_zero(sigmas: Tensor) -> bool:
    """Tells whether these are noise levels of at least one step: positive, finite, never rising, 0 at the end."""
    falling = (sigmas[:-1] > 0).all() and (sigmas[1:] <= sigmas[:-1]).all()
    return len(sigmas) > 1 and bool(falling and torch.isfinite(sigmas).all() and sigmas[-1] == 0)


def check_predictions(node: str, predictions: Tensor) -> None:
    """Refuses NaN and infinity, which half precision may give."""
    if not torch.isfinite(predictions).all():
        remedy = "Start ComfyUI with --force-upcast-attention or --force-fp32, or load another checkpoint."
        raise BadInput(node, "model", "in this precision it predicts NaN or infinity.", remedy)


def check_latent(node: str, name: str, latent: dict) -> Tensor:
    """Returns the one latent (1, C, H, W) float32 of a LATENT, which may be a video of a single frame."""
    samples, encode = latent["samples"], "Encode an image with the checkpoint's VAE."
    if not isinstance(samples, Tensor) or samples.is_nested:  # as of models that make picture and sound
        raise BadInput(node, name, "it holds several latents in one, as models for video with sound have.", encode)
    if samples.ndim == 5 and samples.shape[2] == 1:
        samples = samples.squeeze(2)
    if samples.ndim != 4:
        raise BadInput(node, name, f"it has shape {tuple(samples.shape)}.", encode)
    if samples.numel() == 0:
        raise BadInput(node, name, f"it is empty (shape {tuple(samples.shape)}).", encode)
    if samples.shape[0] != 1:
        raise BadInput(node, name, f"it is a batch of {samples.shape[0]}.", "Pick one with Latent From Batch.")
    if not torch.isfinite(samples).all():
        raise BadInput(
            node,
            name,
            "it contains NaN or infinity.",
            "Encode the image again, with a VAE that works in this precision.",
        )
    return samples.float().cpu()


def check_channels(node: str, name: str, latent: Tensor, model) -> None:
    """Refuses a latent of another number of channels than the model's."""
    channels = model.get_model_object("latent_format").latent_channels
    if latent.shape[1] != channels:
        raise BadInput(
            node,
            name,
            f"it has {latent.shape[1]} channels, this model's latents have {channels}.",
            "Encode the image with the VAE of the same checkpoint.",
        )


def check_size(node: str, name: str, latent: Tensor, expected: Tensor, whose: str, model, remedy: str) -> None:
    """Refuses a latent of a picture of another size than that of `whose`, which are in the pixels that people see."""
    if latent.shape[-2:] == expected.shape[-2:]:
        return
    ratio = downscale_ratio(model)
    (height, width), (other_height, other_width) = ([ratio * x for x in y.shape[-2:]] for y in (latent, expected))
    fault = f"its picture is {width} x {height} pixels, {whose} {other_width} x {other_height}."
    raise BadInput(node, name, fault, remedy)


# of a prompt's tokens, as ComfyUI's networks call it
CONTEXT_WIDTHS = ("context_dim", "context_in_dim", "joint_attention_dim", "cap_feat_dim")


def token_width(model) -> int | None:
    """Returns the width of a prompt's tokens that the network reads; None where it does not say."""
    config = model.model.model_config.unet_config
    embedder = config.get("context_embedder_config") or {}  # of SD 3
    return next((config[key] for key in CONTEXT_WIDTHS if key in config), embedder.get("params", {}).get("in_features"))


def pooled_width(model) -> int | None:
    """Returns the width of the pooled output that the network reads; None where it reads none, or does not say."""
    base, config = model.model, model.model.model_config.unet_config
    if isinstance(base, SDXL | SDXLRefiner):
        return config["adm_in_channels"] - 256 * (5 if isinstance(base, SDXLRefiner) else 6)  # the rest is about sizes
    if isinstance(base, SD3):
        return config.get("adm_in_channels")
    return config.get("vec_in_dim") if hasattr(base.diffusion_model, "vector_in") else None


def check_pooled(node: str, name: str, options: dict, model) -> None:
    """Refuses a prompt whose pooled output is missing or of another width."""
    pooled, expected, fault = options.get("pooled_output"), pooled_width(model), None
    if expected is None or "unclip_conditioning" in options:
        return
    if pooled is None and not isinstance(model.model, Flux):  # which takes zeros for it
        fault = "it has no pooled output, which this model reads."
    elif pooled is not None and pooled.shape[-1] != expected:
        fault = f"its pooled output is {pooled.shape[-1]} numbers wide, this model reads {expected}."
    if fault is not None:
        raise BadInput(node, name, fault, "Encode the prompt with the CLIP of the same checkpoint.")


def check_conditioning(node: str, name: str, conditioning: list, model) -> None:
    """Refuses prompts that are empty, batched, or encoded with another CLIP."""
    if len(conditioning) == 0:
        raise BadInput(node, name, "it holds no prompt.", "Wire CLIP Text Encode.")
    expected = token_width(model)
    for cross_attn, options in conditioning:
        if cross_attn is None:
            continue
        if cross_attn.shape[0] != 1:
            raise BadInput(node, name, f"it is a batch of {cross_attn.shape[0]} prompts.", "Wire one prompt.")
        if expected is not None and cross_attn.shape[-1] != expected:
            fault = f"its tokens are {cross_attn.shape[-1]} numbers wide, this model reads {expected}."
            raise BadInput(node, name, fault, "Encode the prompt with the CLIP of the same checkpoint.")
        check_pooled(node, name, options, model)


def masks_of(node: str, name: str, mask: Tensor) -> Tensor:
    """Returns the masks (n, h, w) of a MASK, at least one pixel each, on the CPU in 0..1."""
    if mask.ndim < 2 or mask.numel() == 0:
        raise BadInput(node, name, f"it has shape {tuple(mask.shape)}.", "Wire a mask of the object.")
    if mask.is_complex() or not torch.isfinite(mask).all():
        raise BadInput(node, name, "it contains NaN or infinity.", "Wire another mask.")
    return mask.reshape(-1, *mask.shape[-2:]).float().cpu().clamp(0, 1)


def check_mask(node: str, name: str, mask: Tensor, remedy: str) -> Tensor:
    """Returns the one mask (h, w) of a MASK, in 0..1."""
    masks = masks_of(node, name, mask)
    if len(masks) > 1:
        raise BadInput(
            node, name, f"it is a batch of {len(masks)}.", "Pick one, or join them with Mask Composite (add)."
        )
    if masks.max() < 0.5:
        raise BadInput(node, name, "it is empty.", remedy)
    return masks[0]


FLAT = 0.9  # share of what is marked that has one color, from which on there is no object


def check_marks_an_object(node: str, name: str, picture: Tensor, mask: Tensor, near: float) -> None:
    """Refuses a mask of what is transparent, or of what an editor painted black: there the picture is one flat color.

    Load Image's mask is 1 - alpha, so that of a cut-out it marks everything but the object. A plain object may be flat
    too; what is refused reaches three corners of the picture, or is wholly black or white.

    Args:
        picture: (C, H, W), a picture in 0..1 or a latent.
        mask: (H, W).
        near: largest difference within one color.
    """
    marked = mask >= 0.5
    if marked.all() or not marked.any():
        return
    inside, outside = (picture[:, part] for part in (marked, ~marked))
    color = inside.median(1, keepdim=True).values
    flat, same = ((x - color).abs().amax(0) <= near for x in (inside, outside))
    if flat.float().mean() < FLAT or same.all():
        return
    corners = sum(bool(marked[y, x]) for y in (0, -1) for x in (0, -1))
    if corners >= 3 or (len(picture) == 3 and (color.amax() <= near or color.amin() >= 1 - near)):
        fault = "the picture under it is one flat color, as where the mask marks what is transparent."
        raise BadInput(node, name, fault, "Add Invert Mask between Load Image and this node, or paint the mask again.")


def check_aspect(node: str, name: str, mask: Tensor | None, height: int, width: int) -> None:
    """Refuses a mask (..., h, w) that would have to be squeezed onto its picture; None passes.

    Another scale of the same picture is fine. VAE Encode crops an image to multiples of 8 pixels and other
    nodes round to them, each side by itself, so 8 pixels in the longer side are allowed, and one pixel of a coarser
    mask. A mask that is the same everywhere has no shape.
    """
    if mask is None or mask.numel() == 0 or mask.min() == mask.max():
        return
    own_height, own_width = mask.shape[-2:]
    allowed = max(8 * max(own_height, own_width), height, width)
    if abs(own_width * height - own_height * width) > allowed:
        fault = f"it is {own_width} x {own_height} pixels, another shape than its picture's {width} x {height}."
        raise BadInput(node, name, fault, "Scale or crop the mask together with its picture.")


def masks_of_pictures(mask: Tensor, count: int, size: Sequence[int]) -> tuple[Tensor, list[str]]:
    """Returns the binary mask (H, W) of each of `count` pictures, and warnings about what had to be done for it.

    Several masks are joined; as many as there are pictures go one to each.

    Args:
        mask: (n, h, w), see `masks_of`.
    """
    messages = []
    if mask.shape[1:] != tuple(size):
        (height, width), (was_height, was_width) = size, mask.shape[1:]
        messages.append(f"Warning: mask resized from {was_width} x {was_height} to {width} x {height}.")
    # 0.5: the masks of a JPEG are nowhere quite black or white
    masks = torch.stack([to_image_size(x, *size) >= 0.5 for x in mask])
    if count == 1 or len(masks) != count:
        masks = masks.any(0).expand(count, *size)
    return masks, messages


def check_image(node: str, name: str, image: Tensor) -> None:
    """Refuses what is not an RGB image; an alpha channel is fine."""
    if image.ndim != 4 or image.numel() == 0:
        raise BadInput(node, name, f"it has shape {tuple(image.shape)}.", "Wire a picture.")
    if image.shape[-1] not in (3, 4):
        raise BadInput(node, name, f"it has {image.shape[-1]} channels.", "Wire a color picture.")
    if image.is_complex() or not torch.isfinite(image).all():
        raise BadInput(node, name, "it contains NaN or infinity.", "Use another picture.")


def check_choice(node: str, name: str, value: str, options: list[str]) -> None:
    """Refuses a value that is not in the list, which the oldest supported ComfyUI lets through."""
    if value not in options:
        raise BadInput(node, name, f"'{value}' is none of {', '.join(options)}.", "Choose one of these.")
