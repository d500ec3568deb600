"""Writes the templates' pictures: each template's own graph, run with the demo model instead of a checkpoint.

python tests/tools/write_thumbnails.py, with the Python of a ComfyUI that COMFYUI_DIR names. Five minutes on two cores.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import score_thumbnail
from comfy_host import PACK, Graph, boot
from stand_ins import KEPT, conducted_with_demo_model, learned_with_demo_model
from workflow_files import (
    ALL_METHODS,
    CONDUCTOR,
    DEFAULT,
    FOLDER,
    LATEXBLEND,
    START,
    WITHOUT_DOWNLOADS,
    read,
    to_api,
    with_demo_model,
)

# Success, not the average, by the fidelity of demo/measures.py: two objects among the best twelve of the seeds 0 to 49,
# one object the best two of 0 to 11; the last two not chosen by measure, but scenes whose objects are told apart well
SCENES = {
    "Replace one object, masks painted by hand": 1,
    DEFAULT: 11,
    "Replace two objects": 4,
    "Replace two objects with SDXL": 29,
    "Replace two objects as an app.app": 6,
    "Replace two objects with a transformer": 18,
    "Replace two objects in 4 steps": 26,
}
WIDTH, HEIGHT, GAP, DARK = 576, 384, 6, "#222222"


def thumbnail(name: str) -> Image.Image:
    """What goes into the graph, in a column, beside the finished picture."""
    graph, prompt = Graph(), to_api(read(name))
    graph.prompt = prompt if name in WITHOUT_DOWNLOADS else in_its_place(name, prompt)
    learns = name in LATEXBLEND and learned_before(graph.prompt)
    nodes = {node["class_type"]: (key, node) for key, node in graph.prompt.items()}
    titles = {node["_meta"]["title"]: key for key, node in graph.prompt.items()}
    scenes = [key for key, node in graph.prompt.items() if node["class_type"] == "PnPMixDemoScene"]
    scene, (_, save) = scenes[0], nodes["SaveImage"]  # another one draws more photos
    result = save["inputs"]["images"]
    if "ImageScaleBy" in nodes:  # it enlarges for the editor what is enlarged here
        result = graph.prompt[result[0]]["inputs"]["image"]
    shown = {"result": result}
    concepts = sum(node["class_type"] == "PnPMixConcept" for node in graph.prompt.values())
    first = int(name in LATEXBLEND)  # whose pictures are not of the scene
    shown |= {f"picture {k}": [scene, k] for k in range(first, concepts + 1)}
    if name in LATEXBLEND and "With both" in titles:  # the other result is that of Train a concept
        shown["result"] = graph.prompt[titles["With both"]]["inputs"]["images"]
    if name == ALL_METHODS:  # what the one method has made for the other
        between = nodes["PreviewImage"][1]["inputs"]["images"]
        shown["between"] = graph.prompt[between[0]]["inputs"].get("image", between)
    pictures = graph.run(**shown)
    column = [picture for key in shown if key != "result" for picture in pictures[key]]
    if not column:  # concepts that were learned before
        from demo.own_things import photos

        column = list(photos(KEPT[0])[:3]) if learns else [photos(noun)[0] for noun in KEPT]
    return compose(column, pictures["result"][0])


def learned_before(prompt: dict) -> bool:
    """Puts the pack's own cup, which was learned in a minute, in the place of Train Concept; gives whether there was
    one."""
    learning = [node_id for node_id, node in prompt.items() if node["class_type"] == "PnPMixTrainConcept"]
    for node_id in learning:
        prompt[node_id] |= {
            "class_type": "PnPMixLoadConcept",
            "inputs": {"file": f"demo model: {KEPT[0]}.safetensors"},
        }
        for key in [key for key, node in prompt.items() if [node_id, 1] in node["inputs"].values()]:
            del prompt[key]  # the plot of losses
    return bool(learning)


def conductor_thumbnail() -> Image.Image:
    """For Concept Conductor without downloads: the run of the help page, which a chosen seed of
    python -m demo --method conductor gave."""
    page = Image.open(PACK / "js" / "docs" / "conductor.png").convert("RGB")
    panels = [page.crop((left, 24, left + 192, 216)) for left in (6, 204, 402, 600)]
    *column, result = [torch.from_numpy(np.array(panel)) / 255 for panel in panels]
    return compose(column, result)


def in_its_place(name: str, prompt: dict) -> dict:
    """The graph with the demo model instead of the files."""
    if name in CONDUCTOR:
        return conducted_with_demo_model(prompt)
    return learned_with_demo_model(prompt) if name in LATEXBLEND else with_demo_model(prompt, SCENES[name])


def compose(column: list[Tensor], result: Tensor) -> Image.Image:
    """(H, W, 3) pictures."""
    sheet = Image.new("RGB", (WIDTH, HEIGHT), DARK)
    size = HEIGHT // len(column)
    left = (WIDTH - size - HEIGHT) // 2
    for k, picture in enumerate(column):
        sheet.paste(enlarged(picture, size - GAP), (left, k * size))
    sheet.paste(enlarged(result, HEIGHT), (left + size, 0))
    return sheet


def enlarged(picture: Tensor, size: int) -> Image.Image:
    return Image.fromarray((picture * 255).round().byte().numpy()).resize((size, size), Image.Resampling.NEAREST)


if __name__ == "__main__":
    wanted = sys.argv[1:]  # the first words of templates' names; all without any
    boot(Path(tempfile.mkdtemp()), "--cpu")
    for name in (*SCENES, START, *CONDUCTOR, *LATEXBLEND, ALL_METHODS):
        if wanted and not name.startswith(tuple(wanted)):
            continue
        picture = conductor_thumbnail() if name == CONDUCTOR[-1] else thumbnail(name)
        picture.save(FOLDER / f"{name}.jpg", quality=92)
    if not wanted:
        score_thumbnail.score_thumbnail().save(FOLDER / f"{score_thumbnail.NAME}.jpg", quality=92)
