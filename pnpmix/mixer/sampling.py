"""Adaptive concept blending: the sampling loop of PnP-MIX (section 3.2 of the paper)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..batching import fetch, in_groups, is_torch_oom
from ..masks import weighted
from ..schedule import NoisePath, added_noise, swap_guidance_scale, to_denoised, to_eps
from .adain import adain
from .dilution import Dilution, background_dilution
from .inversion import Inversion, edit_friendly_step, inversion_step
from .mixing import mix_branch_noise, mix_noise


class Rows(NamedTuple):
    """The layout of one model batch: for each role in turn, one batch row for each of the concepts."""

    roles: tuple[str, ...]  # of "personal", "swap" and "plain"
    concepts: slice
    step: int = 0


Denoise = Callable[[Tensor, Tensor, Rows], Tensor]


def roles_needed(guided: bool, weight: float, known: bool = False) -> tuple[str, ...]:
    """Returns the batch rows of each concept in one step, without those that nothing reads.

    Args:
        known: whether the host has at hand what attention reads of the personal rows.
    """
    if not guided:
        return ("plain",)
    roles = ("swap",) if weight == 1 else ("swap", "plain")
    return roles if known else ("personal", *roles)


def predict_noise(
    denoise: Denoise,
    personal: Tensor,
    branches: Tensor,
    sigma: Tensor,
    guided: bool,
    weight: float,
    step: int,
    known: Callable[[int, slice], bool],
    group: slice,
) -> Tensor:
    """Computes eps_k = eps_plain + weight * (eps_swap - eps_plain) for a group of concepts.

    Args:
        personal, branches: (n, C, H, W) latents of all concepts at noise level `sigma` ().
        guided: whether appearance is guided; otherwise eps_k = eps_plain.
        known: see `sample_pnp_mix`.
    """
    roles = roles_needed(guided, weight, known(step, group))
    latents = {"personal": personal, "swap": branches, "plain": branches}
    x = torch.cat([latents[role][group] for role in roles])
    eps = to_eps(x, denoise(x, sigma.expand(len(x)), Rows(roles, group, step)), sigma)
    eps_of = dict(zip(roles, eps.chunk(len(roles)), strict=True))
    if "swap" not in eps_of:
        return eps_of["plain"]
    if "plain" not in eps_of:
        return eps_of["swap"]
    return eps_of["plain"] + weight * (eps_of["swap"] - eps_of["plain"])


def sample_pnp_mix(
    denoise: Denoise,
    inversion: Inversion,
    personal: Tensor,
    masks: Tensor,
    guided: Sequence[bool],
    swap_guidance: float = 3.5,
    mix_branches: bool = True,
    dilution: Dilution | None = None,
    object_masks: Tensor | None = None,
    concepts_per_call: int = 1,
    callback: Callable[[int, Tensor, Tensor], None] | None = None,
    is_oom: Callable[[Exception], bool] = is_torch_oom,
    path: NoisePath = added_noise,
    falling_guidance: bool = True,
    known: Callable[[int, slice], bool] = lambda step, concepts: False,
) -> tuple[Tensor, Tensor]:
    """Blends n concepts into the inverted scene.

    Args:
        denoise: denoise(x, sigma, rows) of (B, C, H, W) and (B,), the denoised estimate; its swap
            rows go through `guided_appearance_attention`.
        inversion: of the background, N steps.
        personal: (N + 1, n, C, H, W) trajectories of the concepts.
        masks: (n, 1, H, W) weights M_k whose sum is at most 1, on the device to work on; trajectories may lie
            elsewhere and are then fetched level by level.
        guided: for each step, whether appearance is guided in it.
        swap_guidance: weight of the guided prediction, the first one where it falls, see `swap_guidance_scale`.
        mix_branches: whether branches get the background's noise outside their target.
        dilution: inpainted background, boxes and strength; None leaves the branches as they are.
        object_masks: (n, 1, H, W) where the object of each concept is in its own picture. Given, AdaIN after each
            guided step brings the rendered objects to the channel statistics of the concepts' objects.
        concepts_per_call: how many concepts share a model call; halved when they do not fit.
        callback: called with (step, denoised output (C, H, W), denoised branches (n, C, H, W)).
        is_oom: see `in_groups`.
        path: of the model.
        falling_guidance: whether it falls; otherwise it is the same in every step.
        known: whether `denoise` needs no personal rows in a step for these concepts, because it has kept what the
            swap rows read of them.
    Returns:
        output latent (C, H, W) and branches (n, C, H, W).
    """
    device, steps, concepts = masks.device, len(inversion.eps), len(masks)
    latents = inversion.trajectory[0].to(device).expand(1 + concepts, -1, -1, -1)  # output, branches

    for i in range(steps):
        back, branches = inversion_step(inversion, i, device, path), latents[1:]
        eps_branches = torch.zeros_like(branches)
        if concepts > 0:
            weight = swap_guidance_scale(swap_guidance, i, steps) if falling_guidance else swap_guidance
            x_per = fetch(personal[i], device)
            predict = partial(predict_noise, denoise, x_per, branches, back.sigma, guided[i], weight, i, known)
            eps_branches, concepts_per_call = in_groups(predict, concepts, concepts_per_call, is_oom)

        eps = mix_noise(back.eps, eps_branches, masks)
        if mix_branches:
            eps_branches = mix_branch_noise(back.eps, eps_branches, masks)
        eps = torch.cat([eps[None], eps_branches])
        if callback is not None:
            denoised = to_denoised(latents, eps, back.sigma)
            callback(i, denoised[0], denoised[1:])

        latents = edit_friendly_step(latents, eps, back)
        if object_masks is not None and guided[i]:
            x_per, branches = fetch(personal[i + 1], device), latents[1:]
            change = weighted(adain(branches, masks, x_per, object_masks) - branches, masks)
            latents = latents + torch.cat([change.sum(0, keepdim=True), change])
        if dilution is not None:
            inpaint = fetch(dilution.trajectory[i + 1], device)
            latents = torch.cat([latents[:1], background_dilution(latents[1:], inpaint, dilution)])

    return latents[0], latents[1:]
