"""Limits trained concepts, which the mixer's prompt blends in, to the batch rows of their own concept."""

from ....pnpmix.latexblend.blending import Slot
from ....pnpmix.mixer.sampling import BatchRows
from ...common.hooks import Call, Hook
from ...common.types import Concept
from ...latexblend.hooks import BELONGS, PLAN
from . import telling
from .feature_cache import same


def is_of(slot: Slot, concept: Concept) -> bool:
    """Says whether a word of the prompt becomes this trained concept; a file may have been loaded twice."""
    return concept.learned is not None and same(slot.features, concept.learned.features)


def each_to_its_own(positive: list, concepts: list[Concept]) -> list:
    """Returns the CONDITIONING with each trained concept limited to the batch rows of its own Concept."""
    if all(concept.learned is None for concept in concepts):
        return positive
    limited = []
    for context, options in positive:
        if PLAN in options:
            plan = options[PLAN]
            owners = [frozenset(k for k, x in enumerate(concepts) if is_of(slot, x)) or None for slot in plan.slots]
            slots = [slot._replace(owners=own) for slot, own in zip(plan.slots, owners, strict=True)]
            options = {**options, PLAN: plan._replace(slots=slots)}
        limited.append([context, options])
    return limited


class TrainedConcepts(Hook):
    """Tells the layers of a blended prompt which concept each batch row belongs to.

    Args:
        conds: the guider's conditionings: "positive", "negative", and a concept's own prompt by its number.
    """

    def __init__(self, conds: dict[str, list[dict]]):
        self.conds = conds

    def around(self, call: Call, rows: BatchRows) -> Call:
        if all(entry.get(PLAN) is None for entry in self.conds["positive"]):
            return call
        concepts = range(rows.concepts.start, rows.concepts.stop)
        own = [None if role == "personal" and str(k) in self.conds else k for role in rows.roles for k in concepts]
        return telling(call, {BELONGS: own})
