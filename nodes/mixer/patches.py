"""What a mixer run adds to ComfyUI's UNet for its own calls: guided appearance attention, and hints kept away from
the personal rows."""

from collections.abc import Callable

import comfy.patcher_extension
import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ...pnpmix.masks import part_of, readable_cells, weighted
from ...pnpmix.mixer.attention import attend_to_objects, by_role, guided_appearance_attention
from ...pnpmix.mixer.sampling import Rows
from ..common.checks import BadInput
from ..common.types import Appearance, Concept
from .kept import PersonalRows

ROWS = "pnpmix_rows"  # in transformer_options, for the length of one call
HINTING = ("double_block", "noise_refiner")  # patches by which ControlNets that are MODEL patches work
Area = tuple[int, int, int, int]  # height, width, top and left in cells of the latent grid


def install_appearance(
    model_options: dict,
    unet,
    appearance: Appearance,
    concepts: list[Concept],
    grid: tuple[int, int],
    device: torch.device,
    areas: dict[object, Area],
    kept: PersonalRows | None = None,
) -> None:
    """Adds the patches that `appearance` and the object masks of the `concepts` ask for.

    Args:
        concepts: with masks of the picture's size.
        grid: height and width of the latent.
        areas: of the conditionings that are limited to one, by their uuid.
        kept: where to keep and to find what is read of the personal rows.
    """
    transformer_options = model_options["transformer_options"]
    patches = transformer_options.setdefault("patches", {})
    # first, where the batch is still as the mixer laid it out: other packs may tile it
    patches["attn1_patch"] = [appearance_patch(appearance, kept), *patches.get("attn1_patch", [])]
    if all(concept.object_mask is None for concept in concepts):
        return

    cells = {}
    for area in {(*grid, 0, 0), *areas.values()}:
        masks, own = (
            [None if mask is None else part_of(mask, area, grid) for mask in masks]
            for masks in ([c.mask for c in concepts], [c.object_mask for c in concepts])
        )
        cells[area] = readable_cells(masks, own, area[:2])
    replacements = transformer_options.setdefault("patches_replace", {})
    others = replacements.get("attn1", {})
    names = {"input": unet.input_blocks, "middle": [unet.middle_block], "output": unet.output_blocks}
    blocks = [(name, i) for name, modules in names.items() for i in range(len(modules))]
    replacements["attn1"] = {
        block: ObjectAttention(appearance, cells, grid, areas, others.get(block, plain_attention)).to(device)
        for block in [*blocks, *others]
    }


def swap_rows(appearance: Appearance, extra_options: dict) -> Rows | None:
    """The rows of this call if this layer guides them; None in calls whose rows were not laid out by the mixer."""
    rows: Rows | None = extra_options.get(ROWS)
    in_layer = appearance.layers == "all" or extra_options["block"][0] == "output"
    return rows if rows is not None and "swap" in rows.roles and in_layer else None


def check_rows(batch: int, rows: Rows, chunks: int) -> None:
    """Refuses a batch that holds anything but the rows of a call, once for each chunk."""
    if batch != chunks * len(rows.roles) * (rows.concepts.stop - rows.concepts.start):
        fault = f"one of its patches repeats, tiles or reorders the batch ({batch} rows), so that rows cannot be told."
        raise BadInput("Mask Noise Mixer", "model", fault, "Bypass that patch, for example tiled diffusion.")


def appearance_patch(appearance: Appearance, kept: PersonalRows | None):
    """attn1_patch."""

    def patch(q, key, value, extra_options):
        rows = swap_rows(appearance, extra_options)
        if rows is None:
            return q, key, value
        chunks = len(extra_options["cond_or_uncond"])
        check_rows(len(key), rows, chunks)
        found = None
        if "personal" not in rows.roles:
            found = kept.take(rows, extra_options, like=value)
        elif kept is not None:
            kept.keep(by_role(value, rows.roles, chunks)["personal"], rows, extra_options)
        own = found if found is None else (found, found)  # key and value come from the same input
        return q, *guided_appearance_attention(key, value, appearance.alpha, rows.roles, chunks, own)

    return patch


def plain_attention(query: Tensor, key: Tensor, value: Tensor, extra_options: dict) -> Tensor:
    heads, precision = extra_options["n_heads"], extra_options["attn_precision"]
    return optimized_attention(query, key, value, heads, attn_precision=precision, transformer_options=extra_options)


