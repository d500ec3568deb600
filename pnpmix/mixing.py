"""Mask-guided noise mixing (eq. 3.4)."""

from torch import Tensor


def mix_noise(eps_back: Tensor, eps_ref: Tensor, masks: Tensor) -> Tensor:
    """eps = eps_back * M_B + sum_k eps_k * M_k, with M_B = 1 - sum_k M_k.

    Args:
        eps_back: (C, H, W) prediction for the background.
        eps_ref: (n, C, H, W) prediction for each reference.
        masks: (n, 1, H, W) weights whose sum is at most 1.
    """
    return eps_back * (1 - masks.sum(0)) + (eps_ref * masks).sum(0)


def mix_reference_noise(eps_back: Tensor, eps_ref: Tensor, masks: Tensor) -> Tensor:
    """Background noise outside each reference's own object (ablation row d); shapes as in `mix_noise`."""
    return eps_ref * masks + eps_back * (1 - masks)
