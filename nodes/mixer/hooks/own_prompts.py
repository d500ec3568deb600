"""Concepts' own prompts for their personal batch rows.

They share a batch with the mixer's prompt, or have calls of their own where a transformer's batch cannot hold both.
"""

from collections.abc import Callable, Sequence
from functools import partial

import comfy.samplers
import torch
from torch import Tensor

from ....pnpmix.mixer.sampling import BatchRows
from ...common.checks import BadInput
from ...common.compiled import is_compiled
from ...common.hooks import Call, Hook, installed, with_options
from ...common.memory import place_for_some
from ...common.messages import at_fault
from ...common.types import Concept
from ...latexblend.hooks import BLENDED
from . import hooked, telling
from .joint_attention import PICTURES, JointAttention, Pictures

POSITIVE = "pnpmix_positive"  # in model_options: the conditionings of a call, in place of the guider's
PREDICT = "sampler_calc_cond_batch_function"  # in model_options


class OwnPrompts(Hook):
    """Stacks a prompt for each batch row.

    Args:
        conds: the guider's conditionings: "positive", "negative", and a concept's own prompt by its number.
    """

    def __init__(self, conds: dict[str, list[dict]]):
        self.conds = conds
        self.stacked: dict = {}

    def around(self, call: Call, rows: BatchRows) -> Call:
        if "personal" not in rows.roles or len(self.conds) == 2:
            return call
        return lambda options: call({**options, POSITIVE: self.positive(rows)})

    def positive(self, rows: BatchRows) -> list[dict]:
        """Returns the mixer's conditionings, with the concepts' own prompts in the personal rows that have one."""
        layout = (rows.roles, rows.concepts.start, rows.concepts.stop)
        if layout not in self.stacked:
            self.stacked[layout] = [self.stack(entry, rows) for entry in self.conds["positive"]]
        return self.stacked[layout]

    def stack(self, entry: dict, rows: BatchRows) -> dict:
        """Returns the prompts of a batch, one for each row."""
        indices = range(rows.concepts.start, rows.concepts.stop)
        own = [self.conds[str(k)][0] if str(k) in self.conds else entry for k in indices]
        sources = [own[k] if role == "personal" else entry for role in rows.roles for k in range(len(own))]
        stacked, names = {}, sources[0] if len(sources) == 1 else entry
        for name, cond in names["model_conds"].items():
            per_row = [source["model_conds"].get(name, cond) for source in sources]
            stacked[name] = cond._copy_with(per_row[0].concat(per_row[1:]))
        return {**entry, "model_conds": stacked, BLENDED: entry}


class PromptsApart(Hook):
    """Evaluates personal batch rows one by one, and then the others, which read what these have left.

    Guidance sees all rows at once, as where one call answers them: it may depend on rows together, or on calls before.

    Args:
        hooks: of the run; they are around each of the calls.
        place: where that is kept meanwhile.
    """

    def __init__(self, prompts: OwnPrompts, hooks: Sequence[Hook], place: torch.device):
        self.prompts, self.hooks, self.place = prompts, hooks, place

    def install(self, options: dict) -> dict:
        self.others = options.get(PREDICT, calc_cond_batch)
        return installed(self.hooks, options)

    def around(self, call: Call, rows: BatchRows) -> Call:
        if "personal" not in rows.roles:
            return hooked(self.hooks, call, rows)
        call = telling(call, {PICTURES: None})
        return lambda options: call({**options, PREDICT: self.predict_apart(rows)})

    def predict(self, arguments: dict, options: dict) -> list[Tensor]:
        """Predicts with the other packs' function, or ComfyUI's."""
        return self.others({**arguments, "model_options": options})

    def predict_apart(self, rows: BatchRows) -> Callable[[dict], list[Tensor]]:
        """Returns a sampler_calc_cond_batch_function for these batch rows."""
        concepts = range(rows.concepts.start, rows.concepts.stop)
        parts = [
            (slice(i, i + 1), BatchRows(("personal",), slice(k, k + 1), rows.step)) for i, k in enumerate(concepts)
        ]
        parts.append((slice(len(concepts), None), rows._replace(roles=rows.roles[1:])))

        def predict(arguments: dict) -> list[Tensor]:
            answers, pictures = [], {PICTURES: Pictures(self.place, {})}
            for part, own in parts:
                positive, *others = arguments["conds"]
                if own.roles == ("personal",):
                    positive = self.prompts.positive(own)
                given = {"conds": [positive, *others], "input": arguments["input"][part]}
                given = {**arguments, **given, "sigma": arguments["sigma"][part]}
                call = hooked(self.hooks, partial(self.predict, given), own)
                answers.append(call(with_options(arguments["model_options"], pictures)))
            return [torch.cat(answer) for answer in zip(*answers, strict=True)]

        return predict


def is_apart(conds: dict[str, list[dict]], k: int) -> bool:
    """Says whether no batch of a transformer holds the k-th concept's own prompt and every part of the mixer's."""
    own = conds.get(str(k))
    return own is not None and any(
        cannot_share(own[0]["model_conds"], entry["model_conds"]) for entry in conds["positive"]
    )


def cannot_share(own: dict, common: dict) -> bool:
    """Says whether no batch holds both of two prompts, as `model_conds`: each entry belongs to its own prompt."""
    return own.keys() != common.keys() or any(not common[name].can_concat(x) for name, x in own.items())


def calc_cond_batch(arguments: dict) -> list[Tensor]:
    """Predicts as ComfyUI does, as a sampler_calc_cond_batch_function."""
    given = (arguments[name] for name in ("model", "conds", "input", "sigma", "model_options"))
    return comfy.samplers.calc_cond_batch(*given)


def room_apart(
    attention: JointAttention, guider, concepts: list[Concept], device: torch.device
) -> tuple[torch.device, int]:
    """Finds where what is read of pictures may wait, and of how many concepts at once.

    Args:
        concepts: those whose prompts cannot share a batch with the mixer's.

    Returns:
        the device and the number of concepts.

    Raises:
        BadInput: there is no room for one, or it could not be told whose is whose.
    """
    size, name, fault = attention.bytes_of_a_picture(chunks=1 if guider.cfg == 1 else 2), concepts[0].name, None
    room = place_for_some(size, guider, device)
    if is_compiled(guider.model_patcher):
        fault = (
            f"the prompt of '{name}' has another length or kind, and a compiled model can cache nothing between calls."
        )
    limits = {"area", "timestep_start", "timestep_end", "hooks"}
    common = [guider.conds["positive"], *([] if guider.cfg == 1 else [guider.conds["negative"]])]
    if any(len(entries) != 1 or not entries[0].keys().isdisjoint(limits) for entries in common):
        fault = f"the prompt of '{name}' has another length or kind, and the mixer's are combined, timed or in an area."
    if room is not None and fault is None:
        return room
    full = f"the prompt of '{name}' has another length or kind: {size / 1e9:.1f} GB must be cached, and do not fit."
    remedy = "Use prompts of the same kind and the same number of tokens, or leave the Concepts' positive unwired."
    with at_fault(concepts[0].node_id):
        raise BadInput("Mask Noise Mixer", "concepts", fault or full, remedy)
