"""Shared graphs load: every workflow fits the nodes, and the nodes are those of the contract."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from comfy_host import Graph
from workflow_files import FOLDER, SHOWN, WORKFLOWS, read, to_api, widget_values, with_demo_model

# Node → input → (type, default). Saved graphs depend on it: only ever add to the end.
CONTRACT = {
    "PnPMixDDPMInvert": {
        "model": ("MODEL", None),
        "positive": ("CONDITIONING", None),
        "negative": ("CONDITIONING", None),
        "latent": ("LATENT", None),
        "steps": ("INT", 100),
        "skip_steps": ("INT", 32),
        "cfg": ("FLOAT", 3.5),
        "seed": ("INT", 0),
        "scheduler": ("COMBO", "ddim_uniform"),
    },
    "PnPMixSaveInversion": {"inversion": ("PNPMIX_INVERSION", None), "filename_prefix": ("STRING", "background")},
    "PnPMixLoadInversion": {"file": ("COMBO", None)},
    "PnPMixConcept": {
        "latent": ("LATENT", None),
        "mask": ("MASK", None),
        "concepts": ("PNPMIX_CONCEPTS", None),
        "positive": ("CONDITIONING", None),
        "seed": ("INT", 1),
        "name": ("STRING", ""),
        "object_mask": ("MASK", None),
    },
    "PnPMixAppearance": {
        "model": ("MODEL", None),
        "alpha": ("FLOAT", 0.15),
        "layers": ("COMBO", "all"),
        "start_percent": ("FLOAT", 0.0),
        "end_percent": ("FLOAT", 1.0),
        "adain": ("BOOLEAN", False),
    },
    "PnPMixDilution": {
        "model": ("MODEL", None),
        "latent": ("LATENT", None),
        "beta": ("FLOAT", 0.8),
        "expand": ("INT", 16),
        "outside": ("COMBO", "scaled"),
    },
    "PnPMixSampler": {
        "model": ("MODEL", None),
        "inversion": ("PNPMIX_INVERSION", None),
        "concepts": ("PNPMIX_CONCEPTS", None),
        "positive": ("CONDITIONING", None),
        "negative": ("CONDITIONING", None),
        "cfg": ("FLOAT", 1.0),
        "swap_guidance": ("FLOAT", 3.5),
        "mix_reference_noise": ("BOOLEAN", True),
        "feather": ("INT", 0),
        "overlap": ("COMBO", "shared"),
    },
    "PnPMixGroundingDinoLoader": {"model_name": ("COMBO", None)},
    "PnPMixSamLoader": {"model_name": ("COMBO", None)},
    "PnPMixGroundedMask": {
        "image": ("IMAGE", None),
        "detector": ("PNPMIX_DETECTOR", None),
        "segmenter": ("PNPMIX_SEGMENTER", None),
        "prompt": ("STRING", ""),
        "box_threshold": ("FLOAT", 0.3),
        "text_threshold": ("FLOAT", 0.25),
        "pick": ("COMBO", "best"),
        "expand": ("INT", 0),
        "feather": ("INT", 0),
    },
    "PnPMixInpaintModelLoader": {"model_name": ("COMBO", None)},
    "PnPMixInpaintBackground": {
        "image": ("IMAGE", None),
        "mask": ("MASK", None),
        "inpaint_model": ("INPAINT_MODEL", None),
        "expand": ("INT", 8),
        "feather": ("INT", 4),
    },
    "PnPMixFitPicture": {
        "image": ("IMAGE", None),
        "mask": ("MASK", None),
        "width": ("INT", 512),
        "height": ("INT", 512),
        "like": ("IMAGE", None),
        "mode": ("COMBO", "crop"),
        "margin": ("INT", 20),
        "multiple": ("INT", 8),
    },
    "PnPMixPasteBack": {
        "original": ("IMAGE", None),
        "image": ("IMAGE", None),
        "mask": ("MASK", None),
        "expand": ("INT", 6),
        "feather": ("INT", 4),
        "place": ("PNPMIX_PLACE", None),
    },
    "PnPMixBackgroundPicker": {"images": ("IMAGE", None), "index": ("INT", 0)},
    "PnPMixDemoModel": {},
    "PnPMixDemoScene": {"seed": ("INT", 0), "concepts": ("INT", 2)},
}
OUTPUTS = {
    "PnPMixDDPMInvert": [("PNPMIX_INVERSION", "inversion")],
    "PnPMixSaveInversion": [],
    "PnPMixLoadInversion": [("PNPMIX_INVERSION", "inversion")],
    "PnPMixConcept": [("PNPMIX_CONCEPTS", "concepts")],
    "PnPMixAppearance": [("MODEL", "model")],
    "PnPMixDilution": [("MODEL", "model")],
    "PnPMixSampler": [("LATENT", "latent"), ("LATENT", "references"), ("MASK", "mask")],
    "PnPMixGroundingDinoLoader": [("PNPMIX_DETECTOR", "detector")],
    "PnPMixSamLoader": [("PNPMIX_SEGMENTER", "segmenter")],
    "PnPMixGroundedMask": [("MASK", "mask"), ("MASK", "background"), ("IMAGE", "preview")],
    "PnPMixInpaintModelLoader": [("INPAINT_MODEL", "inpaint_model")],
    "PnPMixInpaintBackground": [("IMAGE", "image")],
    "PnPMixFitPicture": [("IMAGE", "image"), ("MASK", "mask"), ("PNPMIX_PLACE", "place")],
    "PnPMixPasteBack": [("IMAGE", "image")],
    "PnPMixBackgroundPicker": [("IMAGE", "image"), ("INT", "index")],
    "PnPMixDemoModel": [("MODEL", "model"), ("CLIP", "clip"), ("VAE", "vae")],
    "PnPMixDemoScene": [
        ("IMAGE", "background"),
        *(("IMAGE", f"concept {k}") for k in (1, 2, 3)),
        *(("MASK", f"mask {k}") for k in (1, 2, 3)),
        ("STRING", "prompt"),
        *(("MASK", f"object mask {k}") for k in (1, 2, 3)),
    ],
}
# Widgets that name files of the user, and the folder of models or pictures that they are in
FILES = {
    ("LoadImage", "image"): "input",
    ("CheckpointLoaderSimple", "ckpt_name"): "checkpoints",
    ("PnPMixGroundingDinoLoader", "model_name"): "grounding-dino",
    ("PnPMixSamLoader", "model_name"): "sams",
}
DEMO = "try_it_without_downloads"


def node_class(name: str):
    import nodes

    return nodes.NODE_CLASS_MAPPINGS[name]


@pytest.mark.parametrize("name", CONTRACT)
def test_node_has_the_inputs_of_the_contract(name):
    declared = node_class(name).INPUT_TYPES()
    inputs = declared.get("required", {}) | declared.get("optional", {})
    assert set(inputs) == set(CONTRACT[name])
    for key, (kind, default) in CONTRACT[name].items():
        declared_type, options = inputs[key]
        assert ("COMBO" if isinstance(declared_type, list) else declared_type) == kind
        assert options.get("default") == default
        assert len(options["tooltip"]) > 15


@pytest.mark.parametrize("name", OUTPUTS)
def test_node_has_the_outputs_of_the_contract(name):
    cls = node_class(name)
    assert list(zip(cls.RETURN_TYPES, cls.RETURN_NAMES, strict=True)) == OUTPUTS[name]
    assert cls.CATEGORY == "PnP-MIX"


def test_all_nodes_of_the_pack_are_in_the_contract():
    import nodes

    assert {name for name in nodes.NODE_CLASS_MAPPINGS if name.startswith("PnPMix")} == set(CONTRACT)


def test_there_is_a_workflow_for_each_number_of_concepts_and_each_way_to_start():
    assert {f"pnp_mix_{number}" for number in ("one_concept", "two_concepts", "three_concepts")} <= set(WORKFLOWS)
    others = {DEMO, "pnp_mix_two_concepts_sdxl", "pnp_mix_two_concepts_sam3", "background_candidates"}
    assert others <= set(WORKFLOWS)
    assert all((FOLDER / f"{name}.jpg").is_file() for name in WORKFLOWS), "the template browser shows a picture"


def files(workflow: dict) -> list[tuple[str, str]]:
    """(folder, file) of each file that a workflow names."""
    widgets = [
        (n["type"], *x) for n in workflow["nodes"] if n["type"] != "MarkdownNote" for x in widget_values(n).items()
    ]
    return [(FILES[kind, widget], value) for kind, widget, value in widgets if (kind, widget) in FILES]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflow_is_valid_in_this_comfyui(name):
    """ComfyUI's own validation, with a file in place of each that the note asks for."""
    import execution
    import folder_paths
    import nodes

    workflow = read(name)
    missing = {node["type"] for node in workflow["nodes"]} - set(nodes.NODE_CLASS_MAPPINGS) - {"MarkdownNote"}
    if missing:  # this ComfyUI is older than its SAM 3 nodes
        assert (name, missing) == ("pnp_mix_two_concepts_sam3", {"SAM3_Detect"})
        return
    for folder, file in files(workflow):
        if folder == "input":
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(Path(folder_paths.get_input_directory(), file))
        else:
            path = Path(folder_paths.get_folder_paths(folder)[0], file)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    valid, error, outputs, node_errors = asyncio.run(execution.validate_prompt("test", to_api(workflow), None))
    assert valid, (error, node_errors)
    assert len(outputs) == sum(n["type"] in SHOWN for n in workflow["nodes"])


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflow_keeps_to_the_contract(name):
    workflow = read(name)
    ours = [node for node in workflow["nodes"] if node["type"].startswith("PnPMix")]
    assert {"PnPMixDDPMInvert", "PnPMixConcept", "PnPMixSampler"} <= {node["type"] for node in ours}
    for node in ours:
        known, names = list(CONTRACT[node["type"]]), [i["name"] for i in node["inputs"]]
        assert sorted(names, key=known.index) == known[: len(names)], "earlier versions lack what came later"
        widgets = [i["name"] for i in node["inputs"] if "widget" in i]
        assert widgets == sorted(widgets, key=known.index), "values are saved in this order"
        for key, value in widget_values(node).items():
            in_pixels = key in ("expand", "feather") and name == DEMO  # its pictures are an eighth as large
            if key not in ("name", "seed", "prompt", "model_name") and not in_pixels:
                assert value == CONTRACT[node["type"]][key][1], "shipped graphs start from the defaults"


