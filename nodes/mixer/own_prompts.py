"""Concepts' own prompts that no call of a transformer reads beside the mixer's: their personal rows have calls of their
own, and what is read of them is kept until the other rows of the step read it."""

from collections.abc import Callable

import comfy.samplers
import torch
from torch import Tensor

from ...pnpmix.mixer.sampling import Rows
from .joint_attention import JointAttention
from .patches import ROWS

PREDICT = "sampler_calc_cond_batch_function"  # in model_options


def cannot_share(own: dict, common: dict) -> bool:
    """Whether no batch holds both of two prompts, as `model_conds`: each entry belongs to its own prompt."""
    return own.keys() != common.keys() or any(not common[name].can_concat(x) for name, x in own.items())


def calc_cond_batch(args: dict) -> list[Tensor]:
    """ComfyUI's own, as a sampler_calc_cond_batch_function."""
    given = (args[name] for name in ("model", "conds", "input", "sigma", "model_options"))
    return comfy.samplers.calc_cond_batch(*given)


def predict_apart(
    guider, joint: JointAttention, call: Callable[[dict, Rows], list[Tensor]]
) -> Callable[[dict], list[Tensor]]:
    """sampler_calc_cond_batch_function: calls the model for the personal rows one by one, and then for the others.

    Guidance sees all rows at once, as where one call answers them: it may depend on rows together, or on calls before.

    Args:
        call: takes the arguments of such a function for some rows, and which rows these are.
    """

    def predict(args: dict) -> list[Tensor]:
        rows: Rows = args["model_options"]["transformer_options"][ROWS]
        concepts = range(rows.concepts.start, rows.concepts.stop)
        parts = [(slice(i, i + 1), Rows(("personal",), slice(k, k + 1), rows.step)) for i, k in enumerate(concepts)]
        parts.append((slice(len(concepts), None), rows._replace(roles=rows.roles[1:])))
        joint.kept.clear()
        answers = []
        for part, own in parts:
            conds = args["conds"]
            if own.roles == ("personal",):
                conds = [[guider.with_own_prompts(k, own) for k in range(len(conds[0]))], *conds[1:]]
            given = {"conds": conds, "input": args["input"][part], "sigma": args["sigma"][part]}
            answers.append(call({**args, **given}, own))
        return [torch.cat(answer) for answer in zip(*answers, strict=True)]

    return predict
