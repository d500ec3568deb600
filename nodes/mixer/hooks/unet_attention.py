"""Guided appearance attention (eq. 3.3) in the self-attention of ComfyUI's UNets."""

import torch
from comfy.model_patcher import set_model_options_patch_replace
from torch import Tensor

from ....pnpmix.masks import part_of, readable_tokens
from ....pnpmix.mixer.attention import attend_to_objects, by_role, guided_appearance_attention
from ....pnpmix.mixer.sampling import BatchRows
from ...common.attention import plain_attention
from ...common.checks import BadInput
from ...common.hooks import Hook
from ...common.types import Appearance
from . import ROWS, Area, ConceptsOnGrid, areas_of_chunks, check_batch, with_first_patch
from .feature_cache import FEATURES, FeatureCache


class UNetAttention(Hook):
    """Lets swap rows read their concept in each self-attention layer that `appearance` names."""

    def __init__(self, unet, appearance: Appearance, on_grid: ConceptsOnGrid, device: torch.device):
        self.unet, self.appearance, self.on_grid, self.device = unet, appearance, on_grid, device

    def install(self, options: dict) -> dict:
        options = with_first_patch(options, "attn1_patch", appearance_patch(self.appearance))
        if all(concept.object_mask is None for concept in self.on_grid.concepts):
            return options
        _, grid, areas = self.on_grid
        others, tokens = options["transformer_options"].get("patches_replace", {}).get("attn1", {}), self.tokens()
        names = {"input": self.unet.input_blocks, "middle": [self.unet.middle_block], "output": self.unet.output_blocks}
        blocks = [(name, i) for name, modules in names.items() for i in range(len(modules))]
        for block in [*blocks, *others]:
            other = others.get(block, plain_attention)
            attention = ObjectAttention(self.appearance, tokens, grid, areas, other).to(self.device)
            options = set_model_options_patch_replace(options, attention, "attn1", *block)
        return options

    def tokens(self) -> dict[Area, dict]:
        """Returns area → layer → the targets' tokens and their objects', as `readable_tokens` gives them."""
        found, (concepts, grid, _) = {}, self.on_grid
        for area in self.on_grid.parts:
            masks = [part_of(concept.mask, area, grid) for concept in concepts]
            own = [None if c.object_mask is None else part_of(c.object_mask, area, grid) for c in concepts]
            found[area] = readable_tokens(masks, own, area[:2])
        return found


def swap_rows(appearance: Appearance, extra_options: dict) -> BatchRows | None:
    """Returns the batch rows of this call if this layer guides them; None in calls that the mixer did not make."""
    rows: BatchRows | None = extra_options.get(ROWS)
    in_layer = appearance.layers == "all" or extra_options["block"][0] == "output"
    return rows if rows is not None and "swap" in rows.roles and in_layer else None


def appearance_patch(appearance: Appearance):
    """Returns the attn1_patch that gives swap rows the keys and values of eq. 3.3."""

    def patch(q, key, value, extra_options):
        rows = swap_rows(appearance, extra_options)
        if rows is None:
            return q, key, value
        chunks = len(extra_options["cond_or_uncond"])
        check_batch(len(key), rows, chunks)
        features, cached = extra_options.get(FEATURES), None
        if features is not None:
            cached = of_personal_rows(features, value, rows, extra_options)
        return q, *guided_appearance_attention(key, value, appearance.alpha, rows.roles, chunks, cached)

    return patch


def of_personal_rows(
    features: FeatureCache, value: Tensor, rows: BatchRows, extra_options: dict
) -> tuple[Tensor, Tensor] | None:
    """Reads the personal rows from the cache, or fills it with those of this call; None where the call has them."""
    if "personal" in rows.roles:
        chunks = len(extra_options["cond_or_uncond"])
        features.add(by_role(value, rows.roles, chunks)["personal"], rows, extra_options)
        return None
    found = features.read(rows, extra_options, like=value)
    return found, found  # key and value come from the same input


class ObjectAttention:
    """An attn1_replace: as `attention`, but targets read nothing but their concept's object, where a mask shows it.

    An object with `.to`, by which ComfyUI brings a patch's tensors to each device that computes.

    Args:
        tokens: area → as `readable_tokens` gives them; found beforehand, because a compiled model cannot look for them.
        grid: height and width of the latent.
        areas: of the conditionings that are limited to one, by their uuid.
        attention: the attn1_replace of another pack, or `plain_attention`.
    """

    def __init__(self, appearance: Appearance, tokens: dict[Area, dict], grid, areas: dict[object, Area], attention):
        self.appearance, self.tokens, self.grid, self.areas = appearance, tokens, grid, areas
        self.attention = attention

    def to(self, target: torch.device | torch.dtype) -> "ObjectAttention":
        if not isinstance(target, torch.device):
            return self  # indices have no precision
        tokens = {
            area: {grid: [pair and tuple(x.to(target) for x in pair) for pair in own] for grid, own in by_grid.items()}
            for area, by_grid in self.tokens.items()
        }
        attention = self.attention.to(target) if hasattr(self.attention, "to") else self.attention
        return ObjectAttention(self.appearance, tokens, self.grid, self.areas, attention)

    def __call__(self, query, key, value, extra_options):
        rows = swap_rows(self.appearance, extra_options)
        if rows is None:
            return self.attention(query, key, value, extra_options)

        def attend(query: Tensor, key: Tensor, value: Tensor, _) -> Tensor:
            return plain_attention(query, key, value, extra_options)

        chunks = len(extra_options["cond_or_uncond"])
        check_batch(len(key), rows, chunks)
        whole = self.attention(query, key, value, extra_options)
        areas = areas_of_chunks(self.areas, self.grid, extra_options)
        each = chunks // len(areas)
        parts = (x.chunk(len(areas)) for x in (whole, query, key, value))
        for area, output, q, k, v in zip(areas, *parts, strict=True):
            own = self.tokens_of(area, q, k, extra_options)[rows.concepts]
            attend_to_objects(attend, output, q, k, v, own, rows.roles, each)
        return whole

    def tokens_of(self, area: Area, query: Tensor, key: Tensor, extra_options: dict) -> list:
        """Returns for each concept the tokens of this layer, which is told by the shape of its activations."""
        layer = tuple(extra_options["activations_shape"][2:])
        own = self.tokens[area].get(layer)
        is_whole = tuple(extra_options["original_shape"][2:]) == area[:2]
        if own is None or not is_whole or query.shape != key.shape or key.shape[1] != layer[0] * layer[1]:
            fault = "one of its patches merges, adds or tiles tokens, so that those of an object cannot be told."
            raise BadInput("Mask Noise Mixer", "model", fault, "Bypass that patch, or leave object_mask unwired.")
        return own
