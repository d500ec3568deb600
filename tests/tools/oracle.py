"""PnP-MIX written from the paper's equations, slowly: one latent at a time, in the variables of the papers.

x_t = sqrt(abar_t) * x0 + sqrt(1 - abar_t) * eps, diffusers' UNet, an attention processor of its own,
and noise maps z_t as eq. 3.2 has them. Shares no code with the pack.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import scipy.ndimage
import torch


def alphas_cumprod() -> torch.Tensor:
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    return torch.tensor(np.cumprod(1 - betas))


@dataclass
class Prompt:
    tokens: torch.Tensor  # (1, T, C)
    pooled: torch.Tensor | None = None
    size: tuple[int, int] = (0, 0)  # of the picture, for SDXL
    blended: list = field(default_factory=list)  # blend_oracle.OracleSlot

    def for_unet(self) -> dict:
        extra = {}
        if self.pooled is not None:
            height, width = self.size
            time_ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)
            extra["added_cond_kwargs"] = {"text_embeds": self.pooled, "time_ids": time_ids}
        return {"encoder_hidden_states": self.tokens, **extra}


class Attention:
    """Self-attention that can note the layer's input, or read the note of another pass (eq. 3.3)."""

    def __init__(self, name: str, notes: dict):
        self.name, self.notes = name, notes

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **kwargs):
        is_self = encoder_hidden_states is None
        context = hidden_states if is_self else encoder_hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        if is_self and self.notes["mode"] == "note":
            self.notes[self.name] = hidden_states
        if is_self and self.notes["mode"] == "guide" and self.name.startswith(self.notes["layers"]):
            personal = self.notes[self.name]
            key = attn.to_k(personal)
            value_personal = attn.to_v(personal)
            value = value_personal + self.notes["alpha"] * (value_personal - value)
            reading = self.notes["reading"]
        else:
            reading = None
        blended = [] if is_self else self.notes["blended"]
        for slot in blended:
            for i, token in enumerate(slot.tokens):
                key[0, token], value[0, token] = (x[i] for x in slot.features[self.name])
        query, key, value = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (query, key, value))
        weights = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        for slot in blended:  # the identifier looks where the noun does
            weights[..., slot.tokens[0]] = weights[..., slot.tokens[-1]]
        if reading is not None:
            weights = weights.masked_fill(~reading(weights.shape[-1]), -math.inf)
        weights = weights.softmax(-1)
        out = (weights @ value).transpose(1, 2).flatten(2)
        return attn.to_out[0](out)


@dataclass
class OracleConcept:
    x0: torch.Tensor  # (1, C, H, W)
    mask: np.ndarray  # image size
    object_mask: np.ndarray  # of the object in its own picture
    object_only: bool = False  # whether nothing else of this picture is read
    seed: int = 1
    prompt: Prompt | None = None  # of its own picture
    scene_prompt: Prompt | None = None  # of all its other rows, and of its picture where that has no other


