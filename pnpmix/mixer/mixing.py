"""Mask-guided noise mixing (eq. 3.4)."""

from torch import Tensor

from ..masks import weighted


def mix_noise(eps_back: Tensor, eps_references: Tensor, masks: Tensor) -> Tensor:
    """Computes eps = eps_back * M_B + sum_k eps_k * M_k, with M_B = 1 - sum_k M_k.

    Args:
        eps_back: (C, H, W) prediction for the background.
        eps_references: (n, C, H, W) prediction for each reference latent.
        masks: (n, 1, H, W) weights whose sum is at most 1.
    """
    return weighted(eps_back, 1 - masks.sum(0)) + weighted(eps_references, masks).sum(0)


def mix_reference_noise(eps_back: Tensor, eps_references: Tensor, masks: Tensor) -> Tensor:
    """Mixes reference noise (ablation row d): the scene's noise outside each reference's own target mask.

    Shapes as in `mix_noise`.
    """
    return weighted(eps_references, masks) + weighted(eps_back, 1 - masks)
