"""The templates: reading them, filling them in, and turning them into the API format that ComfyUI's server runs."""

import json
from collections.abc import Sequence
from copy import deepcopy
from itertools import count
from pathlib import Path

PACK = Path(__file__).resolve().parents[1]
TEMPLATES = PACK / "workflows"
CONTROLS = {"fixed", "increment", "decrement", "randomize"}  # of the widget that the editor adds behind a seed
INPUTS, OUTPUTS = -10, -20  # the two ends of a subgraph, as nodes that its links name
FINDERS, MASK_LOADER = ("PnPMixGroundedMask", "SAM3_Detect"), "LoadImageMask"
# Titles in the templates: of the subgraphs, and with a number of those of an object and of its picture
SCENE, OBJECT, REPLACE, FILES = "Objects in your photo", "Your object", "Replace objects", "Model files"
PHOTO, PICTURE = "Your photo", "Your picture"
CONCEPTS, ROOM = "concepts", 60  # the input that makes a chain; pixels between a node and its copy
# of the nodes that find objects, of the one that says how large the crop is, and of the negative prompt
IN_SCENE, IN_PICTURE, SIDE, NEGATIVE = "In the photo", "In your picture", "Working size (px)", "Not in it"
BETWEEN_WORDS = {"words": " . ", "sam3": ", "}  # of several objects, as Grounding DINO and SAM 3 read them
# Inputs in image pixels, for images of 64 × 64 instead of 512 or 1024
SMALL = {
    "ImageScale": {"width": 64, "height": 64},
    "PnPMixFitPicture": {"mode": "crop"},  # the demo model knows its objects in one size
    "PnPMixPasteBack": {"expand": 1, "feather": 1},
    "PnPMixInpaintBackground": {"expand": 3, "feather": 1},
    "PnPMixDilution": {"expand": 4},
    "GrowMask": {"expand": 1},
    "ImageBlur": {"blur_radius": 1, "sigma": 0.5},
}


def read(path: Path) -> dict:
    """Reads a workflow."""
    return json.loads(path.read_text(encoding="utf-8"))


def subgraphs(workflow: dict) -> dict[str, dict]:
    """Returns the subgraphs of a workflow by the type of the nodes that stand for them."""
    return {x["id"]: x for x in (workflow.get("definitions") or {}).get("subgraphs", [])}


def levels(workflow: dict) -> list[dict]:
    """Returns the graph and its subgraphs."""
    return [workflow, *subgraphs(workflow).values()]


def links(level: dict) -> dict[int, tuple]:
    """Returns (from node, slot, to node, slot) by the link's number."""
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot")
    rows = [[x[key] for key in keys] if isinstance(x, dict) else x for x in level["links"]]
    return {row[0]: tuple(row[1:5]) for row in rows}


def widget_places(node: dict) -> dict[str, int]:
    """Returns where each widget's value is in the file, which lists them in the order of their inputs."""
    values, places, at = node.get("widgets_values", []), {}, 0
    for name in [i["name"] for i in node["inputs"] if "widget" in i]:
        places[name] = at
        at += 1
        if name in ("seed", "noise_seed", "value") and at < len(values) and values[at] in CONTROLS:
            at += 1
    assert at == len(values), f"{node['type']}: {values[at:]} belong to no input"
    return places


def widget_values(node: dict) -> dict:
    """Returns a node's widgets: name → value."""
    return {name: node["widgets_values"][at] for name, at in widget_places(node).items()}


def title(workflow: dict, node: dict) -> str:
    """Returns the title of a node in the editor, as far as the file says it."""
    inside = subgraphs(workflow).get(node["type"])
    return node.get("title") or (inside["name"] if inside else node["type"])


def titled(workflow: dict, name: str) -> dict:
    """Returns the node of the top level with this title."""
    return next(node for node in workflow["nodes"] if title(workflow, node) == name)


def set_widget(node: dict, name: str, value) -> None:
    """Sets a widget of a node by its name."""
    node["widgets_values"][widget_places(node)[name]] = value


def nodes_of(workflow: dict, kind: str) -> list[dict]:
    """Returns the nodes of a type, those in subgraphs too."""
    return [node for level in levels(workflow) for node in level["nodes"] if node["type"] == kind]


def count_of(workflow: dict) -> int:
    """Returns how many objects a template replaces."""
    titles = {title(workflow, node) for node in workflow["nodes"]}
    return next(k for k in count() if f"{OBJECT} {k + 1}" not in titles)


