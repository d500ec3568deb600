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
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import apply_rotary_emb
from pnpmix.masks import box_distance, expanded_box_mask, last_in_front, readable_tokens, share_overlaps, token_weights
from pnpmix.mixer.attention import attend_to_objects, guided_appearance_attention, guided_joint_attention
from pnpmix.mixer.dilution import Dilution
from pnpmix.mixer.inversion import Inversion, ddpm_invert, edit_friendly_trajectory
from pnpmix.mixer.sampling import BatchRows, sample_pnp_mix
from pnpmix.schedule import (
    added_noise,
    posterior_mean,
    posterior_std,
    rectified_flow,
    to_eps,
    without_noisiest,
)
from pnpmix.vision.inpainting import fill_smoothly, fill_weights, inpaint
from torch import Tensor, nn

from .model import (
    CHANNELS,
    FLOW,
    GRID,
    PATCH,
    PHRASES,
    POOLED,
    TIMESTEPS,
    UNET,
    WEIGHTS,
    Words,
    alphas_cumprod,
    denormalize,
    flow_level,
    fold,
    load_weights,
    normalize,
    unfold,
)


class DemoModel(nn.Module):
    path = staticmethod(added_noise)

    def __init__(self):
        super().__init__()
        self.unet = UNet2DConditionModel(**UNET)
        self.words = Words()

    def forward(self, x: Tensor, timesteps: Tensor, prompts: list[str]) -> Tensor:
        """V for noisy latents (B, 12, 32, 32)."""
        return self.unet(x, timesteps, self.words(prompts)).sample

    def denoise(self, x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        """Returns the denoised (B, 12, 32, 32) latents at noise levels (B,), for (B or 1, 4, 128) embeddings."""
        timesteps = (all_sigmas().to(sigma).log()[None] - sigma.log()[:, None]).abs().argmin(1)
        sigma = sigma.view(-1, 1, 1, 1)
        v = self.unet(x / (sigma**2 + 1).sqrt(), timesteps, context.expand(len(x), -1, -1)).sample
        return x / (sigma**2 + 1) - v * sigma / (sigma**2 + 1).sqrt()

    def schedule(self, steps: int, scheduler: str = "ddim_uniform") -> Tensor:
        """Returns (steps + 1,) falling noise levels, the last one 0: ComfyUI's scheduler of that name.

        sgm_uniform, for which few-step models are made, begins at the last timestep.
        """
        if scheduler == "sgm_uniform":
            levels = [self.percent_to_sigma(i / steps) if i else float(all_sigmas()[-1]) for i in range(steps)]
            return torch.tensor([*levels, 0.0])
        return torch.cat([all_sigmas()[1 :: max(TIMESTEPS // steps, 1)].flip(0), torch.zeros(1)])

    def percent_to_sigma(self, percent: float) -> float:
        """Returns a noise level as ComfyUI does: 0 is the noisiest, 1 the end. Its logarithm is interpolated."""
        if percent <= 0:
            return float("inf")
        if percent >= 1:
            return 0.0
        timestep, log_sigmas = (1 - percent) * (TIMESTEPS - 1), all_sigmas().log()
        return float(log_sigmas[int(timestep)].lerp(log_sigmas[int(timestep) + 1], timestep % 1).exp())


class FlowModel(nn.Module):
    path = staticmethod(rectified_flow)

    def __init__(self):
        super().__init__()
        self.transformer = FluxTransformer2DModel(**FLOW)
        self.words = Words()

    def forward(self, x: Tensor, sigma: Tensor, prompts: list[str]) -> Tensor:
        """Returns the velocity, noise - x0, for noisy latents (B, 12, 32, 32)."""
        return self.velocity(x, sigma, self.words(prompts))

    def velocity(self, x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        """Returns the same for (B, 4, 128) embeddings."""
        batch, _, height, width = x.shape
        rows, columns = (torch.arange(side // PATCH, device=x.device) for side in (height, width))
        image_ids = torch.cartesian_prod(torch.zeros_like(rows[:1]), rows, columns)
        tokens = F.pixel_unshuffle(x, PATCH).flatten(2).mT  # of each: all four cells of a channel, then the next one
        velocity = self.transformer(
            tokens,
            context,
            x.new_zeros(batch, POOLED),
            sigma,
            image_ids.to(x),
            x.new_zeros(context.shape[1], 3),
            return_dict=False,
        )[0]
        return F.pixel_shuffle(velocity.mT.unflatten(2, (len(rows), len(columns))), PATCH)

    def denoise(self, x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        """Returns the denoised latents, as `DemoModel.denoise` does."""
        return x - sigma.view(-1, 1, 1, 1) * self.velocity(x, sigma, context.expand(len(x), -1, -1))

    def schedule(self, steps: int, scheduler: str = "simple") -> Tensor:
        """Returns (steps + 1,) falling noise levels, the last one 0: always ComfyUI's scheduler simple."""
        return torch.cat([flow_level(torch.linspace(1, 0, steps + 1)[:-1]), torch.zeros(1)])

    def percent_to_sigma(self, percent: float) -> float:
        """Returns a noise level as ComfyUI does: 0 is the noisiest, 1 the end."""
        return 0.0 if percent >= 1 else float(flow_level(torch.tensor(1 - max(percent, 0.0))))


def load_model(path: Path = WEIGHTS) -> DemoModel | FlowModel:
    """Returns the model of a weights file, ready to sample.

    Raises:
        ValueError: the file is missing or damaged.
    """
    weights = load_weights(path)
    kind = FlowModel if any(name.startswith("transformer.") for name in weights) else DemoModel
    model = kind().eval().requires_grad_(False)
    model.load_state_dict(weights)
    return model


def all_sigmas() -> Tensor:
    """Returns the (1000,) rising noise levels."""
    alphas = alphas_cumprod()
    return ((1 - alphas) / alphas).sqrt().float()


def denoise_with_cfg(
    model: DemoModel | FlowModel, x: Tensor, sigma: Tensor, positive: Tensor, negative: Tensor, cfg: float
) -> Tensor:
    """Returns the denoised estimate with classifier-free guidance; at 1 without the negative embeddings (1, 4, 128)."""
    if cfg == 1:
        return model.denoise(x, sigma, positive)
    context = torch.cat([c.expand(len(x), -1, -1) for c in (positive, negative)])
    cond, uncond = model.denoise(torch.cat([x, x]), torch.cat([sigma, sigma]), context).chunk(2)
    return uncond + cfg * (cond - uncond)


@contextmanager
def appearance_guided(
    unet: UNet2DConditionModel, alpha: float, layers: str, cells: dict
) -> Iterator[Callable[[BatchRows], None]]:
    """Installs guided appearance attention in the self-attention layers; yields what tells it the rows of a call.

    `cells` are those of `readable_tokens`.
    """
    current: list[BatchRows] = []

    def process(attn: Attention, hidden: Tensor, **_) -> Tensor:
        def attend(query: Tensor, key: Tensor, value: Tensor, _=None) -> Tensor:
            heads = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (query, key, value))
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


@contextmanager
def joint_appearance_guided(
    model: FlowModel, alpha: float, layers: str, position: str, cells: dict
) -> Iterator[Callable[[BatchRows], None]]:
    """Guides appearance in the transformer's blocks, in which text and picture share an attention."""
    current: list[BatchRows] = []
    grid = GRID // PATCH
    pairs, before, text = cells[grid, grid], torch.arange(PHRASES), PHRASES
    joint = [pair and (pair[0] + text, torch.cat([before, pair[1] + text])) for pair in pairs]
    distances = [(0, 0) if pair is None else box_distance(*pair, grid) for pair in pairs]
    cos, sin = (x[:, ::2] for x in model.transformer.pos_embed(torch.tensor([(0.0, *way) for way in distances])))
    rotations = torch.stack([cos, -sin, sin, cos], -1).unflatten(-1, (2, 2)).float() if position == "target" else None

    def process(attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None, **_):
        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        def attend(query: Tensor, key: Tensor, value: Tensor, _=None) -> Tensor:
            return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)

        query, key, value = (heads(project(hidden_states)) for project in (attn.to_q, attn.to_k, attn.to_v))
        query, key = attn.norm_q(query), attn.norm_k(key)
        if encoder_hidden_states is not None:
            added = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            of_text = [heads(project(encoder_hidden_states)) for project in added]
            of_text[:2] = attn.norm_added_q(of_text[0]), attn.norm_added_k(of_text[1])
            query, key, value = (torch.cat(x, 2) for x in zip(of_text, (query, key, value), strict=True))
        query, key = (apply_rotary_emb(x, image_rotary_emb) for x in (query, key))
        rows = current[-1]
        if "swap" in rows.roles:
            chunks = len(query) // (len(rows.roles) * (rows.concepts.stop - rows.concepts.start))
            turned = None if rotations is None else rotations[rows.concepts]
            image = slice(text, query.shape[2])
            key, value = guided_joint_attention(key, value, alpha, rows.roles, chunks, image, turned)
        output = attend(query, key, value)
        if "swap" in rows.roles:
            attend_to_objects(attend, output, query, key, value, joint[rows.concepts], rows.roles, chunks)
        if encoder_hidden_states is None:
            return output
        return attn.to_out[0](output[:, text:]), attn.to_add_out(output[:, :text])

    transformer = model.transformer
    former, blocks = transformer.attn_processors, [*transformer.transformer_blocks]
    blocks += transformer.single_transformer_blocks
    for block in blocks if layers == "all" else blocks[len(blocks) // 2 :]:
        block.attn.set_processor(process)
    try:
        yield current.append
    finally:
        transformer.set_attn_processor(former)


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
    falling_guidance: bool = True
    position: Literal["target", "kept"] = "target"


def to_latent(picture: Tensor) -> Tensor:
    """Encodes a picture: (H, W, 3) in 0..1 → (12, h, w) as the UNet sees it."""
    return normalize(fold(picture[None]))[0]


def to_pictures(latents: Tensor) -> Tensor:
    """Decodes latents: (B, 12, h, w) → (B, H, W, 3)."""
    return unfold(denormalize(latents))


@torch.no_grad()
def invert(model: DemoModel | FlowModel, scene: Tensor, prompt: str, settings: Settings) -> Inversion:
    """Inverts a scene (H, W, 3) in 0..1."""
    positive, negative = model.words([prompt]), model.words([""])
    predict = partial(denoise_with_cfg, model, positive=positive, negative=negative, cfg=settings.inversion_cfg)
    sigmas = model.schedule(settings.steps, settings.scheduler)
    sigmas = without_noisiest(sigmas, settings.steps, settings.skip_steps)
    own = (to_latent(scene), sigmas, settings.noise_seed)
    return ddpm_invert(predict, *own, timesteps_per_call=16, path=model.path)


def empty(scene: Tensor, masks: Tensor) -> Tensor:
    """Returns the scene (H, W, 3) with all of its (n, H, W) objects removed."""
    return inpaint(scene, fill_weights((masks.amax(0) >= 0.5).float(), expand=3, feather=1), fill_smoothly)


@torch.no_grad()
def blend(
    model: DemoModel | FlowModel,
    inversion: Inversion,
    inpainted: Tensor,
    masks: Tensor,
    concepts: list[Tensor],
    own_masks: Tensor,
    prompt: str,
    settings: Settings,
    callback: Callable[[Tensor, Tensor], None] | None = None,
    embeddings: tuple[Tensor, Tensor] | None = None,
    tell: Callable[[BatchRows], None] = lambda rows: None,
) -> tuple[Tensor, Tensor]:
    """Runs PnP-MIX's sampling.

    Args:
        inpainted: (H, W, 3), the emptied scene.
        masks: (n, H, W) of the things that are to take the look of the concepts.
        concepts: n pictures (H, W, 3).
        own_masks: (n, H, W) of the concepts' things in these pictures.
        callback: called in each step with the estimate of the result (H, W, 3) and of the branches (n, H, W, 3).
        embeddings: in the prompt's place, positive and negative ones (1, tokens, 128).
        tell: called before each call of the model with its rows.

    Returns:
        result (H, W, 3) and branches (n, H, W, 3).
    """
    positive, negative = embeddings or (model.words([prompt]), model.words([""]))
    sigmas, grid = inversion.sigmas, (GRID, GRID)
    if settings.overlap == "last in front":
        masks = last_in_front(masks)
    own = enumerate(concepts, settings.concept_seed)
    trajectory_of = partial(edit_friendly_trajectory, path=model.path)
    personal = [trajectory_of(to_latent(picture), sigmas, seed) for seed, picture in own]
    weights = share_overlaps(torch.stack([token_weights(mask, grid, settings.feather) for mask in masks])[:, None])
    dilution = None
    if settings.diluted:
        boxes = torch.stack([expanded_box_mask(mask, grid, settings.expand) for mask in masks])[:, None]
        trajectory = trajectory_of(to_latent(inpainted), sigmas, inversion.seed)
        dilution = Dilution(trajectory, boxes, settings.beta, settings.outside)
    start, end = (model.percent_to_sigma(percent) for percent in (settings.start_percent, settings.end_percent))
    guided = [settings.guided and end <= sigma <= start for sigma in sigmas[:-1].tolist()]

    def show(_, latents: Tensor, denoised: Tensor) -> None:
        if callback is not None:
            result, *others = to_pictures(denoised)
            callback(result, torch.stack(others))

    wired = settings.object_mask or settings.adain
    cells = readable_tokens(masks, own_masks if wired else [None] * len(masks), grid)
    if isinstance(model, FlowModel):
        guide = joint_appearance_guided(model, settings.alpha, settings.layers, settings.position, cells)
    else:
        guide = appearance_guided(model.unet, settings.alpha, settings.layers, cells)
    with guide as tell_rows:

        def predict_rows(x: Tensor, sigma: Tensor, rows: BatchRows) -> Tensor:
            tell_rows(rows)
            tell(rows)
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
            torch.stack([token_weights(mask, grid) for mask in own_masks])[:, None] if settings.adain else None,
            concepts_per_call=len(concepts),
            callback=show,
            path=model.path,
            falling_guidance=settings.falling_guidance,
        )
    result, *others = to_pictures(torch.cat([output[None], branches]))
    return result, torch.stack(others)


@torch.no_grad()
def sample(model: DemoModel | FlowModel, prompts: list[str], seed: int, steps: int = 50, cfg: float = 3.0) -> Tensor:
    """Draws pictures (B, 64, 64, 3) from prompts alone, by ancestral sampling."""
    generator = torch.Generator().manual_seed(seed)
    sigmas = model.schedule(steps)
    positive, negative = model.words(prompts), model.words([""])
    x = torch.randn((len(prompts), CHANNELS, GRID, GRID), generator=generator)
    a, b = model.path(sigmas[0])
    x = x * (a**2 + b**2).sqrt()  # pictures have variance 1, roughly
    for sigma, sigma_next in pairwise(sigmas):
        denoised = denoise_with_cfg(model, x, sigma.expand(len(x)), positive, negative, cfg)
        x = posterior_mean(x, to_eps(x, denoised, sigma), sigma, sigma_next, model.path)
        noise = torch.randn(x.shape, generator=generator)
        x = x + noise * posterior_std(sigma, sigma_next, model.path)
    return to_pictures(x)
