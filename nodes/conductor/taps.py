"""Where the method reads and changes attention in a UNet of ComfyUI."""

from collections.abc import Callable
from typing import NamedTuple

import comfy.patcher_extension
import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import Upsample
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..common.attention import differentiable_attention, plain_attention

Layer = tuple[str, int, int]  # as ComfyUI names it: "input", "middle" or "output", block, transformer in the block


class Stop(Exception):
    """Nothing after this layer is of use."""


class Layers(NamedTuple):
    """The layers of a UNet that the method uses."""

    keys: Layer  # whose keys say how a picture is laid out
    attention: Layer  # whose attention refines masks
    last: Layer  # of the decoder
    count: int  # of all transformers


def transformers(blocks) -> list[tuple[int, int]]:
    """(block, number of transformers in it) of those that have any."""
    found = []
    for number, block in enumerate(blocks):
        depth = sum(len(x.transformer_blocks) for x in block if isinstance(x, SpatialTransformer))
        if depth:
            found.append((number, depth))
    return found


def layers_of(unet) -> Layers:
    """As the authors chose them for SD 1.5 and SDXL, by the same rule for others.

    With one transformer to a block: the decoder's first self-attention above its deepest level, where SD 1.5 has none,
    and the last one at half the latent's size. With more: the middle of the second block, for both.
    """
    decoder = transformers(unet.output_blocks)
    count = sum(depth for _, depth in [*transformers(unet.input_blocks), *transformers([unet.middle_block]), *decoder])
    last = ("output", decoder[-1][0], decoder[-1][1] - 1)
    if decoder[0][1] > 1:
        block, depth = decoder[min(1, len(decoder) - 1)]
        middle = ("output", block, (depth - 1) // 2)
        return Layers(middle, middle, last, count)
    levels = {number: level_of(("output", number, 0), unet) for number, _ in decoder}
    deepest = level_of(("output", 0, 0), unet)
    above = [number for number, level in levels.items() if level < deepest] or list(levels)
    half = [number for number, level in levels.items() if level == 1] or list(levels)
    return Layers(("output", above[0], 0), ("output", half[-1], 0), last, count)


def level_of(layer: Layer, unet) -> int:
    """How often the latent grid is halved on the way to a layer of the decoder."""
    return sum(any(isinstance(x, Upsample) for x in block) for block in unet.output_blocks[layer[1] :])


def layer_numbers(unet) -> dict[Layer, int]:
    """Each transformer's place in the order that data flows through them."""
    parts = [("input", unet.input_blocks), ("middle", [unet.middle_block]), ("output", unet.output_blocks)]
    order = [
        (part, number, index)
        for part, blocks in parts
        for number, depth in transformers(blocks)
        for index in range(depth)
    ]
    return {layer: number for number, layer in enumerate(order)}


def here(extra: dict) -> Layer:
    """The layer that a patch is called in."""
    return (*extra["block"], extra.get("block_index", 0))


def with_stop(options: dict) -> dict:
    """Model options in which `Stop` ends a call of the UNet early; the host still gets an output of its shape, so
    conditional and unconditional rows may come in calls of their own."""

    def end_early(executor, x, *args, **kwargs):
        try:
            return executor(x, *args, **kwargs)
        except Stop:
            return torch.zeros_like(x)

    options = copied(options)
    wrapper = comfy.patcher_extension.add_wrapper_with_key
    wrapper(WrappersMP.DIFFUSION_MODEL, "pnpmix_conductor", end_early, options, is_model_options=True)
    return options


def copied(options: dict) -> dict:
    options = comfy.patcher_extension.copy_nested_dicts(options)
    options.setdefault("transformer_options", {})
    return options


def with_patch(options: dict, name: str, patch: Callable) -> dict:
    options = copied(options)
    options["transformer_options"].setdefault("patches", {}).setdefault(name, []).append(patch)
    return options


def with_attention_tap(options: dict, layer: Layer, tap: Callable[[Tensor, Tensor, dict], None]) -> dict:
    """Lets `tap(query, key, extra)` see a self-attention layer, which answers as before."""
    options = copied(options)
    replace = options["transformer_options"].setdefault("patches_replace", {}).setdefault("attn1", {})
    before = replace.get(layer, replace.get(layer[:2]))

    def attend(query: Tensor, key: Tensor, value: Tensor, extra: dict) -> Tensor:
        tap(query, key, extra)
        if before is not None:
            return before(query, key, value, extra)
        return plain_attention(query, key, value, extra)

    replace[layer] = attend
    return options


def differentiable(options: dict) -> dict:
    """Returns model options that allow a backward pass with any attention backend and any patch of the skips."""
    options = with_patch(options, "input_block_patch_after_skip", lambda hidden, _: hidden.clone())
    options["transformer_options"]["optimized_attention_override"] = differentiable_attention
    return options
