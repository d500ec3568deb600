"""Mask refinement (algorithm 1): masks that follow the objects, from clusters of self-attention."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import einsum
from torch import Tensor

from ..masks import bounding_box
from .injection import Grid, all_grids, on_grid

SEED = 123  # of the first centers of k-means
ITERATIONS = 100
SMALL_SHIFT = 1e-4  # of the centers, on average, below which a run of k-means has settled


class Masks(NamedTuple):
    """The masks of n concepts in each of B images."""

    final: dict[Grid, Tensor]  # M_k on every grid of the UNet, (n, B, h, w) bool
    custom: Tensor  # (n, B, h, w) bool, from the concept's own attention, on the grid of the refined layer
    base: Tensor  # the same from the base model's attention


class Refinement(NamedTuple):
    """The settings of mask refinement."""

    start: float  # share of the steps
    end: float
    updates: int  # evenly spread from start to end
    threshold: float  # intersection over union below which a cluster is not taken for the concept
    restarts: int  # of k-means


def first_state(masks: Tensor, grids: Sequence[Grid], grid: Grid) -> Masks:
    """Returns the masks before the first refinement.

    Args:
        masks: (n, B, h, w) in 0..1.
        grids: of all layers.
        grid: of the layer whose attention refines them.
    """
    own = on_grid(masks, grid)
    return Masks(all_grids(masks, grids), own, own)


def refined_steps(refinement: Refinement, steps: int) -> set[int]:
    """Returns the steps after which masks are refined."""
    first, last = refinement.start * steps, refinement.end * steps
    gap = (last - first) / max(refinement.updates - 1, 1)
    return {min(round(first + i * gap), steps - 1) for i in range(refinement.updates)}


def k_means(points: Tensor, clusters: int, restarts: int, seed: int = SEED) -> tuple[Tensor, Tensor]:
    """Returns labels (T,) and inertia () of the best of many runs of k-means, which are computed together.

    Each run starts with different points as its centers. A center that loses all of its points stays where it is.

    Args:
        points: (T, D).
        clusters: K <= T.
    """
    points = points - points.mean(0)  # all rows of an attention are much alike, which rounding would drown
    generator = torch.Generator("cpu").manual_seed(seed)
    chosen = torch.rand(restarts, len(points), generator=generator).topk(clusters).indices.to(points.device)
    centers = points[chosen]  # (R, K, D)
    for _ in range(ITERATIONS):
        distances = squared_distances(points, centers)
        members = torch.nn.functional.one_hot(distances.argmin(1), clusters).to(points)  # (R, T, K)
        counts = members.sum(1)[..., None]
        means = einsum(members, points, "r t k, t d -> r k d") / counts.clamp(min=1)
        means = torch.where(counts > 0, means, centers)
        shift = (means - centers).norm(dim=-1).mean(-1)
        centers = means
        if (shift < SMALL_SHIFT).all():
            break
    nearest = squared_distances(points, centers).min(1)
    inertia = nearest.values.sum(-1)
    best = inertia.argmin()
    return nearest.indices[best], inertia[best]


def squared_distances(points: Tensor, centers: Tensor) -> Tensor:
    """Returns the squared distances (R, K, T) between points (T, D) and centers (R, K, D)."""
    products = centers @ points.T
    return (points.square().sum(-1) - 2 * products + centers.square().sum(-1, keepdim=True)).clamp(min=0)


def segments(attention: Tensor, numbers: Sequence[int], restarts: int) -> Tensor:
    """Returns every cluster of every number of clusters, (sum(numbers), T) bool.

    Args:
        attention: (T, T) probabilities, whose rows are the points.
    """
    found = []
    for clusters in numbers:
        labels, _ = k_means(attention, min(clusters, len(attention)), restarts)
        found.append(labels == torch.arange(clusters, device=labels.device)[:, None])
    return torch.cat(found)


def best_segment(found: Tensor, before: Tensor, threshold: float) -> Tensor:
    """Returns the segment with the highest intersection over union with the mask before.

    Below the threshold it is that mask's bounding box.

    Args:
        found: (S, T) bool.
        before: (h, w) bool.
    """
    if not before.any():
        return before
    flat = before.flatten()
    overlap = (found & flat).sum(-1) / (found | flat).sum(-1)
    best = int(overlap.argmax())
    if overlap[best] >= threshold:
        return found[best].view_as(before)
    box = torch.zeros_like(before)
    box[bounding_box(before)] = True
    return box


def refine(masks: Masks, base: Tensor, customs: Sequence[Tensor], refinement: Refinement) -> Masks:
    """Runs algorithm 1 for every image.

    custom_k and base_k follow the mask that each of them was before, as in the authors' code, and K is n + 1 .. 2n + 1.
    Where the union of two concepts overlaps, both keep their earlier mask.

    Args:
        base: (B, T, T) attention of the base model.
        customs: the same of each concept's model.
    """
    concepts, pictures = masks.custom.shape[:2]
    numbers = range(concepts + 1, 2 * concepts + 2)
    new_custom, new_base = masks.custom.clone(), masks.base.clone()
    for picture in range(pictures):
        of_base = segments(base[picture], numbers, refinement.restarts)
        for k in range(concepts):
            of_custom = segments(customs[k][picture], numbers, refinement.restarts)
            new_custom[k, picture] = best_segment(of_custom, masks.custom[k, picture], refinement.threshold)
            new_base[k, picture] = best_segment(of_base, masks.base[k, picture], refinement.threshold)
    final = {}
    for grid, before in masks.final.items():
        union = on_grid(new_custom, grid) | on_grid(new_base, grid)
        final[grid] = torch.where(union.sum(0) > 1, before, union)
    return Masks(final, new_custom, new_base)
