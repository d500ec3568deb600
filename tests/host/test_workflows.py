"""Shared graphs load: every workflow fits the nodes, and the nodes are those of the contract."""

import asyncio
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from demo.conducting import ConductorSettings
from PIL import Image

from comfy_host import Graph
from workflow_files import (
    ALL_METHODS,
    BLUEPRINTS,
    DEFAULT,
    FOLDER,
    OLD_WORKFLOWS,
    REPLACE,
    SAVED,
    SIDE,
    START,
    TEMPLATES,
    WITHOUT_DOWNLOADS,
    add_level,
    graphs,
    levels,
    links,
    read,
    subgraphs,
    to_api,
    widget_values,
    with_demo_model,
)

# Node → input → (type, default). Saved graphs depend on it: only ever add to the end.
MIXER = {
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
    "falling_guidance": ("BOOLEAN", True),
    "keep_personal": ("BOOLEAN", False),
}
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
        "sigmas": ("SIGMAS", None),
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
        "learned": ("PNPMIX_LEARNED", None),
        "place": ("PNPMIX_PLACE", None),
    },
    "PnPMixAppearance": {
        "model": ("MODEL", None),
        "alpha": ("FLOAT", 0.15),
        "layers": ("COMBO", "all"),
        "start_percent": ("FLOAT", 0.0),
        "end_percent": ("FLOAT", 1.0),
        "adain": ("BOOLEAN", False),
        "position": ("COMBO", "target"),
    },
    "PnPMixDilution": {
        "model": ("MODEL", None),
        "latent": ("LATENT", None),
        "beta": ("FLOAT", 0.8),
        "expand": ("INT", 16),
        "outside": ("COMBO", "scaled"),
    },
    "PnPMixSampler": MIXER,
    "PnPMixCustomSampler": MIXER,
    "PnPMixSplitResult": {"latent": ("LATENT", None), "guider": ("GUIDER", None)},
    "PnPMixLayoutReference": {
        "model": ("MODEL", None),
        "positive": ("CONDITIONING", None),
        "latent": ("LATENT", None),
        "method": ("COMBO", "ddim"),
        "steps": ("INT", 999),
        "seed": ("INT", 0),
    },
    "PnPMixConceptLora": {
        "clip": ("CLIP", None),
        "lora_name": ("COMBO", None),
        "strength": ("FLOAT", 0.7),
        "text": ("STRING", None),
        "negative_text": ("STRING", ""),
    },
    "PnPMixConductedConcept": {
        "positive": ("CONDITIONING", None),
        "negative": ("CONDITIONING", None),
        "mask": ("MASK", None),
        "concepts": ("PNPMIX_CONDUCTED", None),
        "name": ("STRING", ""),
    },
    "PnPMixLayoutAlignment": {
        "model": ("MODEL", None),
        "layout": ("PNPMIX_LAYOUT", None),
        "weight": ("FLOAT", 0.0),
        "concept_weight": ("FLOAT", 1.0),
        "end": ("FLOAT", 0.3),
    },
    "PnPMixMaskRefinement": {
        "model": ("MODEL", None),
        "start": ("FLOAT", 0.25),
        "end": ("FLOAT", 0.4),
        "updates": ("INT", 7),
        "threshold": ("FLOAT", 0.0),
        "restarts": ("INT", 100),
    },
    "PnPMixConductor": {
        "model": ("MODEL", None),
        "positive": ("CONDITIONING", None),
        "negative": ("CONDITIONING", None),
        "concepts": ("PNPMIX_CONDUCTED", None),
        "latent": ("LATENT", None),
        "seed": ("INT", 0),
        "steps": ("INT", 200),
        "cfg": ("FLOAT", 7.5),
        "scheduler": ("COMBO", "ddim_uniform"),
        "inject": ("COMBO", "both"),
    },
    "PnPMixTrainConcept": {
        "model": ("MODEL", None),
        "clip": ("CLIP", None),
        "vae": ("VAE", None),
        "images": ("IMAGE", None),
        "noun": ("STRING", ""),
        "steps": ("INT", 3000),
        "learning_rate": ("FLOAT", 2e-5),
        "resolution": ("INT", 512),
        "rank": ("INT", 0),
        "seed": ("INT", 42),
        "augment": ("BOOLEAN", True),
        "class_images": ("IMAGE", None),
        "prior_weight": ("FLOAT", 1.0),
        "dtype": ("COMBO", "bf16"),
        "name": ("STRING", ""),
        "learned": ("PNPMIX_LEARNED", None),
        "resumable": ("BOOLEAN", False),
        "keep_on_cancel": ("BOOLEAN", False),
        "checkpointing": ("BOOLEAN", True),
    },
    "PnPMixSaveConcept": {"learned": ("PNPMIX_LEARNED", None), "filename_prefix": ("STRING", "concept")},
    "PnPMixLoadConcept": {"file": ("COMBO", None)},
    "PnPMixImportConcept": {
        "file": ("COMBO", None),
        "noun": ("STRING", ""),
        "name": ("STRING", ""),
        "clip": ("CLIP", None),
        "model": ("MODEL", None),
    },
    "PnPMixBlendConcept": {
        "learned": ("PNPMIX_LEARNED", None),
        "occurrence": ("INT", 1),
        "strength": ("FLOAT", 1.0),
        "mask": ("MASK", None),
        "concepts": ("PNPMIX_BLEND", None),
    },
    "PnPMixBlend": {
        "model": ("MODEL", None),
        "clip": ("CLIP", None),
        "text": ("STRING", None),
        "concepts": ("PNPMIX_BLEND", None),
        "start_percent": ("FLOAT", 0.1),
        "bind": ("BOOLEAN", True),
        "slot": ("COMBO", "auto"),
        "region": ("FLOAT", 1.0),
    },
    "PnPMixBlendingGuidance": {
        "model": ("MODEL", None),
        "scale": ("FLOAT", 1.0),
        "g1": ("FLOAT", 1.0),
        "g2": ("FLOAT", 1.0),
        "start_percent": ("FLOAT", 0.0),
        "end_percent": ("FLOAT", 0.2),
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
        "number": ("INT", 0),
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
    "PnPMixImageSimilarity": {
        "images": ("IMAGE", None),
        "references": ("IMAGE", None),
        "encoder": ("CLIP_VISION", None),
        "mask": ("MASK", None),
        "reference_mask": ("MASK", None),
    },
    "PnPMixTextSimilarity": {
        "images": ("IMAGE", None),
        "text": ("STRING", ""),
        "clip": ("CLIP", None),
        "encoder": ("CLIP_VISION", None),
    },
    "PnPMixSegSimConcept": {
        "images": ("IMAGE", None),
        "prompt": ("STRING", ""),
        "concepts": ("PNPMIX_REFERENCES", None),
    },
    "PnPMixSegSim": {
        "images": ("IMAGE", None),
        "references": ("PNPMIX_REFERENCES", None),
        "detector": ("PNPMIX_DETECTOR", None),
        "segmenter": ("PNPMIX_SEGMENTER", None),
        "encoder": ("CLIP_VISION", None),
    },
    "PnPMixBackgroundKept": {"images": ("IMAGE", None), "original": ("IMAGE", None), "mask": ("MASK", None)},
    "PnPMixScorePlot": {
        "scores": ("PNPMIX_SCORES", None),
        "names": ("STRING", ""),
        **{f"scores_{k}": ("PNPMIX_SCORES", None) for k in (2, 3, 4)},
    },
    "PnPMixDemoModel": {"network": ("COMBO", "unet")},
    "PnPMixDemoScene": {"seed": ("INT", 0), "concepts": ("INT", 2), "photos": ("INT", 1)},
}
CATEGORIES = ["PnP-MIX", *(f"PnP-MIX/{x}" for x in ("Concept Conductor", "LaTexBlend", "masks", "scores", "demo"))]
SCORED = [("FLOAT", "score"), ("STRING", "report"), ("PNPMIX_SCORES", "scores")]
MIXED = [("LATENT", "latent"), ("LATENT", "references"), ("MASK", "mask")]
OUTPUTS = {
    "PnPMixDDPMInvert": [("PNPMIX_INVERSION", "inversion")],
    "PnPMixSaveInversion": [],
    "PnPMixLoadInversion": [("PNPMIX_INVERSION", "inversion")],
    "PnPMixConcept": [("PNPMIX_CONCEPTS", "concepts")],
    "PnPMixAppearance": [("MODEL", "model")],
    "PnPMixDilution": [("MODEL", "model")],
    "PnPMixSampler": MIXED,
    "PnPMixCustomSampler": [("GUIDER", "guider"), ("SAMPLER", "sampler"), ("SIGMAS", "sigmas"), ("LATENT", "latent")],
    "PnPMixSplitResult": MIXED,
    "PnPMixLayoutReference": [("PNPMIX_LAYOUT", "layout")],
    "PnPMixConceptLora": [("CONDITIONING", "positive"), ("CONDITIONING", "negative")],
    "PnPMixConductedConcept": [("PNPMIX_CONDUCTED", "concepts")],
    "PnPMixLayoutAlignment": [("MODEL", "model")],
    "PnPMixMaskRefinement": [("MODEL", "model")],
    "PnPMixConductor": [("LATENT", "latent"), ("MASK", "masks")],
    "PnPMixTrainConcept": [("PNPMIX_LEARNED", "learned"), ("IMAGE", "losses"), ("LOSS_MAP", "loss_map")],
    "PnPMixSaveConcept": [("PNPMIX_LEARNED", "learned")],
    "PnPMixLoadConcept": [("PNPMIX_LEARNED", "learned"), ("STRING", "noun")],
    "PnPMixImportConcept": [("PNPMIX_LEARNED", "learned")],
    "PnPMixBlendConcept": [("PNPMIX_BLEND", "concepts")],
    "PnPMixBlend": [("MODEL", "model"), ("CONDITIONING", "positive")],
    "PnPMixBlendingGuidance": [("MODEL", "model")],
    "PnPMixGroundingDinoLoader": [("PNPMIX_DETECTOR", "detector")],
    "PnPMixSamLoader": [("PNPMIX_SEGMENTER", "segmenter")],
    "PnPMixGroundedMask": [("MASK", "mask"), ("MASK", "background"), ("IMAGE", "preview")],
    "PnPMixInpaintModelLoader": [("INPAINT_MODEL", "inpaint_model")],
    "PnPMixInpaintBackground": [("IMAGE", "image")],
    "PnPMixFitPicture": [("IMAGE", "image"), ("MASK", "mask"), ("PNPMIX_PLACE", "place")],
    "PnPMixPasteBack": [("IMAGE", "image")],
    "PnPMixBackgroundPicker": [("IMAGE", "image"), ("INT", "index")],
    "PnPMixImageSimilarity": SCORED,
    "PnPMixTextSimilarity": SCORED,
    "PnPMixSegSimConcept": [("PNPMIX_REFERENCES", "references")],
    "PnPMixSegSim": SCORED,
    "PnPMixBackgroundKept": [("FLOAT", "psnr"), ("FLOAT", "ssim"), *SCORED[1:]],
    "PnPMixScorePlot": [("IMAGE", "image"), ("STRING", "table")],
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
    ("UNETLoader", "unet_name"): "diffusion_models",
    ("DualCLIPLoader", "clip_name1"): "text_encoders",
    ("DualCLIPLoader", "clip_name2"): "text_encoders",
    ("VAELoader", "vae_name"): "vae",
    ("LoraLoaderModelOnly", "lora_name"): "loras",
    ("PnPMixConceptLora", "lora_name"): "loras",
    ("PnPMixLoadConcept", "file"): "concepts",
}
COMES_ALONG = "demo model: "  # before the names of LoRAs and concepts in the pack
SAM3, PAINTED = "Replace two objects", "Replace one object, masks painted by hand"
SDXL, APP = "Replace two objects with SDXL", "Replace two objects as an app.app"
TRANSFORMER, FEW_STEPS = "Replace two objects with a transformer", "Replace two objects in 4 steps"
# Where the templates leave the nodes' defaults, which are the paper's
OF_THE_MIXER = ("PnPMixDDPMInvert", "PnPMixAppearance", "PnPMixSampler", "PnPMixFitPicture")
BETTER = {"steps": 50, "skip_steps": 16, "cfg": 1.0, "adain": True, "mode": "around the object"}
ANY_VALUE = ("name", "names", "seed", "prompt", "model_name", "width", "height", "margin")
ANY_VALUE += ("photos", "text", "negative_text", "lora_name", "file", "filename_prefix", "noun")
# What a method's templates have: one of these sets of nodes, or more
METHODS = [
    {"PnPMixDDPMInvert", "PnPMixConcept", "PnPMixSampler"},
    {"PnPMixConceptLora", "PnPMixConductedConcept", "PnPMixConductor", "PnPMixLayoutReference"},
    {"PnPMixTrainConcept", "PnPMixBlendConcept", "PnPMixBlend"},
    {"PnPMixLoadConcept", "PnPMixBlendConcept", "PnPMixBlend"},
]
# Where a template starts from other values than the nodes, and why
FEW = {"steps": 4, "skip_steps": 1, "scheduler": "sgm_uniform"}
CONDUCTED = ConductorSettings()
FLOW = {"steps": 28, "skip_steps": 9, "scheduler": "simple"}
OTHER_VALUES: dict[str, dict[str, dict]] = {
    # flow models are made for the schedule
    TRANSFORMER: {"PnPMixDDPMInvert": FLOW},
    # what few-step LoRAs are made for
    FEW_STEPS: {"PnPMixDDPMInvert": FEW},
    # measured to work with the demo model in few steps
    "Two LoRAs in one picture, no downloads": {
        "PnPMixConceptLora": {"strength": CONDUCTED.strength},
        "PnPMixLayoutReference": {"steps": CONDUCTED.inversion_steps},
        "PnPMixLayoutAlignment": {"weight": CONDUCTED.weight, "end": CONDUCTED.align_end},
        "PnPMixMaskRefinement": {
            name: getattr(CONDUCTED, name) for name in ("start", "end", "updates", "threshold", "restarts")
        },
        "PnPMixConductor": {"steps": CONDUCTED.steps, "cfg": CONDUCTED.cfg},
    },
    # the demo model is tiny, takes pictures of 64 pixels, and must be done in a minute or two
    "Blend trained concepts, no downloads": {
        "PnPMixTrainConcept": {
            "steps": 300, "learning_rate": 2e-3, "resolution": 64, "augment": False, "dtype": "fp32",
            "checkpointing": False,
        },
        "PnPMixDemoScene": {"concepts": 1, "photos": 5},
        "PnPMixBlend": {"start_percent": 0.0},
    },
}  # fmt: skip
# of several methods, with the demo model
OTHER_VALUES[ALL_METHODS] = OTHER_VALUES["Two LoRAs in one picture, no downloads"] | {
    "PnPMixTrainConcept": {
        "steps": 150, "learning_rate": 4e-3, "resolution": 64, "augment": False, "dtype": "fp32",
        "checkpointing": False,
    },
    "PnPMixBlend": {"start_percent": 0.0},
}  # fmt: skip


