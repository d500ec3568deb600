"""What run.py evaluate asks of ComfyUI for the rows of the other methods."""

import asyncio
import shutil
from pathlib import Path

import pytest
from PIL import Image

# isort: off
import packages  # noqa: F401 makes the next ones known
from demo.loras import FOLDER
from cli import graphs, methods
from cli.drawn import draw_jobs
from cli.jobs import read_table
from cli.tasks import CompleteTask
from cli.variants import OTHER_METHODS, change
from cli.work import Work

# isort: on
from comfy_host import Graph

NAMED = {"CheckpointLoaderSimple": ("ckpt_name", "checkpoints"), "LoraLoader": ("lora_name", "loras")}
NAMED |= {"PnPMixConceptLora": ("lora_name", "loras"), "PnPMixLoadConcept": ("file", "concepts")}


def send(work: Work) -> None:
    """Where the graph looks for its pictures."""
    import folder_paths

    for name, sent in work.files.items():
        target = Path(folder_paths.get_input_directory(), "pnp-mix", name)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(sent.encode())


def in_models(name: str) -> str:
    """A LoRA of the demo model, for ComfyUI's own loader."""
    import folder_paths

    file = name.removeprefix("demo model: ")
    target = Path(folder_paths.get_folder_paths("loras")[0], file)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(FOLDER / file, target)
    return file


@pytest.mark.newest
@pytest.mark.parametrize("variant", OTHER_METHODS, ids=lambda x: x.name)
def test_the_graph_of_each_row_is_valid_in_this_comfyui(variant, tmp_path):
    import execution
    import folder_paths

    paths = [tmp_path / f"{k}.png" for k in range(5)]
    for k, path in enumerate(paths):
        Image.new("RGB", (64, 64), (k, 0, 0)).save(path)
    files = dict(loras=("a.safetensors", "b.safetensors"), trained=("c.safetensors", "d.safetensors"))
    job = CompleteTask(scene=paths[0], concepts=paths[1:3], objects=("dog", "cat"), target_masks=paths[3:], **files)
    work = methods.work_of(job, variant.steps, variant.template, lambda prompt: change(variant, prompt))
    send(work)
    for node in work.prompt.values():
        if node["class_type"] in NAMED:
            name, folder = NAMED[node["class_type"]]
            target = Path(folder_paths.get_folder_paths(folder)[0], node["inputs"][name])
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
    valid, error, outputs, node_errors = asyncio.run(execution.validate_prompt("test", work.prompt, None))
    assert valid and len(outputs) == 1, (error, node_errors)


RUN = ("LoRAs merged", "Concept Conductor", "LaTexBlend, binding and regions")


@pytest.mark.newest
@pytest.mark.parametrize("name", RUN)
def test_a_row_gives_a_picture_with_the_demo_model(name, tmp_path):
    """Its own LoRAs and learned concepts, in the fewest steps."""
    (variant,) = (x for x in OTHER_METHODS if x.name == name)
    table = draw_jobs(tmp_path, 1)
    drawn = read_table(table, CompleteTask)[0]
    words = ("cup", "star") if variant.needs == "loras" else ("cup", "fish")
    files = {variant.needs: tuple(f"demo model: {word}.safetensors" for word in words)}
    job = drawn.model_copy(update={"objects": words, "prompt": ", ".join((*words, "meadow")), **files})
    work = methods.work_of(job, 4, variant.template, lambda prompt: change(variant, prompt))
    graphs.for_demo_model(work.prompt)
    few = {"PnPMixLayoutReference": {"steps": 4}, "PnPMixMaskRefinement": {"updates": 1, "restarts": 2}}
    few |= {"EmptyLatentImage": {"width": 64, "height": 64}, "PnPMixConceptLora": {"negative_text": ""}}
    for node in work.prompt.values():
        node["inputs"] |= few.get(node["class_type"], {})
        if node["class_type"] == "CLIPTextEncode" and "blurry" in str(node["inputs"]["text"]):
            node["inputs"]["text"] = ""  # no words of the demo model
        if node["class_type"] == "LoraLoader":
            node["inputs"]["lora_name"] = in_models(node["inputs"]["lora_name"])
    send(work)
    graph = Graph()
    graph.prompt = work.prompt
    picture = graph.run(picture=work.prompt[work.save]["inputs"]["images"])["picture"]
    assert picture.shape == (1, 64, 64, 3) and picture.std() > 0.05
