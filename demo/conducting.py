"""Runs Concept Conductor of `pnpmix/` on the demo model with diffusers' UNet, where there is no ComfyUI."""

import argparse
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from pnpmix.attention import attention_probabilities
from pnpmix.conductor.injection import Grid, first_masks, fuse, inside
from pnpmix.conductor.layout import (
    Alignment,
    Layout,
    ddim_invert,
    inversion_levels,
    layout_gradient,
    nearest_level,
    noised,
)
from pnpmix.conductor.refinement import Masks, Refinement, first_state
from pnpmix.conductor.sampling import sample_concept_conductor
from pnpmix.masks import layer_grids
from torch import Tensor

from .diffusers_host import (
    DemoModel,
    all_sigmas,
    denoise_with_cfg,
    load_model,
    to_latent,
    to_pictures,
)
from .loras import load_lora, merged
from .measures import measure_conducted
from .model import CHANNELS, GRID
from .pictures import draw_masks, panels
from .scenes import conducted, draw_scene, prompts_of, random_layout

KEYS = "up_blocks.1.attentions.0.transformer_blocks.0.attn1"  # the first above the deepest level of the decoder
ATTENTION = "up_blocks.1.attentions.1.transformer_blocks.0.attn1"  # the last at half the latent's size
LAST = "up_blocks.2.attentions.1.transformer_blocks.0.attn"
ROWS = {"keys": "rows to the keys", "record": "rows to the last attention", "denoise": "rows"}  # by what a call is for
GRIDS = tuple(grid for grid in layer_grids((GRID, GRID)) if grid[0] >= GRID // 4)


@dataclass(frozen=True)
class ConductorSettings:
    """Inputs of the nodes, by their names there; the defaults are for the demo model, in few steps."""

    steps: int = 12
    cfg: float = 4.0
    noise_seed: int = 0
    strength: float = 1.5
    inject: Literal["both", "self", "cross", "none"] = "both"
    aligned: bool = True
    layout_method: Literal["ddim", "noised"] = "ddim"
    inversion_steps: int = 24
    weight: float = 150.0  # the authors' 10 is for 17 times as many steps
    concept_weight: float = 1.0
    align_end: float = 0.25
    refined: bool = True
    start: float = 0.35
    end: float = 0.5
    updates: int = 2
    threshold: float = 0.5
    restarts: int = 10


class Concept(NamedTuple):
    """A model of its own, and what it is asked for."""

    lora: dict[str, Tensor]
    prompt: str
    mask: Tensor  # (H, W) in 0..1


class Stop(Exception):
    """Nothing after this layer is of use."""


class DiffusersPaths:
    """The branches of `sampling.Paths`, whose weights are put into the one UNet in turn."""

    def __init__(
        self, model: DemoModel, prompt: str, concepts: Sequence[Concept], settings: ConductorSettings, counts: Counter
    ):
        self.model, self.settings, self.concepts = model, settings, len(concepts)
        weights = {name: x for name, x in model.unet.state_dict().items() if ".attn" in name}
        self.weights = [weights, *(merged(weights, [x.lora], settings.strength) for x in concepts)]
        prompts = [prompt, *(concept.prompt for concept in concepts)]
        self.contexts = [model.words([text, ""]) for text in prompts]
        self.layout: Layout | None = None
        self.layout_context = self.contexts[0][:1]
        self.references: dict[int, Tensor] = {}
        self.features: dict[tuple[str, int], list[Tensor]] = {}
        self.mode, self.branch, self.wants_attention = "plain", 0, False
        self.masks: dict[Grid, Tensor] = {}
        self.tapped = Tensor()
        self.counts = counts
        for name, module in model.unet.named_modules():
            if isinstance(module, Attention):
                module.set_processor(partial(self.process, name))

    def put(self, branch: int) -> None:
        if self.branch != branch:
            self.counts["weights changed"] += 1
            modules = dict(self.model.unet.named_parameters())
            for name, weight in self.weights[branch].items():
                modules[name].data = weight
            self.branch = branch

    def process(self, name: str, attn: Attention, hidden: Tensor, encoder_hidden_states=None, **_) -> Tensor:
        is_self = encoder_hidden_states is None
        context = hidden if is_self else encoder_hidden_states
        query, key, value = attn.to_q(hidden), attn.to_k(context), attn.to_v(context)
        if name == KEYS and self.mode == "keys":
            self.tapped = key
            raise Stop
        if name == ATTENTION and self.wants_attention:
            rows = len(query) // (1 if self.settings.cfg == 1 else 2)
            self.tapped = attention_probabilities(query[:rows], key[:rows], attn.heads)
        heads = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (query, key, value))
        out = attn.to_out[0](F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        kind = "self" if is_self else "cross"
        if self.mode in ("record", "denoise") and name.startswith("up_blocks"):
            if self.settings.inject in ("both", kind):
                out = self.fused(name, out)
            if self.mode == "record" and name == LAST + ("1" if self.settings.inject == "self" else "2"):
                raise Stop
        return out

    def fused(self, name: str, out: Tensor) -> Tensor:
        side = math.isqrt(out.shape[1])
        masks, chunks = self.masks[side, side].flatten(2), out.chunk(2)
        if self.mode == "record":
            self.features[name, self.branch] = [inside(x, masks[self.branch - 1]) for x in chunks]
            return out
        fused = [
            fuse(x, [self.features[name, k + 1][i] for k in range(self.concepts)], masks) for i, x in enumerate(chunks)
        ]
        return torch.cat(fused)

    def run(self, mode: str, branch: int, call: Callable[[], Tensor], rows: int) -> Tensor | None:
        self.put(branch)
        self.mode = mode
        self.counts.update({ROWS[mode]: rows, "calls": 1})
        try:
            return call()
        except Stop:
            return None
        finally:
            self.mode = "plain"

    def reference(self, level: int) -> Tensor:
        """Returns F_ref, of the base model and the layout's own prompt."""
        if level not in self.references:
            x, sigma = self.layout.trajectory[level : level + 1], self.layout.sigmas[level]
            call = partial(self.model.denoise, x, sigma.expand(1), self.layout_context)
            self.run("keys", 0, call, 1)
            self.references[level] = self.tapped
        return self.references[level]

    def layout_gradient(self, branch: int, x: Tensor, sigma: Tensor) -> Tensor:
        reference = self.reference(nearest_level(self.layout, sigma))
        with torch.enable_grad():
            x = x.detach().clone().requires_grad_()
            call = partial(
                self.model.denoise, x, sigma.expand(len(x)), self.contexts[branch][:1].expand(len(x), -1, -1)
            )
            self.run("keys", branch, call, len(x))
            return layout_gradient(self.tapped, reference, x)

    def guided(self, branch: int, x: Tensor, sigma: Tensor) -> Tensor:
        positive, negative = self.contexts[branch].split(1)
        return denoise_with_cfg(self.model, x, sigma.expand(len(x)), positive, negative, self.settings.cfg)

    def record(self, branch: int, x: Tensor, sigma: Tensor, masks: Masks, attention: bool) -> Tensor | None:
        self.masks, self.wants_attention = masks.final, attention
        self.run("record", branch, partial(self.guided, branch, x, sigma), 2 * len(x))
        return self.tapped if attention else None

    def denoise(self, x: Tensor, sigma: Tensor, masks: Masks, attention: bool) -> tuple[Tensor, Tensor | None]:
        self.masks, self.wants_attention = masks.final, attention
        denoised = self.run("denoise", 0, partial(self.guided, 0, x, sigma), 2 * len(x))
        self.wants_attention = False
        return denoised, self.tapped if attention else None


@torch.no_grad()
def read_layout(model: DemoModel, picture: Tensor, prompt: str, settings: ConductorSettings) -> Layout:
    """Reads the layout of a picture (H, W, 3) in 0..1, with its own prompt."""
    levels, x0 = inversion_levels(all_sigmas(), settings.inversion_steps), to_latent(picture)[None]
    if settings.layout_method == "noised":
        return noised(x0, levels, settings.noise_seed)
    return ddim_invert(partial(model.denoise, context=model.words([prompt])), x0, levels)


@torch.no_grad()
def conduct(
    model: DemoModel,
    layout: Layout | None,
    layout_prompt: str,
    prompt: str,
    concepts: Sequence[Concept],
    settings: ConductorSettings,
    callback: Callable[[Tensor, Masks], None] | None = None,
    counts: Counter | None = None,
) -> tuple[Tensor, Masks]:
    """Runs Concept Conductor.

    Args:
        layout: of `read_layout`, with its own prompt; None: nothing is aligned.
        callback: called in each step with the estimate of the picture (H, W, 3) and the masks.
        counts: filled with what it took: rows of the UNet, its calls, changes of weights.

    Returns:
        picture (H, W, 3) and masks.
    """
    before = model.unet.attn_processors
    paths = DiffusersPaths(model, prompt, concepts, settings, Counter() if counts is None else counts)
    try:
        alignment = refinement = None
        if layout is not None:
            paths.layout, paths.layout_context = layout, model.words([layout_prompt])
            alignment = Alignment(layout, settings.weight, settings.concept_weight, settings.align_end)
        if settings.refined:
            refinement = Refinement(
                settings.start, settings.end, settings.updates, settings.threshold, settings.restarts
            )
        soft = torch.stack([concept.mask for concept in concepts]) if concepts else torch.zeros(0, 64, 64)
        masks = first_state(first_masks(soft, (GRID, GRID), 1), GRIDS, (GRID // 2, GRID // 2))
        generator = torch.Generator().manual_seed(settings.noise_seed)
        noise = torch.randn((1, CHANNELS, GRID, GRID), generator=generator)

        def show(_, denoised: Tensor, x: Tensor, masks: Masks) -> None:
            if callback is not None:
                callback(to_pictures(denoised)[0], masks)

        sigmas = model.schedule(settings.steps)
        x, masks = sample_concept_conductor(paths, noise, sigmas, masks, alignment, refinement, callback=show)
    finally:
        paths.put(0)
        model.unet.set_attn_processor(before)
    return to_pictures(x)[0], masks


def in_pixels(masks: Masks) -> Tensor:
    """Returns the masks (n, 64, 64) of the first picture."""
    return masks.final[GRID, GRID][:, 0].float().repeat_interleave(2, 1).repeat_interleave(2, 2)


def read_options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m demo --method conductor", description=main.__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the layout and the noise; default: %(default)s")
    parser.add_argument("--concepts", type=int, default=2, help="how many, 1 to 3; default: %(default)s")
    parser.add_argument("--output", type=Path, default=Path("demo-result"), help="name of the file, without ending")
    settings = parser.add_argument_group("inputs of the nodes, by their names")
    for field in fields(ConductorSettings):
        default = field.default
        if field.name != "noise_seed":
            choices, kind = get_args(field.type) or None, type(default)
            action = {"action": argparse.BooleanOptionalAction} if kind is bool else {"type": kind, "choices": choices}
            name = "--" + field.name.replace("_", "-")
            settings.add_argument(name, default=default, help=f"default: {default}", **action)
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Draws a new picture with LoRA concepts in the layout of a drawn scene, and says how well it came out."""
    options = read_options(arguments)
    values = {field.name: getattr(options, field.name, options.seed) for field in fields(ConductorSettings)}
    scene = random_layout(options.seed, options.concepts)
    layout, masks = draw_scene(scene)
    prompt, own = prompts_of(scene)
    given = [
        Concept(load_lora(thing.shape), text, mask) for thing, text, mask in zip(scene.things, own, masks, strict=True)
    ]
    model, inputs = load_model(), ConductorSettings(**values)
    read = read_layout(model, layout, prompt, inputs) if inputs.aligned else None
    result, found = conduct(model, read, prompt, prompt, given, inputs)
    refined = in_pixels(found)
    perfect, _ = draw_scene(conducted(scene))
    stages = [("layout", layout), ("the LoRAs' looks", perfect), ("masks", draw_masks(refined)), ("result", result)]
    picture = options.output.with_suffix(".png")
    picture.parent.mkdir(parents=True, exist_ok=True)
    panels(stages).save(picture)
    measured = measure_conducted(scene, result)
    print(f"scene: {scene.words()}; fidelity {measured.fidelity:.2f} of 1, leakage {measured.leakage:.1%}, ", end="")
    print(f"layout kept {measured.layout_kept:.2f}; {picture}")
