"""Writes the templates' pictures: each template's own graph, run with the demo model in the place of a checkpoint.

python tests/tools/write_thumbnails.py, with the Python of a ComfyUI that COMFYUI_DIR names. Five minutes on two cores.
"""

import tempfile
from pathlib import Path

from PIL import Image, ImageDraw
from torch import Tensor

from comfy_host import Graph, boot
from workflow_files import FOLDER, read, to_api, with_demo_model

SCENES = {
    "pnp_mix_one_concept": 23,
    "pnp_mix_two_concepts": 27,
    "pnp_mix_two_concepts_sdxl": 28,
    "pnp_mix_two_concepts_sam3": 31,
    "pnp_mix_three_concepts": 28,
    "background_candidates": 26,
}
DEMO = "try_it_without_downloads"
WIDTH, HEIGHT, GAP, DARK, CHOSEN = 576, 384, 6, "#222222", "#56b4e9"


def thumbnail(name: str) -> Image.Image:
    """What goes into the graph, in a column, beside the finished picture."""
    graph = Graph()
    graph.prompt = to_api(read(name)) if name == DEMO else with_demo_model(name, SCENES[name])
    nodes = {node["class_type"]: (key, node) for key, node in graph.prompt.items()}
    scene, (_, save) = nodes["PnPMixDemoScene"][0], nodes["SaveImage"]
    shown = {"result": save["inputs"]["images"]}
    if "PnPMixBackgroundPicker" in nodes:
        shown["candidates"] = nodes["PnPMixBackgroundPicker"][1]["inputs"]["images"]
    else:
        concepts = sum(node["class_type"] == "PnPMixConcept" for node in graph.prompt.values())
        shown |= {f"picture {k}": [scene, k] for k in range(concepts + 1)}
    pictures = graph.run(**shown)
    column = [picture for key in shown if key != "result" for picture in pictures[key]]
    return compose(column, pictures["result"][0], chosen=0 if "candidates" in shown else None)


def compose(column: list[Tensor], result: Tensor, chosen: int | None) -> Image.Image:
    """(H, W, 3) pictures; `chosen`: which of the column gets a frame."""
    sheet = Image.new("RGB", (WIDTH, HEIGHT), DARK)
    size = HEIGHT // len(column)
    left = (WIDTH - size - HEIGHT) // 2
    for k, picture in enumerate(column):
        sheet.paste(enlarged(picture, size - GAP), (left, k * size))
        if k == chosen:
            box = left, k * size, left + size - GAP - 1, (k + 1) * size - GAP - 1
            ImageDraw.Draw(sheet).rectangle(box, outline=CHOSEN, width=5)
    sheet.paste(enlarged(result, HEIGHT), (left + size, 0))
    return sheet


def enlarged(picture: Tensor, size: int) -> Image.Image:
    return Image.fromarray((picture * 255).round().byte().numpy()).resize((size, size), Image.Resampling.NEAREST)


if __name__ == "__main__":
    boot(Path(tempfile.mkdtemp()), "--cpu")
    for name in (*SCENES, DEMO):
        thumbnail(name).save(FOLDER / f"{name}.jpg", quality=92)
