"""The rows of an evaluation: what each of them changes in a filled template. A further row is a line in ROWS."""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

from .methods import BLENDED, CONDUCTOR

DEMO_STEPS = {100: 10, 50: 8, 25: 6, 8: 4}  # instead of the rows' own, so that ten tasks take minutes on a CPU


class Variant(NamedTuple):
    """Nodes are named by their types; a change holds for all of a type."""

    name: str
    steps: int  # of the whole schedule; the template's share of them is skipped
    inputs: Mapping[str, dict] = {}  # node → its inputs
    unwired: tuple[tuple[str, str], ...] = ()  # (node, input)
    bypassed: tuple[str, ...] = ()  # nodes that pass their `model` on
    rewired: Mapping[tuple[str, str], tuple[str, str]] = {}  # (node, input) → (node, input) whose link it takes
    template: str = ""  # with the same titles, or of another method; "": the task's
    needs: str = ""  # of another method: which files of a task, "loras" or "trained"; tasks without are left out


PAPER = {"PnPMixAppearance": {"adain": False}}
WHOLE_IMAGE = (("PnPMixConcept", "object_mask"),)  # the paper reads all of the concept image
NOISE_ALONE = {"PnPMixSampler": {"mix_reference_noise": False}}
# The paper gives no equation of its earlier dilution: taken as eq. 3.5 with the scene itself instead of its clean plate
EARLIER_DILUTION = {("PnPMixDilution", "latent"): ("PnPMixDDPMInvert", "latent")}
ROWS = (
    Variant(
        "(a) noise mixed, key and value replaced",
        100,
        {**NOISE_ALONE, "PnPMixAppearance": {"adain": False, "alpha": 0.0}},
        WHOLE_IMAGE,
        ("PnPMixDilution",),
    ),
    Variant("(b) (a) + guided appearance", 100, {**PAPER, **NOISE_ALONE}, WHOLE_IMAGE, ("PnPMixDilution",)),
    Variant("(c) (b) + earlier dilution", 100, {**PAPER, **NOISE_ALONE}, WHOLE_IMAGE, rewired=EARLIER_DILUTION),
    Variant("(d) (c) + reference noise mixed", 100, PAPER, WHOLE_IMAGE, rewired=EARLIER_DILUTION),
    Variant("(e) (d) + background dilution++: the paper", 100, PAPER, WHOLE_IMAGE),
    Variant("the templates' settings", 50),
    Variant("the same, half the steps", 25),
    Variant("the same, few steps", 8),
)

conducted = partial(Variant, steps=200, template=CONDUCTOR, needs="loras")
blended = partial(Variant, steps=50, template=BLENDED, needs="trained")
OTHER_METHODS = (
    Variant("LoRAs merged", 200, needs="loras"),
    conducted("Concept Conductor"),
    conducted("Concept Conductor without layout alignment", bypassed=("PnPMixLayoutAlignment",)),
    conducted("Concept Conductor without self-attention", inputs={"PnPMixConductor": {"inject": "cross"}}),
    conducted("Concept Conductor without cross-attention", inputs={"PnPMixConductor": {"inject": "self"}}),
    conducted("Concept Conductor without mask refinement", bypassed=("PnPMixMaskRefinement",)),
    blended("LaTexBlend", inputs={"PnPMixBlend": {"bind": False, "region": 0.0}}),
    blended("LaTexBlend, binding", inputs={"PnPMixBlend": {"region": 0.0}}),
    blended("LaTexBlend, binding and regions"),
)


def for_demo(variant: Variant) -> Variant:
    """Returns a variant with the steps of the demo model."""
    return variant._replace(steps=DEMO_STEPS[variant.steps])


def change(variant: Variant, prompt: dict) -> None:
    """Changes a graph, in API format, into the variant's."""
    by_kind: dict[str, list[tuple[str, dict]]] = {}
    for node_id, node in prompt.items():
        by_kind.setdefault(node["class_type"], []).append((node_id, node["inputs"]))
    for kind, inputs in variant.inputs.items():
        for _, own in by_kind[kind]:
            own |= inputs
    for (kind, name), (origin, theirs) in variant.rewired.items():
        for _, own in by_kind[kind]:
            own[name] = by_kind[origin][0][1][theirs]
    for kind, name in variant.unwired:
        for _, own in by_kind[kind]:
            own.pop(name, None)
    for kind in variant.bypassed:
        for node_id, own in by_kind[kind]:
            for node in prompt.values():
                links = {name: own["model"] for name, x in node["inputs"].items() if x == [node_id, 0]}
                node["inputs"] |= links