def other_values(name: str, kind: str) -> dict:
    """Of a template that starts from others than the nodes' defaults and BETTER."""
    return OTHER_VALUES.get(name, {}).get(kind, {})


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
    assert cls.CATEGORY in CATEGORIES


def test_all_nodes_of_the_pack_are_in_the_contract():
    import nodes

    assert {name for name in nodes.NODE_CLASS_MAPPINGS if name.startswith("PnPMix")} == set(CONTRACT)


def nodes_of(workflow: dict) -> list[tuple[dict, dict]]:
    """(level, node) of all nodes, those in subgraphs too."""
    return [(level, node) for level in levels(workflow) for node in level["nodes"]]


def source(level: dict, node: dict, name: str) -> dict | None:
    """The node of the same level that an input comes from."""
    (link,) = [i["link"] for i in node["inputs"] if i["name"] == name]
    origin = links(level)[link][0]
    return next((x for x in level["nodes"] if x["id"] == origin), None)


def test_every_template_has_a_picture_of_its_own():
    pictures = [(FOLDER / f"{name}.jpg").read_bytes() for name in TEMPLATES]
    assert len(set(pictures)) == len(TEMPLATES) and all(Image.open(FOLDER / f"{START}.jpg").size)


def files(workflow: dict) -> list[tuple[str, str]]:
    """(folder, file) of each file that a workflow names."""
    named = [(n["class_type"], *x) for n in to_api(workflow).values() for x in n["inputs"].items()]
    wanted = [(FILES[kind, widget], value) for kind, widget, value in named if (kind, widget) in FILES]
    return [(folder, file) for folder, file in wanted if not file.startswith(COMES_ALONG)]


