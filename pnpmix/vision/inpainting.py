"""The clean plate: objects are removed, and every other pixel is unchanged."""

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_cdt
from torch import Tensor

from ..masks import bounding_box, grown_box

MAX_SIDE = 2048  # pixels that a model fills at once; a larger hole is filled at this size and scaled up
Check = Callable[[], None]  # called again and again during the work; what it raises ends it


def no_check() -> None:
    """Lets the work go on."""


def fill_weights(mask: Tensor, expand: int, feather: int) -> Tensor:
    """Returns how much of each pixel is filled, (H, W): 1 on the binary mask, 0 outside the mask grown by `expand`.

    The last `feather` (at most `expand`) pixels fall in equal steps, and none of them lies in the mask itself.
    """
    steps, weights = min(feather, expand), torch.zeros_like(mask)
    box = bounding_box(mask, expand)
    if box is not None:
        # in chessboard distance, by which `masks.grow` grows
        distance = torch.from_numpy(distance_transform_cdt(mask[box].numpy() == 0, "chessboard"))
        weights[box] = (expand + 1 - distance).clamp(0, steps + 1) / (steps + 1)
    return weights


def inpaint(image: Tensor, weights: Tensor, fill: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Fills an image where `weights` are above 0.

    Args:
        image: (H, W, 3 or 4) in 0..1, float32 or half; a fourth channel (alpha) is kept.
        weights: (H, W), see `fill_weights`; at least one is 0.
        fill: (h, w, 3) float32 pixels and (h, w) hole → (h, w, 3) with the hole filled.
    """
    hole = bounding_box(weights)
    if hole is None:
        return image
    # the fill sees half the hole's longer side around it, at least 64 pixels
    box = grown_box(hole, max(64, *((side.stop - side.start) // 2 for side in hole)), weights.shape)
    pixels, weight = image[box][..., :3].float(), weights[box][..., None]
    filled = fill(pixels, (weight[..., 0] > 0).float())
    result = image.clone()
    result[box][..., :3] = torch.where(weight > 0, pixels + weight * (filled - pixels), pixels)
    return result


def fill_smoothly(pixels: Tensor, hole: Tensor, check: Check = no_check) -> Tensor:
    """Fills the hole with its surroundings, which flow into it: no edge in it, none at its border."""
    return membrane(pixels.movedim(-1, 0)[None], 1 - hole[None, None], check)[0].movedim(0, -1)


def membrane(x: Tensor, known: Tensor, check: Check) -> Tensor:
    """Solves Laplace's equation where (1, 1, h, w) `known` is 0, with the rest as its border.

    From coarse to fine (pull-push, Gortler et al. 1996), each level smoothed by a few sweeps of Jacobi's method; more
    of them change the error by less than 0.1 dB.
    """
    check()
    if known.all():
        return x
    size = ((x.shape[-2] + 1) // 2, (x.shape[-1] + 1) // 2)
    weight = F.adaptive_avg_pool2d(known, size)
    coarse = F.adaptive_avg_pool2d(x * known, size) / weight.clamp(min=1e-6)
    coarse = membrane(coarse, (weight > 0).float(), check)
    x = torch.where(known > 0, x, F.interpolate(coarse, size=x.shape[-2:], mode="bilinear"))
    for _ in range(5):
        check()
        x = torch.where(known > 0, x, F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1))
    return x


def fill_by_model(model, device: torch.device, check: Check = no_check) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns a fill by a spandrel inpainting model that is on `device`; it pads to the sizes it needs."""

    def fill(pixels: Tensor, hole: Tensor) -> Tensor:
        x, mask = pixels.movedim(-1, 0)[None], hole[None, None]
        size = x.shape[-2:]
        scale = min(1, MAX_SIDE / max(size))
        if scale < 1:
            small = [max(1, round(side * scale)) for side in size]
            x = F.interpolate(x, size=small, mode="bilinear", antialias=True)
            mask = (F.adaptive_max_pool2d(mask, small) > 0).float()
        with checked(model.model, check):
            filled = model(x.to(device, model.dtype), mask.to(device, model.dtype)).float().to(pixels.device)
        if scale < 1:
            filled = F.interpolate(filled, size=size, mode="bicubic").clamp(0, 1)
        return filled[0].movedim(0, -1)

    return fill


@contextlib.contextmanager
def checked(network: torch.nn.Module, check: Check) -> Iterator[None]:
    """Calls `check` before each layer of the network."""
    hooks = [layer.register_forward_pre_hook(lambda *_: check()) for layer in network.modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
