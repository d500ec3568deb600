"""Concept Conductor written from the paper, slowly: a UNet for each concept, explicit attention, every pass whole, and
the paper's variables z_t = sqrt(abar_t) * x0 + sqrt(1 - abar_t) * eps. Shares no code with the pack.
"""

import copy
import math
from dataclasses import dataclass, field

import numpy as np
import torch

from oracle import Prompt, alphas_cumprod


def random_lora(unet, seed: int, size: float = 0.3) -> dict[str, torch.Tensor]:
    """Of all attention projections, in the names that LoRA files have."""
    generator, lora = torch.Generator().manual_seed(seed), {}
    for name, weight in unet.state_dict().items():
        if ".attn" in name and name.endswith(".weight") and "norm" not in name:
            key = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
            lora[f"{key}.lora_up.weight"] = size * torch.randn(weight.shape[0], 2, generator=generator)
            lora[f"{key}.lora_down.weight"] = size * torch.randn(2, weight.shape[1], generator=generator)
    return lora


def with_lora(unet, lora: dict[str, torch.Tensor], strength: float):
    """A copy of the UNet with W + strength * up @ down."""
    unet = copy.deepcopy(unet)
    for name, module in unet.named_modules():
        key = "lora_unet_" + name.replace(".", "_")
        if f"{key}.lora_up.weight" in lora:
            module.weight += strength * lora[f"{key}.lora_up.weight"] @ lora[f"{key}.lora_down.weight"]
    return unet


class Attention:
    """Explicit attention that notes keys, probabilities and outputs, or mixes noted outputs in (eq. 4)."""

    def __init__(self, name: str, notes: dict):
        self.name, self.notes = name, notes

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **kwargs):
        is_self = encoder_hidden_states is None
        context = hidden_states if is_self else encoder_hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        self.notes["keys", self.name] = key
        query, key, value = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (query, key, value))
        weights = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1)
        self.notes["attention", self.name] = weights.mean(1)
        out = attn.to_out[0]((weights @ value).transpose(1, 2).flatten(2))
        self.notes["output", self.name] = out
        mix = self.notes.get("mix")
        if mix is not None and self.name.startswith("up_blocks") and ("self" if is_self else "cross") in mix[0]:
            for mask, outputs in mix[1]:
                m = mask(out.shape[1])[None, :, None]
                out = outputs[self.name] * m + out * (1 - m)
        return out


@dataclass
class Branch:
    unet: torch.nn.Module
    positive: Prompt
    negative: Prompt
    mask: np.ndarray | None = None  # image size


