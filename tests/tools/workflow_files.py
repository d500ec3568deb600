"""The shipped workflows, and what stands in for people's files in them."""

# isort: off
import packages  # noqa: F401 makes the next one known
from cli import graphs
from cli.graphs import FINDERS, SIDE, SMALL, add_level, levels, links, subgraphs, to_api, widget_values  # noqa: F401

# isort: on
from comfy_host import PACK

FOLDER, LIBRARY = graphs.TEMPLATES, PACK / "subgraphs"
# Of what earlier versions shipped and people saved: each node with the inputs and values that it had, in the fewest
# graphs that run: two concepts, the demo model, and a scene that is picked
EARLIER = PACK / "tests" / "data" / "workflows"
TEMPLATES, BLUEPRINTS, OLD_WORKFLOWS = (
    sorted(path.stem for path in folder.glob("*.json")) for folder in (FOLDER, LIBRARY, EARLIER)
)
WORKFLOWS = [name for name in TEMPLATES if name[0].isdigit()]  # PnP-MIX's own; the others begin with a word
# templates of one kind of model, which start from other settings
FLOWS = [name for name in TEMPLATES if name.startswith("Flow ")]
FEW_STEPS = [name for name in TEMPLATES if name.startswith("Few steps ")]
CONDUCTOR = [name for name in TEMPLATES if name.startswith("Conductor ")]
LEARN = [name for name in TEMPLATES if name.startswith("Learn ")]
*TOGETHER, TOGETHER_OWN = (name for name in TEMPLATES if name.startswith("Together "))  # all but the last are a demo
WITHOUT_DOWNLOADS = [name for name in TEMPLATES if "without downloads" in name.lower()]
SHOWN = ("SaveImage", "PreviewImage", "MaskPreview", "PnPMixBackgroundPicker", "PnPMixScorePlot")
SAVED = (*SHOWN, "PnPMixSaveConcept", "SaveLoRA")  # all that has a result of its own
# What loads models, and which of Load Demo Model's outputs stand in for its own
LOADERS = {
    "CheckpointLoaderSimple": (0, 1, 2),
    "UNETLoader": (0,),
    "LoraLoaderModelOnly": (0,),
    "ModelSamplingAuraFlow": (0,),
    "CLIPLoader": (1,),
    "DualCLIPLoader": (1,),
    "VAELoader": (2,),
}
CANDIDATES, PHOTO = 4, ["demo scene", 0]


def read(name: str) -> dict:
    """A template, a blueprint, or a template of earlier versions."""
    paths = [folder / f"{name}.json" for folder in (FOLDER, LIBRARY, EARLIER)]
    (path,) = [path for path in paths if path.is_file()]
    return graphs.read(path)


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
        if kind in LOADERS:
            stands_in |= {(node_id, k): ["demo model", output] for k, output in enumerate(LOADERS[kind])}
            if kind == "UNETLoader":
                added["demo model"]["inputs"] = {"network": "flow"}
        elif kind == "VAEDecode" and prompt[inputs["samples"][0]]["class_type"] == "KSampler":
            added |= candidates
            stands_in[node_id, 0] = [list(candidates)[-1], 0]
        elif kind == "LoadImage":
            stands_in[node_id, 0] = next(pictures)
            stands_in[node_id, 1] = painted_mask(stands_in[node_id, 0])
        elif kind in FINDERS:
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
