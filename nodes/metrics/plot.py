"""Score Plot: compares variants, as bars and as a table."""

import math

from comfy_api.latest import io, ui
from typing_extensions import override

from ...pnpmix.metrics.statistics import distinct, table
from ..common.checks import BadInput, check_text
from ..common.memory import for_host
from ..common.types import SCORES_CATEGORY, ScoresType, schema

NODE = "Score Plot"


class PnPMixScorePlot(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return schema(
            node_id="PnPMixScorePlot",
            shows_result=True,
            search_aliases=["bar chart", "graph", "table", "compare variants", "ablation", "benchmark", "xy plot"],
            display_name=NODE,
            category=SCORES_CATEGORY,
            description="Compares variants: the mean of each with its 95 % interval, and a table.",
            inputs=[
                ScoresType.Input(
                    "scores", tooltip="From a score node that measured the images of all variants as one batch."
                ),
                io.String.Input(
                    "names",
                    default="",
                    multiline=True,
                    tooltip="One line for each variant, in the order of the batch. With fewer lines than images each "
                    "variant has equally many, one after another. Empty: each image is a variant. "
                    "The picture is labeled in Latin letters only.",
                ),
                *(
                    ScoresType.Input(f"scores_{k}", optional=True, tooltip="Another measure of the same images.")
                    for k in (2, 3, 4)
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="Means; a line shows the 95 % interval."),
                io.String.Output(display_name="table", tooltip="The same numbers as a Markdown table."),
            ],
            is_output_node=True,
        )

    @classmethod
    @override
    def execute(cls, scores, names, scores_2=(), scores_3=(), scores_4=()) -> io.NodeOutput:
        from ...pnpmix.metrics.plotting import draw_means

        measures = distinct([*scores, *scores_2, *scores_3, *scores_4])
        if not measures or not all(x.values for x in measures):
            raise BadInput(NODE, "scores", "it holds no values.", "Wire the scores of a score node.")
        if not all(math.isfinite(x) for measured in measures for x in measured.values):
            raise BadInput(NODE, "scores", "it contains NaN or infinity.", "Measure other images.")
        check_text(NODE, "names", names)
        variants = [line.strip() for line in names.splitlines() if line.strip()]
        variants = variants or [f"image {k}" for k in range(1, len(measures[0].values) + 1)]
        try:
            picture, words = draw_means(measures, variants)[None], table(measures, variants)
        except ValueError as error:
            raise BadInput(NODE, "names", str(error), "Write one line for each variant.") from error
        return io.NodeOutput(for_host(picture), words, ui=ui.PreviewImage(picture))


NODES = [PnPMixScorePlot]
