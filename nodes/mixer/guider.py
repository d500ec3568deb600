"""Classifier-free guidance over batch rows."""

from collections.abc import Callable, Sequence

import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from ..common.checks import BadInput
from ..common.types import APPEARANCE, DILUTION
from .families import has_frames
from .hooks.own_prompts import POSITIVE


class RowGuider(comfy.samplers.CFGGuider):
    """Guides batch rows; a concept's own prompt is the conditioning that has the concept's number for its name."""

    reads = frozenset({APPEARANCE, DILUTION})

    def __init__(self, model, positive: list, negative: list, cfg: float, own_positives: Sequence[list | None] = ()):
        super().__init__(model)
        self.set_cfg(cfg)
        own = {str(k): cond for k, cond in enumerate(own_positives) if cond is not None}
        self.inner_set_conds({"positive": positive, "negative": negative, **own})
        self.has_frames = has_frames(model)

    def framed(self, x: Tensor) -> Tensor:
        """Returns (B, C, H, W) as this model takes it."""
        return x.unsqueeze(2) if self.has_frames else x

    def flat(self, x: Tensor) -> Tensor:
        """Inverts `framed`."""
        return x.squeeze(2) if self.has_frames else x

    def bring_conditionings(self, device: torch.device) -> None:
        """Copies them to the device once a run; ComfyUI alone would do so anew for every call."""
        for entry in (entry for entries in self.conds.values() for entry in entries):
            conds = entry["model_conds"].items()
            entry["model_conds"] = {
                name: cond._copy_with(cond.cond.to(device)) if isinstance(cond.cond, Tensor) else cond
                for name, cond in conds
            }

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006 the signature of the base class
        comfy.model_management.throw_exception_if_processing_interrupted()
        positive = model_options.get(POSITIVE, self.conds["positive"])
        guide = model_options.get("sampler_cfg_function")
        if guide is not None:
            model_options = {**model_options, "sampler_cfg_function": for_each_row(guide)}
        denoised = comfy.samplers.sampling_function(
            self.inner_model, self.framed(x), timestep, self.conds["negative"], positive, self.cfg, model_options, seed
        )
        if len(denoised) != len(x):
            fault = (
                "one of its patches mixes batch rows with those of the previous call, as guidance with momentum does."
            )
            raise BadInput("Mask Noise Mixer", "model", fault, "Bypass that patch.")
        return self.flat(denoised)


def for_each_row(guide: Callable[[dict], Tensor]) -> Callable[[dict], Tensor]:
    """Wraps a sampler_cfg_function that was written for a single row, as RenormCFG, so that it works for several."""

    def guide_rows(args: dict) -> Tensor:
        try:
            return guide(args)
        except RuntimeError as error:
            count = len(args["input"])
            if count == 1 or "ambiguous" not in str(error):  # which torch calls it to compare several at once
                raise
        of_rows = {name for name, x in args.items() if isinstance(x, Tensor) and x.ndim > 0 and len(x) == count}
        rows = ({**args, **{name: args[name][i : i + 1] for name in of_rows}} for i in range(count))
        return torch.cat([guide(row) for row in rows])

    return guide_rows
