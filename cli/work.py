"""From a job to the graph that ComfyUI runs for it."""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

from . import graphs
from .errors import JobFailed
from .jobs import TEMPLATE, Job, Request
from .pictures import InputFile, add_file, decode, frames, is_cut_out, profile_of, safe


class Work(NamedTuple):
    """A job as ComfyUI runs it."""

    prompt: dict  # the graph in API format
    files: dict[str, InputFile]  # the images that it loads, by their names there
    output: str  # name of the result's file, another one whenever anything else is asked for
    save: str  # id of the node that saves the result
    workflow: dict | None = None  # the graph as the editor saves it; None where it cannot be said so
    profile: bytes | None = None  # ICC profile of the result's colors
    notes: tuple[str, ...] = ()  # what people should know


def finish(prompt: dict, files: dict[str, InputFile], name: str, **more) -> Work:
    """Returns the part of a graph that its one Save Image needs, as work."""
    (save,) = (node_id for node_id, node in prompt.items() if node["class_type"] == "SaveImage")
    prompt = graphs.needed(prompt, save)
    mark = hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).hexdigest()[:10]
    return Work(prompt, files, f"{safe(name)}-{mark}.png", save, **more)


@cache
def template_text(name: str) -> str:
    """Returns the file of a template."""
    return (graphs.TEMPLATES / f"{name}.json").read_text(encoding="utf-8")


def read_template(name: str) -> dict:
    """Returns a template as a workflow."""
    return json.loads(template_text(name))


@cache
def fitting_templates() -> list[str]:
    """Returns the names of the templates with a scene and concept images to fill in."""
    titles = {graphs.PHOTO, graphs.SCENE, f"{graphs.PICTURE} 1", f"{graphs.OBJECT} 1", graphs.REPLACE, graphs.FILES}

    def fits(workflow: dict) -> bool:
        return titles.issubset(graphs.title(workflow, node) for node in workflow["nodes"])

    return [name for name in sorted(path.stem for path in graphs.TEMPLATES.glob("*.json")) if fits(read_template(name))]


def prompt_of(objects: Sequence[str]) -> str:
    """Returns a prompt such as "a photo of a dog and an owl"."""
    nouns = [f"{'an' if word[0].lower() in 'aeiou' else 'a'} {word}" for word in objects]
    return "a photo of " + " and ".join([", ".join(nouns[:-1]), nouns[-1]] if nouns[1:] else nouns)


def work_of(job: Job, demo: bool = False, change: Callable[[dict], None] | None = None) -> Work:
    """Returns the template, filled in.

    Args:
        demo: with the demo model instead of the checkpoint.
        change: what is to be done to the graph then.

    Raises:
        JobFailed: the template does not fit, an image is missing or broken, or the demo lacks masks.
    """
    workflow, prompt, files = fill_in(job, demo)
    if change:
        change(prompt)
    has_masks = job.target_masks or job.object_masks or any(map(is_cut_out, job.concepts))
    films = [path for path in (job.scene, *job.concepts) if frames(path) > 1]
    return finish(
        prompt, files, job.name or job.scene.stem,
        workflow=None if demo or change or has_masks else workflow,
        profile=profile_of(job.scene),
        notes=tuple(f"{path} has {frames(path)} frames; the first one is taken" for path in films),
    )  # fmt: skip


