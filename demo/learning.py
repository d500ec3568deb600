"""Learns concepts and blends them (LaTexBlend) with diffusers' UNet, where there is no ComfyUI."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from pnpmix.attention import attention_probabilities
from pnpmix.latexblend import training
from pnpmix.latexblend.bank import Features, extract
from pnpmix.latexblend.blending import Slot, acting, blend, layer_grid, region_bias
from pnpmix.latexblend.guidance import blending_loss, guide
from pnpmix.mixer.inversion import Inversion
from pnpmix.mixer.sampling import BatchRows
from pnpmix.schedule import to_eps
from torch import Tensor

from . import diffusers_host
from .diffusers_host import DemoModel, Settings, all_sigmas, to_latent, to_pictures
from .model import GRID, VOCABULARY, parse
from .scenes import SIZE

# ComfyUI's names of the layers, as files have them, in the order in which the UNet runs them
LAYERS = [
    f"{block}.1.transformer_blocks.0.attn2"
    for block in ("input_blocks.3", "input_blocks.5", "middle_block", *(f"output_blocks.{i}" for i in range(6)))
]
LENGTH = 2  # of a slot: V* and the noun
STEPS, LEARNING_RATE, SEED = 300, 2e-3, 42  # of learning: this model is small, and takes large steps
GUIDED = 0.2  # of the schedule


def cross_attentions(unet: UNet2DConditionModel) -> dict[str, Attention]:
    """Returns the UNet's cross-attention layers by ComfyUI's names."""
    found = {name: module for name, module in unet.named_modules() if name.endswith("attn2")}
    order = ("down_blocks", "mid_block", "up_blocks")
    names = sorted(found, key=lambda name: order.index(name.split(".")[0]))  # keeps the order within each
    return {layer: found[name] for layer, name in zip(LAYERS, names, strict=True)}


def slots_of(phrases: list[list[int]], nouns: list[str]) -> tuple[list[list[int]], list[int]]:
    """Returns phrases with an empty word before the first of each noun, for V*, and where these are.

    Needless empty ones at the end give way.

    Raises:
        ValueError: the prompt lacks a noun.
    """
    for noun in nouns:
        index = next((i for i, phrase in enumerate(phrases) if VOCABULARY[phrase[-1]] == noun), None)
        if index is None:
            raise ValueError(f"The prompt has no {noun}.")
        pads = phrases[-1] == [0]
        phrases = [*phrases[:index], [0], *phrases[index : len(phrases) - pads]]
    firsts = [next(i for i, p in enumerate(phrases) if VOCABULARY[p[-1]] == noun) - 1 for noun in nouns]
    return phrases, firsts


def embed(model: DemoModel, phrases: list[list[int]]) -> Tensor:
    """(1, tokens, 128)"""
    return torch.stack([model.words.table.weight[phrase].sum(0) for phrase in phrases])[None]


@contextmanager
def attending(unet: UNet2DConditionModel, attend: Callable[..., Tensor]) -> Iterator[None]:
    """Calls attend(layer, attn, query, key, value, context) instead of each cross-attention."""

    def process(layer: str, attn: Attention, hidden: Tensor, encoder_hidden_states: Tensor, **_) -> Tensor:
        key, value = attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
        return attn.to_out[0](attend(layer, attn, attn.to_q(hidden), key, value, encoder_hidden_states))

    before = unet.attn_processors
    for layer, module in cross_attentions(unet).items():
        module.set_processor(partial(process, layer))
    try:
        yield
    finally:
        unet.set_attn_processor(before)


def plain_attention(attn: Attention, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    heads = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(*heads, attn_mask=mask).transpose(1, 2).flatten(2)


class Learned(NamedTuple):
    features: Features
    identifier: Tensor  # (128,) V*
    deltas: dict[str, training.Delta]  # "<layer>.k" and "<layer>.v"
    losses: list[float]


def learn(
    model: DemoModel,
    photos: Tensor,
    noun: str,
    class_pictures: Tensor | None = None,
    steps: int = STEPS,
    learning_rate: float = LEARNING_RATE,
    seed: int = SEED,
    callback: Callable[[int, float], bool] = lambda step, loss: False,
) -> Learned:
    """Trains a concept.

    Args:
        photos, class_pictures: (n, 64, 64, 3) of the person's own thing, and of any things of its kind.

    Returns:
        features by ComfyUI's names of the layers.
    """
    layers = cross_attentions(model.unet)
    generator = torch.Generator().manual_seed(seed)
    deltas = {
        f"{layer}.{side}": training.new_delta(*projection.weight.shape, rank=0, generator=generator)
        for layer, attn in layers.items()
        for side, projection in (("k", attn.to_k), ("v", attn.to_v))
    }
    identifier = model.words.table.weight[0].detach().clone()
    parameters = {"identifier": identifier} | {name: delta[0] for name, delta in deltas.items()}
    phrases, (first,) = slots_of(parse(noun), [noun])
    base, noun_vector = embed(model, phrases), embed(model, parse(noun)[:1])[0]
    bare = torch.cat([embed(model, parse(noun)), torch.zeros(1, LENGTH, base.shape[-1])], 1)
    latents, others = (torch.stack(list(map(to_latent, x))) if x is not None else [] for x in (photos, class_pictures))
    sigmas = all_sigmas()

    def attend(layer: str, attn: Attention, query: Tensor, key: Tensor, value: Tensor, context: Tensor) -> Tensor:
        key, value = (
            training.training_features(x, deltas[f"{layer}.{side}"], context, [first], LENGTH, concept_rows=1)
            for side, x in (("k", key), ("v", value))
        )
        return plain_attention(attn, query, key, value)

    def loss_of(step: int) -> Tensor:
        drawn = training.draw(seed, step, len(latents), len(others), latents.shape[1:])
        x0 = torch.stack([latents[drawn.view], *([others[drawn.class_picture]] if len(others) else [])])
        sigma = sigmas[drawn.timesteps]
        own = torch.cat([identifier[None], noun_vector])[None]
        context = torch.cat([torch.cat([base, own], 1), bare])[: len(x0)]
        x = x0 + sigma.view(-1, 1, 1, 1) * drawn.noise
        denoised = model.denoise(x, sigma, context)
        losses = training.prediction_loss(denoised, x0, sigma, torch.ones_like(x0[:, :1]), predicts_v=True)
        return training.total_loss(losses, prior_weight=1.0)

    losses: list[float] = []

    def keep(step: int, loss: float) -> bool:
        losses.append(loss)
        return callback(step, loss)

    with attending(model.unet, attend):
        training.fit(parameters, loss_of, range(steps), learning_rate, callback=keep)

    def projection(layer: str, side: str, linear) -> Callable[[Tensor], Tensor]:
        return lambda x: linear(x) + training.apply_delta(deltas[f"{layer}.{side}"], x)

    project = {
        layer: (projection(layer, "k", attn.to_k), projection(layer, "v", attn.to_v)) for layer, attn in layers.items()
    }
    features = extract(torch.cat([identifier[None], noun_vector]), project)
    frozen = {name: tuple(x.detach() for x in delta) for name, delta in deltas.items()}
    return Learned(features, identifier.detach(), frozen, losses)


@dataclass
class BlendSettings:
    """Inputs of Blend and Blending Guidance, by their names there."""

    start_percent: float = 0.0  # this model decides on colors in the first steps
    bind: bool = True
    region: float = 1.0
    scale: float = 0.0
    g1: float = 1.0
    g2: float = 1.0


@dataclass
class Prompt:
    """Embeddings (1, tokens, 128), and the concepts in them."""

    context: Tensor
    slots: list[Slot] = field(default_factory=list)


def strips(nouns: Sequence[str]) -> dict[str, Tensor]:
    """Returns (64, 64) masks of upright strips from left to right."""
    width = -(-SIZE // len(nouns))
    return {noun: (torch.arange(SIZE) // width == k).float().expand(SIZE, SIZE) for k, noun in enumerate(nouns)}


def prompt_with(
    model: DemoModel, text: str, concepts: dict[str, Features], masks: dict[str, Tensor] | None = None
) -> Prompt:
    """Blends trained concepts into a new picture.

    Args:
        concepts: by their nouns.
        masks: (64, 64) of the regions of some of them.
    """
    phrases, firsts = slots_of(parse(text), list(concepts))
    slots = [
        Slot(features, first, LENGTH, mask=(masks or {}).get(noun))
        for (noun, features), first in zip(concepts.items(), firsts, strict=True)
    ]
    return Prompt(embed(model, phrases), slots)


@torch.no_grad()
def sample_blended(
    model: DemoModel,
    prompts: list[Prompt],
    noise: Tensor,
    steps: int = 20,
    cfg: float = 3.0,
    settings: BlendSettings | None = None,
    callback: Callable[[Tensor], None] = lambda pictures: None,
    attends: bool = True,
) -> Tensor:
    """Draws pictures (B, 64, 64, 3), by Euler's method, of prompts that have the same number of tokens.

    Args:
        noise: (B, 12, 32, 32), of standard deviation 1.
        attends: whether this changes cross-attention; else what the UNet has already stays.
    """
    settings = settings or BlendSettings()
    positive = torch.cat([prompt.context for prompt in prompts])
    negative = embed(model, [[0]] * positive.shape[1]).expand_as(positive)
    sigmas, start = model.schedule(steps), model.percent_to_sigma(settings.start_percent)
    guided = model.percent_to_sigma(GUIDED)
    blending = True  # in this step
    losses: list[Tensor] | None = None  # of the layers, while guidance looks at them

    def attend(layer: str, attn: Attention, query: Tensor, key: Tensor, value: Tensor, context: Tensor) -> Tensor:
        biases, grid = [], layer_grid((GRID, GRID), query.shape[1])
        for row, prompt in enumerate(prompts):
            own = slice(row, row + 1)
            if losses is not None:  # at identifiers as they were learned
                free_key = key[own].clone()
                blend(free_key, value[own].clone(), layer, prompt.slots, acts=blending)
                maps = attention_probabilities(query[own], free_key, attn.heads)
                losses.append(blending_loss(maps, grid, prompt.slots, settings.g1, settings.g2))
            if blending or settings.bind:
                blend(key[own], value[own], layer, prompt.slots, acts=blending, bound=settings.bind)
            biases.append(region_bias(prompt.slots, settings.region, grid, key.shape[1]))
        mask = torch.stack([*biases, *[torch.zeros_like(biases[0])] * (len(key) - len(biases))])[:, None]
        return plain_attention(attn, query, key, value, mask if mask.any() else None)

    with attending(model.unet, attend) if attends else nullcontext():
        x = noise * (sigmas[0] ** 2 + 1).sqrt()
        for sigma, sigma_next in pairwise(sigmas):
            blending, rows = bool(sigma <= start), sigma.expand(len(x))
            context = torch.cat([positive, negative])
            both = model.denoise(torch.cat([x, x]), torch.cat([rows, rows]), context)
            cond, uncond = both.chunk(2)
            denoised = uncond + cfg * (cond - uncond)
            if settings.scale > 0 and sigma >= guided:
                losses = []
                with torch.enable_grad():
                    latent = x.clone().requires_grad_(True)
                    model.denoise(latent, rows, positive)
                    loss = torch.cat(losses).sum() / len(LAYERS)
                    gradient = torch.autograd.grad(loss, latent)[0]
                losses = None
                denoised = guide(denoised, gradient, rows, settings.scale)
            callback(to_pictures(denoised))
            x = x + (sigma_next - sigma) * to_eps(x, denoised, sigma)
    return to_pictures(x)


def mix_learned(
    model: DemoModel,
    inversion: Inversion,
    inpainted: Tensor,
    masks: Tensor,
    concepts: list[Tensor],
    own_masks: Tensor,
    prompt: str,
    settings: Settings,
    learned: dict[str, Features],
    is_bound: bool = True,
) -> Tensor:
    """Returns PnP-MIX's result (64, 64, 3), with each concept's rows reading that concept alone in their prompt.

    Args:
        inversion to settings: see `diffusers_host.blend`.
        learned: of each concept, by its noun, in their order.
    """
    words = prompt_with(model, prompt, learned)
    slots = [slot._replace(owners=frozenset([k])) for k, slot in enumerate(words.slots)]
    negative = embed(model, [[0]] * words.context.shape[1])
    told: list[BatchRows] = []

    def attend(layer: str, attn: Attention, query: Tensor, key: Tensor, value: Tensor, context: Tensor) -> Tensor:
        rows = told[-1]
        own = [k for _ in rows.roles for k in range(rows.concepts.start, rows.concepts.stop)]
        for row, k in enumerate(own):
            here = slice(row, row + 1)
            blend(key[here], value[here], layer, acting(slots, k), bound=is_bound)
        return plain_attention(attn, query, key, value)

    with attending(model.unet, attend):
        given = (model, inversion, inpainted, masks, concepts, own_masks, prompt, settings)
        result, _ = diffusers_host.blend(*given, embeddings=(words.context, negative), tell=told.append)
    return result
