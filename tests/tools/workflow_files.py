"""The shipped workflows: reading them, and turning them into the form that ComfyUI's server runs."""

import json

from comfy_host import PACK

FOLDER, LIBRARY = PACK / "workflows", PACK / "subgraphs"
EARLIER = PACK / "tests" / "data" / "workflows"  # what earlier versions shipped, and people have saved
WORKFLOWS, BLUEPRINTS, OLD_WORKFLOWS = (
    sorted(path.stem for path in folder.glob("*.json")) for folder in (FOLDER, LIBRARY, EARLIER)
)
CONDUCTOR = [name for name in WORKFLOWS if name.startswith("Conductor")]
WORKFLOWS = [name for name in WORKFLOWS if name not in CONDUCTOR]
SHOWN = ("SaveImage", "PreviewImage", "MaskPreview", "PnPMixBackgroundPicker")
CONTROLS = {"fixed", "increment", "decrement", "randomize"}  # of the widget that the editor adds behind a seed
INPUTS, OUTPUTS = -10, -20  # the two ends of a subgraph, as nodes that its links name


def read(name: str) -> dict:
    """A template, a blueprint, or a template of earlier versions."""
    paths = [folder / f"{name}.json" for folder in (FOLDER, LIBRARY, EARLIER)]
    (path,) = [path for path in paths if path.is_file()]
    return json.loads(path.read_text(encoding="utf-8"))


def subgraphs(workflow: dict) -> dict[str, dict]:
    """By the type of the nodes that stand for them."""
    return {x["id"]: x for x in (workflow.get("definitions") or {}).get("subgraphs", [])}


def levels(workflow: dict) -> list[dict]:
    """The graph and its subgraphs."""
    return [workflow, *subgraphs(workflow).values()]


def links(level: dict) -> dict[int, tuple]:
    """(from, slot, to, slot) by the link's number."""
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot")
    rows = [[x[key] for key in keys] if isinstance(x, dict) else x for x in level["links"]]
    return {row[0]: tuple(row[1:5]) for row in rows}


def widget_values(node: dict) -> dict:
    """The widgets' values by name; the file lists them in the order of the inputs that they belong to."""
    values, names = list(node.get("widgets_values", [])), [i["name"] for i in node["inputs"] if "widget" in i]
    result = {}
    for name in names:
        result[name] = values.pop(0)
        if name in ("seed", "noise_seed", "value") and values and values[0] in CONTROLS:
            values.pop(0)
    assert not values, f"{node['type']}: {values} belong to no input"
    return result


def to_api(workflow: dict) -> dict:
    """What the editor sends when the workflow is queued; nodes of a subgraph have ids such as "3:7"."""
    prompt = {}
    add_level(prompt, workflow, subgraphs(workflow), "", None)
    return prompt


def add_level(prompt: dict, level: dict, inside: dict[str, dict], path: str, given: list | None) -> dict[int, list]:
    """Adds the nodes of a graph or subgraph.

    Args:
        path: what their ids begin with.
        given: what comes in at the slots of a subgraph.

    Returns:
        slot → link of what a subgraph gives.
    """
    wired, made = links(level), {}

    def origin(link: int):
        node, slot, *_ = wired[link]
        return given[slot] if node == INPUTS else made.get((node, slot), [f"{path}{node}", slot])

    for node in in_order(level, wired):
        if node["type"] == "MarkdownNote":
            continue
        inputs = widget_values(node)
        inputs.pop("upload", None)  # a button
        inputs |= {i["name"]: origin(i["link"]) for i in node["inputs"] if i.get("link") is not None}
        node_id = f"{path}{node['id']}"
        if node["type"] in inside:
            subgraph = inside[node["type"]]
            values = [inputs.get(end["name"]) for end in subgraph["inputs"]]
            gives = add_level(prompt, subgraph, inside, node_id + ":", values)
            made |= {(node["id"], slot): link for slot, link in gives.items()}
        else:
            meta = {"title": node.get("title")}
            prompt[node_id] = {"class_type": node["type"], "inputs": inputs, "_meta": meta}
    return {x[3]: origin(number) for number, x in wired.items() if x[2] == OUTPUTS}


