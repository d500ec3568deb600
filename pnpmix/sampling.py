"""Adaptive concept blending: the sampling loop of PnP-MIX (section 3.2 of the paper)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .batching import in_groups
from .dilution import Dilution, background_dilution
from .inversion import Inversion, edit_friendly_step
from .mixing import mix_noise, mix_reference_noise
from .schedule import swap_guidance_scale, to_denoised, to_eps


class Rows(NamedTuple):
    """Layout of one model batch: for each role in turn, one row for each of the concepts."""

    roles: tuple[str, ...]  # of "personal", "swap" and "plain"
    concepts: slice


Denoise = Callable[[Tensor, Tensor, Rows], Tensor]


def roles_needed(guided: bool, weight: float) -> tuple[str, ...]:
    """The rows of each concept in one step, without those that nothing reads."""
    if not guided:
        return ("plain",)
    return ("personal", "swap") if weight == 1 else ("personal", "swap", "plain")


def predict_noise(
    denoise: Denoise, personal: Tensor, references: Tensor, sigma: Tensor, guided: bool, weight: float, group: slice
) -> Tensor:
    """eps_k = eps_plain + weight * (eps_swap - eps_plain) for a group of concepts.

    Args:
        personal, references: (n, C, H, W) latents of all concepts at noise level `sigma` ().
        guided: whether appearance is guided; otherwise eps_k = eps_plain.
    """
    roles = roles_needed(guided, weight)
    latents = {"personal": personal, "swap": references, "plain": references}
    x = torch.cat([latents[role][group] for role in roles])
    eps = to_eps(x, denoise(x, sigma.expand(len(x)), Rows(roles, group)), sigma)
    eps = dict(zip(roles, eps.chunk(len(roles)), strict=True))
    if "swap" not in eps:
        return eps["plain"]
    if "plain" not in eps:
        return eps["swap"]
    return eps["plain"] + weight * (eps["swap"] - eps["plain"])


def sample_pnp_mix(
    denoise: Denoise,
    inversion: Inversion,
    personal: Tensor,
    masks: Tensor,
    guided: Sequence[bool],
    swap_guidance: float = 3.5,
    mix_references: bool = True,
    dilution: Dilution | None = None,
    concepts_per_call: int = 1,
    callback: Callable[[int, Tensor, Tensor], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Blends n concepts into the inverted background.

    Args:
        denoise: denoise(x, sigma, rows) of (B, C, H, W) and (B,), the denoised estimate; its swap
            rows go through `guided_appearance_attention`.
        inversion: of the background, N steps.
        personal: (n, N + 1, C, H, W) trajectory of each concept.
        masks: (n, 1, H, W) weights M_k whose sum is at most 1.
        guided: for each step, whether appearance is guided in it.
        swap_guidance: first weight of the guided prediction, see `swap_guidance_scale`.
        mix_references: whether references get the background's noise outside their object.
        dilution: inpainted background, boxes and strength; None leaves the references as they are.
        concepts_per_call: how many concepts share a model call; halved when they do not fit.
        callback: called with (step, denoised output (C, H, W), denoised references (n, C, H, W)).
    Returns:
        output latent (C, H, W) and reference latents (n, C, H, W).
    """
    sigmas, steps, concepts = inversion.sigmas, len(inversion.eps), len(personal)
    output = inversion.trajectory[0]
    references = output.expand(concepts, *output.shape)

    for i in range(steps):
        eps_back, eps_ref = inversion.eps[i], torch.zeros_like(references)
        if concepts > 0:
            weight = swap_guidance_scale(swap_guidance, i, steps)
            predict = partial(predict_noise, denoise, personal[:, i], references, sigmas[i], guided[i], weight)
            eps_ref, concepts_per_call = in_groups(predict, concepts, concepts_per_call)

        eps = mix_noise(eps_back, eps_ref, masks)
        if mix_references:
            eps_ref = mix_reference_noise(eps_back, eps_ref, masks)
        if callback is not None:
            callback(i, to_denoised(output, eps, sigmas[i]), to_denoised(references, eps_ref, sigmas[i]))

        output = edit_friendly_step(output, eps, inversion, i)
        references = edit_friendly_step(references, eps_ref, inversion, i)
        if dilution is not None:
            references = background_dilution(references, dilution.trajectory[i + 1], dilution)

    return output, references