@pytest.mark.parametrize("name", [name for name in WORKFLOWS if name != DEMO])
def test_workflow_leads_from_photos_to_a_picture_with_the_original_pixels(name):
    """Masks from words, an emptied background, and every file named in the note."""
    workflow = read(name)
    by_type = {}
    for node in workflow["nodes"]:
        by_type.setdefault(node["type"], []).append(node)
    (note,) = by_type["MarkdownNote"]
    assert all(f"`{file}`" in note["widgets_values"][0] for _, file in files(workflow))
    for concept in by_type["PnPMixConcept"]:
        assert source(workflow, concept, "mask")["type"] in ("PnPMixGroundedMask", "SAM3_Detect")
    (dilution,) = by_type["PnPMixDilution"]
    encoded = source(workflow, dilution, "latent")
    assert source(workflow, encoded, "pixels")["type"] == "PnPMixInpaintBackground"
    (save,) = by_type["SaveImage"]
    assert source(workflow, save, "images")["type"] == "ImageCompositeMasked"


@pytest.mark.parametrize("name", [name for name in WORKFLOWS if name != DEMO])
def test_workflow_works_with_the_demo_model_in_the_place_of_its_files(name):
    """Objects take another look, and everything else keeps its pixels."""
    graph = Graph()
    graph.prompt = with_demo_model(name, seed=27)
    nodes = {node["class_type"]: node["inputs"] for node in graph.prompt.values()}
    nodes["PnPMixDDPMInvert"] |= dict(steps=12, skip_steps=4)
    concepts = sum(node["class_type"] == "PnPMixConcept" for node in graph.prompt.values())
    masks = {f"mask {k}": ["demo scene", 4 + k] for k in range(concepts)}
    results = graph.run(finished=nodes["SaveImage"]["images"], scene=["demo scene", 0], **masks)
    change = (results["finished"] - results["scene"])[0].abs().amax(-1)
    masks = torch.cat([results[name] for name in masks])
    assert all(change[mask > 0.5].mean() > 0.1 for mask in masks)
    grown = F.max_pool2d(masks.amax(0)[None], 9, stride=1, padding=4)[0]
    assert change[grown == 0].max() < 1 / 255


def source(workflow: dict, node: dict, name: str) -> dict:
    """The node that an input comes from."""
    (link,) = [i["link"] for i in node["inputs"] if i["name"] == name]
    (origin,) = [x[1] for x in workflow["links"] if x[0] == link]
    return next(x for x in workflow["nodes"] if x["id"] == origin)


def test_candidates_go_through_the_picker():
    workflow = read("background_candidates")
    (picker,) = [node for node in workflow["nodes"] if node["type"] == "PnPMixBackgroundPicker"]
    assert source(workflow, source(workflow, picker, "images"), "samples")["type"] == "KSampler"
    assert widget_values(next(n for n in workflow["nodes"] if n["type"] == "EmptyLatentImage"))["batch_size"] > 1


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflow_has_no_empty_fields_that_the_editor_warns_of(name):
    def empty(value, key=None):
        if value is None:
            yield key
        for inner, x in value.items() if isinstance(value, dict) else ():
            yield from empty(x, inner)
        for x in value if isinstance(value, list) else ():
            yield from empty(x, key)

    assert set(empty(read(name))) <= {"link", "links"}