def set_count(workflow: dict, wanted: int) -> None:
    """Gives a template another number of objects: leaves out the last ones, or copies the last one, as people do.

    An object is its picture and the subgraph that takes it; `concepts` joins them to a chain.
    """
    there = count_of(workflow)
    for k in range(there, wanted, -1):
        for name in (PICTURE, OBJECT):
            remove(workflow, titled(workflow, f"{name} {k}"))
    for k in range(there, wanted):
        copies: dict[int, dict] = {}
        for name in (PICTURE, OBJECT):
            node = titled(workflow, f"{name} {k}")
            copies[node["id"]] = copy_of(workflow, node, copies, title=f"{name} {k + 1}")
        connect(workflow, titled(workflow, f"{OBJECT} {k}"), titled(workflow, f"{OBJECT} {k + 1}"), CONCEPTS)
    connect(workflow, titled(workflow, f"{OBJECT} {wanted}"), titled(workflow, REPLACE), CONCEPTS)


def remove(workflow: dict, node: dict) -> None:
    """Removes a node of the top level with its links."""
    for link in [x for x in workflow["links"] if node["id"] in (x[1], x[3])]:
        disconnect(workflow, link)
    workflow["nodes"].remove(node)


def disconnect(workflow: dict, link: list) -> None:
    """Removes a link of the top level."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    number, origin, slot, target, entry, _ = link
    nodes[origin]["outputs"][slot]["links"].remove(number)
    nodes[target]["inputs"][entry]["link"] = None
    workflow["links"].remove(link)


def connect(workflow: dict, origin: dict, target: dict, name: str, slot: int = 0) -> None:
    """Links an output to the input of a name, in the place of what is linked there."""
    (at,) = (k for k, entry in enumerate(target["inputs"]) if entry["name"] == name)
    for link in [x for x in workflow["links"] if x[3:5] == [target["id"], at]]:
        disconnect(workflow, link)
    workflow["last_link_id"] = number = workflow["last_link_id"] + 1
    workflow["links"].append([number, origin["id"], slot, target["id"], at, target["inputs"][at]["type"]])
    target["inputs"][at]["link"] = number
    origin["outputs"][slot]["links"].append(number)


def copy_of(workflow: dict, node: dict, copies: dict[int, dict], **fields) -> dict:
    """Adds a copy of a node with the same inputs. copies: of nodes before it, by the ids of their originals."""
    nodes = {x["id"]: x for x in workflow["nodes"]} | copies
    workflow["last_node_id"] += 1
    copy = deepcopy(node) | {"id": workflow["last_node_id"], **fields}
    copy["pos"] = [node["pos"][0], node["pos"][1] + node["size"][1] + ROOM]
    copy["outputs"] = [entry | {"links": []} for entry in copy["outputs"]]
    for entry in copy["inputs"]:
        entry["link"] = None
    workflow["nodes"].append(copy)
    for _, origin, slot, target, at, _ in list(workflow["links"]):
        if target == node["id"]:
            connect(workflow, nodes[origin], copy, node["inputs"][at]["name"], slot)
    return copy


def to_api(workflow: dict) -> dict:
    """Returns what the editor sends when the workflow is queued; nodes of a subgraph have ids such as "3:7"."""
    prompt: dict = {}
    add_level(prompt, workflow, subgraphs(workflow), "", [])
    return prompt


def add_level(prompt: dict, level: dict, inside: dict[str, dict], path: str, given: list) -> dict[int, list]:
    """Adds the nodes of a graph or subgraph.

    Args:
        path: what their ids begin with.
        given: what comes in at the slots of a subgraph.

    Returns:
        slot → link of what a subgraph gives.
    """
    wired = links(level)
    made: dict[tuple[int, int], list] = {}  # (node, slot) → link

    def origin(link: int):
        node, slot, *_ = wired[link]
        return given[slot] if node == INPUTS else made.get((node, slot), [f"{path}{node}", slot])

    for node in in_order(level, wired):
        if node["type"] == "MarkdownNote":
            continue
        inputs = widget_values(node)
        inputs.pop("upload", None)  # a button
        linked = {i["name"]: origin(i["link"]) for i in node["inputs"] if i.get("link") is not None}
        inputs |= {name: value for name, value in linked.items() if value is not None}  # of a subgraph's open input
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
    """Returns the nodes, each after those that it depends on."""
    waiting, done = list(level["nodes"]), []
    while waiting:
        names = {node["id"] for node in waiting}
        ready = [n for n in waiting if not any(x[0] in names for x in wired.values() if x[2] == n["id"])]
        assert ready, "a cycle of nodes"
        done += ready
        waiting = [node for node in waiting if node not in ready]
    return done


def api_graph(name: str) -> dict:
    """Returns a template in API format, for programs.

    Every node has a title, which begins with its subgraph's, such as "Your object 1: In your picture".

    Raises:
        FileNotFoundError: there is no such template.
    """
    paths = [TEMPLATES / f"{name}{kind}.json" for kind in ("", ".app")]
    path = next((path for path in paths if path.is_file()), paths[0])
    workflow = read(path)
    return with_full_titles(to_api(workflow), workflow)


def with_full_titles(prompt: dict, workflow: dict) -> dict:
    """Gives every node of a prompt its title, with those of the subgraphs around it."""
    around = {str(node["id"]): title(workflow, node) for node in workflow["nodes"]}
    named = {}
    for node_id, node in prompt.items():
        above, _, below = node_id.partition(":")
        own = node["_meta"]["title"] or node["class_type"]
        named[node_id] = node | {"_meta": {"title": f"{around[above]}: {own}" if below else own}}
    return named


def for_demo_model(prompt: dict) -> None:
    """Replaces Load Checkpoint by Load Demo Model, and sizes by those of its images of 64 × 64 pixels."""
    for node in prompt.values():
        named = node["_meta"]["title"] or ""  # in an API graph with the name of its step before it
        if node["class_type"] == "CheckpointLoaderSimple":
            node |= {"class_type": "PnPMixDemoModel", "inputs": {}}
        elif named.endswith(SIDE):
            node["inputs"]["value"] = 64
        elif named.endswith(NEGATIVE):
            node["inputs"]["text"] = ""  # it knows no such words
        node["inputs"] |= SMALL.get(node["class_type"], {})


def load_mask(node: dict, file: str) -> None:
    """Replaces a node that finds an object by a mask from a file, white where the object is."""
    node |= {"class_type": MASK_LOADER, "inputs": {"image": file, "channel": "red"}}


def load_masks(prompt: dict, node_id: str, files: Sequence[str]) -> None:
    """Replaces a node that finds several objects by a batch of masks from files of one size."""
    masks = [add(prompt, MASK_LOADER, image=file, channel="red") for file in files]
    made = add_mask_batch(prompt, masks)[0]
    prompt[node_id] = prompt.pop(made) | {"_meta": prompt[node_id]["_meta"]}


def needed(prompt: dict, output: str) -> dict:
    """Returns the part of a graph that one node needs."""
    reached, waiting = set(), [output]
    while waiting:
        node_id = waiting.pop()
        if node_id not in reached:
            reached.add(node_id)
            waiting += [value[0] for value in prompt[node_id]["inputs"].values() if isinstance(value, list)]
    return {node_id: node for node_id, node in prompt.items() if node_id in reached}


def add(prompt: dict, kind: str, outputs: int = 1, /, **inputs):
    """Adds a node to a graph in API format; returns its output, or a list of them where there are several."""
    node_id = f"{kind} {len(prompt)}"
    prompt[node_id] = {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}
    made = [[node_id, slot] for slot in range(outputs)]
    return made if outputs > 1 else made[0]


def add_mask_batch(prompt: dict, masks: Sequence[list]) -> list:
    """Adds nodes that join masks of one size to a batch, and returns its link."""
    drawn = [add(prompt, "MaskToImage", mask=mask) for mask in masks]
    batch = drawn[0]
    for image in drawn[1:]:
        batch = add(prompt, "ImageBatch", image1=batch, image2=image)
    return add(prompt, "ImageToMask", image=batch, channel="red")


def text_to_image(checkpoint: str, text: str, size: dict, loras: Sequence[tuple[str, float]] = (), **sampling) -> dict:
    """Returns a graph in which a checkpoint, with LoRAs merged into it, draws a picture.

    Args:
        size: inputs of Empty Latent Image.
        loras: (file, strength) of each.
        sampling: seed, steps, cfg, sampler_name and scheduler.
    """
    prompt: dict = {}
    model, clip, vae = add(prompt, "CheckpointLoaderSimple", 3, ckpt_name=checkpoint)
    for file, strength in loras:
        strengths = dict(strength_model=strength, strength_clip=strength)
        model, clip = add(prompt, "LoraLoader", 2, model=model, clip=clip, lora_name=file, **strengths)
    positive, negative = (add(prompt, "CLIPTextEncode", text=x, clip=clip) for x in (text, "blurry, distorted"))
    conds = dict(positive=positive, negative=negative)
    latent = add(prompt, "EmptyLatentImage", **size)
    latent = add(prompt, "KSampler", model=model, latent_image=latent, denoise=1.0, **conds, **sampling)
    image = add(prompt, "VAEDecode", samples=latent, vae=vae)
    add(prompt, "SaveImage", images=image, filename_prefix="PnP-MIX")
    return prompt
