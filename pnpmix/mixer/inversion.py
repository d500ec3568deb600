"""Edit-friendly DDPM inversion (arXiv 2304.06140; eq. 3.1 and 3.2)."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..batching import fetch, in_groups, is_torch_oom
from ..schedule import NoisePath, added_noise, posterior_mean, to_denoised, to_eps


class Inversion(NamedTuple):
    """An inverted image: its trajectory over the noise levels, and the model's predictions on it.

    The noise map of eq. 3.2 is not stored: its residual r_i = x_{i+1} - mu(x_i) follows from these.
    """

    sigmas: Tensor  # (N + 1,) falling, the last one 0
    trajectory: Tensor  # (N + 1, C, H, W), the last one is the picture itself
    eps: Tensor  # (N, C, H, W) prediction at the first N of them, see `to_eps`
    seed: int  # of the trajectory's noise


def edit_friendly_trajectory(x0: Tensor, sigmas: Tensor, seed: int, path: NoisePath = added_noise) -> Tensor:
    """Returns x_i = a_i * x0 + b_i * eps_i with independent eps_i (eq. 3.1).

    Args:
        x0: (C, H, W) latent.
        sigmas: (N + 1,) noise levels, the last one 0.
        seed: of the noise, which is drawn on the CPU so that it is the same on every machine.
        path: of the model that reads it.

    Returns:
        (N + 1, C, H, W); the last entry is x0.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    noise = torch.randn((len(sigmas) - 1, *x0.shape), generator=generator).to(x0)
    a, b = (x.view(-1, 1, 1, 1) for x in path(sigmas[:-1]))
    return torch.cat([a * x0 + b * noise, x0[None]])


def ddpm_invert(
    denoise: Callable[[Tensor, Tensor], Tensor],
    x0: Tensor,
    sigmas: Tensor,
    seed: int,
    timesteps_per_call: int = 1,
    callback: Callable[[int, Tensor], None] | None = None,
    is_oom: Callable[[Exception], bool] = is_torch_oom,
    path: NoisePath = added_noise,
) -> Inversion:
    """Inverts `x0`. No timestep depends on another, so many of them share a model call.

    Args:
        denoise: denoise(x, sigma) of (B, C, H, W) and (B,), the denoised estimate.
        x0: (C, H, W) latent.
        sigmas: (N + 1,) noise levels, the last one 0.
        seed: of the trajectory's noise.
        timesteps_per_call: batch size; halved when it does not fit in memory.
        callback: called with (timesteps done, latest denoised estimate (1, C, H, W)).
        is_oom: see `in_groups`.
        path: of the model.
    """
    trajectory = edit_friendly_trajectory(x0, sigmas, seed, path)

    def predict(timesteps: slice) -> Tensor:
        x, sigma = trajectory[timesteps], sigmas[timesteps]
        eps = to_eps(x, denoise(x, sigma), sigma.view(-1, 1, 1, 1))
        if callback is not None:
            callback(timesteps.stop, to_denoised(x[-1:], eps[-1:], sigma[-1]))
        return eps

    eps, _ = in_groups(predict, len(sigmas) - 1, timesteps_per_call, is_oom)
    return Inversion(sigmas, trajectory, eps, seed)


class InversionStep(NamedTuple):
    """One step of an inversion, on the device where it is needed."""

    sigma: Tensor  # ()
    sigma_next: Tensor  # ()
    x: Tensor  # (C, H, W) the picture at `sigma`
    x_next: Tensor  # (C, H, W) at `sigma_next`
    eps: Tensor  # (C, H, W) prediction for `x`
    path: NoisePath  # of the model


def inversion_step(inversion: Inversion, i: int, device: torch.device, path: NoisePath) -> InversionStep:
    """Returns step i of an inversion, on the device."""
    trajectory, eps = inversion.trajectory, inversion.eps
    back, back_next, eps_back = (fetch(x, device) for x in (trajectory[i], trajectory[i + 1], eps[i]))
    return InversionStep(inversion.sigmas[i], inversion.sigmas[i + 1], back, back_next, eps_back, path)


def edit_friendly_step(x: Tensor, eps: Tensor, background: InversionStep) -> Tensor:
    """Makes one step down with the residual of the inverted image (eq. 3.2).

    x_{i+1} = mu(x, eps) + r_i, summed in the order in which a latent that is still on the picture's
    own trajectory stays on it to the last bit.

    Args:
        x, eps: (..., C, H, W) latent at the background's noise level and the prediction for it.
    """
    levels = (background.sigma, background.sigma_next, background.path)
    mean = posterior_mean(background.x, background.eps, *levels)
    return background.x_next + (posterior_mean(x, eps, *levels) - mean)
