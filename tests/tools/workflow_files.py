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
START, DEFAULT = "START HERE - two objects, no downloads", "Replace two objects with Grounding DINO"
ALL_METHODS, SCORES = "All methods together, no downloads", "Compare settings, no downloads"
REPLACE = [name for name in TEMPLATES if name.startswith("Replace ")]
CONDUCTOR = [name for name in TEMPLATES if name.startswith("Two LoRAs ")]
LATEXBLEND = [name for name in TEMPLATES if name.startswith(("Train ", "Blend "))]
WITHOUT_DOWNLOADS = [name for name in TEMPLATES if name.endswith("no downloads")]
SHOWN = ("SaveImage", "PreviewImage", "MaskPreview", "PnPMixBackgroundPicker", "PnPMixScorePlot")
SAVED = (*SHOWN, "PnPMixSaveConcept")  # all that has a result of its own
# What loads models, and which of Load Demo Model's outputs stand in for its own
LOADERS = {
    "CheckpointLoaderSimple": (0, 1, 2),
    "UNETLoader": (0,),
    "LoraLoaderModelOnly": (0,),
    "DualCLIPLoader": (1,),
    "VAELoader": (2,),
}
PHOTO = ["demo scene", 0]


def read(name: str) -> dict:
    """A template, a blueprint, or a template of earlier versions."""
    paths = [folder / f"{name}.json" for folder in (FOLDER, LIBRARY, EARLIER)]
    (path,) = [path for path in paths if path.is_file()]
    return graphs.read(path)


def with_demo_model(prompt: dict, seed: int) -> dict:
    """The graph of a template, in the server's form, with what comes with the pack in the place of people's files.

    Load Demo Model stands in for Load Checkpoint, and Demo Scene for the photos and the masks; the rest of the graph is
    the template's own.
    """
    concepts = sum(node["class_type"] == "PnPMixConcept" for node in prompt.values())
    scene = {"class_type": "PnPMixDemoScene", "inputs": {"seed": seed, "concepts": concepts}}
    stands_in, added = {}, {"demo model": {"class_type": "PnPMixDemoModel", "inputs": {}}, "demo scene": scene}
    every_mask = graphs.add_mask_batch(added, [["demo scene", 4 + k] for k in range(concepts)])
    pictures, masks = (iter([["demo scene", k] for k in range(first, first + 4)]) for first in (0, 4))
    for node_id, node in prompt.items():
        kind, inputs = node["class_type"], node["inputs"]
        if kind in LOADERS:
            stands_in |= {(node_id, k): ["demo model", output] for k, output in enumerate(LOADERS[kind])}
            if kind == "UNETLoader":
                added["demo model"]["inputs"] = {"network": "flow"}
        elif kind == "LoadImage":
            stands_in[node_id, 0] = next(pictures)
            stands_in[node_id, 1] = painted_mask(stands_in[node_id, 0])
        elif kind in FINDERS:
            several = inputs.get("pick") == "in order" or inputs.get("individual_masks")
            in_scene = stands_in.get(tuple(inputs["image"]), PHOTO) == PHOTO
            own = painted_mask(stands_in[tuple(inputs["image"])]) if not in_scene else None
            stands_in |= {(node_id, 0): own or (every_mask if several else next(masks)), (node_id, 2): PHOTO}
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
    """Of a picture of Demo Scene: the first object in the photo, or the object in the person's own picture."""
    return ["demo scene", 4 if picture == PHOTO else 7 + picture[1]]


def needed(prompt: dict) -> list[str]:
    """The nodes that the finished picture is made from, and the nodes that show something else of it."""
    reached, waiting = [], [x for x, node in prompt.items() if node["class_type"] in SHOWN]
    while waiting:
        node_id = waiting.pop()
        if node_id not in reached:
            reached.append(node_id)
            waiting += [value[0] for value in prompt[node_id]["inputs"].values() if isinstance(value, list)]
    return reached