@dataclass
class ConceptConductor:
    base: Branch
    concepts: list[Branch]
    prediction: str
    steps: int
    cfg: float = 3.0
    timesteps: list[int] | None = None  # falling; None: every 1000 // steps-th from 1
    inject: tuple[str, ...] = ("self", "cross")
    keys: str = "up_blocks.1.attentions.0.transformer_blocks.0.attn1"
    attention: str = "up_blocks.2.attentions.2.transformer_blocks.0.attn1"
    levels: int = 1  # the attention layer's grid is the latent's, halved so often
    layout: torch.Tensor | None = None  # (1, C, H, W)
    layout_prompt: Prompt | None = None
    inversion_steps: int = 4
    noised: int | None = None  # seed of the noise in the place of inversion
    weight: float = 10.0
    concept_weight: float = 1.0
    align_end: float = 0.3
    refine: tuple[float, float, int] | None = None
    threshold: float = 0.0
    restarts: int = 5
    placed: tuple[torch.Tensor, torch.Tensor] | None = None  # picture, (1, 1, H, W) mask
    notes: dict = field(default_factory=dict)
    margin: float = math.inf  # how far from a tie the nearest choice of a cluster was, of 1

    def __post_init__(self):
        for branch in [self.base, *self.concepts]:
            names = {name: name.removesuffix(".processor") for name in branch.unet.attn_processors}
            branch.unet.set_attn_processor({name: Attention(own, self.notes) for name, own in names.items()})
        self.abar = alphas_cumprod()
        if self.timesteps is None:
            self.timesteps = list(range(1, 1000, 1000 // self.steps))[::-1]

    def eps(self, unet, z, t: int, prompt: Prompt):
        out = unet(z, t, **prompt.for_unet(), return_dict=False)[0]
        if self.prediction == "v_prediction":
            now = float(self.abar[t])
            out = math.sqrt(now) * out + math.sqrt(1 - now) * z
        return out

    def ddim(self, z, eps, now: float, then: float):
        x0 = (z - math.sqrt(1 - now) * eps) / math.sqrt(now)
        return math.sqrt(then) * x0 + math.sqrt(1 - then) * eps

    def references(self) -> dict[int, torch.Tensor]:
        """z_ref at every timestep of the inversion."""
        z, before, found = self.layout, float(self.abar[0]), {}
        noise = None
        if self.noised is not None:
            noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(self.noised))
        for i in range(self.inversion_steps):
            t = i * (1000 // self.inversion_steps) + 1
            now = float(self.abar[t])
            if noise is None:
                z = self.ddim(z, self.eps(self.base.unet, z, t, self.layout_prompt), before, now)
            else:
                z = math.sqrt(now) * self.layout + math.sqrt(1 - now) * noise
            found[t], before = z, now
        return found

    def loss(self, z, t: int, reference):
        """L of eq. 1, with means of squares in the place of norms."""
        losses = []
        for branch in [self.base, *self.concepts]:
            self.eps(branch.unet, z, t, branch.positive)
            losses.append(((self.notes["keys", self.keys] - reference) ** 2).mean((1, 2)).sum())
        return losses[0] + self.concept_weight * sum(losses[1:]) / max(len(self.concepts), 1)

    def reference_keys(self, z, t: int):
        self.eps(self.base.unet, z, t, self.layout_prompt)
        return self.notes["keys", self.keys]

    def aligned(self, z, t: int, references):
        sigma = {s: math.sqrt((1 - self.abar[s]) / self.abar[s]) for s in [t, *references]}
        level = min(references, key=lambda s: abs(math.log(sigma[s] / sigma[t])))
        reference = self.reference_keys(references[level], level)
        with torch.enable_grad():
            z = z.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(self.loss(z, t, reference), z)
        return z.detach() - self.weight * gradient

    def guided(self, branch: Branch, z, t: int, mixed=None):
        """eps with guidance, attention of the conditional pass, outputs of both."""
        results, outputs, attention = [], [], None
        for i, prompt in enumerate((branch.positive, branch.negative)):
            self.notes["mix"] = mixed and (self.inject, [(mask, own[i]) for mask, own in mixed])
            results.append(self.eps(branch.unet, z, t, prompt))
            if i == 0:
                attention = self.notes["attention", self.attention]
            outputs.append({key[1]: x for key, x in self.notes.items() if key[0] == "output"})
            if self.cfg == 1:
                return results[0], attention, outputs
        self.notes["mix"] = None
        return results[1] + self.cfg * (results[0] - results[1]), attention, outputs

    def run(self, noise):
        """One latent (1, C, H, W) and the masks on the latent grid."""
        n, (height, width) = len(self.concepts), noise.shape[-2:]
        soft = [resized(branch.mask, height, width) for branch in self.concepts]
        grids = [(height, width)]
        while max(grids[-1]) > 1:
            grids.append(tuple((side + 1) // 2 for side in grids[-1]))
        final = [{grid: resized(mask, *grid) > 0.5 for grid in grids} for mask in soft]
        small = grids[self.levels]
        custom = [resized(mask, *small) > 0.5 for mask in soft]
        base = list(custom)
        refined = set()
        if self.refine is not None:
            start, end, updates = self.refine
            gap = (end - start) / max(updates - 1, 1)
            refined = {min(round((start + i * gap) * self.steps), self.steps - 1) for i in range(updates)}
        references = None if self.layout is None else self.references()

        z = noise
        for i, t in enumerate(self.timesteps):
            now = float(self.abar[t])
            then = float(self.abar[self.timesteps[i + 1]]) if i + 1 < len(self.timesteps) else 1.0
            if self.placed is not None and i == 0:
                z = self.inside(z, noise, now)
            if references is not None and i <= round(self.align_end * self.steps):
                z = self.aligned(z, t, references)
            passes = [self.guided(branch, z, t) for branch in self.concepts]
            masks = [self.token_mask(grids, final[k]) for k in range(n)]
            mixed = [(mask, outputs) for mask, (_, _, outputs) in zip(masks, passes, strict=True)]
            eps, attention, _ = self.guided(self.base, z, t, mixed)
            if i in refined:
                of_base = self.clusters(attention[0], n)
                unions = []
                for k in range(n):
                    custom[k] = self.best(self.clusters(passes[k][1][0], n), custom[k])
                    base[k] = self.best(of_base, base[k])
                for grid in grids:
                    unions = [(resized(custom[k], *grid) > 0.5) | (resized(base[k], *grid) > 0.5) for k in range(n)]
                    crowded = sum(x.astype(int) for x in unions) > 1
                    for k in range(n):
                        final[k][grid] = np.where(crowded, final[k][grid], unions[k])
            z = self.ddim(z, eps, now, then)
            if self.placed is not None:
                z = self.inside(z, noise, then)
        return z, [final[k][height, width] for k in range(n)]

    def inside(self, z, noise, now: float):
        picture, mask = self.placed
        return mask * z + (1 - mask) * (math.sqrt(now) * picture + math.sqrt(1 - now) * noise)

    def token_mask(self, grids, masks):
        by_tokens = {grid[0] * grid[1]: torch.tensor(masks[grid].reshape(-1), dtype=torch.float32) for grid in grids}
        return lambda tokens: by_tokens[tokens]

    def clusters(self, attention, n: int) -> list[np.ndarray]:
        points, found = attention.double().numpy(), []
        for k in range(n + 1, 2 * n + 2):
            labels, margin = k_means(points, k, self.restarts)
            found += [labels == j for j in range(k)]
            self.margin = min(self.margin, margin)
        return found

    def best(self, found: list[np.ndarray], before: np.ndarray) -> np.ndarray:
        flat = before.reshape(-1)
        scores = [(x & flat).sum() / (x | flat).sum() for x in found]
        if max(scores) < self.threshold:
            rows, columns = np.nonzero(before)
            box = np.zeros_like(before)
            box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
            return box
        return found[int(np.argmax(scores))].reshape(before.shape)


def k_means(points: np.ndarray, k: int, restarts: int) -> tuple[np.ndarray, float]:
    """Labels of the best run, from the same random points as the pack starts from, and how far from a tie the closest
    decision on the way to them was: a point between two centers, or the best run before the second best."""
    chosen = torch.rand(restarts, len(points), generator=torch.Generator().manual_seed(123)).topk(k).indices.numpy()
    centers = [points[x].copy() for x in chosen]
    margins = np.full(restarts, np.inf)
    for _ in range(100):
        shifts = []
        for r in range(restarts):
            distances = ((points[:, None] - centers[r][None]) ** 2).sum(-1)
            labels = distances.argmin(1)
            first, second = np.sort(distances, 1)[:, :2].T
            margins[r] = min(margins[r], (1 - first / second).min())
            moved = np.stack([points[labels == j].mean(0) if (labels == j).any() else centers[r][j] for j in range(k)])
            shifts.append(np.linalg.norm(moved - centers[r], axis=-1).mean())
            centers[r] = moved
        if max(shifts) < 1e-4:
            break
    distances = [((points[:, None] - own[None]) ** 2).sum(-1) for own in centers]
    inertias = np.array([x.min(1).sum() for x in distances])
    best, labels = inertias.argmin(), [x.argmin(1) for x in distances]
    partition = labels[best][:, None] == labels[best]
    others = [x for x, own in zip(inertias, labels, strict=True) if ((own[:, None] == own) != partition).any()]
    return labels[best], min([margins[best], *(1 - inertias[best] / x for x in others)])


def triangle(length: int, target: int) -> np.ndarray:
    """(target, length) weights of linear interpolation that averages where it shrinks."""
    scale = length / target
    centers = (np.arange(target) + 0.5) * scale
    distance = np.abs(np.arange(length)[None] + 0.5 - centers[:, None]) / max(scale, 1)
    weights = np.clip(1 - distance, 0, None)
    return weights / weights.sum(1, keepdims=True)


def resized(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.round(triangle(mask.shape[0], height) @ mask.astype(np.float64) @ triangle(mask.shape[1], width).T, 5)