class ObjectAttention:
    """attn1_replace: as `attention`, but targets read nothing but their concept's object, where a mask says what it is.

    An object with `.to`, by which ComfyUI brings a patch's tensors to each device that computes.

    Args:
        cells: area → as `readable_cells` gives them; found beforehand, because a compiled model cannot look for them.
        grid: height and width of the latent.
        areas: of the conditionings that are limited to one, by their uuid.
        attention: the attn1_replace of another pack, or `plain_attention`.
    """

    def __init__(self, appearance: Appearance, cells: dict[Area, dict], grid, areas: dict[object, Area], attention):
        self.appearance, self.cells, self.grid, self.areas = appearance, cells, grid, areas
        self.attention = attention

    def to(self, target: torch.device | torch.dtype) -> "ObjectAttention":
        if not isinstance(target, torch.device):
            return self  # indices have no precision
        cells = {
            area: {grid: [pair and tuple(x.to(target) for x in pair) for pair in own] for grid, own in by_grid.items()}
            for area, by_grid in self.cells.items()
        }
        attention = self.attention.to(target) if hasattr(self.attention, "to") else self.attention
        return ObjectAttention(self.appearance, cells, self.grid, self.areas, attention)

    def __call__(self, query, key, value, extra_options):
        rows = swap_rows(self.appearance, extra_options)
        if rows is None:
            return self.attention(query, key, value, extra_options)

        def attend(query: Tensor, key: Tensor, value: Tensor, _) -> Tensor:
            return plain_attention(query, key, value, extra_options)

        chunks = len(extra_options["cond_or_uncond"])
        check_rows(len(key), rows, chunks)
        whole = self.attention(query, key, value, extra_options)
        areas = self.areas_of(extra_options)
        each = chunks // len(areas)
        for area, *parts in zip(areas, *(x.chunk(len(areas)) for x in (whole, query, key, value)), strict=True):
            own = self.cells_of(area, parts[1], parts[2], extra_options)[rows.concepts]
            attend_to_objects(attend, *parts, own, rows.roles, each)
        return whole

    def areas_of(self, extra_options: dict) -> list[Area]:
        """Of each chunk; a single one where no conditioning is limited."""
        everything = (*self.grid, 0, 0)
        if not self.areas:
            return [everything]
        return [self.areas.get(uuid, everything) for uuid in extra_options["uuids"]]

    def cells_of(self, area: Area, query: Tensor, key: Tensor, extra_options: dict) -> list:
        """For each concept the cells of this layer, which is told by the shape of its activations."""
        layer = tuple(extra_options["activations_shape"][2:])
        own = self.cells[area].get(layer)
        is_whole = tuple(extra_options["original_shape"][2:]) == area[:2]
        if own is None or not is_whole or query.shape != key.shape or key.shape[1] != layer[0] * layer[1]:
            fault = "one of its patches merges, adds or tiles tokens, so that those of an object cannot be told."
            raise BadInput("Mask Noise Mixer", "model", fault, "Bypass that patch, or leave object_mask unwired.")
        return own


def areas_of(conds: dict[str, list[dict]], grid: tuple[int, int]) -> dict[object, Area]:
    """uuid → area of the conditionings that ComfyUI has limited to one, clipped as it clips them."""
    areas = {}
    for entry in (entry for entries in conds.values() for entry in entries if "area" in entry):
        height, width, top, left = entry["area"]
        areas[entry["uuid"]] = (min(height, grid[0] - top), min(width, grid[1] - left), top, left)
    return areas


def keep_hints_from_personal_rows(model_options: dict) -> None:
    """A ControlNet's hint is of the scene, so nothing of it is added where the person's own picture is read."""
    kind = comfy.patcher_extension.WrappersMP.APPLY_MODEL
    comfy.patcher_extension.add_wrapper(kind, without_personal_hints, model_options, is_model_options=True)
    patches = model_options["transformer_options"].setdefault("patches", {})
    patches |= {name: [sparing_personal_rows(p) for p in patches[name]] for name in HINTING if name in patches}


def sparing_personal_rows(patch: Callable[[dict], dict]) -> Callable[[dict], dict]:
    """The patch of a transformer's blocks by which a ControlNet adds to its picture, in place or not."""

    def spared(arguments: dict) -> dict:
        options, image = arguments["transformer_options"], arguments["img"]
        rows: Rows | None = options.get(ROWS)
        if rows is None or "personal" not in rows.roles:
            return patch(arguments)
        chunks = len(options["cond_or_uncond"])
        check_rows(len(image), rows, chunks)
        before = by_role(image, rows.roles, chunks)["personal"].clone()
        changed = patch(arguments)
        by_role(changed.get("img", image), rows.roles, chunks)["personal"].copy_(before)
        return changed

    return spared


def without_personal_hints(executor, x, t, c_concat, c_crossattn, control, transformer_options, **conds):
    """APPLY_MODEL wrapper."""
    rows: Rows | None = transformer_options.get(ROWS)
    if control is not None and rows is not None and "personal" in rows.roles:
        chunks = len(transformer_options["cond_or_uncond"])
        check_rows(len(x), rows, chunks)
        kept = torch.ones(chunks, len(rows.roles), len(x) // (chunks * len(rows.roles)), device=x.device, dtype=x.dtype)
        kept[:, rows.roles.index("personal")] = 0
        control = {
            name: [hint if hint is None else weighted(hint, kept.view(-1, *[1] * (hint.ndim - 1))) for hint in hints]
            for name, hints in control.items()
        }
    return executor(x, t, c_concat, c_crossattn, control, transformer_options, **conds)