@pytest.mark.parametrize("name", [*TEMPLATES, *OLD_WORKFLOWS])
def test_workflow_is_valid_in_this_comfyui(name):
    """ComfyUI's own validation, with a file in place of each that the note asks for."""
    import execution
    import folder_paths
    import nodes

    workflow = read(name)
    prompt = to_api(workflow)
    missing = {node["class_type"] for node in prompt.values()} - set(nodes.NODE_CLASS_MAPPINGS)
    if missing:  # this ComfyUI is older than its SAM 3 nodes
        assert (name, missing) == (SAM3, {"SAM3_Detect"})
        return
    for folder, file in files(workflow):
        if folder == "input":
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(Path(folder_paths.get_input_directory(), file))
        else:
            path = Path(folder_paths.get_folder_paths(folder)[0], file)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    valid, error, outputs, node_errors = asyncio.run(execution.validate_prompt("test", prompt, None))
    assert valid, (error, node_errors)
    assert len(outputs) == sum(node["class_type"] in SAVED for node in prompt.values())


@pytest.mark.parametrize("name", [*TEMPLATES, *OLD_WORKFLOWS, *BLUEPRINTS])
def test_workflow_keeps_to_the_contract(name):
    workflow = read(name)
    ours = [node for _, node in nodes_of(workflow) if node["type"].startswith("PnPMix")]
    assert name in OLD_WORKFLOWS or any(method <= {node["type"] for node in ours} for method in METHODS)
    for node in ours:
        known, names = list(CONTRACT[node["type"]]), [i["name"] for i in node["inputs"]]
        assert set(names) <= set(known), "earlier versions lack what came later"
        widgets = [i["name"] for i in node["inputs"] if "widget" in i]
        assert widgets == sorted(widgets, key=known.index), "values are saved in this order"
        for key, value in widget_values(node).items():
            in_pixels = key in ("expand", "feather") and (
                name in WITHOUT_DOWNLOADS or "try" in name
            )  # its pictures are an eighth as large
            if key not in ANY_VALUE and not in_pixels:
                default = CONTRACT[node["type"]][key][1]
                better = (BETTER if node["type"] in OF_THE_MIXER else {}) | other_values(name, node["type"])
                if node.get("title") == graphs.IN_SCENE:
                    better = {"pick": "in order"}
                wanted = default if name in OLD_WORKFLOWS else better.get(key, default)
                assert value == wanted, "shipped graphs start from the defaults, or from what is measured to be better"


