"""Mask-guided noise mixing (eq. 3.4)."""

from torch import Tensor

from ..masks import weighted


def mix_noise(eps_back: Tensor, eps_branches: Tensor, masks: Tensor) -> Tensor:
    """eps = eps_back * M_B + sum_k eps_k * M_k, with M_B = 1 - sum_k M_k.

    Args:
        eps_back: (C, H, W) prediction for the background.
        eps_branches: (n, C, H, W) prediction for each branch.
        masks: (n, 1, H, W) weights whose sum is at most 1.
    """
    return weighted(eps_back, 1 - masks.sum(0)) + weighted(eps_branches, masks).sum(0)


def mix_branch_noise(eps_back: Tensor, eps_branches: Tensor, masks: Tensor) -> Tensor:
    """Reference noise mixing (ablation row d): the background's noise outside each branch's own target.

    Shapes as in `mix_noise`.
    """
    return weighted(eps_branches, masks) + weighted(eps_back, 1 - masks)
