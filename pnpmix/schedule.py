"""Noise levels: predictions, the DDPM posterior step, and the swap-guidance schedule."""

from torch import Tensor


def to_eps(x: Tensor, denoised: Tensor, sigma: Tensor) -> Tensor:
    """Noise prediction eps(x, sigma) from the denoised estimate D(x, sigma); shapes broadcast."""
    return (x - denoised) / sigma


def to_denoised(x: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
    """Denoised estimate from a (mixed) noise prediction; shapes broadcast."""
    return x - sigma * eps


def posterior_mean(x: Tensor, eps: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """Mean of the DDPM posterior (DDIM with eta = 1) one step from `sigma` down to `sigma_next`.

    With D = x - sigma * eps this is D + (sigma_next² / sigma²) * (x - D), the mu_t of eq. 3.2.
    """
    return x - (sigma - sigma_next**2 / sigma) * eps


def without_noisiest(sigmas: Tensor, steps: int, skip_steps: int) -> Tensor:
    """The end of a schedule, of which the first skip_steps / steps of its intervals are left out.

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
    """Weight w of the guided prediction at `step` of `steps`.

    Falls linearly from `swap_guidance` to max(swap_guidance / 2, 1), as in Cross-Image
    Attention (arXiv 2311.03335).
    """
    last = max(swap_guidance / 2, 1.0)
    return swap_guidance + (last - swap_guidance) * step / max(steps - 1, 1)