@pytest.mark.parametrize("name", TEMPLATES)
def test_template_fits_on_one_screen_at_a_zoom_that_can_be_read(name):
    """1280 × 800 pixels, of which the editor's own bars take some."""
    workflow = read(name)
    assert len(workflow["nodes"]) <= 12
    view = workflow["extra"]["ds"]
    assert view["scale"] >= 0.6
    boxes = [(*node["pos"], *node["size"]) for node in workflow["nodes"]] + [x["bounding"] for x in workflow["groups"]]
    for left, top, width, height in boxes:
        corners = [
            ((x + view["offset"][k]) * view["scale"])
            for k, x in ((0, left), (1, top), (0, left + width), (1, top + height))
        ]
        assert corners[0] > 60 and corners[1] > 50 and corners[2] < 1240 and corners[3] < 765


def note_of(workflow: dict) -> str:
    (note,) = [node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "MarkdownNote"]
    return note


# Files that people have made themselves
OWN = re.compile(r"your_(dog|cat)\.safetensors|(dog|cat)_00001_\.safetensors")


@pytest.mark.parametrize("name", [x for x in TEMPLATES if x not in WITHOUT_DOWNLOADS])
def test_every_file_of_a_template_is_named_in_its_note_and_linked_in_the_graph(name):
    """The editor offers to download what `models` of a node says."""
    workflow = read(name)
    linked = [x for _, node in nodes_of(workflow) for x in node["properties"].get("models", [])]
    for folder, file in files(workflow):
        if folder == "input" or OWN.fullmatch(file):
            continue
        assert f"**{file}** in models/{folder}: [download](https://" in note_of(workflow), file
        (model,) = {tuple(sorted(x.items())) for x in linked if x["name"] == file}
        model = dict(model)
        assert model["directory"] == folder and f"[download]({model['url']})" in note_of(workflow)


