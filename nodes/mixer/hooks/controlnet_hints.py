"""Keeps a ControlNet's hint, which is of the scene, out of the batch rows that read the concept images."""

from collections.abc import Callable

from comfy.patcher_extension import WrappersMP, add_wrapper

from ....pnpmix.masks import weighted
from ....pnpmix.mixer.attention import by_role
from ....pnpmix.mixer.sampling import BatchRows
from ...common.hooks import Hook
from . import ROWS, check_batch

HINTING = ("double_block", "noise_refiner")  # patches by which ControlNets that are MODEL patches work


class ControlNetHints(Hook):
    """Keeps hints out of the personal batch rows."""

    def install(self, options: dict) -> dict:
        add_wrapper(WrappersMP.APPLY_MODEL, without_personal_hints, options, is_model_options=True)
        patches = options["transformer_options"].setdefault("patches", {})
        patches |= {name: [sparing_personal_rows(p) for p in patches[name]] for name in HINTING if name in patches}
        return options


def sparing_personal_rows(patch: Callable[[dict], dict]) -> Callable[[dict], dict]:
    """Wraps the patch by which a ControlNet adds to the picture of a transformer's blocks, in place or not."""

    def spared(arguments: dict) -> dict:
        options, image = arguments["transformer_options"], arguments["img"]
        rows: BatchRows | None = options.get(ROWS)
        if rows is None or "personal" not in rows.roles:
            return patch(arguments)
        chunks = len(options["cond_or_uncond"])
        check_batch(len(image), rows, chunks)
        before = by_role(image, rows.roles, chunks)["personal"].clone()
        changed = patch(arguments)
        by_role(changed.get("img", image), rows.roles, chunks)["personal"].copy_(before)
        return changed

    return spared


def without_personal_hints(executor, x, t, c_concat, c_crossattn, control, transformer_options, **conds):
    """Weighs all hints of a UNet's ControlNets with 0 in the personal batch rows (an APPLY_MODEL wrapper)."""
    rows: BatchRows | None = transformer_options.get(ROWS)
    if control is not None and rows is not None and "personal" in rows.roles:
        chunks = len(transformer_options["cond_or_uncond"])
        check_batch(len(x), rows, chunks)
        weights = x.new_ones(len(x))
        by_role(weights, rows.roles, chunks)["personal"].zero_()
        control = {
            name: [hint if hint is None else weighted(hint, weights.view(-1, *[1] * (hint.ndim - 1))) for hint in hints]
            for name, hints in control.items()
        }
    return executor(x, t, c_concat, c_crossattn, control, transformer_options, **conds)