def in_order(level: dict, wired: dict[int, tuple]) -> list[dict]:
    """The nodes, each behind those that it depends on."""
    waiting, done = list(level["nodes"]), []
    while waiting:
        names = {node["id"] for node in waiting}
        ready = [n for n in waiting if not any(x[0] in names for x in wired.values() if x[2] == n["id"])]
        assert ready, "a circle of nodes"
        done += ready
        waiting = [node for node in waiting if node not in ready]
    return done


# Inputs in image pixels, for pictures of 64 × 64 instead of 512 or 1024; the candidates come from Demo Scene as well
SMALL = {
    "ImageScale": {"width": 64, "height": 64},
    "PnPMixFitPicture": {"mode": "crop"},  # the demo model knows its things in one size
    "PnPMixPasteBack": {"expand": 1, "feather": 1},
    "PnPMixInpaintBackground": {"expand": 3, "feather": 1},
    "PnPMixDilution": {"expand": 4},
    "GrowMask": {"expand": 1},
    "ImageBlur": {"blur_radius": 1, "sigma": 0.5},
}
CANDIDATES, PHOTO = 4, ["demo scene", 0]
SIDE = "Side of the part, pixels"  # title of the node that says it


def with_demo_model(prompt: dict, seed: int) -> dict:
    """The graph of a template, in the server's form, with what comes with the pack in the place of people's files.

    Load Demo Model stands in for Load Checkpoint, and Demo Scene for the photos, the candidates and the masks; the
    rest of the graph is the template's own.
    """
    stands_in = {}
    concepts = sum(node["class_type"] == "PnPMixConcept" for node in prompt.values())
    scene = {"class_type": "PnPMixDemoScene", "inputs": {"seed": seed, "concepts": concepts}}
    added = {"demo model": {"class_type": "PnPMixDemoModel", "inputs": {}}, "demo scene": scene}
    sampled = any(node["class_type"] == "KSampler" for node in prompt.values())  # then the scene is not loaded
    pictures, masks = (iter([["demo scene", k] for k in range(first, first + 4)]) for first in (int(sampled), 4))
    candidates = candidate_scenes(seed, concepts)
    for node_id, node in prompt.items():
        kind, inputs = node["class_type"], node["inputs"]
        if kind == "CheckpointLoaderSimple":
            stands_in |= {(node_id, output): ["demo model", output] for output in range(3)}
        elif kind == "VAEDecode" and prompt[inputs["samples"][0]]["class_type"] == "KSampler":
            added |= candidates
            stands_in[node_id, 0] = [list(candidates)[-1], 0]
        elif kind == "LoadImage":
            stands_in[node_id, 0] = next(pictures)
            stands_in[node_id, 1] = painted_mask(stands_in[node_id, 0])
        elif kind in ("PnPMixGroundedMask", "SAM3_Detect"):
            in_own_picture = stands_in.get(tuple(inputs["image"]), PHOTO) != PHOTO
            mask = painted_mask(stands_in[tuple(inputs["image"])]) if in_own_picture else next(masks)
            stands_in |= {(node_id, 0): mask, (node_id, 2): PHOTO}
        elif kind == "CLIPTextEncode":
            inputs["text"] = ["demo scene", 7] if node["_meta"]["title"] in ("Scene", "Finished picture") else ""
        elif kind == "PrimitiveInt" and node["_meta"]["title"] == SIDE:
            inputs["value"] = 64
        inputs |= SMALL.get(kind, {})
    prompt = prompt | added
    for node in prompt.values():
        for key, value in node["inputs"].items():
            if isinstance(value, list):
                node["inputs"][key] = stands_in.get(tuple(value), value)
    return {node_id: prompt[node_id] for node_id in needed(prompt)}


def painted_mask(picture: list) -> list:
    """Of a picture of Demo Scene: the first thing in the photo, or the thing in the person's own picture."""
    return ["demo scene", 4 if picture == PHOTO else 7 + picture[1]]


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