@pytest.mark.parametrize("name", [TRANSFORMER, FEW_STEPS])
def test_template_of_another_kind_of_model_is_the_default_with_its_own_loaders_and_steps(name):
    """And says that nobody has run it with these weights."""
    loading = {kind for kind, _ in FILES} | {"FluxGuidance"}
    own, two = (
        sorted(x["class_type"] for x in to_api(read(which)).values() if x["class_type"] not in loading)
        for which in (name, DEFAULT)
    )
    assert own == two
    assert "this template has not been run with these weights" in note_of(read(name))


# What people turn most, on the face of the subgraph that blends
DIALS = {"appearance strength", "AdaIN", "swap guidance", "skipped steps", "dilution strength"}


@pytest.mark.parametrize("name", REPLACE)
def test_template_asks_for_pictures_words_files_and_dials(name):
    workflow, note = read(name), note_of(read(name))
    assert name in (TRANSFORMER, FEW_STEPS) or "*steps* 100, *skip_steps* 32" in note
    steps = [node for node in workflow["nodes"] if node["type"] in subgraphs(workflow)]
    linked = [{i["name"] for i in node["inputs"] if i["link"] is not None} for node in steps]
    shown = [x for node, given in zip(steps, linked, strict=True) for x in widget_values(node) if x not in given]
    files = {label for node in steps if graphs.title(workflow, node) == graphs.FILES for label in widget_values(node)}
    words = {"objects to replace", "what your picture shows", "prompt"}
    assert set(shown) - files - words == {"seed", *DIALS}


