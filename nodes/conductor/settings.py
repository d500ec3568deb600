"""Layout Alignment and Mask Refinement, which the Conductor reads. Bypass one for the paper's ablation."""

from comfy_api.latest import io
from typing_extensions import override

from ...pnpmix.conductor.refinement import Refinement
from ..common.checks import BadInput, check_model, check_numbers
from ..common.types import CONDUCTOR_CATEGORY, EXPERT, LAYOUT_GUIDANCE, REFINEMENT, LayoutGuidance, LayoutType, schema
from ..common.unread import with_settings

WEIGHT, WEIGHT_SDXL = 10.0, 40.0  # of the authors


class PnPMixLayoutAlignment(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return schema(
            node_id="PnPMixLayoutAlignment",
            search_aliases=["layout", "composition", "structure guidance", "concept conductor", "pnp-mix"],
            display_name="Layout Alignment",
            category=CONDUCTOR_CATEGORY,
            description="Pulls the new image towards the layout of a reference, so that no object is lost, "
            "duplicated or misplaced.",
            inputs=[
                io.Model.Input("model", tooltip="The checkpoint. With a plain KSampler it works as if unpatched."),
                LayoutType.Input("layout", tooltip="From Layout Reference, made with the same checkpoint."),
                io.Float.Input(
                    "weight",
                    default=0.0,
                    min=0.0,
                    max=10000.0,
                    step=1.0,
                    round=0.01,
                    tooltip="Gradient step size. 0 = auto (10, or 40 for SDXL). Higher: closer to the layout; too "
                    "high: "
                    "oversaturated colors.",
                ),
                io.Float.Input(
                    "concept_weight",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Weight of the concepts' branches relative to the base model's. 0 is faster.",
                    **EXPERT,
                ),
                io.Float.Input(
                    "end",
                    default=0.30,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="When alignment ends (fraction of the steps). Higher: closer to the layout, less of the "
                    "concepts' own shapes, slower.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="For the Conductor.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @override
    def execute(cls, model, layout, weight, concept_weight, end) -> io.NodeOutput:
        node = "Layout Alignment"
        check_numbers(node, weight=weight, concept_weight=concept_weight, end=end)
        check_model(node, model)
        is_sdxl = type(model.model.model_config).__name__.startswith("SDXL")
        weight = weight or (WEIGHT_SDXL if is_sdxl else WEIGHT)
        guidance = LayoutGuidance(layout, weight, concept_weight, end, cls.hidden.unique_id)
        return io.NodeOutput(with_settings(model, LAYOUT_GUIDANCE, guidance))


class PnPMixMaskRefinement(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return schema(
            node_id="PnPMixMaskRefinement",
            search_aliases=["mask", "segmentation", "attention mask", "concept conductor", "pnp-mix"],
            display_name="Mask Refinement",
            category=CONDUCTOR_CATEGORY,
            description="Lets each concept's mask follow the shape of its object while it is generated.",
            inputs=[
                io.Model.Input("model", tooltip="The checkpoint. With a plain KSampler it works as if unpatched."),
                io.Float.Input(
                    "start",
                    default=0.25,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="When refinement starts (fraction of the steps). Later: your masks are used longer.",
                ),
                io.Float.Input(
                    "end",
                    default=0.40,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="When refinement ends (fraction of the steps). Later: masks follow finer shapes.",
                ),
                io.Int.Input(
                    "updates",
                    default=7,
                    min=1,
                    max=100,
                    tooltip="Number of refinements, evenly spread from start to end. More: masks may move further; "
                    "slower.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Minimum overlap (intersection over union) of a new mask with the one before; below it the "
                    "mask becomes its own bounding box. Higher: more cautious.",
                    **EXPERT,
                ),
                io.Int.Input(
                    "restarts",
                    default=100,
                    min=1,
                    max=1000,
                    tooltip="Restarts of k-means. More: more stable masks; slower.",
                    **EXPERT,
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="For the Conductor.")],
        )

    @classmethod
    @override
    def execute(cls, model, start, end, updates, threshold, restarts) -> io.NodeOutput:
        node = "Mask Refinement"
        check_numbers(node, start=start, end=end, updates=updates, threshold=threshold, restarts=restarts)
        check_model(node, model)
        if start > end:
            raise BadInput(node, "start", f"{start:g} is after end {end:g}.", "Set it to at most end.")
        refinement = Refinement(start, end, updates, threshold, restarts)
        return io.NodeOutput(with_settings(model, REFINEMENT, refinement))


NODES = [PnPMixLayoutAlignment, PnPMixMaskRefinement]
