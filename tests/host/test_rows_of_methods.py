"""What run.py evaluate asks of ComfyUI for the rows of the other methods."""

import asyncio
import shutil
from pathlib import Path

import pytest
from PIL import Image

# isort: off
import packages  # noqa: F401 makes the next ones known
from headless import methods
from headless.jobs import Job
from headless.variants import OTHER_METHODS, change
# isort: on

NAMED = {"CheckpointLoaderSimple": ("ckpt_name", "checkpoints"), "LoraLoader": ("lora_name", "loras")}
NAMED |= {"PnPMixConceptLora": ("lora_name", "loras"), "PnPMixLoadConcept": ("file", "concepts")}


@pytest.mark.newest
@pytest.mark.parametrize("variant", OTHER_METHODS, ids=lambda x: x.name)
def test_the_graph_of_each_row_is_valid_in_this_comfyui(variant, tmp_path):
    import execution
    import folder_paths

    paths = [tmp_path / f"{k}.png" for k in range(5)]
    for k, path in enumerate(paths):
        Image.new("RGB", (64, 64), (k, 0, 0)).save(path)
    files = dict(loras=("a.safetensors", "b.safetensors"), learned=("c.safetensors", "d.safetensors"))
    job = Job(paths[0], tuple(paths[1:3]), ("dog", "cat"), masks=tuple(paths[3:]), **files)
    work = methods.work_of(job, variant.steps, variant.template, lambda prompt: change(variant, prompt))
    for name, path in work.files.items():
        target = Path(folder_paths.get_input_directory(), "pnp-mix", name)
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)
    for node in work.prompt.values():
        if node["class_type"] in NAMED:
            name, folder = NAMED[node["class_type"]]
            target = Path(folder_paths.get_folder_paths(folder)[0], node["inputs"][name])
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
    valid, error, outputs, node_errors = asyncio.run(execution.validate_prompt("test", work.prompt, None))
    assert valid and len(outputs) == 1, (error, node_errors)