@pytest.mark.parametrize("name", [START, *REPLACE])
def test_template_reads_the_object_alone_and_gives_back_the_whole_photo(name):
    """object_mask and adain, an emptied background, and the photo's own pixels outside the masks."""
    workflow = read(name)
    by_type = {}
    for level, node in nodes_of(workflow):
        by_type.setdefault(node["type"], []).append((level, node))
    for _, concept in by_type["PnPMixConcept"]:
        linked = {i["name"] for i in concept["inputs"] if i["link"] is not None}
        assert {"latent", "mask", "object_mask"} <= linked
    ((level, dilution),) = by_type["PnPMixDilution"]
    encoded = source(level, dilution, "latent")
    assert source(level, encoded, "pixels")["type"] == "PnPMixInpaintBackground"
    ((level, paste),) = by_type["PnPMixPasteBack"]
    assert source(level, paste, "mask")["type"] == "PnPMixSampler"
    assert source(level, paste, "original") is None, "the photo itself, from outside"


def run_with_demo_model(prompt: dict) -> dict:
    """The finished picture, the scene and the masks, after a few steps."""
    graph = Graph()
    graph.prompt = prompt
    nodes = {node["class_type"]: node["inputs"] for node in prompt.values()}
    nodes["PnPMixDDPMInvert"] |= dict(steps=12, skip_steps=4)
    concepts = sum(node["class_type"] == "PnPMixConcept" for node in prompt.values())
    masks = {f"mask {k}": ["demo scene", 4 + k] for k in range(concepts)}
    results = graph.run(finished=nodes["SaveImage"]["images"], scene=["demo scene", 0], **masks)
    return results | {"masks": torch.cat([results[name] for name in masks])}


