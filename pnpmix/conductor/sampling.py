"""Multipath sampling: the loop of Concept Conductor."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

from torch import Tensor

from ..masks import weighted
from ..schedule import to_eps
from .layout import Alignment, align, is_aligned
from .refinement import Masks, Refinement, refine, refined_steps


class Paths(Protocol):
    """The branches, as a host runs them. x is (B, C, H, W), sigma ()."""

    concepts: int

    def layout_gradient(self, branch: int, x: Tensor, sigma: Tensor) -> Tensor:
        """Returns `layout.layout_gradient` of a branch's keys, prompt alone, without injection."""

    def record(self, branch: int, x: Tensor, sigma: Tensor, masks: Masks, attention: bool) -> Tensor | None:
        """Runs a concept, keeps what is to be injected, and returns its attention (B, T, T) where asked for."""

    def denoise(self, x: Tensor, sigma: Tensor, masks: Masks, attention: bool) -> tuple[Tensor, Tensor | None]:
        """Returns the base model's guided denoised estimate with what was recorded injected, and its attention."""


class Placement(NamedTuple):
    """An image that stays unchanged outside a mask."""

    x0: Tensor  # (B, C, H, W)
    noise: Tensor  # (B, C, H, W) that sampling starts with
    mask: Tensor  # (B or 1, 1, H, W) in 0..1, where the new picture is made


def place(x: Tensor, sigma: Tensor, placement: Placement | None) -> Tensor:
    """Computes z <- (1 - M) * init_t + M * z."""
    if placement is None:
        return x
    before = placement.x0 + sigma * placement.noise
    return weighted(before, 1 - placement.mask) + weighted(x, placement.mask)


def first_latent(noise: Tensor, sigma: Tensor) -> Tensor:
    """Returns pure noise z at the first noise level."""
    return noise * (1 + sigma**2).sqrt()


def sample_concept_conductor(
    paths: Paths,
    noise: Tensor,
    sigmas: Tensor,
    masks: Masks,
    alignment: Alignment | None = None,
    refinement: Refinement | None = None,
    placement: Placement | None = None,
    callback: Callable[[int, Tensor, Tensor, Masks], None] | None = None,
) -> tuple[Tensor, Masks]:
    """Runs DDIM with the base model and the concepts injected.

    The order of the branches is the one with the fewest changes of weights: the base is last in a step and first in the
    next one's alignment, and the concept that is last there comes first in injection.

    Args:
        noise: (B, C, H, W) standard normal.
        sigmas: (N + 1,) noise levels, the last one 0.
        callback: called with (step, denoised estimate, x, masks of the next step).

    Returns:
        (B, C, H, W) and the masks of the end.
    """
    steps = len(sigmas) - 1
    refined = refined_steps(refinement, steps) if refinement is not None and paths.concepts > 0 else set()
    x = place(first_latent(noise, sigmas[0]), sigmas[0], placement)
    for i in range(steps):
        sigma, attention = sigmas[i], i in refined
        if alignment is not None and is_aligned(alignment, i, steps):
            order = range(paths.concepts + 1)
            gradients = partial(paths.layout_gradient, sigma=sigma)
            x = align(gradients, x, sigma, order, alignment)
        maps = {k: paths.record(k, x, sigma, masks, attention) for k in range(paths.concepts, 0, -1)}
        denoised, base = paths.denoise(x, sigma, masks, attention)
        customs = [found for k in range(1, paths.concepts + 1) if (found := maps[k]) is not None]
        if refinement is not None and base is not None:
            masks = refine(masks, base, customs, refinement)
        x = x + (sigmas[i + 1] - sigma) * to_eps(x, denoised, sigma)
        x = place(x, sigmas[i + 1], placement)
        if callback is not None:
            callback(i, denoised, x, masks)
    return x, masks
