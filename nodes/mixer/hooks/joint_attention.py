"""Guided appearance attention in ComfyUI's transformers, in which text and image share an attention."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from comfy.patcher_extension import WrappersMP, add_wrapper
from einops import rearrange
from torch import Tensor

from ....pnpmix.masks import box_distance, covered_tokens, part_of
from ....pnpmix.mixer.attention import apply_rope, attend_to_objects, by_role, guided_joint_attention
from ....pnpmix.mixer.sampling import BatchRows
from ...common.checks import BadInput
from ...common.hooks import Call, Hook
from ...common.types import Appearance, Concept
from ..families import Family, Tokens, guided_blocks, joint_blocks, token_grid, tokens_of
from . import ROWS, Area, ConceptsOnGrid, areas_of_chunks, check_batch
from .output_caches import count_layer

NODE = "Mask Noise Mixer"
JOINT_CALL = "pnpmix_call"  # in transformer_options: the `JointCall`
PICTURES = "pnpmix_pictures"  # in transformer_options of calls that read pictures apart: `Pictures`, or None in others
OVERRIDE = "optimized_attention_override"  # in transformer_options
Pair = tuple[Tensor, Tensor]  # tokens of a target and of an object


class JointCall:
    """What the attention of one model call needs to know, and how far the call has come.

    Args:
        pairs: of each concept, for each chunk or once for all of them, among the picture's tokens.
    """

    def __init__(self, tokens: Tokens, pairs: list[list[Pair | None]]):
        self.tokens, self.of_picture = tokens, pairs
        self.of_all = [[among_all(pair, tokens) for pair in own] for own in pairs]
        self.block, self.attentions_read = -1, 0


class OfPicture(NamedTuple):
    """Key and value of a concept image in one attention, from a call of its own."""

    key: Tensor  # (heads, tokens, channels), with rotary positions
    value: Tensor
    start: int  # where the picture began among that call's tokens


class Pictures(NamedTuple):
    """What the guided attentions have read in calls of their own for personal rows, in order, for one step."""

    place: torch.device
    found: dict[tuple[int, int], list[OfPicture]]  # by chunk and concept


class JointAttention(Hook):
    """Lets swap rows read their concepts in an optimized_attention_override, which a wrapper prepares for each call.

    All attention of these transformers goes through the override, after projection and rotary positions, whatever
    kernel follows; an override of another pack is called in its turn.
    """

    def __init__(self, model, family: Family, appearance: Appearance, on_grid: ConceptsOnGrid, device: torch.device):
        base = model.model
        self.network, self.family, self.appearance = base.diffusion_model, family, appearance
        self.grid, self.areas, self.device = on_grid.grid, on_grid.areas, device
        self.dtype = base.manual_cast_dtype or base.get_dtype()
        self.blocks = guided_blocks(NODE, model, appearance.layers)
        self.entered, self.longer = False, False  # whether any call of the run has been seen, or had more tokens
        self.pairs = {area: self.pairs_in(area, on_grid.concepts) for area in on_grid.parts}

    def install(self, options: dict) -> dict:
        transformer_options = options["transformer_options"]
        self.previous: Callable | None = transformer_options.get(OVERRIDE)  # another pack's
        self.replaced, self.rotations = replaced_blocks(transformer_options), None
        whole = self.pairs[(*self.grid, 0, 0)]
        if self.family.positions is not None and self.appearance.position == "target" and any(whole):
            self.rotations = self.rotations_of(whole, transformer_options).to(self.device)
        self.pairs = {
            area: [pair and (pair[0].to(self.device), pair[1].to(self.device)) for pair in pairs]
            for area, pairs in self.pairs.items()
        }
        add_wrapper(WrappersMP.APPLY_MODEL, self.prepare_call, options, is_model_options=True)
        transformer_options[OVERRIDE] = self.attend
        return options

    def around(self, call: Call, rows: BatchRows) -> Call:
        def checked(options: dict):
            prediction = call(options)
            self.check_entered()
            return prediction

        return call if rows.roles == ("plain",) else checked

    def pairs_in(self, area: Area, concepts: list[Concept]) -> list[Pair | None]:
        """Returns the tokens of each concept among the picture's tokens in a part of the latent grid."""
        grid, pairs = token_grid(self.network, area[:2]), list[Pair | None]()
        for concept in concepts:
            target, own = (x if x is None else part_of(x, area, self.grid) for x in (concept.mask, concept.object_mask))
            if target is None or own is None or min(target.max(), own.max()) < 0.5:
                pairs.append(None)
            else:
                pairs.append((covered_tokens(target, grid), covered_tokens(own, grid)))
        return pairs

    def rotations_of(self, pairs: list[Pair | None], transformer_options: dict) -> Tensor:
        """Returns (concepts, channels / 2, 2, 2): the model's own rotary embedding of the way from object to target."""
        columns, axes = token_grid(self.network, self.grid)[1], len(self.embedder.axes_dim)
        ids = torch.zeros(len(pairs), axes)
        first = 0 if axes == 2 else 1  # before rows and columns most models count pictures or frames
        scaled = (transformer_options.get("rope_options") or {}) if self.family.scales_positions else {}
        for k, pair in enumerate(pairs):
            down, across = (0, 0) if pair is None else box_distance(*pair, columns)
            ids[k, first] = down * scaled.get("scale_y", 1.0)
            ids[k, first + 1] = across * scaled.get("scale_x", 1.0)
        return self.rotary(ids)

    @property
    def embedder(self):
        """The model's module that computes rotary positions."""
        return getattr(self.network, str(self.family.positions))

    def rotary(self, ids: Tensor) -> Tensor:
        """Returns (n, axes) distances → (n, channels / 2, 2, 2)."""
        return self.embedder(ids[None])[0, 0].float()

    def bytes_of_a_picture(self, chunks: int) -> int:
        """Returns how much is read of one concept, where its personal row has a call of its own."""
        blocks = joint_blocks(self.network, self.family) if self.blocks is None else len(self.blocks)
        attentions = blocks * (2 if self.family.image_alone else 1)  # at most
        rows, columns = token_grid(self.network, self.grid)
        numbers = 2 * chunks * attentions * rows * columns * getattr(self.network, self.family.width)
        return numbers * self.dtype.itemsize

    def prepare_call(self, executor, x, t, c_concat, c_crossattn, control, transformer_options, **conds):
        """Adds the `JointCall` to a call that has other rows than plain ones (an APPLY_MODEL wrapper)."""
        rows: BatchRows | None = transformer_options.get(ROWS)
        if rows is not None and rows.roles != ("plain",):
            check_batch(len(x), rows, len(transformer_options["cond_or_uncond"]))
            self.check_guidance(rows, transformer_options)
            areas = areas_of_chunks(self.areas, self.grid, transformer_options)
            tokens = tokens_of(self.network, x, c_crossattn, conds)
            call = JointCall(tokens, [self.pairs[area][rows.concepts] for area in areas])
            transformer_options = {**transformer_options, JOINT_CALL: call}
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **conds)

    def check_guidance(self, rows: BatchRows, transformer_options: dict) -> None:
        """Refuses calls that guidance adds to the mixer's own, where what they read could not be told."""
        fault = None
        if replaced_blocks(transformer_options) != self.replaced:
            fault = "one of its patches guides with a call that skips layers (Skip Layer Guidance), which are counted."
        elif PICTURES in transformer_options and "personal" in rows.roles and len(rows.roles) > 1:
            fault = "one of its patches guides with a further call, and a concept's prompt needs a call of its own."
        if fault is not None:
            raise BadInput(NODE, "model", fault, "Bypass that patch.")

    def attend(self, func, query, key, value, heads, mask=None, **options):
        """Computes one attention (an optimized_attention_override); tokens are the last but one dimension."""
        kernel = func if self.previous is None else partial(self.previous, func)
        transformer_options = options.get("transformer_options") or {}
        call: JointCall | None = transformer_options.get(JOINT_CALL)
        image = None if call is None else self.guided_image(query, key, call, transformer_options)
        if call is None or image is None:
            return kernel(query, key, value, heads, mask=mask, **options)
        if not options.get("skip_reshape"):
            # SD 3 hands them over with heads and channels apart
            split = "rows tokens (heads channels) -> rows heads tokens channels"
            query, key, value = (rearrange(x.flatten(2), split, heads=heads) for x in (query, key, value))
            options["skip_reshape"] = True
        rows, chunks = transformer_options[ROWS], len(transformer_options["cond_or_uncond"])
        if "swap" not in rows.roles:
            add_pictures(key[..., image, :], value[..., image, :], call.tokens, transformer_options)
            return kernel(query, key, value, heads, mask=mask, **options)
        cached = None if "personal" in rows.roles else self.read_pictures(call, transformer_options, like=key)
        rotations = None if self.rotations is None else self.rotations[rows.concepts].to(key.device)
        key, value = guided_joint_attention(
            key, value, self.appearance.alpha, rows.roles, chunks, image, rotations, cached
        )
        whole = kernel(query, key, value, heads, mask=mask, **options)

        pairs = call.of_all if image == call.tokens.image else call.of_picture
        if any(map(any, pairs)):
            parts = zip(pairs, *(x.chunk(len(pairs)) for x in (whole, query, key, value)), strict=True)
            masks = of_swap_rows(mask, rows, chunks, key.shape[-2]).chunk(len(pairs)) if mask is not None else None
            for i, (own, output, q, k, v) in enumerate(parts):
                attend = partial(few, kernel, heads, None if masks is None else masks[i % len(masks)], options)
                attend_to_objects(attend, output, q, k, v, own, rows.roles, chunks // len(pairs))
        return whole

    def check_entered(self) -> None:
        """Refuses a model of which no attention of text and picture has been seen, after its first call."""
        if self.entered:
            return
        if self.longer:
            fault = (
                "one of its patches adds tokens to the prompt's and the image's, so that those cannot be told apart."
            )
            raise BadInput(NODE, "model", fault, "Bypass that patch, for example a style reference.")
        fault = "its attention does not go through ComfyUI's, so that nothing of the concepts is read."
        raise BadInput(NODE, "model", fault, "Bypass the node that replaces its attention.")

    def read_pictures(self, call: JointCall, transformer_options: dict, like: Tensor) -> tuple[Tensor, Tensor]:
        """Returns key and value for the next attention of a call, (chunks, concepts, heads, tokens, channels)."""
        keys, values, rows = [], [], transformer_options[ROWS]
        pictures: Pictures = transformer_options[PICTURES]
        chunks, concepts = transformer_options["cond_or_uncond"], range(rows.concepts.start, rows.concepts.stop)
        for key, value, start in (pictures.found[chunk, k][call.attentions_read] for chunk in chunks for k in concepts):
            key = key.to(like)
            if self.family.behind_text and start != call.tokens.start:
                distance = Tensor([[call.tokens.start - start, 0, 0]])
                key = apply_rope(key, self.rotary(distance).to(key.device))[0]
            keys.append(key)
            values.append(value.to(like))
        call.attentions_read += 1
        by_chunk = partial(rearrange, pattern="(chunks concepts) ... -> chunks concepts ...", chunks=len(chunks))
        return by_chunk(keys), by_chunk(values)

    def guided_image(self, query: Tensor, key: Tensor, call: JointCall, transformer_options: dict) -> slice | None:
        """Returns where the picture is in this attention; None where concepts are not read."""
        count, image = query.shape[-2], call.tokens.image
        if count > call.tokens.total:
            self.longer = True
        if key.shape[-2] != count:
            return None
        if count == call.tokens.total:
            self.entered = True
            count_layer(transformer_options)
            if self.blocks is not None:  # otherwise a compiled model would be compiled for every block anew
                call.block += 1
        elif self.family.image_alone and count == image.stop - image.start:
            image = slice(0, count)
        else:
            return None
        return image if self.blocks is None or call.block in self.blocks else None


def replaced_blocks(transformer_options: dict) -> dict:
    """Returns the blocks that patches answer for."""
    return dict(transformer_options.get("patches_replace", {}).get("dit", {}))


def add_pictures(key: Tensor, value: Tensor, tokens: Tokens, transformer_options: dict) -> None:
    """Adds what a call with one personal row for each chunk has read, (chunks, heads, tokens, channels)."""
    pictures: Pictures = transformer_options[PICTURES]
    concept = transformer_options[ROWS].concepts.start
    for chunk, *own in zip(transformer_options["cond_or_uncond"], key, value, strict=True):
        key, value = (x.to(pictures.place, copy=True) for x in own)
        pictures.found.setdefault((chunk, concept), []).append(OfPicture(key, value, tokens.start))


def among_all(pair: Pair | None, tokens: Tokens) -> Pair | None:
    """Returns the target's tokens, and what they may read: the object's, and all that are not the picture's."""
    if pair is None:
        return None
    target, own = pair
    image, every = tokens.image, torch.arange(tokens.total, device=own.device)
    return target + image.start, torch.cat([every[: image.start], own + image.start, every[image.stop :]])


def few(kernel: Callable, heads: int, mask: Tensor | None, options: dict, query, key, value, read: Tensor) -> Tensor:
    """Computes attention to some of the tokens."""
    return kernel(query, key, value, heads, mask=None if mask is None else mask[..., read], **options)


def of_swap_rows(mask: Tensor, rows: BatchRows, chunks: int, tokens: int) -> Tensor:
    """Returns (1 or chunks, ..., 1, tokens) of a mask that hides text, the same for all swap rows of a chunk."""
    if mask.ndim < 3 or mask.shape[-2:] != (1, tokens):
        fault = "something masks its attention from token to token, so that an object cannot be read alone."
        raise BadInput(NODE, "model", fault, "Bypass what sets that mask, or leave object_mask unwired.")
    if len(mask) == 1:
        return mask
    return by_role(mask, rows.roles, chunks)["swap"][:, 0]
