"""The picture of the template of the scores: its variants above their means."""

from PIL import Image
from torch import Tensor

from comfy_host import PACK, Graph
from workflow_files import SCORES as NAME
from workflow_files import read, to_api

WIDTH, HEIGHT = 576, 384


def score_thumbnail() -> Image.Image:
    """From the template's own graph, which needs no file; writes the plot for the help page too."""
    graph = Graph()
    graph.prompt = to_api(read(NAME))
    nodes = {node["class_type"]: (key, node) for key, node in graph.prompt.items()}
    pictures = nodes["PreviewImage"][1]["inputs"]["images"]
    shown = graph.run(pictures=pictures, plot=[nodes["PnPMixScorePlot"][0], 0])
    to_image(shown["plot"][0]).save(PACK / "js" / "docs" / "score_plot.png")
    return compose(list(shown["pictures"]), shown["plot"][0])


def compose(pictures: list[Tensor], means: Tensor) -> Image.Image:
    """(H, W, 3) each."""
    sheet = Image.new("RGB", (WIDTH, HEIGHT), "white")
    side = WIDTH // len(pictures)
    for k, picture in enumerate(pictures):
        sheet.paste(to_image(picture).resize((side - 6, side - 6), Image.Resampling.NEAREST), (k * side + 3, 3))
    plot = to_image(means).crop((0, 0, means.shape[1], 264))  # the first two measures
    sheet.paste(plot.resize((WIDTH, WIDTH * 264 // means.shape[1])), (0, side + 2))
    return sheet


def to_image(picture: Tensor) -> Image.Image:
    return Image.fromarray((picture * 255).round().byte().numpy())
