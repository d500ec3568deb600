"""Brings the masks of concepts to the picture's size and to the latent grid."""

from typing import NamedTuple

import torch
from torch import Tensor

from ...pnpmix.masks import (
    changed_pixels,
    expanded_box_mask,
    last_in_front,
    share_overlaps,
    to_image_size,
    token_weights,
)
from ..common.checks import downscale_ratio
from ..common.types import DILUTION, Concept, InpaintedBackground, InvertedLatent
from .checks import check_apart, check_covered, check_on_grid, image_size


class Targets(NamedTuple):
    """The target masks and object masks of n concepts."""

    concepts: list[Concept]  # with masks of the picture's size, and the target masks as far as they are visible
    masks: Tensor  # (n, 1, h, w) weights M_k on the latent grid, which may overlap
    boxes: Tensor  # (n, 1, h, w) M_E
    object_masks: Tensor | None  # (n, 1, h, w) of the objects in their own pictures; None where one has none

    @property
    def shared(self) -> Tensor:
        """The weights with overlaps shared, so that their sum is at most 1."""
        return share_overlaps(self.masks)

    @property
    def changed(self) -> Tensor:
        """The pixels (1, h, w) that may change."""
        return changed_pixels(self.masks, *self.concepts[0].mask.shape)[None]


def rasterize(concepts: list[Concept], inversion: InvertedLatent, model, overlap: str, feather: int) -> Targets:
    """Returns the masks of the concepts in pixels and on the latent grid.

    Args:
        overlap: "last in front" takes from each target mask what later concepts cover.
        feather: image pixels.

    Raises:
        BadInput: nothing is left of a mask, or two mark the same object.
    """
    height, width = inversion.inversion.eps.shape[-2:]
    size, grid = image_size(inversion, model), (height, width)
    concepts = [in_pixels(concept, *size) for concept in concepts]
    check_apart(concepts)
    if overlap == "last in front":
        visible = last_in_front(torch.stack([concept.mask for concept in concepts]))
        concepts = [concept._replace(mask=mask) for concept, mask in zip(concepts, visible, strict=True)]
        check_covered(concepts)
    inpainted: InpaintedBackground | None = model.model_options.get(DILUTION)
    expand, ratio = inpainted.expand if inpainted else 0, downscale_ratio(model)
    masks = torch.stack([on_grid(concept, "mask", grid, ratio, feather) for concept in concepts])
    boxes = torch.stack([expanded_box_mask(concept.mask, grid, expand)[None] for concept in concepts])
    wired = [concept for concept in concepts if concept.object_mask is not None]
    objects = [on_grid(concept, "object_mask", grid, ratio) for concept in wired]
    return Targets(concepts, masks, boxes, torch.stack(objects) if len(wired) == len(concepts) else None)


def in_pixels(concept: Concept, height: int, width: int) -> Concept:
    """Returns the concept with masks of the picture's size."""
    own = None if concept.object_mask is None else to_image_size(concept.object_mask, height, width)
    return concept._replace(mask=to_image_size(concept.mask, height, width), object_mask=own)


def on_grid(concept: Concept, name: str, grid: tuple[int, int], ratio: int, feather: int = 0) -> Tensor:
    """Returns (1, *grid) weights of one of the concept's masks."""
    weights = token_weights(getattr(concept, name), grid, feather)[None]
    check_on_grid(concept, name, weights, ratio)
    return weights
