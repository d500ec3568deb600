"""Hooks of Concept Conductor into ComfyUI's UNets, of the shape that `common/hooks.py` describes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from comfy.model_patcher import set_model_options_patch_replace
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key, copy_nested_dicts
from torch import Tensor

from ...pnpmix.attention import attention_probabilities
from ...pnpmix.conductor.injection import fuse, inside
from ...pnpmix.conductor.refinement import Masks
from ..common.attention import differentiable_attention, plain_attention
from ..common.hooks import Hook
from .layers import Layer, here

CALL = "pnpmix_branch_call"  # in transformer_options: the `BranchCall` or `LayoutCall`
OUTPUTS = {"self": "attn1_output_patch", "cross": "attn2_output_patch"}  # the patches of each kind of attention


class Stop(Exception):
    """Nothing after this layer is of use."""


@dataclass
class BranchCall:
    """One call of a branch: what its hooks need to know, and what they find."""

    masks: Masks  # of what is injected
    branch: int = 0  # 0 is the base model
    attention: Tensor | None = None  # (B, tokens, tokens) of the conditional rows

    def layer_masks(self, extra: dict) -> Tensor:
        """Returns the masks in the size of a layer (n, B, tokens)."""
        return self.masks.final[tuple(extra["activations_shape"][-2:])].flatten(2)


class LayoutCall:
    """A call that ends with the keys of a layer."""

    keys: Tensor  # (B, tokens, channels)


class LayoutKeys(Hook):
    """Reads the keys of a self-attention layer, of which a gradient may be taken, and ends the call there."""

    def __init__(self, layer: Layer):
        self.layer = layer

    def install(self, options: dict) -> dict:
        return ending_early(with_reader(differentiable(options), self.layer, self.read))

    def read(self, query: Tensor, key: Tensor, extra: dict) -> None:
        extra[CALL].keys = key
        raise Stop


class AttentionMap(Hook):
    """Reads the attention probabilities of a self-attention layer."""

    def __init__(self, layer: Layer):
        self.layer = layer

    def install(self, options: dict) -> dict:
        return with_reader(options, self.layer, self.read)

    def read(self, query: Tensor, key: Tensor, extra: dict) -> None:
        chunks = extra["cond_or_uncond"]
        if 0 in chunks:
            size = len(query) // len(chunks)
            rows = slice(chunks.index(0) * size, (chunks.index(0) + 1) * size)
            extra[CALL].attention = attention_probabilities(query[rows], key[rows], extra["n_heads"])


class Recording(Hook):
    """Records what the decoder's attention of a concept puts out inside its mask, and ends the call after the last.

    Args:
        features: by layer, kind, concept and chunk, which it fills.
        kinds: "self", "cross" or both.
    """

    def __init__(self, features: dict[tuple, Tensor], kinds: Sequence[str], last: Layer):
        self.features, self.kinds, self.last = features, kinds, last

    def install(self, options: dict) -> dict:
        for kind in self.kinds:
            options = with_patch(options, OUTPUTS[kind], partial(self.record, kind))
        return ending_early(options)

    def record(self, kind: str, hidden: Tensor, extra: dict) -> Tensor:
        layer, call = here(extra), extra[CALL]
        if layer[0] != "output":
            return hidden
        chunks, mask = extra["cond_or_uncond"], call.layer_masks(extra)[call.branch - 1]
        for chunk, rows in zip(chunks, hidden.chunk(len(chunks)), strict=True):
            self.features[layer, kind, call.branch, chunk] = inside(rows, mask)
        if layer == self.last and kind == self.kinds[-1]:
            raise Stop
        return hidden


class Injection(Hook):
    """Injects what was recorded of n concepts into the decoder's attention of the base model."""

    def __init__(self, features: dict[tuple, Tensor], kinds: Sequence[str], concepts: int):
        self.features, self.kinds, self.concepts = features, kinds, concepts

    def install(self, options: dict) -> dict:
        for kind in self.kinds:
            options = with_patch(options, OUTPUTS[kind], partial(self.inject, kind))
        return options

    def inject(self, kind: str, hidden: Tensor, extra: dict) -> Tensor:
        layer = here(extra)
        if layer[0] != "output":
            return hidden
        chunks, masks, concepts = extra["cond_or_uncond"], extra[CALL].layer_masks(extra), range(1, self.concepts + 1)
        fused = [
            fuse(rows, [self.features[layer, kind, k, chunk] for k in concepts], masks)
            for chunk, rows in zip(chunks, hidden.chunk(len(chunks)), strict=True)
        ]
        return torch.cat(fused)


def copied(options: dict) -> dict:
    """Returns a copy that patches may be added to."""
    options = copy_nested_dicts(options)
    options.setdefault("transformer_options", {})
    return options


def with_patch(options: dict, name: str, patch: Callable) -> dict:
    """Returns the model options with a patch after those that are there."""
    options = copied(options)
    options["transformer_options"].setdefault("patches", {}).setdefault(name, []).append(patch)
    return options


def with_reader(options: dict, layer: Layer, read: Callable[[Tensor, Tensor, dict], None]) -> dict:
    """Returns model options in which `read(query, key, extra)` sees a self-attention layer, which answers as before."""
    options = copied(options)
    replaced = options["transformer_options"].get("patches_replace", {}).get("attn1", {})
    before = replaced.get(layer, replaced.get(layer[:2], plain_attention))

    def attend(query: Tensor, key: Tensor, value: Tensor, extra: dict) -> Tensor:
        read(query, key, extra)
        return before(query, key, value, extra)

    return set_model_options_patch_replace(options, attend, "attn1", *layer)


def ending_early(options: dict) -> dict:
    """Returns model options in which `Stop` ends a call of the UNet.

    The host still gets an output of its shape, so that conditional and unconditional rows may come in calls of their
    own.
    """

    def end_early(executor, x, *args, **kwargs):
        try:
            return executor(x, *args, **kwargs)
        except Stop:
            return torch.zeros_like(x)

    options = copied(options)
    add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "pnpmix_conductor", end_early, options, is_model_options=True)
    return options


def differentiable(options: dict) -> dict:
    """Returns model options that allow a backward pass with any attention backend and any patch of the skips."""
    options = with_patch(options, "input_block_patch_after_skip", lambda hidden, _: hidden.clone())
    options["transformer_options"]["optimized_attention_override"] = differentiable_attention
    return options
