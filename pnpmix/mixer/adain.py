"""Appearance normalization: AdaIN (arXiv 1703.06868) between the objects of two latents."""

from torch import Tensor

from ..masks import weighted


def object_moments(x: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and deviation (n, C, 1, 1) of each channel of x (n, C, H, W) under its mask (n, 1, H, W)."""
    weights = masks / masks.sum((-2, -1), keepdim=True).clamp(min=1e-6)
    mean = weighted(x, weights).sum((-2, -1), keepdim=True)
    return mean, weighted((x - mean) ** 2, weights).sum((-2, -1), keepdim=True).sqrt()


def adain(x: Tensor, masks: Tensor, styles: Tensor, style_masks: Tensor) -> Tensor:
    """Gives x the mean and the standard deviation of each style's object, channel by channel.

    Cross-Image Attention (arXiv 2311.03335) does so with noisy latents; the paper names it as future work.

    Args:
        x: (n, C, H, W) latents at the noise level of the styles.
        masks: (n, 1, H, W) weights in 0..1 of x's objects.
        styles: (n, C, H, W) latents.
        style_masks: (n, 1, H, W) weights of the styles' objects.

    Returns:
        (n, C, H, W); what lies outside its mask means nothing.
    """
    mean, std = object_moments(x, masks)
    style_mean, style_std = object_moments(styles, style_masks)
    return (x - mean) / std.clamp(min=1e-6) * style_std + style_mean
