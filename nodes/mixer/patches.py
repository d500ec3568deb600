"""Guided appearance attention as patches of ComfyUI's UNet, for the length of one mixer run."""

from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ...pnpmix.masks import readable_cells
from ...pnpmix.mixer.attention import attend_to_objects, guided_appearance_attention
from ...pnpmix.mixer.sampling import Rows
from ..host.checks import BadInput
from ..host.types import Appearance, Concept

ROWS = "pnpmix_rows"  # in transformer_options, for the length of one call


def install_appearance(
    model_options: dict, unet, appearance: Appearance, concepts: list[Concept], grid: tuple[int, int], device
) -> None:
    """Adds the patches that `appearance` and the object masks of the `concepts` ask for.

    Args:
        concepts: with masks of the picture's size.
        grid: height and width of the latent.
    """
    transformer_options = model_options["transformer_options"]
    patches = transformer_options.setdefault("patches", {})
    patches["attn1_patch"] = [*patches.get("attn1_patch", []), appearance_patch(appearance)]
    if all(concept.object_mask is None for concept in concepts):
        return

    replacements = transformer_options.setdefault("patches_replace", {})
    others = replacements.get("attn1", {})
    names = {"input": unet.input_blocks, "middle": [unet.middle_block], "output": unet.output_blocks}
    blocks = [(name, i) for name, modules in names.items() for i in range(len(modules))]
    cells = readable_cells([c.mask for c in concepts], [c.object_mask for c in concepts], grid)
    cells = {tokens: [pair and tuple(x.to(device) for x in pair) for pair in own] for tokens, own in cells.items()}
    replacements["attn1"] = {
        block: object_patch(appearance, cells, others.get(block, plain_attention)) for block in [*blocks, *others]
    }


def swap_rows(appearance: Appearance, extra_options: dict) -> Rows | None:
    """The rows of this call if this layer guides them; None in calls whose rows were not laid out by the mixer."""
    rows: Rows | None = extra_options.get(ROWS)
    in_layer = appearance.layers == "all" or extra_options["block"][0] == "output"
    return rows if rows is not None and "swap" in rows.roles and in_layer else None


def appearance_patch(appearance: Appearance):
    """attn1_patch."""

    def patch(q, key, value, extra_options):
        rows = swap_rows(appearance, extra_options)
        if rows is None:
            return q, key, value
        chunks = len(extra_options["cond_or_uncond"])
        return q, *guided_appearance_attention(key, value, appearance.alpha, rows.roles, chunks)

    return patch


def plain_attention(query: Tensor, key: Tensor, value: Tensor, extra_options: dict) -> Tensor:
    heads, precision = extra_options["n_heads"], extra_options["attn_precision"]
    return optimized_attention(query, key, value, heads, attn_precision=precision, transformer_options=extra_options)


def object_patch(appearance: Appearance, cells: dict, attention):
    """attn1_replace: as `attention`, but targets read nothing but their concept's object, where a mask says what it is.

    Args:
        cells: as `readable_cells` gives them; found beforehand, because a compiled model cannot look for them.
        attention: the attn1_replace of another pack, or `plain_attention`.
    """

    def patch(query, key, value, extra_options):
        rows = swap_rows(appearance, extra_options)
        if rows is None:
            return attention(query, key, value, extra_options)
        own, chunks = cells.get(key.shape[1], [])[rows.concepts], len(extra_options["cond_or_uncond"])
        if not own or query.shape != key.shape or len(query) != chunks * len(rows.roles) * len(own):
            fault = "one of its patches merges, adds or tiles tokens, so that those of an object cannot be told."
            raise BadInput("Mask Noise Mixer", "model", fault, "Bypass that patch, or leave object_mask unwired.")

        def attend(*query_key_value: Tensor) -> Tensor:
            return plain_attention(*query_key_value, extra_options)

        whole = attention(query, key, value, extra_options)
        return attend_to_objects(attend, whole, query, key, value, own, rows.roles, chunks)

    return patch