@dataclass
class PnPMix:
    unet: torch.nn.Module
    prediction: str  # "epsilon" or "v_prediction"
    positive: Prompt
    negative: Prompt
    steps: int
    skip: int
    inversion_cfg: float = 3.5
    seed: int = 0
    cfg: float = 1.0
    swap_guidance: float = 3.5
    alpha: float | None = 0.15  # None: no guided appearance attention
    layers: str = "all"
    start_percent: float = 0.0
    end_percent: float = 1.0
    beta: float | None = None  # None: no dilution
    expand: int = 16
    outside: str = "scaled"
    mix_branches: bool = True
    feather: int = 0
    overlap: str = "shared"
    adain: bool = False
    constant_guidance: bool = False
    sigmas: list[float] | None = None  # noise levels that fall to 0, in place of those of `steps` and `skip`
    notes: dict = field(default_factory=dict)

    def __post_init__(self):
        self.notes["mode"] = "off"
        processors = {name: Attention(name, self.notes) for name in self.unet.attn_processors}
        self.unet.set_attn_processor(processors)
        self.abar = alphas_cumprod()
        # ComfyUI's ddim_uniform: every 1000 // steps-th timestep from 1, without the share `skip` of `steps`
        every = list(range(1, 1000, 1000 // self.steps))[::-1]
        self.timesteps = every[round(len(every) * self.skip / self.steps) :]
        self.kept = [float(self.abar[t]) for t in self.timesteps]  # of the signal
        if self.sigmas is not None:
            self.kept = [1 / (1 + sigma**2) for sigma in self.sigmas[:-1]]
            training = ((1 - self.abar) / self.abar).log() / 2
            self.timesteps = [int((training - math.log(sigma)).abs().argmin()) for sigma in self.sigmas[:-1]]

    # The schedule

    def levels(self, i: int) -> tuple[float, float]:
        """abar at step i and at the next one; 1 after the last."""
        return self.kept[i], [*self.kept[1:], 1.0][i]

    def mean(self, x, eps, i):
        """mu_t(x_t), DDIM with eta = 1."""
        now, then = self.levels(i)
        x0 = (x - math.sqrt(1 - now) * eps) / math.sqrt(now)
        return math.sqrt(then) * x0 + math.sqrt(max(1 - then - self.std(i) ** 2, 0)) * eps

    def std(self, i):
        now, then = self.levels(i)
        return math.sqrt((1 - then) / (1 - now)) * math.sqrt(1 - now / then)

    def trajectory(self, x0, seed):
        """Eq. 3.1, for each step and the picture itself."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn((len(self.timesteps), *x0.shape[1:]), generator=generator)
        noisy = []
        for i in range(len(self.timesteps)):
            now, _ = self.levels(i)
            noisy.append(math.sqrt(now) * x0 + math.sqrt(1 - now) * noise[i : i + 1])
        return [*noisy, x0]

    # The model

    def eps(self, x, i, prompt: Prompt, mode="off", reading=None):
        layers = "up_blocks" if self.layers == "decoder" else ""
        self.notes.update(mode=mode, alpha=self.alpha, layers=layers, reading=reading, blended=prompt.blended)
        out = self.unet(x, self.timesteps[i], **prompt.for_unet(), return_dict=False)[0]
        if self.prediction == "v_prediction":
            now, _ = self.levels(i)
            out = math.sqrt(now) * out + math.sqrt(1 - now) * x
        return out

    def guided_eps(self, x, i, cfg, prompt=None, personal=None, personal_prompt=None, reading=None):
        """Classifier-free guidance; with `personal`, each pass reads that of the personal latent."""
        predictions = []
        for ours, theirs in (
            (prompt or self.positive, personal_prompt or self.positive),
            (self.negative, self.negative),
        ):
            if personal is not None:
                self.eps(personal, i, theirs, mode="note")
            predictions.append(self.eps(x, i, ours, "off" if personal is None else "guide", reading))
            if cfg == 1:
                return predictions[0]
        positive, negative = predictions
        return negative + cfg * (positive - negative)

    # Masks

    def shares(self, mask: np.ndarray, rows: int, columns: int) -> np.ndarray:
        """Mean of the mask under each of a layer's tokens, which may share pixels where the layer does not divide."""
        height, width = mask.shape
        means = [
            mask[
                math.floor(i * height / rows) : math.ceil((i + 1) * height / rows),
                math.floor(j * width / columns) : math.ceil((j + 1) * width / columns),
            ].mean()
            for i in range(rows)
            for j in range(columns)
        ]
        return np.array(means)

    def reading(self, concept: OracleConcept, shape):
        """For a layer of so many tokens, which of the concept's (column) each of ours (row) may read."""
        if not concept.object_only:
            return None

        def allowed(tokens: int) -> torch.Tensor:
            rows, columns = shape[-2:]
            while rows * columns != tokens:  # each level halves the grid, upwards
                rows, columns = math.ceil(rows / 2), math.ceil(columns / 2)
            target, own = (self.shares(mask, rows, columns) for mask in (concept.mask, concept.object_mask))
            inside, of_object = (torch.tensor(x >= min(0.5, x.max())) for x in (target, own))
            return ~inside[:, None] | of_object[None, :]

        return allowed

    def cells(self, mask: np.ndarray, shape) -> np.ndarray:
        """Mean over the 8 × 8 pixels of each latent cell."""
        height, width = shape[-2:]
        return mask.reshape(height, 8, width, 8).mean((1, 3))

    def target_weights(self, mask, shape):
        if self.feather:
            soft = scipy.ndimage.gaussian_filter(mask.astype(np.float64), self.feather / 2, mode="nearest")
            return torch.tensor(self.cells(soft, shape), dtype=torch.float32)
        return torch.tensor(self.cells(mask, shape) >= 0.5, dtype=torch.float32)

    def box_mask(self, mask, shape):
        ys, xs = np.nonzero(mask >= 0.5)
        box = np.zeros_like(mask)
        top, left = max(ys.min() - self.expand, 0), max(xs.min() - self.expand, 0)
        box[top : ys.max() + self.expand + 1, left : xs.max() + self.expand + 1] = 1
        return torch.tensor(self.cells(box, shape) >= 0.5, dtype=torch.float32)

    def normalize(self, x, mask, target, target_mask):
        """AdaIN of what the mask weighs in x, channel by channel."""
        x = x.clone()
        for channel in range(x.shape[1]):
            ours, theirs = x[0, channel], target[0, channel][target_mask > 0]
            mean = (ours * mask).sum() / mask.sum()
            std = math.sqrt(((ours - mean) ** 2 * mask).sum() / mask.sum())
            styled = (ours - mean) / std * theirs.std(correction=0) + theirs.mean()
            x[0, channel] = styled * mask + ours * (1 - mask)
        return x

    def weights(self, step: int) -> float:
        first, last = self.swap_guidance, max(self.swap_guidance / 2, 1)
        if self.constant_guidance:
            return first
        return first + (last - first) * step / max(len(self.timesteps) - 1, 1)

    def is_guided(self, i: int) -> bool:
        """ComfyUI's percents of a schedule: 1 - p of the way through the 1000 training timesteps."""
        if self.alpha is None:
            return False
        t = self.timesteps[i]
        starts = self.start_percent <= 0 or t <= (1 - self.start_percent) * 999
        return starts and (self.end_percent >= 1 or t >= (1 - self.end_percent) * 999)

    # The method

    def run(self, background, concepts: list[OracleConcept], inpainted=None):
        """Output (1, C, H, W) and branches, one a concept."""
        if self.overlap == "last in front":
            for k, concept in enumerate(concepts):
                for front in concepts[k + 1 :]:
                    concept.mask = np.where(front.mask > 0, 0, concept.mask)
        back = self.trajectory(background, self.seed)
        eps_back, residuals = [], []
        for i in range(len(self.timesteps)):
            eps_back.append(self.guided_eps(back[i], i, self.inversion_cfg))
            residual = back[i + 1] - self.mean(back[i], eps_back[i], i)
            if self.std(i) > 0:
                noise_map = residual / self.std(i)  # eq. 3.2
                residual = noise_map * self.std(i)
            residuals.append(residual)

        personal = [self.trajectory(concept.x0, concept.seed) for concept in concepts]
        inpaint = self.trajectory(inpainted, self.seed) if self.beta is not None else None
        masks = [self.target_weights(concept.mask, background.shape) for concept in concepts]
        own_objects = [torch.tensor(self.cells(c.object_mask, background.shape) >= 0.5) for c in concepts]
        total = sum(masks)
        masks = [torch.where(total > 1, mask / total.clamp(min=1e-9), mask) for mask in masks]
        boxes = [self.box_mask(concept.mask, background.shape) for concept in concepts]

        output, branches = back[0], [back[0] for _ in concepts]
        for i in range(len(self.timesteps)):
            eps_branches = []
            for k, concept in enumerate(concepts):
                eps = self.guided_eps(branches[k], i, self.cfg, concept.scene_prompt)
                if self.is_guided(i):
                    theirs = dict(personal=personal[k][i], personal_prompt=concept.prompt or concept.scene_prompt)
                    reading = self.reading(concept, background.shape)
                    swap = self.guided_eps(branches[k], i, self.cfg, concept.scene_prompt, **theirs, reading=reading)
                    eps = eps + self.weights(i) * (swap - eps)
                eps_branches.append(eps)

            mixed = eps_back[i] * (1 - sum(masks))  # eq. 3.4
            for eps, mask in zip(eps_branches, masks, strict=True):
                mixed = mixed + eps * mask
            output = self.mean(output, mixed, i) + residuals[i]
            if self.adain and self.is_guided(i):
                for k in range(len(concepts)):  # masks are disjoint where this is used
                    output = self.normalize(output, masks[k], personal[k][i + 1], own_objects[k])

            for k in range(len(concepts)):
                eps = eps_branches[k]
                if self.mix_branches:
                    eps = eps * masks[k] + eps_back[i] * (1 - masks[k])
                branches[k] = self.mean(branches[k], eps, i) + residuals[i]
                if self.adain and self.is_guided(i):
                    branches[k] = self.normalize(branches[k], masks[k], personal[k][i + 1], own_objects[k])
                if self.beta is not None:  # eq. 3.5
                    outside = self.beta * inpaint[i + 1]
                    if self.outside == "blended":
                        outside = outside + (1 - self.beta) * branches[k]
                    branches[k] = outside * (1 - boxes[k]) + branches[k] * boxes[k]
        return output, branches


def relative_error(x: torch.Tensor, y: torch.Tensor) -> float:
    """Relative L2."""
    return float(torch.linalg.vector_norm(x - y) / torch.linalg.vector_norm(y))
