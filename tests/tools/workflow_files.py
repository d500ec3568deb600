"""The shipped workflows: reading them, and turning them into the form that ComfyUI's server runs."""

import json

from comfy_host import PACK

FOLDER = PACK / "workflows"
WORKFLOWS = sorted(path.stem for path in FOLDER.glob("*.json"))
SHOWN = ("SaveImage", "PreviewImage", "MaskPreview", "PnPMixBackgroundPicker")
CONTROLS = {"fixed", "increment", "decrement", "randomize"}  # of the widget that the editor adds behind a seed


def widget_values(node: dict) -> dict:
    """The widgets' values by name; the file lists them in the order of the inputs that they belong to."""
    values, names = list(node.get("widgets_values", [])), [i["name"] for i in node["inputs"] if "widget" in i]
    result = {}
    for name in names:
        result[name] = values.pop(0)
        if name in ("seed", "noise_seed") and values and values[0] in CONTROLS:
            values.pop(0)
    assert not values, f"{node['type']}: {values} belong to no input"
    return result


def to_api(workflow: dict) -> dict:
    """What the editor sends when the workflow is queued."""
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] == "MarkdownNote":
            continue
        inputs = widget_values(node)
        inputs |= {i["name"]: links[i["link"]] for i in node["inputs"] if i.get("link") is not None}
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": node.get("title")}}
    return prompt


def read(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


# Inputs in image pixels, for pictures of 64 × 64 instead of 512 or 1024; the candidates come from Demo Scene as well
SMALL = {
    "ImageScale": {"width": 64, "height": 64},
    "PnPMixInpaintBackground": {"expand": 3, "feather": 1},
    "PnPMixDilution": {"expand": 4},
    "GrowMask": {"expand": 1},
    "ImageBlur": {"blur_radius": 1, "sigma": 0.5},
}
CANDIDATES = 4


def with_demo_model(name: str, seed: int) -> dict:
    """The graph of a template with what comes with the pack in the place of the files that people bring.

    Load Demo Model stands in for Load Checkpoint, and Demo Scene for the photos, the candidates and the masks; the
    rest of the graph is the template's own.
    """
    prompt, stands_in = to_api(read(name)), {}
    concepts = sum(node["class_type"] == "PnPMixConcept" for node in prompt.values())
    scene = {"class_type": "PnPMixDemoScene", "inputs": {"seed": seed, "concepts": concepts}}
    added = {"demo model": {"class_type": "PnPMixDemoModel", "inputs": {}}, "demo scene": scene}
    pictures, masks = (iter([["demo scene", k] for k in range(first, 8)]) for first in (0, 4))
    candidates = candidate_scenes(seed, concepts)
    for node_id, node in prompt.items():
        kind, inputs = node["class_type"], node["inputs"]
        if kind == "CheckpointLoaderSimple":
            stands_in |= {(node_id, output): ["demo model", output] for output in range(3)}
        elif kind == "VAEDecode" and prompt[inputs["samples"][0]]["class_type"] == "KSampler":
            added |= candidates
            stands_in[node_id, 0] = [list(candidates)[-1], 0]
            next(pictures)  # the background is one of them
        elif kind == "LoadImage":
            stands_in[node_id, 0] = next(pictures)
        elif kind in ("PnPMixGroundedMask", "SAM3_Detect"):
            stands_in |= {(node_id, 0): next(masks), (node_id, 2): ["demo scene", 0]}
        elif kind == "CLIPTextEncode":
            inputs["text"] = ["demo scene", 7] if node["_meta"]["title"] == "Scene" else ""
        inputs |= SMALL.get(kind, {})
    prompt |= added
    for node in prompt.values():
        for key, value in node["inputs"].items():
            if isinstance(value, list):
                node["inputs"][key] = stands_in.get(tuple(value), value)
    return {node_id: prompt[node_id] for node_id in needed(prompt)}


def candidate_scenes(seed: int, concepts: int) -> dict:
    """Nodes; the last gives a batch of CANDIDATES scenes, of which the first is the one of `seed`."""
    nodes, batch = {}, ["demo scene", 0]
    for k in range(1, CANDIDATES):
        inputs = {"seed": seed + k, "concepts": concepts}
        nodes[f"scene {k}"] = {"class_type": "PnPMixDemoScene", "inputs": inputs}
        nodes[f"batch {k}"] = {"class_type": "ImageBatch", "inputs": {"image1": batch, "image2": [f"scene {k}", 0]}}
        batch = [f"batch {k}", 0]
    return nodes


def needed(prompt: dict) -> list[str]:
    """The nodes that the finished picture is made from, and the nodes that show something else of it."""
    reached, waiting = [], [x for x, node in prompt.items() if node["class_type"] in SHOWN]
    while waiting:
        node_id = waiting.pop()
        if node_id not in reached:
            reached.append(node_id)
            waiting += [value[0] for value in prompt[node_id]["inputs"].values() if isinstance(value, list)]
    return reached