@cache
def finished_by(name: str) -> dict:
    """What a template gives of the demo's scene."""
    return run_with_demo_model(with_demo_model(to_api(read(name)), seed=27))


# SDXL's and the app are the default
@pytest.mark.parametrize("name", [*(x for x in REPLACE if x not in (SDXL, APP)), "pnp_mix_two_concepts"])
def test_workflow_works_with_the_demo_model_in_the_place_of_its_files(name):
    """Objects take another look, and everything else keeps its pixels."""
    results = finished_by(name)
    change, masks = (results["finished"] - results["scene"])[0].abs().amax(-1), results["masks"]
    assert all(change[mask > 0.5].mean() > 0.1 for mask in masks)
    grown = F.max_pool2d(masks.amax(0)[None], 9, stride=1, padding=4)[0]
    assert change[grown == 0].max() < 1 / 255


def test_sdxl_and_the_app_are_the_default():
    def contents(name):
        prompt = to_api(read(name))
        for node in prompt.values():
            node["inputs"].pop("ckpt_name", None)
            if node["_meta"]["title"] == SIDE:
                del node["inputs"]["value"]
        return prompt

    assert contents(DEFAULT) == contents(SDXL) == contents(APP)


def test_the_app_shows_three_pictures_the_words_the_seed_and_the_result():
    workflow = read(APP)
    titles = {node["id"]: node.get("title") or subgraphs(workflow)[node["type"]]["name"] for node in workflow["nodes"]}
    assert workflow["extra"]["linearMode"]
    shown = workflow["extra"]["linearData"]
    assert [(titles[node], widget) for node, widget in shown["inputs"]] == [
        *((title, "image") for title in ("Your photo", "Your picture 1", "Your picture 2")),
        ("Objects in your photo", "objects to replace"),
        *((f"Your object {k}", "what your picture shows") for k in (1, 2)),
        ("Replace objects", "prompt"),
        ("Replace objects", "seed"),
    ]
    assert [titles[node] for node in shown["outputs"]] == ["Finished picture"]


