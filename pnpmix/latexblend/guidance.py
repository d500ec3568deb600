"""Blending guidance: each identifier attends where its noun does, and concepts stay separate."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .blending import Slot

POOL = 4  # positions, across and down, of which a map keeps the mean
SHARPNESS = 100.0  # of the softmax over a map


def distributions(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Returns log-probabilities (B, n, tokens) of where each prompt token acts, from maps (B, tokens, n)."""
    maps = rearrange(maps, "b (h w) n -> b n h w", h=grid[0])
    pooled = F.avg_pool2d(maps, tuple(min(POOL, side) for side in grid), ceil_mode=True)
    return (SHARPNESS * pooled.flatten(2)).log_softmax(-1)


def distance(p: Tensor, q: Tensor) -> Tensor:
    """Returns the symmetric Kullback-Leibler divergence of log-probabilities (..., tokens)."""
    return ((p.exp() - q.exp()) * (p - q)).sum(-1) / 2


def blending_loss(maps: Tensor, grid: tuple[int, int], slots: Sequence[Slot], g1: float, g2: float) -> Tensor:
    """Computes g1 * sum of D(V*, noun) - g2 * sum of D between concepts, of one layer.

    Of a noun's tokens the one farthest from V* counts. Between two concepts, in either order, it is the mean over the
    other's tokens of the distance from the farthest of the own. Each term counts by the strengths of its concepts.

    Args:
        maps: (B, positions, tokens), see `attention_probabilities`, with the identifiers' own keys.
        grid: height and width of the layer.

    Returns:
        (B,)
    """
    tokens = [torch.arange(slot.first, slot.last + 1, device=maps.device) for slot in slots]
    where = [distributions(maps[:, :, own], grid) for own in tokens]
    loss = maps.new_zeros(len(maps))
    for slot, own in zip(slots, where, strict=True):
        loss = loss + g1 * slot.strength * distance(own[:, :1], own[:, 1:]).amax(1)
        for other_slot, other in zip(slots, where, strict=True):
            if other is not own:
                apart = distance(own[:, :, None], other[:, None]).amax(1).mean(1)
                loss = loss - g2 * slot.strength * other_slot.strength * apart
    return loss


def guide(denoised: Tensor, gradient: Tensor, sigma: Tensor, scale: float) -> Tensor:
    """Returns eps + scale * ∇_z L as a denoised estimate: D - sigma * scale * ∇_z L.

    Args:
        gradient: ∇_x L (B, C, H, W) for x = z * sqrt(1 + sigma²).
        sigma: (B,)
    """
    sigma = sigma.view(-1, *[1] * (denoised.ndim - 1))
    return denoised - sigma * scale * gradient * (1 + sigma**2).sqrt()
