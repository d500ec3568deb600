"""Noise levels: the path from image to noise, predictions, the DDPM posterior step, the swap-guidance schedule."""

from collections.abc import Callable

import torch
from torch import Tensor

# sigma → (a, b) of x = a * x0 + b * eps, in the shape of sigma
NoisePath = Callable[[Tensor], tuple[Tensor, Tensor]]


def added_noise(sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the path of eps, v and EDM models, as k-diffusion writes them: x = x0 + sigma * eps."""
    return torch.ones_like(sigma), sigma


def rectified_flow(sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the path of a rectified flow (arXiv 2209.03003): x = (1 - sigma) * x0 + sigma * eps."""
    return 1 - sigma, sigma


def to_eps(x: Tensor, denoised: Tensor, sigma: Tensor) -> Tensor:
    """Returns the prediction (x - D) / sigma from the denoised estimate D(x, sigma); shapes broadcast.

    Where noise is added this is the noise prediction; on the path of a rectified flow it is the velocity. All that the
    method does with it is linear, so it need not know which.
    """
    return (x - denoised) / sigma


def to_denoised(x: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
    """Returns the denoised estimate from a (mixed) prediction; shapes broadcast."""
    return x - sigma * eps


def posterior_mean(x: Tensor, eps: Tensor, sigma: Tensor, sigma_next: Tensor, path: NoisePath = added_noise) -> Tensor:
    """Returns the mean of the DDPM posterior (DDIM with eta = 1) one step from `sigma` down to `sigma_next`.

    With D = x - sigma * eps this is a' * D + k * (x - a * D), k = a * b'² / (a' * b²): the mu_t of eq. 3.2 on any path,
    and D + (sigma_next² / sigma²) * (x - D) where noise is added. It is multiplied out so that nothing is divided by
    a, which is 0 where a flow begins.
    """
    (a, b), (a_next, b_next) = path(sigma), path(sigma_next)
    kept = a / a_next * (b_next**2 / b)  # k * b
    return (a_next + kept / b * (1 - a)) * x - (a_next * sigma - a * kept * (sigma / b)) * eps


def posterior_std(sigma: Tensor, sigma_next: Tensor, path: NoisePath = added_noise) -> Tensor:
    """Returns the standard deviation of the noise that this step adds."""
    (a, b), (a_next, b_next) = path(sigma), path(sigma_next)
    return b_next * (1 - (a / a_next * b_next / b) ** 2).clamp(min=0).sqrt()


def without_noisiest(sigmas: Tensor, steps: int, skip_steps: int) -> Tensor:
    """Returns the end of a schedule, without the first skip_steps / steps of its intervals.

    Some schedulers give more or fewer than the `steps` that they are asked for; the same share is skipped, and
    nothing else is cut.

    Args:
        sigmas: (L + 1,) noise levels.

    Returns:
        (N + 1,), N = L - round(L * skip_steps / steps).
    """
    intervals = len(sigmas) - 1
    return sigmas[round(intervals * skip_steps / steps) :]


def swap_guidance_scale(swap_guidance: float, step: int, steps: int) -> float:
    """Returns the weight w of the guided prediction at `step` of `steps`.

    Falls linearly from `swap_guidance` to max(swap_guidance / 2, 1), as in Cross-Image
    Attention (arXiv 2311.03335).
    """
    last = max(swap_guidance / 2, 1.0)
    return swap_guidance + (last - swap_guidance) * step / max(steps - 1, 1)