def fill_in(job: Job, demo: bool) -> tuple[dict, dict, dict[str, InputFile]]:
    """Returns the template as the editor saves it and as the server takes it, and the images that it loads."""
    template = job.template or TEMPLATE
    if template not in fitting_templates():
        fit = ", ".join(map(repr, fitting_templates()))
        raise JobFailed(f"the template '{template}' has no scene and concept images to fill in. There are: {fit}")
    if demo and not (job.target_masks and job.object_masks):
        raise JobFailed("the demo finds nothing by words: give 'target masks' and 'object masks' in a table")
    workflow, profile = read_template(template), profile_of(job.scene)
    graphs.set_count(workflow, len(job.concepts))
    files: dict[str, InputFile] = {}

    def fill(title: str, **values) -> None:
        for name, value in values.items():
            graphs.set_widget(graphs.titled(workflow, title), name, value)

    fill(graphs.PHOTO, image=add_file(files, job.scene, profile=profile))
    between = graphs.BETWEEN_WORDS["sam3" if graphs.nodes_of(workflow, "SAM3_Detect") else "words"]
    fill(graphs.SCENE, **{"objects to replace": between.join(job.objects)})
    for k, (path, word) in enumerate(zip(job.concepts, job.objects, strict=True), 1):
        fill(f"{graphs.PICTURE} {k}", image=add_file(files, path, profile=profile))
        fill(f"{graphs.OBJECT} {k}", **{"what your picture shows": word})
    fill(graphs.REPLACE, prompt=job.prompt or prompt_of(job.objects), seed=job.seed)
    if job.checkpoint:
        fill(graphs.FILES, checkpoint=job.checkpoint)
    if job.steps is not None:
        (node,) = graphs.nodes_of(workflow, "PnPMixDDPMInvert")
        inputs = graphs.widget_values(node)
        skipped = round(job.steps * inputs["skip_steps"] / inputs["steps"])  # the same share of the schedule
        graphs.set_widget(node, "steps", job.steps)
        fill(graphs.REPLACE, **{"skipped steps": min(skipped, job.steps - 1)})
    prompt = graphs.to_api(workflow)
    if job.target_masks:
        check_shapes(job)
        names = [add_file(files, path, "mask") for path in job.target_masks]
        graphs.load_masks(prompt, finder(workflow, prompt), names)
    for k, path in enumerate(job.concepts, 1):
        if job.object_masks:
            graphs.load_mask(prompt[finder(workflow, prompt, k)], add_file(files, job.object_masks[k - 1], "mask"))
        elif is_cut_out(path):
            graphs.load_mask(prompt[finder(workflow, prompt, k)], add_file(files, path, "alpha"))
    if demo:
        graphs.for_demo_model(prompt)
    return workflow, prompt, files


def check_shapes(job: Job) -> None:
    """Checks that the target masks, which become one batch, have one size."""
    sizes = {decode(path).size for path in job.target_masks}
    if len(sizes) > 1:
        said = " and ".join(f"{width} x {height}" for width, height in sorted(sizes))
        raise JobFailed(f"the target masks have {said} pixels; make them as large as the scene")


def finder(workflow: dict, prompt: dict, k: int | None = None) -> str:
    """Returns the id of the node that finds the object in concept image k, or all objects in the scene."""
    step, title = (graphs.SCENE, graphs.IN_SCENE) if k is None else (f"{graphs.OBJECT} {k}", graphs.IN_PICTURE)
    inside = f"{graphs.titled(workflow, step)['id']}:"
    (node_id,) = (x for x in prompt if x.startswith(inside) and prompt[x]["_meta"]["title"] == title)
    return node_id


def masks_work(job: Job) -> tuple[dict, list[str], dict[str, InputFile]]:
    """Returns a graph that finds the objects of a job.

    With it come the ids of the nodes that save the target masks, then the object masks, and the images that it loads.
    """
    workflow, prompt, files = fill_in(job, demo=False)
    every = graphs.add(prompt, "MaskToImage", mask=[finder(workflow, prompt), 0])
    count = range(len(job.concepts))
    drawn = [graphs.add(prompt, "ImageFromBatch", image=every, batch_index=k, length=1) for k in count]
    drawn += [graphs.add(prompt, "MaskToImage", mask=[finder(workflow, prompt, k + 1), 0]) for k in count]
    saves = [graphs.add(prompt, "SaveImage", images=x, filename_prefix="PnP-MIX mask")[0] for x in drawn]
    needed: dict = {}
    for save in saves:
        needed |= graphs.needed(prompt, save)
    return needed, saves, files


def scene_work(job: Request) -> Work:
    """Returns a graph in which the checkpoint generates the scene, from the job's prompt and seed."""
    workflow = read_template(job.template or TEMPLATE)
    (side,) = (x for x in graphs.nodes_of(workflow, "PrimitiveInt") if x["title"] == graphs.SIDE)
    side = graphs.widget_values(side)["value"]
    prompt = graphs.text_to_image(
        job.checkpoint or graphs.widget_values(graphs.titled(workflow, graphs.FILES))["checkpoint"],
        job.prompt or prompt_of(job.objects),
        dict(width=side, height=side, batch_size=1),
        seed=job.seed, steps=30, cfg=7.0, sampler_name="dpmpp_2m", scheduler="karras",
    )  # fmt: skip
    return finish(prompt, {}, job.name or "scene")
