"""The attention layers of ComfyUI's UNets that Concept Conductor reads and changes."""

from typing import NamedTuple

from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import Upsample

Layer = tuple[str, int, int]  # as ComfyUI names it: "input", "middle" or "output", block, transformer in the block


class Layers(NamedTuple):
    """The layers of a UNet that the method uses."""

    keys: Layer  # whose keys say how a picture is laid out
    attention: Layer  # whose attention refines masks
    last: Layer  # of the decoder
    depth: int  # of all transformers


def transformers(blocks) -> list[tuple[int, int]]:
    """Returns (block, number of transformers in it) of the blocks that have any."""
    found = []
    for number, block in enumerate(blocks):
        depth = sum(len(x.transformer_blocks) for x in block if isinstance(x, SpatialTransformer))
        if depth:
            found.append((number, depth))
    return found


def layers_of(unet) -> Layers:
    """Returns the layers that the authors chose for SD 1.5 and SDXL, by the same rule for others.

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
    """Returns how often the latent grid is halved on the way to a layer of the decoder."""
    return sum(any(isinstance(x, Upsample) for x in block) for block in unet.output_blocks[layer[1] :])


def layer_numbers(unet) -> dict[Layer, int]:
    """Returns each transformer's place in the order that data flows through them."""
    parts = [("input", unet.input_blocks), ("middle", [unet.middle_block]), ("output", unet.output_blocks)]
    order = [
        (part, number, index)
        for part, blocks in parts
        for number, depth in transformers(blocks)
        for index in range(depth)
    ]
    return {layer: number for number, layer in enumerate(order)}


def here(extra: dict) -> Layer:
    """Returns the layer that a patch is called in."""
    return (*extra["block"], extra.get("block_index", 0))
