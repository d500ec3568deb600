"""From a job to the graph that ComfyUI runs for it."""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

from . import graphs
from .errors import JobFailed
from .jobs import BY_COUNT, Job, Request
from .pictures import InputFile, add_file, frames, is_cut_out, profile_of, safe


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
def fitting_templates(count: int) -> list[str]:
    """Returns the names of the templates with a scene and so many concept images to fill in."""
    titles = ["Your photo", *(f"Your {x} {k}" for x in ("picture", "thing") for k in range(1, count + 1))]
    titles += ["Blend", "Model files"]

    def fits(workflow: dict) -> bool:
        there = {graphs.title(workflow, node) for node in workflow["nodes"]}
        return there.issuperset(titles) and f"Your picture {count + 1}" not in there

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
    count = len(job.concepts)
    template = job.template or BY_COUNT[count]
    if template not in fitting_templates(count):
        fit = ", ".join(map(repr, fitting_templates(count)))
        raise JobFailed(f"the template '{template}' is not one for {count} concepts. There are: {fit}")
    if demo and not (job.target_masks and job.object_masks):
        raise JobFailed("the demo finds nothing by words: give 'target masks' and 'object masks' in a table")
    workflow, profile = read_template(template), profile_of(job.scene)
    files: dict[str, InputFile] = {}

    def fill(title: str, **values) -> None:
        for name, value in values.items():
            graphs.set_widget(graphs.titled(workflow, title), name, value)

    fill("Your photo", image=add_file(files, job.scene, profile=profile))
    for k, (path, word) in enumerate(zip(job.concepts, job.objects, strict=True), 1):
        fill(f"Your picture {k}", image=add_file(files, path, profile=profile))
        fill(f"Your thing {k}", **{"what it replaces": word})
    fill("Blend", prompt=job.prompt or prompt_of(job.objects), seed=job.seed)
    if job.checkpoint:
        fill("Model files", checkpoint=job.checkpoint)
    if job.steps is not None:
        for node in graphs.nodes_of(workflow, "PnPMixDDPMInvert"):
            inputs = graphs.widget_values(node)
            skipped = round(job.steps * inputs["skip_steps"] / inputs["steps"])  # the same share of the schedule
            graphs.set_widget(node, "steps", job.steps)
            graphs.set_widget(node, "skip_steps", min(skipped, job.steps - 1))
    prompt = graphs.to_api(workflow)
    for title, masks in ((graphs.IN_SCENE, job.target_masks), (graphs.IN_PICTURE, job.object_masks)):
        for k, path in enumerate(masks, 1):
            graphs.load_mask(prompt[finder(workflow, prompt, k, title)], add_file(files, path, "mask"))
    for k, path in enumerate(job.concepts, 1):
        if not job.object_masks and is_cut_out(path):
            graphs.load_mask(prompt[finder(workflow, prompt, k, graphs.IN_PICTURE)], add_file(files, path, "alpha"))
    if demo:
        graphs.for_demo_model(prompt)
    return workflow, prompt, files


def finder(workflow: dict, prompt: dict, k: int, title: str) -> str:
    """Returns the id of the node that finds object k."""
    step, title = ("Blend", f"{title} {k}") if title == graphs.IN_SCENE else (f"Your thing {k}", title)
    inside = f"{graphs.titled(workflow, step)['id']}:"
    (node_id,) = (
        node_id
        for node_id, node in prompt.items()
        if node_id.startswith(inside)
        and node["class_type"] in (*graphs.FINDERS, graphs.MASK_LOADER)
        and node["_meta"]["title"] == title
    )
    return node_id


def masks_work(job: Job) -> tuple[dict, list[str], dict[str, InputFile]]:
    """Returns a graph that finds the objects of a job.

    With it come the ids of the nodes that save the target masks, then the object masks, and the images that it loads.
    """
    workflow, prompt, files = fill_in(job, demo=False)
    saves: list[str] = []
    needed: dict = {}
    for title in (graphs.IN_SCENE, graphs.IN_PICTURE):
        for k in range(1, len(job.concepts) + 1):
            drawn = graphs.add(prompt, "MaskToImage", mask=[finder(workflow, prompt, k, title), 0])
            saves.append(graphs.add(prompt, "SaveImage", images=drawn, filename_prefix="PnP-MIX mask")[0])
            needed |= graphs.needed(prompt, saves[-1])
    return needed, saves, files


def scene_work(job: Request) -> Work:
    """Returns a graph in which the checkpoint generates the scene, from the job's prompt and seed."""
    workflow = read_template(job.template or BY_COUNT[len(job.concepts)])
    (side,) = (x for x in graphs.nodes_of(workflow, "PrimitiveInt") if x["title"] == graphs.SIDE)
    side = graphs.widget_values(side)["value"]
    prompt = graphs.text_to_image(
        job.checkpoint or graphs.widget_values(graphs.titled(workflow, "Model files"))["checkpoint"],
        job.prompt or prompt_of(job.objects),
        dict(width=side, height=side, batch_size=1),
        seed=job.seed, steps=30, cfg=7.0, sampler_name="dpmpp_2m", scheduler="karras",
    )  # fmt: skip
    return finish(prompt, {}, job.name or "scene")
