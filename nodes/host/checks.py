"""Checks of what comes in. Every message names the node, the input, the fault and the remedy."""

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_sampling import EPS
from torch import Tensor


class BadInput(Exception):
    def __init__(self, node: str, name: str, fault: str, remedy: str):
        super().__init__(f"{node}, input '{name}': {fault} {remedy}")


def check_model(node: str, model) -> None:
    """Refuses every MODEL that is not a UNet denoising its own latent from eps, v or EDM predictions."""
    base, sampling = model.model, model.get_model_object("model_sampling")
    # in ComfyUI the samplings with x = x0 + sigma * eps are subclasses of EPS
    if not isinstance(base.diffusion_model, UNetModel) or not isinstance(sampling, EPS):
        raise BadInput(
            node,
            "model",
            f"{type(base).__name__} ({base.model_type.name}) is a flow-matching or transformer model.",
            "Load an SD 1.x, SD 2.x or SDXL checkpoint.",
        )
    channels, latent = base.model_config.unet_config["in_channels"], base.latent_format.latent_channels
    if channels != latent:
        raise BadInput(
            node,
            "model",
            f"its UNet takes {channels} channels instead of {latent}, as inpainting checkpoints do.",
            "Load the base checkpoint instead.",
        )


def model_family(model) -> str:
    """What must agree for an inversion to be of use: the architecture and what it predicts."""
    return f"{type(model.model.model_config).__name__} {model.model.model_type.name}"


def check_latent(node: str, name: str, latent: dict) -> Tensor:
    """The one latent (1, C, H, W) float32 of a LATENT."""
    samples = latent["samples"]
    if samples.ndim != 4:
        raise BadInput(
            node, name, f"it has shape {tuple(samples.shape)}.", "Encode an image with the checkpoint's VAE."
        )
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
    channels = model.model.latent_format.latent_channels
    if latent.shape[1] != channels:
        raise BadInput(
            node,
            name,
            f"it has {latent.shape[1]} channels, this model's latents have {channels}.",
            "Encode the image with the VAE of the same checkpoint.",
        )


def check_conditioning(node: str, name: str, conditioning: list) -> None:
    for cross_attn, _ in conditioning:
        if cross_attn is not None and cross_attn.shape[0] != 1:
            raise BadInput(node, name, f"it is a batch of {cross_attn.shape[0]} prompts.", "Wire one prompt.")


def check_mask(node: str, name: str, mask: Tensor, remedy: str) -> Tensor:
    """The one mask (h, w) of a MASK."""
    if mask.ndim == 3 and mask.shape[0] != 1:
        fault = f"it is a batch of {mask.shape[0]}."
        raise BadInput(node, name, fault, "Pick one, or join them with Mask Composite (add).")
    mask = mask.reshape(mask.shape[-2:]).float().cpu()
    if not torch.isfinite(mask).all() or mask.max() < 0.5:
        raise BadInput(node, name, "it is empty.", remedy)
    return mask


def check_image(node: str, name: str, image: Tensor) -> None:
    """Refuses what is no colour picture; an alpha channel is fine."""
    if image.ndim != 4 or image.numel() == 0:
        raise BadInput(node, name, f"it has shape {tuple(image.shape)}.", "Wire a picture.")
    if image.shape[-1] not in (3, 4):
        raise BadInput(node, name, f"it has {image.shape[-1]} channels.", "Wire a colour picture.")


def check_choice(node: str, name: str, value: str, options: list[str]) -> None:
    """ComfyUI checks it too, but the oldest one that we support does not."""
    if value not in options:
        raise BadInput(node, name, f"'{value}' is none of {', '.join(options)}.", "Choose one of these.")
