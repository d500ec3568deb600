"""The graphs of the pack's other methods for one task, from their templates: what `evaluate` sets PnP-MIX beside."""

import json
from collections.abc import Callable

from PIL import Image

from . import graphs
from .jobs import Job, JobFailed, Work, mark, prompt_of, template_text
from .pictures import Sent, safe, sent

CONDUCTOR, BLENDED = "Conductor 2 Two LoRA concepts from a layout picture", "Learn 4 Blend two, each in its region"
LORA, IN_LAYOUT, IN_ITS_WORDS = "LoRA", "what it is in the layout", "picture in its words"  # widgets of a concept
STRENGTH = 0.7  # of the LoRAs, as Concept LoRA has it


def work_of(job: Job, steps: int, template: str, change: Callable[[dict], None]) -> Work:
    """
    Args:
        job: with its masks.
        template: CONDUCTOR, BLENDED, or "" for the LoRAs merged into the checkpoint and nothing else.
        change: what is to be done to the graph then.

    Raises:
        JobFailed: the template does not fit.
    """
    files: dict[str, Sent] = {}
    prompt = {"": merged, CONDUCTOR: conducted, BLENDED: blended}[template](job, files)
    for node in prompt.values():
        if node["class_type"] in ("PnPMixConductor", "KSampler"):
            node["inputs"]["steps"] = steps
    change(prompt)
    (save,) = (node_id for node_id, node in prompt.items() if node["class_type"] == "SaveImage")
    prompt = graphs.needed(prompt, save)
    return Work(prompt, None, files, f"{safe(job.name or job.scene.stem)}-{mark(prompt)}.png", save)


def read_template(name: str, job: Job) -> dict:
    """
    Raises:
        JobFailed: it is not for as many things, or for pictures of this shape.
    """
    if len(job.things) != 2:
        raise JobFailed(f"the template '{name}' is for two things, not for {len(job.things)}")
    width, height = Image.open(job.scene).size
    if width != height:
        raise JobFailed(f"the scene is {width} x {height} pixels; the template '{name}' takes square ones")
    return json.loads(template_text(name))


def said(job: Job, k: int | None = None) -> str:
    """The task's prompt; of one concept its own, in which all things are that concept, by the name it was taught."""
    if k is None:
        return job.prompt or prompt_of(job.words)
    called = (job.called or job.words)[k]
    text = job.prompt
    for word in job.words:
        text = text.replace(word, called)
    return text or prompt_of([called] * len(job.words))


def conducted(job: Job, files: dict[str, Sent]) -> dict:
    """Concept Conductor: the scene is the layout, and each thing has a LoRA."""
    workflow = read_template(CONDUCTOR, job)
    concepts = [node for node in workflow["nodes"] if any(x["name"] == LORA for x in node["inputs"])]
    for k, node in enumerate(concepts):
        for name, value in ((LORA, job.loras[k]), (IN_LAYOUT, job.words[k]), (IN_ITS_WORDS, said(job, k))):
            graphs.set_widget(node, name, value)
    (layout,) = (node for node in workflow["nodes"] if node["type"] == "LoadImage")
    graphs.set_widget(layout, "image", sent(files, job.scene))
    set_words(workflow, "Conduct", job)
    if job.checkpoint:
        graphs.set_widget(graphs.titled(workflow, "Model files"), "checkpoint", job.checkpoint)
    prompt = graphs.to_api(workflow)
    finders = [node for node in prompt.values() if node["class_type"] in graphs.FINDERS]
    for node, mask in zip(finders, job.masks, strict=True):
        graphs.load_mask(node, sent(files, mask, "mask"))
    return prompt


def blended(job: Job, files: dict[str, Sent]) -> dict:
    """LaTexBlend: a new picture in the layout of the masks, of concepts that were learned."""
    workflow = read_template(BLENDED, job)
    set_words(workflow, "Blend", job)
    prompt = graphs.to_api(workflow)
    concepts = [node for node in prompt.values() if node["class_type"] == "PnPMixLoadConcept"]
    painted = [node_id for node_id, node in prompt.items() if node["class_type"] == "LoadImage"]
    for node, file in zip(concepts, job.learned, strict=True):
        node["inputs"]["file"] = file
    for node_id, mask in zip(painted, job.masks, strict=True):
        graphs.load_mask(prompt[node_id], sent(files, mask, "mask"))
        for node in prompt.values():  # a painted picture's mask is its second output
            node["inputs"] |= {name: [node_id, 0] for name, x in node["inputs"].items() if x == [node_id, 1]}
    for node in prompt.values():
        if node["class_type"] == "CheckpointLoaderSimple" and job.checkpoint:
            node["inputs"]["ckpt_name"] = job.checkpoint
    return prompt


def set_words(workflow: dict, title: str, job: Job) -> None:
    for name, value in (("prompt", said(job)), ("seed", job.seed)):
        graphs.set_widget(graphs.titled(workflow, title), name, value)


def merged(job: Job, files: dict[str, Sent]) -> dict:
    """All LoRAs in the checkpoint at once, and no layout: what people do without a method."""
    workflow = read_template(CONDUCTOR, job)
    loader = job.checkpoint or graphs.widget_values(graphs.titled(workflow, "Model files"))["checkpoint"]
    prompt: dict = {}
    model, clip, vae = graphs.add(prompt, "CheckpointLoaderSimple", 3, ckpt_name=loader)
    for file in job.loras:
        strengths = dict(strength_model=STRENGTH, strength_clip=STRENGTH)
        model, clip = graphs.add(prompt, "LoraLoader", 2, model=model, clip=clip, lora_name=file, **strengths)
    text = said(job)
    for word, called in zip(job.words, job.called or job.words, strict=True):
        text = text.replace(word, called, 1)
    positive, negative = (graphs.add(prompt, "CLIPTextEncode", text=x, clip=clip) for x in (text, "blurry, distorted"))
    (size,) = graphs.nodes_of(workflow, "EmptyLatentImage")
    empty = graphs.add(prompt, "EmptyLatentImage", **graphs.widget_values(size))
    sampled = graphs.add(
        prompt, "KSampler", model=model, positive=positive, negative=negative, latent_image=empty, seed=job.seed,
        steps=200, cfg=7.5, sampler_name="ddim", scheduler="ddim_uniform", denoise=1.0,
    )  # fmt: skip
    decoded = graphs.add(prompt, "VAEDecode", samples=sampled, vae=vae)
    graphs.add(prompt, "SaveImage", images=decoded, filename_prefix="PnP-MIX")
    return prompt
