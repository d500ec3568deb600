"""From image masks to weights on the latent grid."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import masks_to_boxes


def weighted(x: Tensor, weights: Tensor) -> Tensor:
    """Returns x * weights, and 0 where a weight is 0 whatever x is there; shapes broadcast.

    Half precision overflows, and infinity times 0 is NaN, which a sum would carry out of the mask.
    """
    return (x * weights).masked_fill(weights == 0, 0)


def to_image_size(mask: Tensor, height: int, width: int) -> Tensor:
    """Scales a mask (h, w) in 0..1 to (height, width); unchanged where it already has that size."""
    if mask.shape == (height, width):
        return mask
    return F.interpolate(mask[None, None], size=(height, width), mode="bilinear", antialias=True)[0, 0]


def to_latent_grid(mask: Tensor, height: int, width: int) -> Tensor:
    """Averages an image-size mask over each token of the (height, width) latent grid."""
    return F.adaptive_avg_pool2d(mask[None], (height, width))[0]


def gaussian_blur(mask: Tensor, sigma: float) -> Tensor:
    """Blurs a mask (H, W) with standard deviation `sigma` in pixels; edges are replicated."""
    radius = math.ceil(4 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1).to(mask) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    blurred = F.pad(mask[None, None], (radius,) * 4, mode="replicate")
    blurred = F.conv2d(F.conv2d(blurred, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    return blurred[0, 0].clamp(0, 1)


def grow(mask: Tensor, pixels: int) -> Tensor:
    """Grows masks (n, H, W) by `pixels` on each side."""
    size = 2 * pixels + 1
    mask = F.max_pool2d(mask[:, None], (1, size), stride=1, padding=(0, pixels))
    return F.max_pool2d(mask, (size, 1), stride=1, padding=(pixels, 0))[:, 0]


def token_weights(mask: Tensor, grid: tuple[int, int], feather: float = 0) -> Tensor:
    """Returns weights on the latent grid from an image-size mask (H, W), of a target (then this is M_k) or an object.

    Hard (at least half of a cell is covered) without `feather`; with it, soft: blurred with
    standard deviation feather / 2 image pixels.
    """
    if feather > 0:
        return to_latent_grid(gaussian_blur(mask, feather / 2), *grid)
    return (to_latent_grid(mask, *grid) >= 0.5).float()


def changed_pixels(weights: Tensor, height: int, width: int) -> Tensor:
    """Returns a mask (height, width) from weights (n, 1, h, w): 1 in every latent token where any concept has a weight.

    Outside it the finished latent is the background's exactly.
    """
    return F.interpolate((weights > 0).any(0)[None].float(), size=(height, width))[0, 0]


def covered_tokens(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Returns the indices (m,) of the tokens of which the mask (H, W) covers at least half, or else the most."""
    share = to_latent_grid(mask, *grid).flatten()
    return (share >= min(0.5, float(share.max()))).nonzero()[:, 0]


def box_distance(target: Tensor, own: Tensor, columns: int) -> tuple[int, int]:
    """Returns how many rows and columns lie between the boxes of two sets of tokens, as `covered_tokens` gives them.

    Between the boxes' centers, in whole cells.
    """
    rows, across = (
        [(int(x.min()) + int(x.max())) / 2 for x in (place(target), place(own))]
        for place in (lambda cells: cells // columns, lambda cells: cells % columns)
    )
    return round(rows[0] - rows[1]), round(across[0] - across[1])


def layer_grids(latent_grid: tuple[int, int]) -> list[tuple[int, int]]:
    """Returns height and width of every level of a UNet, each half of the last, rounded up, down to a single token."""
    grids = [latent_grid]
    while max(grids[-1]) > 1:
        height, width = grids[-1]
        grids.append(((height + 1) // 2, (width + 1) // 2))
    return grids


def readable_tokens(
    masks: Sequence[Tensor], object_masks: Sequence[Tensor | None], latent_grid: tuple[int, int]
) -> dict[tuple[int, int], list[tuple[Tensor, Tensor] | None]]:
    """Returns (height, width) of a layer → for each concept the tokens of its target and of its object.

    Args:
        masks, object_masks: of each concept, (H, W) in image pixels.
    """
    pairs = [
        None if own is None or min(mask.max(), own.max()) < 0.5 else (mask, own)
        for mask, own in zip(masks, object_masks, strict=True)
    ]
    return {
        grid: [pair and (covered_tokens(pair[0], grid), covered_tokens(pair[1], grid)) for pair in pairs]
        for grid in layer_grids(latent_grid)
    }


def part_of(mask: Tensor, area: tuple[int, int, int, int], latent_grid: tuple[int, int]) -> Tensor:
    """Crops a mask (H, W) in image pixels to the (height, width, top, left) tokens of the latent grid."""
    down, across = (side // cells for side, cells in zip(mask.shape, latent_grid, strict=True))
    height, width, top, left = area
    return mask[top * down : (top + height) * down, left * across : (left + width) * across]


def bounding_box(mask: Tensor, margin: int = 0) -> tuple[slice, slice] | None:
    """Returns rows and columns of the smallest box around what is not 0 in a (H, W) mask; None if all of it is 0.

    Args:
        margin: by how many pixels the box is grown on each side, as far as the mask reaches.
    """
    if not mask.any():
        return None
    left, top, right, bottom = masks_to_boxes(mask[None])[0].int().tolist()
    return grown_box((slice(top, bottom + 1), slice(left, right + 1)), margin, mask.shape)


def grown_box(box: tuple[slice, slice], margin: int, shape: torch.Size) -> tuple[slice, slice]:
    """Returns rows and columns with `margin` more pixels on each side, as far as an image of that (H, W) reaches."""
    rows, columns = (
        slice(max(side.start - margin, 0), min(side.stop + margin, size)) for side, size in zip(box, shape, strict=True)
    )
    return rows, columns


def expanded_box_mask(mask: Tensor, grid: tuple[int, int], expand: int) -> Tensor:
    """Returns M_E: the smallest rectangle around the image-size mask, grown by `expand` pixels on each side.

    Returns:
        hard weights on the latent grid; all zero for an empty mask.
    """
    area, box = torch.zeros_like(mask), bounding_box(mask >= 0.5, expand)
    if box is not None:
        area[box] = 1
    return (to_latent_grid(area, *grid) >= 0.5).float()


def last_in_front(masks: Tensor) -> Tensor:
    """Returns masks (n, H, W), each without what those after it cover."""
    visible = [mask * (1 - masks[k + 1 :]).prod(0) for k, mask in enumerate(masks)]
    return torch.stack(visible) if visible else masks


def share_overlaps(masks: Tensor) -> Tensor:
    """Returns weights (n, 1, h, w), divided by their sum where that is more than 1."""
    return masks / masks.sum(0).clamp(min=1)
