"""Shared graphs load: every workflow fits the nodes, and the nodes are those of the contract."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from workflow_files import FOLDER, WORKFLOWS, read, to_api, widget_values

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
    },
    "PnPMixAppearance": {
        "model": ("MODEL", None),
        "alpha": ("FLOAT", 0.15),
        "layers": ("COMBO", "all"),
        "start_percent": ("FLOAT", 0.0),
        "end_percent": ("FLOAT", 1.0),
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
    },
}
OUTPUTS = {
    "PnPMixDDPMInvert": [("PNPMIX_INVERSION", "inversion")],
    "PnPMixSaveInversion": [],
    "PnPMixLoadInversion": [("PNPMIX_INVERSION", "inversion")],
    "PnPMixConcept": [("PNPMIX_CONCEPTS", "concepts")],
    "PnPMixAppearance": [("MODEL", "model")],
    "PnPMixDilution": [("MODEL", "model")],
    "PnPMixSampler": [("LATENT", "latent"), ("LATENT", "references")],
}


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


def test_there_is_a_workflow_for_each_number_of_concepts_and_for_sdxl():
    assert {f"pnp_mix_{number}" for number in ("one_concept", "two_concepts", "three_concepts")} <= set(WORKFLOWS)
    assert "pnp_mix_two_concepts_sdxl" in WORKFLOWS
    assert all((FOLDER / f"{name}.jpg").is_file() for name in WORKFLOWS), "the template browser shows a picture"


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflow_is_valid_in_this_comfyui(name):
    """ComfyUI's own validation, with a file in place of each that the note asks for."""
    import execution
    import folder_paths

    workflow = read(name)
    for node in workflow["nodes"]:
        values = widget_values(node) if node["type"] != "MarkdownNote" else {}
        if "image" in values:
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(
                Path(folder_paths.get_input_directory(), values["image"])
            )
        if "ckpt_name" in values:
            folder = Path(folder_paths.get_folder_paths("checkpoints")[0])
            folder.mkdir(parents=True, exist_ok=True)
            (folder / values["ckpt_name"]).touch()
    valid, error, outputs, node_errors = asyncio.run(execution.validate_prompt("test", to_api(workflow), None))
    assert valid, (error, node_errors)
    assert len(outputs) == 1


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflow_keeps_to_the_contract(name):
    workflow = read(name)
    ours = [node for node in workflow["nodes"] if node["type"].startswith("PnPMix")]
    assert {"PnPMixDDPMInvert", "PnPMixConcept", "PnPMixSampler"} <= {node["type"] for node in ours}
    for node in ours:
        assert [i["name"] for i in node["inputs"]] == list(CONTRACT[node["type"]])
        for key, value in widget_values(node).items():
            if key not in ("name", "seed"):
                assert value == CONTRACT[node["type"]][key][1], "shipped graphs start from the defaults"


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflow_tells_which_file_goes_where_and_ends_with_the_original_pixels(name):
    workflow = read(name)
    by_type = {}
    for node in workflow["nodes"]:
        by_type.setdefault(node["type"], []).append(node)
    (note,) = by_type["MarkdownNote"]
    files = [widget_values(node)["image"] for node in by_type["LoadImage"]]
    files += [widget_values(node)["ckpt_name"] for node in by_type["CheckpointLoaderSimple"]]
    assert all(f"`{file}`" in note["widgets_values"][0] for file in files)

    (save,), (composite,) = by_type["SaveImage"], by_type["ImageCompositeMasked"]
    (link,) = [link for link in workflow["links"] if link[3] == save["id"]]
    assert link[1] == composite["id"]
