"""LaTexBlend written from its description, slowly: one row at a time, diffusers' UNet, softmax spelled out.

Shares no code with the pack.
"""

import math
from dataclasses import dataclass, field

import torch

from oracle import Prompt, alphas_cumprod


@dataclass
class OracleSlot:
    features: dict  # diffusers' name of a layer, with .processor → (K, V)
    tokens: list[int]  # V* and the noun
    strength: float = 1.0
    mask: torch.Tensor | None = None  # (h, w) of the latent grid


@dataclass
class LaTexBlend:
    unet: torch.nn.Module
    prediction: str  # "epsilon" or "v_prediction"
    positive: Prompt
    negative: Prompt
    slots: list[OracleSlot]
    timesteps: list[int]
    cfg: float = 3.0
    bind: bool = True
    start_percent: float = 0.1
    region: float = 1.0
    scale: float = 0.0  # of guidance
    g1: float = 1.0
    g2: float = 1.0
    guided_until: float = 0.2
    maps: list = field(default_factory=list)

    def __post_init__(self):
        self.abar = alphas_cumprod()
        self.mode, self.blending, self.grid = "off", False, (0, 0)
        others = self.unet.attn_processors
        own = {name: self.processor(name) for name in others if "attn2" in name}
        self.unet.set_attn_processor({**others, **own})

    def processor(self, name: str):
        def process(attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **kwargs):
            query = attn.to_q(hidden_states)
            key, value = attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
            is_own = self.mode != "off"
            plain_key = key
            if is_own and self.blending:
                key, value = key.clone(), value.clone()
                for slot in self.slots:
                    own_key, own_value = slot.features[name]
                    key[0, slot.tokens] = own_key
                    value[0, slot.tokens] = (1 - slot.strength) * value[0, slot.tokens] + slot.strength * own_value
            query, plain_key, key, value = (
                x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)[0] for x in (query, plain_key, key, value)
            )
            plain, whole = (query @ x.transpose(-1, -2) / math.sqrt(query.shape[-1]) for x in (plain_key, key))
            logits = self.between(plain, whole)
            height, width = self.grid
            while height * width > logits.shape[1]:
                height, width = math.ceil(height / 2), math.ceil(width / 2)
            if self.mode == "look":
                self.maps.append((logits.softmax(-1).mean(0), (height, width)))
            if is_own and self.bind:
                for slot in self.slots:
                    whole[..., slot.tokens[0]] = whole[..., slot.tokens[-1]]
                logits = self.between(plain, whole)
            for slot in self.slots:
                if is_own and slot.mask is not None and slot.strength > 0:
                    mask = torch.nn.functional.adaptive_avg_pool2d(slot.mask[None, None], (height, width)).flatten()
                    inside = (1 - slot.strength * self.region * (1 - mask)).clamp(min=1e-4)
                    for token in slot.tokens:
                        logits[..., token] = logits[..., token] + inside.log()
            weights = logits.exp() / logits.exp().sum(-1, keepdim=True)
            return attn.to_out[0]((weights @ value).transpose(0, 1).flatten(1)[None])

        return process

    def between(self, plain, whole):
        """Logits from the plain prompt's to those at a strength of 1, by the strength of each concept."""
        logits = whole.clone()
        for slot in self.slots:
            here = slot.tokens
            logits[..., here] = (1 - slot.strength) * plain[..., here] + slot.strength * whole[..., here]
        return logits

    def sigma(self, t: int) -> float:
        return math.sqrt((1 - self.abar[t]) / self.abar[t])

    def denoised(self, x, t: int, prompt: Prompt, mode: str):
        self.mode, self.grid = mode, tuple(x.shape[-2:])
        self.blending = t <= (1 - self.start_percent) * 999
        sigma = self.sigma(t)
        out = self.unet(x / math.sqrt(1 + sigma**2), t, **prompt.for_unet()).sample
        self.mode = "off"
        if self.prediction == "v_prediction":
            return x / (1 + sigma**2) - out * sigma / math.sqrt(1 + sigma**2)
        return x - sigma * out

    @staticmethod
    def place(attention, grid):
        """Distribution over cells of 4 × 4 positions, of one token's map."""
        rows = attention.reshape(grid).split(min(4, grid[0]))
        cells = [cell.mean() for row in rows for cell in row.split(min(4, grid[1]), dim=1)]
        weights = (100 * torch.stack(cells)).exp()
        return weights / weights.sum()

    def loss(self, x, t: int):
        """L: the mean over the layers."""
        self.maps = []
        self.denoised(x, t, self.positive, "look")
        total = 0
        for maps, grid in self.maps:

            def far(one, other, maps=maps, grid=grid):
                p, q = self.place(maps[:, one], grid), self.place(maps[:, other], grid)
                return ((p * (p / q).log()).sum() + (q * (q / p).log()).sum()) / 2

            for slot in self.slots:
                identifier, *noun = slot.tokens
                total = total + self.g1 * slot.strength * max(far(identifier, token) for token in noun)
                for other in self.slots:
                    if other is not slot:
                        farthest = [max(far(own, theirs) for own in slot.tokens) for theirs in other.tokens]
                        both = slot.strength * other.strength
                        total = total - self.g2 * both * sum(farthest) / len(farthest)
        return total / len(self.maps)

    def run(self, noise):
        """Euler's method from noise of standard deviation 1."""
        x = noise * self.sigma(self.timesteps[0])
        for t, following in zip(self.timesteps, [*self.timesteps[1:], None], strict=True):
            sigma, after = self.sigma(t), 0.0 if following is None else self.sigma(following)
            with torch.no_grad():
                cond = self.denoised(x, t, self.positive, "own")
                uncond = self.denoised(x, t, self.negative, "off")
                denoised = uncond + self.cfg * (cond - uncond)
            if self.scale > 0 and t >= (1 - self.guided_until) * 999:
                latent = x.clone().requires_grad_(True)
                with torch.enable_grad():
                    (gradient,) = torch.autograd.grad(self.loss(latent, t), latent)
                eps = (x - denoised) / sigma + self.scale * gradient * math.sqrt(1 + sigma**2)
                denoised = x - sigma * eps
            x = denoised + (x - denoised) / sigma * after
        return x