def test_a_blueprint_gives_the_picture_of_its_template():
    """One node with pictures, words, model, clip and vae."""
    (name,) = [name for name in BLUEPRINTS if "two objects" in name]
    (subgraph,) = subgraphs(read(name)).values()
    loaded = {x: ["checkpoint", k] for k, x in enumerate(("model", "clip", "vae"))}
    pictures = {x: [x, 0] for x in ("photo", "your picture 1", "your picture 2")}
    prompt = {"checkpoint": {"class_type": "CheckpointLoaderSimple", "inputs": {}, "_meta": {"title": None}}}
    for key in pictures:
        prompt[key] = {"class_type": "LoadImage", "inputs": {}, "_meta": {"title": None}}
    widgets = widget_values(read(name)["nodes"][0])
    assert set(widgets) == {
        "objects to replace", "what picture 1 shows", "what picture 2 shows", "prompt", "seed", "Grounding DINO", "SAM",
        "working size (px)",
    }  # fmt: skip
    given = loaded | pictures | widgets
    gives = add_level(prompt, subgraph, {}, "1:", [given[end["name"]] for end in subgraph["inputs"]])
    prompt["save"] = {"class_type": "SaveImage", "inputs": {"images": gives[0], "filename_prefix": ""}, "_meta": {}}
    finished = run_with_demo_model(with_demo_model(prompt, seed=27))["finished"]
    assert torch.equal(finished, finished_by(DEFAULT)["finished"])


def test_a_photo_of_any_size_comes_back_whole():
    """The crop around the objects goes through the model and is pasted back."""
    workflow, graph = read(DEFAULT), Graph()
    graphs.set_count(workflow, 1)
    prompt = with_demo_model(to_api(workflow), seed=27)
    nodes = {node["class_type"]: node["inputs"] for node in prompt.values()}
    nodes["PnPMixDDPMInvert"] |= dict(steps=12, skip_steps=4)
    for node in prompt.values():
        if node["class_type"] == "PnPMixFitPicture":
            node["inputs"]["mode"] = "around the object"
    graph.prompt = prompt
    drawn = graph.run(scene=["demo scene", 0], mask=["demo scene", 4])
    mask = F.pad(drawn["mask"], (70, 30, 20, 50))
    photo = torch.rand(1, *mask.shape[1:], 3, generator=torch.Generator().manual_seed(0))
    photo[:, 20:84, 70:134] = drawn["scene"]
    big = {("demo scene", 0): graph.given(photo), ("demo scene", 4): graph.given(mask)}
    for node in prompt.values():
        links = {key: big.get(tuple(x), x) for key, x in node["inputs"].items() if isinstance(x, list)}
        node["inputs"] |= links
    finished = graph.run(finished=nodes["SaveImage"]["images"])["finished"]
    assert finished.shape == photo.shape
    changed = (finished != photo)[0].any(-1)
    assert changed[mask[0] > 0.5].float().mean() > 0.9
    assert not changed[F.max_pool2d(mask, 9, stride=1, padding=4)[0] == 0].any()


def test_an_old_graph_gives_the_picture_of_the_new_template_set_to_the_plain_paper():
    """Inside the masks, whose borders were pasted back in another way."""
    new, seeds = to_api(read(DEFAULT)), iter((1, 2))
    for node in new.values():
        if node["class_type"] == "PnPMixConcept":
            del node["inputs"]["object_mask"]
            node["inputs"]["seed"] = next(seeds)
        if node["class_type"] == "PnPMixAppearance":
            node["inputs"]["adain"] = False
        if node["class_type"] == "PnPMixDDPMInvert":
            node["inputs"]["cfg"] = 3.5
    results = run_with_demo_model(with_demo_model(new, seed=27)), finished_by("pnp_mix_two_concepts")
    inside = -F.max_pool2d(-results[0]["masks"].amax(0)[None], 3, stride=1, padding=1)[0] > 0.99
    assert inside.sum() > 100
    ours, theirs = (x["finished"][0][inside] for x in results)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", [*TEMPLATES, *OLD_WORKFLOWS, *BLUEPRINTS])
def test_workflow_has_no_empty_fields_that_the_editor_warns_of(name):
    def empty(value, key=None):
        if value is None:
            yield key
        for inner, x in value.items() if isinstance(value, dict) else ():
            yield from empty(x, inner)
        for x in value if isinstance(value, list) else ():
            yield from empty(x, key)

    assert set(empty(read(name))) <= {"link", "links"}
