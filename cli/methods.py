"""The graphs of the pack's other methods for one task, from their templates: what `evaluate` compares PnP-MIX with."""

from collections.abc import Callable

from PIL import Image

from . import graphs
from .errors import JobFailed
from .pictures import InputFile, add_file
from .tasks import CompleteTask
from .work import Work, finish, prompt_of, read_template

CONDUCTOR, BLENDED = "Two LoRAs in one picture", "Blend trained concepts"
LORA, IN_LAYOUT, IN_ITS_WORDS = "LoRA", "what it is in the layout", "picture in its words"  # widgets of a concept
STRENGTH = 0.7  # of the LoRAs, as Concept LoRA has it


def work_of(task: CompleteTask, steps: int, template: str, change: Callable[[dict], None]) -> Work:
    """Returns what ComfyUI runs for a task.

    Args:
        task: with its target masks.
        template: CONDUCTOR, BLENDED, or "" for the LoRAs merged into the checkpoint and nothing else.
        change: what is to be done to the graph then.

    Raises:
        JobFailed: the template is not for as many concepts, or not for scenes of this shape.
    """
    if len(task.concepts) != 2:
        raise JobFailed(f"the template '{template or CONDUCTOR}' is for two concepts, not for {len(task.concepts)}")
    width, height = Image.open(task.scene).size
    if width != height:
        raise JobFailed(
            f"the scene is {width} x {height} pixels; the template '{template or CONDUCTOR}' takes square ones"
        )
    files: dict[str, InputFile] = {}
    prompt = {"": merged, CONDUCTOR: conducted, BLENDED: blended}[template](task, files)
    for node in prompt.values():
        if node["class_type"] in ("PnPMixConductor", "KSampler"):
            node["inputs"]["steps"] = steps
    change(prompt)
    return finish(prompt, files, task.name or task.scene.stem)


def concept_prompt(task: CompleteTask, k: int) -> str:
    """Returns the task's prompt of one concept, in which all objects are that concept, by its trigger words."""
    trigger_words = (task.trigger_words or task.objects)[k]
    text = task.prompt
    for word in task.objects:
        text = text.replace(word, trigger_words)
    return text or prompt_of([trigger_words] * len(task.objects))


def fill_in(workflow: dict, title: str, task: CompleteTask) -> None:
    """Fills the task's prompt and seed into the subgraph with a title."""
    for name, value in (("prompt", task.prompt or prompt_of(task.objects)), ("seed", task.seed)):
        graphs.set_widget(graphs.titled(workflow, title), name, value)


def conducted(task: CompleteTask, files: dict[str, InputFile]) -> dict:
    """Returns Concept Conductor's graph: the scene is the layout, and each concept has a LoRA."""
    workflow = read_template(CONDUCTOR)
    concepts = [node for node in workflow["nodes"] if any(x["name"] == LORA for x in node["inputs"])]
    for k, node in enumerate(concepts):
        for name, value in (
            (LORA, task.loras[k]),
            (IN_LAYOUT, task.objects[k]),
            (IN_ITS_WORDS, concept_prompt(task, k)),
        ):
            graphs.set_widget(node, name, value)
    (layout,) = (node for node in workflow["nodes"] if node["type"] == "LoadImage")
    graphs.set_widget(layout, "image", add_file(files, task.scene))
    fill_in(workflow, "Conduct", task)
    if task.checkpoint:
        graphs.set_widget(graphs.titled(workflow, graphs.FILES), "checkpoint", task.checkpoint)
    prompt = graphs.to_api(workflow)
    finders = [node for node in prompt.values() if node["class_type"] in graphs.FINDERS]
    for node, mask in zip(finders, task.target_masks, strict=True):
        graphs.load_mask(node, add_file(files, mask, "mask"))
    return prompt


def blended(task: CompleteTask, files: dict[str, InputFile]) -> dict:
    """Returns LaTexBlend's graph: a new picture in the layout of the masks, of trained concepts."""
    workflow = read_template(BLENDED)
    fill_in(workflow, "Generate", task)
    prompt = graphs.to_api(workflow)
    concepts = [node for node in prompt.values() if node["class_type"] == "PnPMixLoadConcept"]
    painted = [node_id for node_id, node in prompt.items() if node["class_type"] == "LoadImage"]
    for node, file in zip(concepts, task.trained, strict=True):
        node["inputs"]["file"] = file
    for node_id, mask in zip(painted, task.target_masks, strict=True):
        graphs.load_mask(prompt[node_id], add_file(files, mask, "mask"))
        for node in prompt.values():  # the mask that is painted on an image is its second output
            node["inputs"] |= {name: [node_id, 0] for name, x in node["inputs"].items() if x == [node_id, 1]}
    for node in prompt.values():
        if node["class_type"] == "CheckpointLoaderSimple" and task.checkpoint:
            node["inputs"]["ckpt_name"] = task.checkpoint
    return prompt


def merged(task: CompleteTask, files: dict[str, InputFile]) -> dict:
    """Returns a graph with all LoRAs in the checkpoint at once and no layout: what people do without a method."""
    workflow = read_template(CONDUCTOR)
    text = task.prompt or prompt_of(task.objects)
    for word, trigger_words in zip(task.objects, task.trigger_words or task.objects, strict=True):
        text = text.replace(word, trigger_words, 1)
    (size,) = graphs.nodes_of(workflow, "EmptyLatentImage")
    return graphs.text_to_image(
        task.checkpoint or graphs.widget_values(graphs.titled(workflow, graphs.FILES))["checkpoint"],
        text, graphs.widget_values(size), [(file, STRENGTH) for file in task.loras],
        seed=task.seed, steps=200, cfg=7.5, sampler_name="ddim", scheduler="ddim_uniform",
    )  # fmt: skip
