"""Layout alignment: DDIM inversion of the layout image, and the gradient that pulls a latent towards its layout."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..schedule import to_eps


class Layout(NamedTuple):
    """A layout image at every noise level of its inversion."""

    sigmas: Tensor  # (N,) rising
    trajectory: Tensor  # (N, C, H, W)


def inversion_levels(sigmas: Tensor, steps: int) -> Tensor:
    """Returns the noise levels of DDIM inversion in so many steps, (steps + 1,) rising.

    As diffusers' DDIMInverseScheduler has it for Stable Diffusion: every T // steps-th timestep from 1; the clean
    latent counts as one at timestep 0.

    Args:
        sigmas: (T,) noise levels of all timesteps, rising.
        steps: 1..T - 1.
    """
    reached = torch.arange(steps) * (len(sigmas) // steps) + 1
    return sigmas[torch.cat([torch.zeros(1, dtype=torch.long), reached])]


def ddim_invert(
    denoise: Callable[[Tensor, Tensor], Tensor],
    x0: Tensor,
    levels: Tensor,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Layout:
    """Runs DDIM inversion (section "Layout Alignment"): each step evaluates the model at the level that it reaches.

    Args:
        denoise: denoise(x, sigma) of (1, C, H, W) and (1,), the denoised estimate of the base model, without guidance.
        x0: (1, C, H, W) the layout picture.
        levels: (N + 1,) of `inversion_levels`.
        callback: called with (step, denoised estimate (1, C, H, W)).
    """
    z, trajectory = x0, []
    for i in range(len(levels) - 1):
        sigma, sigma_next = levels[i], levels[i + 1]
        asked = z * (1 + sigma_next**2).sqrt()  # the model takes z to be at the next level already
        denoised = denoise(asked, sigma_next.expand(1))
        x = z * (1 + sigma**2).sqrt() + (sigma_next - sigma) * to_eps(asked, denoised, sigma_next)
        z = x / (1 + sigma_next**2).sqrt()
        trajectory.append(x)
        if callback is not None:
            callback(i, denoised)
    return Layout(levels[1:], torch.cat(trajectory))


def noised(x0: Tensor, levels: Tensor, seed: int) -> Layout:
    """Adds the same noise to the layout image at every level: no model evaluation, and a looser layout.

    Args:
        x0: (1, C, H, W).
        levels: (N + 1,) of `inversion_levels`.
        seed: of the noise, which is drawn on the CPU so that it is the same on every machine.
    """
    noise = torch.randn(x0.shape, generator=torch.Generator("cpu").manual_seed(seed)).to(x0)
    return Layout(levels[1:], x0 + levels[1:].view(-1, 1, 1, 1) * noise)


def nearest_level(layout: Layout, sigma: Tensor) -> int:
    """Returns the index of the layout's noise level that is nearest to `sigma` (), in logarithms."""
    return int((layout.sigmas.log() - sigma.to(layout.sigmas).log()).abs().argmin())


def layout_loss(keys: Tensor, reference: Tensor) -> Tensor:
    """Returns m: the mean over tokens and channels of (F - F_ref)², summed over the batch.

    The paper (eq. 1) has the L2 norm of the difference; this is what the authors' code minimises.

    Args:
        keys: (B, tokens, channels) of a self-attention layer.
        reference: (1, tokens, channels).
    """
    return (keys.float() - reference.float()).square().mean((1, 2)).sum()


def layout_gradient(keys: Tensor, reference: Tensor, x: Tensor) -> Tensor:
    """Returns the gradient of `layout_loss` for x (B, C, H, W), from which `keys` were computed.

    The loss's own gradient for the keys is too small for half precision: what runs backwards through the model is
    the difference times a power of two that brings it near 1, and the rest comes in afterwards.
    """
    difference = keys.detach().float() - reference.float()
    largest = difference.abs().max()
    if largest == 0:
        return torch.zeros_like(x)
    scale = 2.0 ** -largest.log2().floor()
    (gradient,) = torch.autograd.grad(keys, x, (difference * scale).to(keys.dtype))
    return gradient.float() * (2 / (difference[0].numel() * scale))


class Alignment(NamedTuple):
    """The settings of layout alignment."""

    layout: Layout
    weight: float  # lambda, step size of eq. 2
    concept_weight: float  # alpha of eq. 1
    end: float  # share of the steps after which alignment ends; that step is the last


def is_aligned(alignment: Alignment, step: int, steps: int) -> bool:
    """Tells whether a step is aligned."""
    return step <= round(alignment.end * steps)


def align(
    gradients: Callable[[int, Tensor], Tensor], x: Tensor, sigma: Tensor, order: Sequence[int], alignment: Alignment
) -> Tensor:
    """Makes one gradient step (eq. 1 and 2): z <- z - lambda * grad L, L = m_base + alpha * mean_k m_k.

    For x this is x <- x - lambda * (1 + sigma²) * grad_x L.

    Args:
        gradients: gradients(branch, x), that of `layout_loss`; forward and backward of a branch follow each other, so
            that the weights of one branch are in place and the activations of one are alive.
        x: (B, C, H, W) at noise level `sigma` ().
        order: of the branches, all of them.
    """
    concepts = len(order) - 1
    total = torch.zeros_like(x)
    for branch in order:
        share = 1.0 if branch == 0 else alignment.concept_weight / concepts
        if share != 0:
            total += share * gradients(branch, x)
    return x - alignment.weight * (1 + sigma**2) * total
