"""What a mixer run adds to a transformer of ComfyUI for its own calls: guided appearance in the attention that text and
picture share."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import comfy.patcher_extension
import torch
from torch import Tensor

from ...pnpmix.masks import box_distance, covered_cells, part_of
from ...pnpmix.mixer.attention import attend_to_objects, guided_joint_attention, turn
from ...pnpmix.mixer.sampling import Rows
from ..common.checks import BadInput
from ..common.types import Appearance, Concept
from .caches import Reuse
from .families import Tokens, family_of, guided_blocks, joint_blocks, token_grid, tokens_of
from .patches import ROWS, Area, check_rows

NODE = "Mask Noise Mixer"
CALL = "pnpmix_call"  # in transformer_options, for the length of one call
OVERRIDE = "optimized_attention_override"  # in transformer_options
Cells = tuple[Tensor, Tensor]  # of a target and of an object


class Call(NamedTuple):
    """What the attention of one model call needs to know."""

    tokens: Tokens
    cells: list[list[Cells | None]]  # of each concept, for each chunk or once for all of them, among all tokens
    alone: list[list[Cells | None]]  # the same among the picture's tokens


class OfPicture(NamedTuple):
    """What one attention has of a concept's picture, in a call of its own."""

    key: Tensor  # (heads, tokens, channels), with rotary positions
    value: Tensor
    start: int  # where the picture began among that call's tokens


