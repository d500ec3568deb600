"""The pack is there at once, and what is missing or broken takes nothing else with it."""

import subprocess
import sys
from pathlib import Path

import pytest

from comfy_host import COMFYUI, PACK, Graph, refused

# a Python of its own: here the tests have imported everything already
CODE = f"""
import asyncio, logging, os, sys, time
sys.argv = ["main.py", "--cpu", "--base-directory", os.getcwd()]
sys.path.insert(0, {str(COMFYUI)!r})
import comfy.options
comfy.options.enable_args_parsing()
import utils.extra_config  # before nodes, which hides this utils behind another
import nodes
import comfy_api.latest, comfy.samplers, comfy.model_sampling, latent_preview, server  # what ComfyUI has before packs

absent = ["segment_anything", "groundingdino", "supervision", "timm", "matplotlib", "cv2", "pycocotools"]
sys.modules |= dict.fromkeys(absent)
logging.basicConfig(stream=sys.stdout, level=logging.WARNING, force=True)
before, start = set(sys.modules), time.process_time()
assert asyncio.run(nodes.load_custom_node({str(PACK)!r}))
print("seconds", time.process_time() - start)
print("added", *sorted(name for name in set(sys.modules) - before if name.startswith(("transformers", "huggingface"))))
print("nodes", *sorted(name for name in nodes.NODE_CLASS_MAPPINGS if name.startswith("PnPMix")))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict[str, str]:
    """First word of each line of a fresh start without segment-anything → the rest."""
    place = tmp_path_factory.mktemp("fresh")
    for name in ("models", "input", "output", "custom_nodes", "user"):
        (place / name).mkdir()
    result = subprocess.run([sys.executable, "-c", CODE], cwd=place, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return dict(line.partition(" ")[::2] for line in result.stdout.splitlines())


def test_missing_package_takes_only_its_own_nodes_away(told):
    import nodes

    every = {name for name in nodes.NODE_CLASS_MAPPINGS if name.startswith("PnPMix")}
    assert set(told["nodes"].split()) == every - {"PnPMixSamLoader"}
    line = told["WARNING:root:PnP-MIX:"]
    assert "nodes/vision/segmentation.py" in line and "package segment-anything is missing" in line
    assert f'"{sys.executable}" -m pip install segment-anything' in line


def test_the_pack_imports_no_models_when_comfyui_starts(told):
    """Nor any of the packages that are hidden from it here; it once took 6 to 10 seconds."""
    assert told["added"] == ""
    assert float(told["seconds"]) < 2


BROKEN = {  # package, the module of the pack that imports it, folder of the node's files
    "PnPMixSamLoader": ("segment_anything", "segmentation", "sams"),
    "PnPMixGroundingDinoLoader": ("transformers", "dino_weights", "grounding-dino"),
}


@pytest.mark.parametrize("node", BROKEN)
def test_broken_package_is_named_by_the_node_that_needs_it(node, tmp_path, monkeypatch):
    """As when it was made for another numpy, which shows only when it is imported."""
    import folder_paths

    package, library, folder = BROKEN[node]
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("raise AttributeError('_ARRAY_API not found')")
    for name in list(sys.modules):
        if name.split(".")[0] == package or name.endswith(f".pnpmix.vision.{library}"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    file = Path(folder_paths.get_folder_paths(folder)[0]) / "any.pth"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    graph, name = Graph(), package.replace("_", "-")
    with refused(f"package {name} does not load", "_ARRAY_API not found", "pip install", name):
        graph.run(model=graph.add(node, model_name="any.pth"))
    file.unlink()
