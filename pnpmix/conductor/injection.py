"""Feature fusion of concept injection (eq. 4): concepts' attention outputs replace the base model's."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, int]
ROUNDING = 1e-4  # half a token is not more than half of it, however the sum was rounded


def on_grid(masks: Tensor, grid: Grid) -> Tensor:
    """Scales masks (n, B, h, w) of any kind to (n, B, *grid) bool: more than half of a token is covered."""
    return F.interpolate(masks.float(), grid, mode="bilinear", antialias=True) > 0.5 + ROUNDING


def inside(hidden: Tensor, mask: Tensor) -> Tensor:
    """Returns h_k at the tokens of M_k, (tokens inside of all images, channels)."""
    return hidden[mask]


def fuse(hidden: Tensor, features: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
    """Computes h <- h_k * M_k + h * (1 - M_k), k = 1..n; where masks overlap the last concept wins.

    Args:
        hidden: (B, tokens, channels) of the base model; not changed.
        features: of each concept, as `inside` gave them.
        masks: of each concept, (B, tokens) bool.
    """
    hidden = hidden.clone()
    for feature, mask in zip(features, masks, strict=True):
        hidden[mask] = feature.to(hidden.dtype)
    return hidden


def all_grids(masks: Tensor, grids: Sequence[Grid]) -> dict[Grid, Tensor]:
    """Returns the masks on every grid."""
    return {grid: on_grid(masks, grid) for grid in grids}


def any_inside(masks: dict[Grid, Tensor]) -> bool:
    """Tells whether the masks have a token on any grid."""
    return any(bool(mask.any()) for mask in masks.values())


def first_masks(masks: Tensor, latent_grid: Grid, batch: int) -> Tensor:
    """Scales image masks (n, H, W) in 0..1 to (n, B, *latent_grid), still soft."""
    soft = F.interpolate(masks[:, None].float(), latent_grid, mode="bilinear", antialias=True)
    return soft.expand(-1, batch, -1, -1)
