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
from .mixing import mix_noise, mix_reference_noise


class BatchRows(NamedTuple):
    """The layout of one model batch: for each role in turn, one batch row for each of the concepts."""

    roles: tuple[str, ...]  # of "personal", "swap" and "plain"
    concepts: slice
    step: int = 0


Denoise = Callable[[Tensor, Tensor, BatchRows], Tensor]


def roles_needed(guided: bool, weight: float, cached: bool = False) -> tuple[str, ...]:
    """Returns the batch rows of each concept in one step, without those that nothing reads.

    Args:
        cached: whether the host has at hand what attention reads of the personal rows.
    """
    if not guided:
        return ("plain",)
    roles = ("swap",) if weight == 1 else ("swap", "plain")
    return roles if cached else ("personal", *roles)


def predict_noise(
    denoise: Denoise,
    personal: Tensor,
    references: Tensor,
    sigma: Tensor,
    guided: bool,
    weight: float,
    step: int,
    cached: Callable[[int, slice], bool],
    group: slice,
) -> Tensor:
    """Computes eps_k = eps_plain + weight * (eps_swap - eps_plain) for a group of concepts.

    Args:
        personal, references: (n, C, H, W) latents of all concepts at noise level `sigma` ().
        guided: whether appearance is guided; otherwise eps_k = eps_plain.
        cached: see `sample_pnp_mix`.
    """
    roles = roles_needed(guided, weight, cached(step, group))
    latents = {"personal": personal, "swap": references, "plain": references}
    x = torch.cat([latents[role][group] for role in roles])
    eps = to_eps(x, denoise(x, sigma.expand(len(x)), BatchRows(roles, group, step)), sigma)
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
    mix_references: bool = True,
    dilution: Dilution | None = None,
    object_masks: Tensor | None = None,
    concepts_per_call: int = 1,
    callback: Callable[[int, Tensor, Tensor], None] | None = None,
    is_oom: Callable[[Exception], bool] = is_torch_oom,
    path: NoisePath = added_noise,
    falling_guidance: bool = True,
    cached: Callable[[int, slice], bool] = lambda step, concepts: False,
    stop: int | None = None,
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
        mix_references: whether references get the background's noise outside their target.
        dilution: inpainted background, boxes and strength; None leaves the references as they are.
        object_masks: (n, 1, H, W) where the object of each concept is in its own picture. Given, AdaIN after each
            guided step brings the rendered objects to the channel statistics of the concepts' objects.
        concepts_per_call: how many concepts share a model call; halved when they do not fit.
        callback: called with (step, latents (1 + n, C, H, W) before it, their denoised estimates); the first of each is
            the output's, the others are the references'.
        is_oom: see `in_groups`.
        path: of the model.
        falling_guidance: whether it falls; otherwise it is the same in every step.
        cached: whether `denoise` needs no personal rows in a step for these concepts, because it has cached what the
            swap rows read of them.
        stop: how many of the N steps to make; None: all.

    Returns:
        output latent (C, H, W) and references (n, C, H, W), at the noise level of the last step's end.
    """
    device, steps, concepts = masks.device, len(inversion.eps), len(masks)
    latents = inversion.trajectory[0].to(device).expand(1 + concepts, -1, -1, -1)  # output, references

    for i in range(steps if stop is None else stop):
        back, references = inversion_step(inversion, i, device, path), latents[1:]
        eps_references = torch.zeros_like(references)
        if concepts > 0:
            weight = swap_guidance_scale(swap_guidance, i, steps) if falling_guidance else swap_guidance
            x_per = fetch(personal[i], device)
            predict = partial(predict_noise, denoise, x_per, references, back.sigma, guided[i], weight, i, cached)
            eps_references, concepts_per_call = in_groups(predict, concepts, concepts_per_call, is_oom)

        eps = mix_noise(back.eps, eps_references, masks)
        if mix_references:
            eps_references = mix_reference_noise(back.eps, eps_references, masks)
        eps = torch.cat([eps[None], eps_references])
        if callback is not None:
            callback(i, latents, to_denoised(latents, eps, back.sigma))

        latents = edit_friendly_step(latents, eps, back)
        if object_masks is not None and guided[i]:
            x_per, references = fetch(personal[i + 1], device), latents[1:]
            change = weighted(adain(references, masks, x_per, object_masks) - references, masks)
            latents = latents + torch.cat([change.sum(0, keepdim=True), change])
        if dilution is not None:
            inpaint = fetch(dilution.trajectory[i + 1], device)
            latents = torch.cat([latents[:1], background_dilution(latents[1:], inpaint, dilution)])

    return latents[0], latents[1:]
