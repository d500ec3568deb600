"""Embeds images and text with the encoders that ComfyUI has loaded."""

import comfy.clip_model
import comfy.model_management
import torch
import torch.nn.functional as F
from comfy.utils import ProgressBar
from torch import Tensor

from ...pnpmix.metrics.similarity import one_vector, regional_crop
from ..common.checks import BadInput, check_aspect, check_image, check_text, masks_of, masks_of_pictures

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP, where a CLIP_VISION does not say its own


def mean_color(encoder) -> tuple[float, ...]:
    """Returns the encoder's mean color, 3 numbers in 0..1, which is 0 after its normalization."""
    return tuple(getattr(encoder, "image_mean", MEAN))


def plain_pictures(node: str, name: str, images: Tensor) -> list[Tensor]:
    """Returns the images of a batch, each (H, W, 3) in 0..1."""
    check_image(node, name, images)
    return list(images[..., :3].float().cpu())


def regions(
    node: str, name: str, images: Tensor, mask_name: str, mask: Tensor | None, color: tuple[float, ...]
) -> tuple[list[Tensor], list[str]]:
    """Returns the region of each image that counts, (h, w, 3) each, and warnings about the masks.

    Args:
        name, mask_name: of the inputs that the images and their masks come from; without masks all of each counts.
        color: of what is not under the mask.
    """
    pictures = plain_pictures(node, name, images)
    if mask is None:
        return pictures, []
    masks, messages = checked_masks(node, mask_name, mask, images)
    for k, own in enumerate(masks, 1):
        if not own.any():
            raise BadInput(node, mask_name, f"it is empty for image {k}.", "Paint the object.")
    pairs = zip(pictures, masks.float(), strict=True)
    return [regional_crop(picture, own, color) for picture, own in pairs], messages


def checked_masks(node: str, name: str, mask: Tensor, images: Tensor) -> tuple[Tensor, list[str]]:
    """Returns the binary mask (H, W) of each image, and warnings about what had to be done for it."""
    mask = masks_of(node, name, mask)
    check_aspect(node, name, mask, *images.shape[1:3])
    masks, messages = masks_of_pictures(mask, len(images), images.shape[1:3])
    return masks, [f"{message} ({name})" for message in messages]


def embed_pictures(node: str, encoder, pictures: list[Tensor], progress: ProgressBar | None = None) -> Tensor:
    """Returns embeddings (n, d) of images (h, w, 3) of any size; the encoder crops each to its central square."""
    embeddings = []
    for picture in pictures:
        comfy.model_management.throw_exception_if_processing_interrupted()
        embeddings.append(one_vector(encoder.encode_image(picture[None])["image_embeds"]).cpu())
        if progress is not None:
            progress.update(1)
    if not embeddings:
        return torch.zeros(0, 1)
    joined = torch.cat(embeddings)
    if not torch.isfinite(joined).all():
        remedy = "Start ComfyUI with --fp32-text-enc, which applies to image encoders too, or load another one."
        raise BadInput(node, "encoder", "in this precision it gives NaN or infinity.", remedy)
    return joined


def embed_text(node: str, clip, text: str) -> tuple[Tensor, list[str]]:
    """Returns the embedding (d,) of a text in the space that it shares with images, and warnings."""
    if not isinstance(text, str) or not text.strip():
        raise BadInput(node, "text", "it has no words.", "Describe what the images should show.")
    check_text(node, "text", text)
    tokens = clip.tokenize(text, disable_weights=True)
    _, pooled = clip.encode_from_tokens(tokens, return_pooled="unprojected")
    projection = None if pooled is None else projection_of(clip.cond_stage_model, pooled.shape[-1])
    if projection is None:
        remedy = "Load a whole CLIP text encoder, such as clip_l.safetensors, with Load CLIP."
        fault = "it has no text projection, as the text encoders of SD 1.x checkpoints have none."
        raise BadInput(node, "clip", fault, remedy)
    messages = []
    if any(len(parts) > 1 for parts in tokens.values()):
        messages.append("Warning: the text is longer than CLIP reads; only its first 75 tokens count.")
    return F.linear(pooled[0].float().cpu(), projection), messages


def projection_of(network: torch.nn.Module, width: int) -> Tensor | None:
    """Returns the text projection (d, width) of a CLIP; None where the file had none.

    ComfyUI then leaves the layer as it finds the memory: zeros, whatever was there, or in other hosts the identity.
    """
    for part in network.modules():
        if isinstance(part, comfy.clip_model.CLIPTextModel):
            weight = part.text_projection.weight.detach().float().cpu()
            if weight.shape[1] == width and looks_trained(weight):
                return weight
    return None


def looks_trained(weight: Tensor) -> bool:
    """Tells a trained projection from zeros, uninitialized memory and the identity."""
    filled = (weight != 0).float().mean() > 0.9 and torch.isfinite(weight).all()
    return bool(filled and 1e-4 < weight.square().mean().sqrt() < 10)
