"""The outputs of every score node."""

from comfy_api.latest import io

from ...pnpmix.metrics.statistics import Measured, interval, report
from ..common.messages import show
from ..common.types import ScoresType


def score_outputs(**means: str) -> list:
    """Returns the outputs of a score node.

    means: name → tooltip of each mean that is an output.
    """
    return [
        *(io.Float.Output(display_name=name, tooltip=tooltip) for name, tooltip in means.items()),
        io.String.Output(display_name="report", tooltip="Mean, 95 % interval and each image's value, as text."),
        ScoresType.Output(display_name="scores", tooltip="Each image's value, for Score Plot."),
    ]


def scored(node: str, cls, measures: list[Measured], messages: list[str], means: int = 1) -> io.NodeOutput:
    """Returns the means of the first measures, the report, which the node also shows, and all values."""
    lines = [*map(report, measures), *messages]
    show(node, cls.hidden.unique_id, lines)
    return io.NodeOutput(*(interval(x.values)[0] for x in measures[:means]), "\n".join(lines), measures)
