"""PnP-MIX on a transformer that predicts a flow, written from the equations: one latent at a time, ComfyUI's network
with an attention of its own. Shares no code with the pack."""

import math
from dataclasses import dataclass

import torch

from oracle import OracleConcept, PnPMix
from small_transformers import Small


class Attention:
    """Attention written out, which can note keys and values, or read the notes of another pass (eq. 3.3)."""

    def __init__(self, small: Small, notes: dict):
        self.small, self.notes = small, notes

    def __call__(self, _, query, key, value, heads, mask=None, skip_reshape=False, skip_output_reshape=False, **kwargs):
        if not skip_reshape:  # values may be cut into heads already
            query, key, value = (x.flatten(2).unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
        text, count, padded = self.notes["text"], self.notes["count"], self.small.padded(self.notes["count"])
        joint, mode, reading = query.shape[2] == text + padded, self.notes["mode"], None
        alone = self.small.image_alone and query.shape[2] == count
        start = 0 if alone or self.notes["image_first"] else text
        if joint:
            self.notes["block"] += 1
        in_layer = self.notes["layers"] is None or self.notes["block"] in self.notes["layers"]
        if (joint or alone) and mode == "note":
            image = slice(start, start + count)  # a personal prompt may have another length
            self.notes["kept"].append((key[:, :, image], value[:, :, image], start))
        if (joint or alone) and mode == "guide":
            key_personal, value_personal, began = self.notes["kept"].pop(0)
            if in_layer:
                reading, image = self.notes["reading"], slice(start, start + count)
                key, value = key.clone(), value.clone()
                key[:, :, image] = self.moved(key_personal, reading, start - began)
                difference = value_personal - value[:, :, image]
                value[:, :, image] = value_personal + self.notes["alpha"] * difference
        weights = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        if mask is not None:
            weights = weights + (mask if mask.ndim == 4 else mask.unsqueeze(1))
        if reading is not None:
            allowed = torch.ones(query.shape[2], query.shape[2], dtype=torch.bool)
            inside, of_object = (torch.zeros(query.shape[2], dtype=torch.bool) for _ in range(2))
            inside[start : start + count], of_object[start : start + count] = reading.inside, reading.of_object
            outside_picture = torch.ones(query.shape[2], dtype=torch.bool)
            outside_picture[start : start + count] = False
            allowed[inside] = of_object | outside_picture
            weights = weights.masked_fill(~allowed, -math.inf)
        out = weights.softmax(-1) @ value
        return out if skip_output_reshape else out.transpose(1, 2).flatten(2)

    def moved(self, key, reading, behind):
        """Rotary positions as complex numbers: each pair of channels has a frequency of its axis."""
        distance, angles = [0.0] * len(self.small.axes or ()), []
        if self.small.behind_text:
            distance[0] = behind
        if reading is not None and self.notes["turned"]:
            scaled = self.notes["scales"] if self.small.scales_positions else (1.0, 1.0)
            ours = [way * scale for way, scale in zip(reading.distance, scaled, strict=True)]
            distance[self.small.row_axis : self.small.row_axis + 2] = ours
        if self.small.axes is None or not any(distance):
            return key
        for axis, width in enumerate(self.small.axes):
            angles += [distance[axis] / self.small.theta ** (2 * i / width) for i in range(width // 2)]
        turned = torch.view_as_complex(key.double().unflatten(-1, (-1, 2)).contiguous())
        turned = turned * torch.exp(1j * torch.tensor(angles, dtype=torch.float64))
        return torch.view_as_real(turned).flatten(-2).float()


@dataclass
class Reading:
    inside: torch.Tensor  # (tokens,) of the target
    of_object: torch.Tensor  # (tokens,)
    distance: tuple[int, int]  # rows and columns from the object's box to the target's


@dataclass
class FlowPnPMix(PnPMix):
    """`unet` is the ModelPatcher, prompts are CONDITIONINGs."""

    small: Small = None
    image_first: bool = False
    turned: bool = True
    own_layers: set[int] | None = None

    def __post_init__(self):
        self.notes.update(turned=self.turned, layers=self.own_layers, image_first=self.image_first)
        scaled = self.unet.model_options["transformer_options"].get("rope_options", {})
        self.notes["scales"] = scaled.get("scale_y", 1.0), scaled.get("scale_x", 1.0)
        self.base, self.attention = self.unet.model, Attention(self.small, self.notes)
        self.timesteps = self.sigmas[:-1]

    def levels(self, i):
        return self.sigmas[i], self.sigmas[i + 1]

    def mean(self, x, eps, i):
        """Of the less noisy latent, given the noisier one and D: both are a picture and independent noise."""
        now, then = self.levels(i)
        denoised = x - now * eps
        covariance = (1 - now) / (1 - then) * then**2
        return (1 - then) * denoised + covariance / now**2 * (x - (1 - now) * denoised)

    def std(self, i):
        now, then = self.levels(i)
        covariance = (1 - now) / (1 - then) * then**2
        return math.sqrt(max(then**2 - covariance**2 / now**2, 0))

    def trajectory(self, x0, seed):
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn((len(self.timesteps), *x0.shape[1:]), generator=generator)
        shown = [self.levels(i)[0] for i in range(len(self.timesteps))]
        return [*((1 - s) * x0 + s * noise[i : i + 1] for i, s in enumerate(shown)), x0]

    def eps(self, x, i, prompt, mode="off", reading=None):
        (tokens, options), sigma = prompt[0], torch.tensor([self.sigmas[i]])
        text, rows, columns = self.small.text(tokens.shape[1]), *self.tokens(x.shape)
        if "conditioning_byt5small" in options:
            text += options["conditioning_byt5small"].shape[1]
        self.notes.update(mode=mode, alpha=self.alpha, reading=reading, block=-1, text=text, count=rows * columns)
        if mode == "note":
            self.notes["kept"] = []
        return (x - self.denoised(x, sigma, tokens, options)) / sigma

    def denoised(self, x, sigma, tokens, options):
        given = x.unsqueeze(2) if self.small.frames else x
        conds = self.base.extra_conds(cross_attn=tokens, noise=given, device=x.device, **options)
        conds = {name: cond.cond for name, cond in conds.items()}
        if "y" not in conds and self.small.config in ("Flux", "SD3") and options["pooled_output"] is not None:
            conds["y"] = options["pooled_output"]
        context = {"c_crossattn": conds.pop("c_crossattn")}
        told = {"optimized_attention_override": self.attention}
        told |= {"rope_options": self.unet.model_options["transformer_options"].get("rope_options")}
        told |= {"sigmas": sigma, "sample_sigmas": torch.tensor(self.sigmas)}  # MeanFlow models look for the next one
        denoised = self.base.apply_model(given, sigma, transformer_options=told, **context, **conds)
        return denoised.reshape(x.shape)

    def is_guided(self, i):
        return self.alpha is not None

    # Masks

    def tokens(self, shape):
        return tuple(math.ceil(side / self.small.patch) for side in shape[-2:])

    def cells(self, mask, shape):
        height, width = shape[-2:]
        return mask.reshape(height, self.small.ratio, width, self.small.ratio).mean((1, 3))

    def reading(self, concept: OracleConcept, shape):
        if not concept.object_only:
            return None
        rows, columns = self.tokens(shape)
        sets, centers = [], []
        for mask in (concept.mask, concept.object_mask):
            share = self.shares(mask, rows, columns)
            chosen = share >= min(0.5, share.max())
            y, x = chosen.reshape(rows, columns).nonzero()
            sets.append(torch.tensor(chosen))
            centers.append(((y.min() + y.max()) / 2, (x.min() + x.max()) / 2))
        distance = tuple(round(float(a - b)) for a, b in zip(*centers, strict=True))
        return Reading(*sets, distance)