class JointAttention:
    """optimized_attention_override that lets swap rows read their concepts, and the wrapper that tells it of each call.

    All attention of these transformers goes through the override, after projection and rotary positions, whatever
    kernel follows; an override of another pack is called in its turn.

    Args:
        concepts: with masks of the picture's size.
        grid: height and width of the latent.
        areas: of the conditionings that are limited to one, by their uuid.
        previous: another pack's override.
        reuse: is told of each layer.
    """

    def __init__(
        self,
        model,
        appearance: Appearance,
        concepts: list[Concept],
        grid: tuple[int, int],
        device: torch.device,
        areas: dict[object, Area],
        transformer_options: dict,
        reuse: Reuse,
    ):
        base = model.model
        self.network, self.family, self.appearance = base.diffusion_model, family_of(base), appearance
        self.grid, self.areas = grid, areas
        self.dtype = base.manual_cast_dtype or base.get_dtype()
        self.blocks = guided_blocks(NODE, model, appearance.layers)
        self.previous: Callable | None = transformer_options.get(OVERRIDE)
        self.block, self.entered, self.longer, self.reuse = -1, False, False, reuse
        # for each (chunk, concept) whose personal row had a call of its own: what the guided attentions had, in order
        self.kept: dict[tuple[int, int], list[OfPicture]] = {}
        self.place, self.reads, self.apart = device, 0, False

        self.replaced = self.replaced_blocks(transformer_options)

        whole = (*grid, 0, 0)
        own = {area: self.cells_in(area, concepts) for area in {whole, *areas.values()}}
        self.rotations = None
        if self.family.positions is not None and appearance.position == "target" and any(own[whole]):
            self.rotations = self.rotations_of(own[whole], transformer_options).to(device)
        self.cells = {
            area: [pair and tuple(x.to(device) for x in pair) for pair in pairs] for area, pairs in own.items()
        }

    def cells_in(self, area: Area, concepts: list[Concept]) -> list[Cells | None]:
        """Of each concept among the picture's tokens in a part of the latent grid."""
        grid, pairs = token_grid(self.network, area[:2]), []
        for concept in concepts:
            masks = [None if x is None else part_of(x, area, self.grid) for x in (concept.mask, concept.object_mask)]
            known = all(mask is not None and mask.max() >= 0.5 for mask in masks)
            pairs.append(tuple(covered_cells(mask, grid) for mask in masks) if known else None)
        return pairs

    def rotations_of(self, cells: list[Cells | None], transformer_options: dict) -> Tensor:
        """(concepts, channels / 2, 2, 2): the model's own rotary embedding of the way from object to target."""
        columns, axes = token_grid(self.network, self.grid)[1], len(self.embedder.axes_dim)
        ids = torch.zeros(len(cells), axes)
        first = 0 if axes == 2 else 1  # before rows and columns most models count pictures or frames
        scaled = (transformer_options.get("rope_options") or {}) if self.family.scales_positions else {}
        for k, pair in enumerate(cells):
            down, across = (0, 0) if pair is None else box_distance(*pair, columns)
            ids[k, first] = down * scaled.get("scale_y", 1.0)
            ids[k, first + 1] = across * scaled.get("scale_x", 1.0)
        return self.rotary(ids)

    @property
    def embedder(self):
        return getattr(self.network, self.family.positions)

    def rotary(self, ids: Tensor) -> Tensor:
        """(n, axes) distances → (n, channels / 2, 2, 2)."""
        return self.embedder(ids[None])[0, 0].float()

    def bytes_of_a_picture(self, chunks: int) -> int:
        """What is kept of one concept, where its personal row has a call of its own."""
        blocks = joint_blocks(self.network, self.family) if self.blocks is None else len(self.blocks)
        attentions = blocks * (2 if self.family.image_alone else 1)  # at most
        rows, columns = token_grid(self.network, self.grid)
        numbers = 2 * chunks * attentions * rows * columns * getattr(self.network, self.family.width)
        return numbers * self.dtype.itemsize

    def install(self, model_options: dict) -> None:
        kind = comfy.patcher_extension.WrappersMP.APPLY_MODEL
        comfy.patcher_extension.add_wrapper(kind, self.tell, model_options, is_model_options=True)
        model_options["transformer_options"][OVERRIDE] = self.attend

    def tell(self, executor, x, t, c_concat, c_crossattn, control, transformer_options, **conds):
        """APPLY_MODEL wrapper."""
        rows: Rows | None = transformer_options.get(ROWS)
        if rows is not None and rows.roles != ("plain",):
            self.block, self.reads, tokens = -1, 0, tokens_of(self.network, x, c_crossattn, conds)
            check_rows(len(x), rows, len(transformer_options["cond_or_uncond"]))
            self.check_guidance(rows, transformer_options)
            areas = [(*self.grid, 0, 0)]
            if self.areas:
                areas = [self.areas.get(uuid, *areas) for uuid in transformer_options["uuids"]]
            alone = [self.cells[area][rows.concepts] for area in areas]
            cells = [[among_all(pair, tokens) for pair in own] for own in alone]
            transformer_options = {**transformer_options, CALL: Call(tokens, cells, alone)}
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **conds)

    def replaced_blocks(self, transformer_options: dict) -> dict:
        return dict(transformer_options.get("patches_replace", {}).get("dit", {}))

    def check_guidance(self, rows: Rows, transformer_options: dict) -> None:
        """Refuses calls that guidance adds to the mixer's own, where what they read could not be told."""
        fault = None
        if self.replaced_blocks(transformer_options) != self.replaced:
            fault = "one of its patches guides with a call that skips layers (Skip Layer Guidance), which are counted."
        elif self.apart and "personal" in rows.roles and len(rows.roles) > 1:
            fault = "one of its patches guides with a further call, and a concept's prompt needs a call of its own."
        if fault is not None:
            raise BadInput(NODE, "model", fault, "Bypass that patch.")

    def attend(self, func, query, key, value, heads, mask=None, **options):
        """optimized_attention_override; tokens are the last but one dimension."""
        kernel = func if self.previous is None else partial(self.previous, func)
        told = options.get("transformer_options") or {}
        call: Call | None = told.get(CALL)
        image = None if call is None else self.guided_image(query, key, call.tokens)
        if image is None:
            return kernel(query, key, value, heads, mask=mask, **options)
        if not options.get("skip_reshape"):
            query, key, value = (x.flatten(2).unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
            options["skip_reshape"] = True
        rows, chunks = told[ROWS], len(told["cond_or_uncond"])
        if "swap" not in rows.roles:
            self.keep(key[..., image, :], value[..., image, :], call.tokens, told)
            return kernel(query, key, value, heads, mask=mask, **options)
        kept = self.take(call.tokens, told, like=key) if "personal" not in rows.roles else None
        rotations = None if self.rotations is None else self.rotations[rows.concepts].to(key.device)
        alpha = self.appearance.alpha
        key, value = guided_joint_attention(key, value, alpha, rows.roles, chunks, image, rotations, kept)
        whole = kernel(query, key, value, heads, mask=mask, **options)

        areas = call.cells if image == call.tokens.image else call.alone
        if any(map(any, areas)):
            parts = zip(areas, *(x.chunk(len(areas)) for x in (whole, query, key, value)), strict=True)
            masks = of_swap_rows(mask, rows, chunks, key.shape[-2]).chunk(len(areas)) if mask is not None else None
            for i, (own, *tensors) in enumerate(parts):
                attend = partial(few, kernel, heads, None if masks is None else masks[i % len(masks)], options)
                attend_to_objects(attend, *tensors, own, rows.roles, chunks // len(areas))
        return whole

    def check_entered(self) -> None:
        """Refuses a model of which no attention of text and picture has been seen, after its first call."""
        if self.entered:
            return
        if self.longer:
            fault = "one of its patches adds tokens to the prompt's and the picture's, so that those cannot be told."
            raise BadInput(NODE, "model", fault, "Bypass that patch, for example a style reference.")
        fault = "its attention does not go through ComfyUI's, so that nothing of the concepts is read."
        raise BadInput(NODE, "model", fault, "Bypass the node that replaces its attention.")

    def keep(self, key: Tensor, value: Tensor, tokens: Tokens, told: dict) -> None:
        """Of a call with one personal row for each chunk (chunks, heads, tokens, channels)."""
        (concept,) = range(told[ROWS].concepts.start, told[ROWS].concepts.stop)
        for chunk, *own in zip(told["cond_or_uncond"], key, value, strict=True):
            own = OfPicture(*(x.to(self.place, copy=True) for x in own), tokens.start)
            self.kept.setdefault((chunk, concept), []).append(own)

    def take(self, tokens: Tokens, told: dict, like: Tensor) -> tuple[Tensor, Tensor]:
        """Key and value for the next attention of a call, (chunks, concepts, heads, tokens, channels)."""
        keys, values, concepts = [], [], range(told[ROWS].concepts.start, told[ROWS].concepts.stop)
        for key, value, start in (
            self.kept[chunk, k][self.reads] for chunk in told["cond_or_uncond"] for k in concepts
        ):
            key = key.to(like)
            if self.family.behind_text and start != tokens.start:
                key = turn(key, self.rotary(Tensor([[tokens.start - start, 0, 0]])).to(key.device))[0]
            keys.append(key)
            values.append(value.to(like))
        self.reads += 1
        chunks = len(told["cond_or_uncond"])
        return torch.stack(keys).unflatten(0, (chunks, -1)), torch.stack(values).unflatten(0, (chunks, -1))

    def guided_image(self, query: Tensor, key: Tensor, tokens: Tokens) -> slice | None:
        """Where the picture is in this attention; None where concepts are not read."""
        count, image = query.shape[-2], tokens.image
        if count > tokens.total:
            self.longer = True
        if key.shape[-2] != count:
            return None
        if count == tokens.total:
            self.entered = True
            if self.reuse.layers > 0:
                self.reuse.enter()
            if self.blocks is not None:  # otherwise a compiled model would be compiled for every block anew
                self.block += 1
        elif self.family.image_alone and count == image.stop - image.start:
            image = slice(0, count)
        else:
            return None
        return image if self.blocks is None or self.block in self.blocks else None


def among_all(pair: Cells | None, tokens: Tokens) -> Cells | None:
    """The target's tokens, and what they may read: the object's, and all that are not the picture's."""
    if pair is None:
        return None
    target, own = pair
    image, every = tokens.image, torch.arange(tokens.total, device=own.device)
    return target + image.start, torch.cat([every[: image.start], own + image.start, every[image.stop :]])


def few(kernel: Callable, heads: int, mask: Tensor | None, options: dict, query, key, value, kept: Tensor) -> Tensor:
    """Attention to some of the tokens."""
    return kernel(query, key, value, heads, mask=None if mask is None else mask[..., kept], **options)


def of_swap_rows(mask: Tensor, rows: Rows, chunks: int, tokens: int) -> Tensor:
    """(1 or chunks, ..., 1, tokens) of a mask that hides text, which is the same for all swap rows of a chunk."""
    if mask.ndim < 3 or mask.shape[-2:] != (1, tokens):
        fault = "something masks its attention from token to token, so that an object cannot be read alone."
        raise BadInput(NODE, "model", fault, "Bypass what sets that mask, or leave object_mask unwired.")
    if len(mask) == 1:
        return mask
    return mask.unflatten(0, (chunks, len(rows.roles), -1))[:, rows.roles.index("swap"), 0]
