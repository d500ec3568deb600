"""Runs the method of `pnpmix/` on the demo model with diffusers' UNet, where there is no ComfyUI."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from pnpmix.masks import cell_weights, expanded_box_mask, last_in_front, readable_cells, share_overlaps
from pnpmix.mixer.attention import attend_to_objects, guided_appearance_attention
from pnpmix.mixer.dilution import Dilution
from pnpmix.mixer.inversion import Inversion, ddpm_invert, edit_friendly_trajectory
from pnpmix.mixer.sampling import Rows, sample_pnp_mix
from pnpmix.schedule import posterior_mean, posterior_std, to_eps, without_noisiest
from pnpmix.vision.inpainting import fill_smoothly, fill_weights, inpaint
from torch import Tensor, nn

from .lora import add_lora
from .model import (
    CHANNELS,
    GRID,
    TIMESTEPS,
    UNET,
    WEIGHTS,
    Words,
    alphas_cumprod,
    denormalise,
    fold,
    load_weights,
    normalise,
    unfold,
)


class DemoModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.unet = UNet2DConditionModel(**UNET)
        self.words = Words()

    def forward(self, x: Tensor, timesteps: Tensor, prompts: list[str]) -> Tensor:
        """v for noisy latents (B, 12, 32, 32)."""
        return self.unet(x, timesteps, self.words(prompts)).sample


def load_model(path: Path = WEIGHTS, lora: Path | None = None) -> DemoModel:
    """
    Args:
        lora: file of one that is added to it, such as `lora.FEW_STEPS`.
    Raises:
        ValueError: the file is missing or damaged.
    """
    model = DemoModel().eval().requires_grad_(False)
    model.load_state_dict(load_weights(path))
    if lora is not None:
        add_lora(model.unet, load_weights(lora))
    return model


def all_sigmas() -> Tensor:
    """(1000,) rising noise levels."""
    alphas = alphas_cumprod()
    return ((1 - alphas) / alphas).sqrt().float()


def ddim_uniform(steps: int, skip_steps: int = 0) -> Tensor:
    """(N + 1,) falling noise levels, the last one 0: ComfyUI's scheduler of that name, without its noisiest part."""
    sigmas = all_sigmas()[1 :: max(TIMESTEPS // steps, 1)].flip(0)
    return without_noisiest(torch.cat([sigmas, torch.zeros(1)]), steps, skip_steps)


def sgm_uniform(steps: int, skip_steps: int = 0) -> Tensor:
    """(N + 1,) as ComfyUI's of that name, for which few-step models are made: it begins at the last timestep."""
    sigmas = [percent_to_sigma(i / steps) if i else float(all_sigmas()[-1]) for i in range(steps)]
    return without_noisiest(torch.tensor([*sigmas, 0.0]), steps, skip_steps)


SCHEDULERS = {"ddim_uniform": ddim_uniform, "sgm_uniform": sgm_uniform}


def denoise(model: DemoModel, x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
    """Denoised estimate of (B, 12, 32, 32) latents at noise levels (B,), for (B or 1, 4, 128) embeddings."""
    timesteps = (all_sigmas().to(sigma).log()[None] - sigma.log()[:, None]).abs().argmin(1)
    sigma = sigma.view(-1, 1, 1, 1)
    v = model.unet(x / (sigma**2 + 1).sqrt(), timesteps, context.expand(len(x), -1, -1)).sample
    return x / (sigma**2 + 1) - v * sigma / (sigma**2 + 1).sqrt()


def denoise_with_cfg(
    model: DemoModel, x: Tensor, sigma: Tensor, positive: Tensor, negative: Tensor, cfg: float
) -> Tensor:
    """The same with classifier-free guidance; at 1 the negative embeddings are not used."""
    if cfg == 1:
        return denoise(model, x, sigma, positive)
    context = torch.cat([c.expand(len(x), -1, -1) for c in (positive, negative)])
    cond, uncond = denoise(model, torch.cat([x, x]), torch.cat([sigma, sigma]), context).chunk(2)
    return uncond + cfg * (cond - uncond)


@contextmanager
def appearance_guided(
    unet: UNet2DConditionModel, alpha: float, layers: str, cells: dict
) -> Iterator[Callable[[Rows], None]]:
    """Installs guided appearance attention in the self-attention layers; yields what tells it the rows of a call.

    `cells` are those of `readable_cells`.
    """
    current: list[Rows] = []

    def process(attn: Attention, hidden: Tensor, **_) -> Tensor:
        def attend(*query_key_value: Tensor) -> Tensor:
            heads = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in query_key_value)
            return F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)

        rows, key, value = current[-1], hidden, hidden
        chunks = len(hidden) // (len(rows.roles) * (rows.concepts.stop - rows.concepts.start))
        if "swap" in rows.roles:
            key, value = guided_appearance_attention(hidden, hidden, alpha, rows.roles, chunks)
        query, key, value = attn.to_q(hidden), attn.to_k(key), attn.to_v(value)
        output = attend(query, key, value)
        if "swap" in rows.roles:
            side = math.isqrt(hidden.shape[1])
            own = cells[side, side][rows.concepts]
            output = attend_to_objects(attend, output, query, key, value, own, rows.roles, chunks)
        return attn.to_out[0](output)

    before = unet.attn_processors
    for name, module in unet.named_modules():
        if name.endswith("attn1") and (layers == "all" or name.startswith("up_blocks")):
            module.set_processor(process)
    try:
        yield current.append
    finally:
        unet.set_attn_processor(before)


@dataclass(frozen=True)
class Settings:
    """Inputs of the nodes, by their names there."""

    steps: int = 100
    skip_steps: int = 32
    inversion_cfg: float = 3.5
    noise_seed: int = 0  # of the scene's noise
    concept_seed: int = 1  # of the first concept's noise; each further concept has the next one
    guided: bool = True  # appearance
    alpha: float = 0.15
    layers: Literal["all", "decoder"] = "all"
    start_percent: float = 0.0
    end_percent: float = 1.0
    diluted: bool = True
    beta: float = 0.8
    expand: int = 4
    outside: Literal["scaled", "blended"] = "scaled"
    cfg: float = 1.0
    swap_guidance: float = 3.5
    mix_reference_noise: bool = True
    feather: int = 0
    overlap: Literal["shared", "last in front"] = "shared"
    adain: bool = False
    object_mask: bool = False  # whether the Concepts' is wired, as adain needs it anyway
    scheduler: Literal["ddim_uniform", "sgm_uniform"] = "ddim_uniform"
    noise_shift: float = 0.0
    falling_guidance: bool = True
    clip_residual: bool = False


def to_latent(picture: Tensor) -> Tensor:
    """(H, W, 3) in 0..1 → (12, h, w) as the UNet sees it."""
    return normalise(fold(picture[None]))[0]


def to_pictures(latents: Tensor) -> Tensor:
    """(B, 12, h, w) → (B, H, W, 3)."""
    return unfold(denormalise(latents))


def percent_to_sigma(percent: float) -> float:
    """As ComfyUI means it: 0 is the noisiest level, 1 the end; between two timesteps the logarithm is linear."""
    if percent <= 0:
        return float("inf")
    if percent >= 1:
        return 0.0
    timestep, log_sigmas = (1 - percent) * (TIMESTEPS - 1), all_sigmas().log()
    return float(log_sigmas[int(timestep)].lerp(log_sigmas[int(timestep) + 1], timestep % 1).exp())


@torch.no_grad()
def invert(model: DemoModel, scene: Tensor, prompt: str, settings: Settings) -> Inversion:
    """Of a scene (H, W, 3) in 0..1."""
    positive, negative = model.words([prompt]), model.words([""])
    predict = partial(denoise_with_cfg, model, positive=positive, negative=negative, cfg=settings.inversion_cfg)
    sigmas = SCHEDULERS[settings.scheduler](settings.steps, settings.skip_steps)
    own = (to_latent(scene), sigmas, settings.noise_seed)
    return ddpm_invert(predict, *own, timesteps_per_call=16, noise_shift=settings.noise_shift)


def empty(scene: Tensor, masks: Tensor) -> Tensor:
    """The scene (H, W, 3) with all of its (n, H, W) things painted out."""
    return inpaint(scene, fill_weights((masks.amax(0) >= 0.5).float(), expand=3, feather=1), fill_smoothly)


@torch.no_grad()
def blend(
    model: DemoModel,
    inversion: Inversion,
    inpainted: Tensor,
    masks: Tensor,
    concepts: list[Tensor],
    own_masks: Tensor,
    prompt: str,
    settings: Settings,
    callback: Callable[[Tensor, Tensor], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """The mixer's pass.

    Args:
        inpainted: (H, W, 3), the emptied scene.
        masks: (n, H, W) of the things that are to take the look of the concepts.
        concepts: n pictures (H, W, 3).
        own_masks: (n, H, W) of the concepts' things in these pictures.
        callback: called in each step with the estimate of the result (H, W, 3) and of the branches (n, H, W, 3).
    Returns:
        result (H, W, 3) and branches (n, H, W, 3).
    """
    positive, negative = model.words([prompt]), model.words([""])
    sigmas, grid = inversion.sigmas, (GRID, GRID)
    if settings.overlap == "last in front":
        masks = last_in_front(masks)
    own = enumerate(concepts, settings.concept_seed)
    trajectory_of = partial(edit_friendly_trajectory, noise_shift=inversion.noise_shift)
    personal = [trajectory_of(to_latent(picture), sigmas, seed) for seed, picture in own]
    weights = share_overlaps(torch.stack([cell_weights(mask, grid, settings.feather) for mask in masks])[:, None])
    dilution = None
    if settings.diluted:
        boxes = torch.stack([expanded_box_mask(mask, grid, settings.expand) for mask in masks])[:, None]
        trajectory = trajectory_of(to_latent(inpainted), sigmas, inversion.seed)
        dilution = Dilution(trajectory, boxes, settings.beta, settings.outside)
    start, end = percent_to_sigma(settings.start_percent), percent_to_sigma(settings.end_percent)
    guided = [settings.guided and end <= sigma <= start for sigma in sigmas[:-1].tolist()]

    def show(_, output: Tensor, branches: Tensor) -> None:
        if callback is not None:
            result, *others = to_pictures(torch.cat([output[None], branches]))
            callback(result, torch.stack(others))

    wired = settings.object_mask or settings.adain
    cells = readable_cells(masks, own_masks if wired else [None] * len(masks), grid)
    with appearance_guided(model.unet, settings.alpha, settings.layers, cells) as tell_rows:

        def predict_rows(x: Tensor, sigma: Tensor, rows: Rows) -> Tensor:
            tell_rows(rows)
            return denoise_with_cfg(model, x, sigma, positive, negative, settings.cfg)

        output, branches = sample_pnp_mix(
            predict_rows,
            inversion,
            torch.stack(personal, dim=1),
            weights,
            guided,
            settings.swap_guidance,
            settings.mix_reference_noise,
            dilution,
            torch.stack([cell_weights(mask, grid) for mask in own_masks])[:, None] if settings.adain else None,
            concepts_per_call=len(concepts),
            callback=show,
            falling_guidance=settings.falling_guidance,
            clip_residual=settings.clip_residual,
        )
    result, *others = to_pictures(torch.cat([output[None], branches]))
    return result, torch.stack(others)


@torch.no_grad()
def sample(model: DemoModel, prompts: list[str], seed: int, steps: int = 50, cfg: float = 3.0) -> Tensor:
    """Pictures (B, 64, 64, 3) from words alone, by ancestral sampling."""
    generator = torch.Generator().manual_seed(seed)
    sigmas = ddim_uniform(steps)
    positive, negative = model.words(prompts), model.words([""])
    x = torch.randn((len(prompts), CHANNELS, GRID, GRID), generator=generator) * (sigmas[0] ** 2 + 1).sqrt()
    for sigma, sigma_next in pairwise(sigmas):
        denoised = denoise_with_cfg(model, x, sigma.expand(len(x)), positive, negative, cfg)
        x = posterior_mean(x, to_eps(x, denoised, sigma), sigma, sigma_next)
        noise = torch.randn(x.shape, generator=generator)
        x = x + noise * posterior_std(sigma, sigma_next)
    return to_pictures(x)
