"""The emptied background: objects painted out, every other pixel as it was."""

from collections.abc import Callable

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .masks import grow

MAX_SIDE = 2048  # pixels that a model fills at once; a larger hole is filled at this size and scaled up


def fill_weights(mask: Tensor, expand: int, feather: int) -> Tensor:
    """How much of each pixel is filled: 1 on the (H, W) binary mask, 0 outside the mask grown by `expand`.

    The last `feather` (at most `expand`) pixels fall in equal steps, and none of them lies in the mask itself.
    """
    steps = min(feather, expand)
    weights = ring = grow(mask[None], expand - steps)
    for _ in range(steps):
        ring = grow(ring, 1)
        weights = weights + ring
    return weights[0] / (steps + 1)


def surroundings(hole: Tensor) -> tuple[slice, slice]:
    """Rows and columns of the (H, W) hole's bounding box with half its longer side, at least 64 pixels, round it."""
    spans = [hole.any(1).nonzero()[:, 0], hole.any(0).nonzero()[:, 0]]
    margin = max(64, *(int(x[-1] - x[0] + 1) // 2 for x in spans))
    rows, columns = (slice(max(int(x[0]) - margin, 0), int(x[-1]) + 1 + margin) for x in spans)
    return rows, columns


def inpaint(image: Tensor, weights: Tensor, fill: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Fills an image where `weights` are above 0.

    Args:
        image: (H, W, 3 or 4) in 0..1; a fourth channel (alpha) is kept.
        weights: (H, W), see `fill_weights`; at least one is 0 and one is not.
        fill: (h, w, 3) pixels and (h, w) hole → (h, w, 3) with the hole filled.
    """
    rows, columns = surroundings(weights > 0)
    pixels, weight = image[rows, columns, :3], weights[rows, columns, None]
    filled = fill(pixels, (weights[rows, columns] > 0).float())
    result = image.clone()
    result[rows, columns, :3] = torch.where(weight > 0, pixels + weight * (filled - pixels), pixels)
    return result


def fill_by_opencv(pixels: Tensor, hole: Tensor) -> Tensor:
    """Continues edges and colours into the hole (Bertalmio et al. 2001, Navier-Stokes), in 8 bits a channel."""
    picture = (pixels.cpu().numpy() * 255).round().clip(0, 255).astype(np.uint8)
    filled = cv2.inpaint(picture, hole.cpu().numpy().astype(np.uint8), 5, cv2.INPAINT_NS)
    return torch.from_numpy(filled.astype(np.float32) / 255)


def fill_by_model(model, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """Fill with a spandrel inpainting model that is on `device`; it pads to the sizes it needs."""

    def fill(pixels: Tensor, hole: Tensor) -> Tensor:
        x, mask = pixels.movedim(-1, 0)[None], hole[None, None]
        size = x.shape[-2:]
        scale = min(1, MAX_SIDE / max(size))
        if scale < 1:
            small = [max(1, round(side * scale)) for side in size]
            x = F.interpolate(x, size=small, mode="bilinear", antialias=True)
            mask = (F.adaptive_max_pool2d(mask, small) > 0).float()
        filled = model(x.to(device, model.dtype), mask.to(device, model.dtype)).float().to(pixels.device)
        if scale < 1:
            filled = F.interpolate(filled, size=size, mode="bicubic").clamp(0, 1)
        return filled[0].movedim(0, -1)

    return fill
