"""What is to be blended: one job from options, many from a table, and the graph of each."""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from . import graphs
from .pictures import Sent, frames, is_cut_out, profile_of, safe, sent
from .server import JobFailed

MUST, MAY = ("scene", "things", "words"), ("prompt", "seed", "steps", "checkpoint", "template", "name")
FOR_EACH = ("masks", "object masks", "references")
COLUMNS = (*MUST, *MAY, *FOR_EACH)
OF_METHODS = ("loras", "called", "learned")  # one for each thing, for `evaluate` alone
BETWEEN = "|"  # of several things in a cell; no file's name has it
BY_COUNT = {1: "3 One thing", 2: "4 Two things", 3: "5 Three things"}  # templates
MAX_SEED, MAX_STEPS = 2**64 - 1, 1000


class Job(NamedTuple):
    """Files are paths; `things`, `words` and masks have one for each thing."""

    scene: Path | None  # None: `evaluate` has the checkpoint draw it
    things: tuple[Path, ...]  # pictures of the person's own
    words: tuple[str, ...]  # what each of them replaces in the scene
    prompt: str = ""  # the finished picture in words; "": made of `words`
    seed: int = 0
    steps: int | None = None  # None: as many as the template has
    checkpoint: str = ""  # "": the template's
    template: str = ""  # "": the one for as many things
    name: str = ""  # what the picture's file is called; "": as the scene
    masks: tuple[Path, ...] = ()  # of the things in the scene, white on black; none: found by the words
    object_masks: tuple[Path, ...] = ()  # of the objects in `things`
    references: tuple[Path, ...] = ()  # a picture or folder of each thing that `evaluate` compares with; none: `things`
    where: str = ""  # the job stands, for messages
    loras: tuple[str, ...] = ()  # files in models/loras
    called: tuple[str, ...] = ()  # what the LoRAs were taught to call the things; none: as `words`
    learned: tuple[str, ...] = ()  # files in models/concepts


class Work(NamedTuple):
    """A job as ComfyUI runs it."""

    prompt: dict  # the graph in the server's form
    workflow: dict | None  # the same as the editor saves it; None where it cannot be said so
    files: dict[str, Sent]  # by their names there
    output: str  # name of the picture's file, another one whenever anything else is asked for
    save: str  # id of the node that saves the picture
    profile: bytes | None = None  # ICC profile that the picture is of
    notes: tuple[str, ...] = ()  # what people should know


# --- Reading jobs


class BadTable(Exception):
    """Nothing of it can be run."""


def read_table(
    path: Path, defaults: Job, must: Sequence[str] = MUST, more: Sequence[str] = ()
) -> list[Job | JobFailed]:
    """The jobs of a CSV file; in the place of one that is not right, what is wrong. Paths are relative to the table.

    Args:
        defaults: for the cells that are empty.
        must: columns that have to be there, and filled.
        more: columns that may be there, beside COLUMNS.

    Raises:
        BadTable: it is no table, or its columns are not the right ones.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadTable(f"{path} cannot be read as a table in UTF-8 ({error})") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        rows = list(reader)
    except csv.Error as error:  # such as a quote that is never closed, behind which all rows would be one cell
        raise BadTable(f"{path} cannot be read as a table: line {reader.line_num}: {error}") from error
    header = [name.strip().lower() for name in rows[0]] if rows else []
    missing, unknown = [x for x in must if x not in header], [x for x in header if x not in (*COLUMNS, *more)]
    twice = sorted({name for name in header if header.count(name) > 1})
    if missing or unknown or twice:
        faults = [f"has columns twice: {', '.join(map(repr, twice))}"] * bool(twice)
        faults += [f"lacks the columns: {', '.join(missing)}"] * bool(missing)
        faults += [f"has columns that are not known: {', '.join(map(repr, unknown))}"] * bool(unknown)
        known = f"It may have: {', '.join((*COLUMNS, *more))}, with a comma between two of them."
        raise BadTable(f"{path} {' and '.join(faults)}. {known}")
    jobs: list[Job | JobFailed] = []
    for number, row in enumerate(rows[1:], 2):
        if not any(cell.strip() for cell in row):
            continue
        try:
            if len(row) > len(header):
                raise JobFailed('it has more cells than there are columns; put text with commas in it into "…"')
            cells = dict(zip(header, map(str.strip, row), strict=False))
            jobs.append(job_of(cells, defaults, path.parent, must)._replace(where=f"row {number}"))
        except JobFailed as error:
            jobs.append(JobFailed(f"row {number}: {error}"))
    return jobs


def job_of(cells: dict[str, str], defaults: Job, folder: Path, must: Sequence[str]) -> Job:
    """
    Raises:
        JobFailed: a cell is not right.
    """
    filled = {name: cell for name, cell in cells.items() if cell}
    for name, cell in filled.items():
        if "\0" in cell:
            raise JobFailed(f"the column '{name}' contains the character 0")

    def listed(name: str) -> tuple[str, ...]:
        return tuple(x.strip() for x in filled[name].split(BETWEEN)) if name in filled else ()

    def paths(name: str) -> tuple[Path, ...]:
        return tuple(folder / x for x in listed(name))

    for name in must:
        if name not in filled:
            raise JobFailed(f"the column '{name}' is empty")
    job = defaults._replace(
        scene=folder / filled["scene"] if "scene" in filled else None,
        things=paths("things"),
        words=listed("words"),
        masks=paths("masks"),
        object_masks=paths("object masks"),
        references=paths("references"),
        **{name: listed(name) for name in OF_METHODS},
        **{name: filled[name] for name in ("prompt", "checkpoint", "template", "name") if name in filled},
        **{name: whole_number(name, filled[name]) for name in ("seed", "steps") if name in filled},
    )
    check(job)
    return job


def whole_number(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise JobFailed(f"{name} '{text}' is no whole number") from None


def check(job: Job) -> None:
    """
    Raises:
        JobFailed: numbers of things do not fit, or a number is out of its range.
    """
    if len(job.words) != len(job.things):
        raise JobFailed(f"there are {len(job.things)} things and {len(job.words)} words, not one word for each")
    if not all(job.words):
        raise JobFailed("a word is empty")
    given_for_each = (job.masks, job.object_masks, job.references, job.loras, job.called, job.learned)
    for name, given in zip((*FOR_EACH, *OF_METHODS), given_for_each, strict=True):
        if given and len(given) != len(job.things):
            raise JobFailed(f"there are {len(job.things)} things and {len(given)} {name}, not one for each")
    if len(job.things) not in BY_COUNT:
        raise JobFailed(f"{len(job.things)} things: there are templates for {', '.join(map(str, BY_COUNT))}")
    if not 0 <= job.seed <= MAX_SEED:
        raise JobFailed(f"seed {job.seed} is not from 0 to {MAX_SEED}")
    if job.steps is not None and not 2 <= job.steps <= MAX_STEPS:
        raise JobFailed(f"steps {job.steps} are not from 2 to {MAX_STEPS}")


def in_order(jobs: Sequence[Job]) -> list[Job]:
    """Jobs that share a scene's inversion behind each other; ComfyUI keeps it from one graph to the next."""

    def shared(job: Job) -> tuple:
        return job.checkpoint, job.template, job.scene, job.masks, job.words, job.prompt, job.seed, job.steps

    first: dict[tuple, int] = {}
    for k, job in enumerate(jobs):
        first.setdefault(shared(job), k)
    return sorted(jobs, key=lambda job: first[shared(job)])


# --- From a job to a graph


@cache
def template_text(name: str) -> str:
    return (graphs.TEMPLATES / f"{name}.json").read_text(encoding="utf-8")


def fitting_templates(count: int) -> list[str]:
    """Those with a photo and a picture of each of so many things to fill in."""
    titles = ["Your photo", *(f"Your {x} {k}" for x in ("picture", "thing") for k in range(1, count + 1))]
    titles += ["Blend", "Model files"]
    names = sorted(path.stem for path in graphs.TEMPLATES.glob("*.json"))
    texts = {name: json.loads(template_text(name)) for name in names}
    return [
        name
        for name, workflow in texts.items()
        if all(graphs.titled(workflow, x) for x in titles) and not graphs.titled(workflow, f"Your picture {count + 1}")
    ]


def prompt_of(words: Sequence[str]) -> str:
    """For example "a photo of a dog and an owl"."""
    things = [f"{'an' if word[0].lower() in 'aeiou' else 'a'} {word}" for word in words]
    return "a photo of " + " and ".join([", ".join(things[:-1]), things[-1]] if things[1:] else things)


def work_of(job: Job, demo: bool = False, change: Callable[[dict], None] | None = None) -> Work:
    """The template, filled in.

    Args:
        demo: with the demo model in the place of the checkpoint.
        change: what is to be done to the graph then.

    Raises:
        JobFailed: the template does not fit, a picture is missing or broken, or the demo lacks masks.
    """
    workflow, prompt, files = fill_in(job, demo)
    if change:
        change(prompt)
    (save,) = (node_id for node_id, node in prompt.items() if node["class_type"] == "SaveImage")
    prompt = graphs.needed(prompt, save)
    by_hand = job.masks or job.object_masks or any(map(is_cut_out, job.things))
    as_saved = None if demo or change or by_hand else workflow
    films = [path for path in (job.scene, *job.things) if frames(path) > 1]
    notes = tuple(f"{path} has {frames(path)} pictures; the first one is taken" for path in films)
    output = f"{safe(job.name or job.scene.stem)}-{mark(prompt)}.png"
    return Work(prompt, as_saved, files, output, save, profile_of(job.scene), notes)


def fill_in(job: Job, demo: bool) -> tuple[dict, dict, dict[str, Sent]]:
    """The template as the editor saves it and as the server takes it, and the pictures that it names, as of `Work`."""
    count = len(job.things)
    template = job.template or BY_COUNT[count]
    if template not in fitting_templates(count):
        fit = ", ".join(map(repr, fitting_templates(count)))
        raise JobFailed(f"the template '{template}' is not one for {count} of your things. There are: {fit}")
    if demo and not (job.masks and job.object_masks):
        raise JobFailed("the demo finds nothing by words: give 'masks' and 'object masks' in a table")
    workflow, files, profile = json.loads(template_text(template)), {}, profile_of(job.scene)

    def fill(title: str, **values) -> None:
        for name, value in values.items():
            graphs.set_widget(graphs.titled(workflow, title), name, value)

    fill("Your photo", image=sent(files, job.scene, profile=profile))
    for k, (path, word) in enumerate(zip(job.things, job.words, strict=True), 1):
        fill(f"Your picture {k}", image=sent(files, path, profile=profile))
        fill(f"Your thing {k}", **{"what it replaces": word})
    fill("Blend", prompt=job.prompt or prompt_of(job.words), seed=job.seed)
    if job.checkpoint:
        fill("Model files", checkpoint=job.checkpoint)
    if job.steps is not None:
        for node in graphs.nodes_of(workflow, "PnPMixDDPMInvert"):
            inputs = graphs.widget_values(node)
            skipped = round(job.steps * inputs["skip_steps"] / inputs["steps"])  # the same share of the schedule
            graphs.set_widget(node, "steps", job.steps)
            graphs.set_widget(node, "skip_steps", min(skipped, job.steps - 1))
    prompt = graphs.to_api(workflow)
    for title, masks in ((graphs.IN_SCENE, job.masks), (graphs.IN_PICTURE, job.object_masks)):
        for k, path in enumerate(masks, 1):
            graphs.load_mask(prompt[finder(workflow, prompt, k, title)], sent(files, path, "mask"))
    for k, path in enumerate(job.things, 1):
        if not job.object_masks and is_cut_out(path):
            graphs.load_mask(prompt[finder(workflow, prompt, k, graphs.IN_PICTURE)], sent(files, path, "alpha"))
    if demo:
        graphs.for_demo_model(prompt)
    return workflow, prompt, files


def mark(prompt: dict) -> str:
    """Of a graph, so that a picture's name tells what it was made from."""
    return hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).hexdigest()[:10]


def finder(workflow: dict, prompt: dict, k: int, title: str) -> str:
    """The node of the graph that finds thing k."""
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


def masks_work(job: Job) -> tuple[dict, list[str], dict[str, Sent]]:
    """A graph that finds the things of a job: the nodes that save the masks in the scene, then those in the things'
    pictures, and the pictures to be sent."""
    workflow, prompt, files = fill_in(job, demo=False)
    saves, needed = [], {}
    for title in (graphs.IN_SCENE, graphs.IN_PICTURE):
        for k in range(1, len(job.things) + 1):
            drawn = graphs.add(prompt, "MaskToImage", mask=[finder(workflow, prompt, k, title), 0])
            saves.append(graphs.add(prompt, "SaveImage", images=drawn, filename_prefix="PnP-MIX mask")[0])
            needed |= graphs.needed(prompt, saves[-1])
    return needed, saves, files


def scene_work(job: Job) -> Work:
    """A graph in which the checkpoint draws the scene, from the job's words and seed, in the size of its template."""
    workflow = json.loads(template_text(job.template or BY_COUNT[len(job.things)]))
    loader = graphs.widget_values(graphs.titled(workflow, "Model files"))["checkpoint"]
    (side,) = (x for x in graphs.nodes_of(workflow, "PrimitiveInt") if x["title"] == graphs.SIDE)
    words = job.prompt or prompt_of(job.words)
    prompt: dict = {}
    model, clip, vae = graphs.add(prompt, "CheckpointLoaderSimple", 3, ckpt_name=job.checkpoint or loader)
    said, unwanted = (graphs.add(prompt, "CLIPTextEncode", text=x, clip=clip) for x in (words, "blurry, distorted"))
    size = graphs.widget_values(side)["value"]
    empty = graphs.add(prompt, "EmptyLatentImage", width=size, height=size, batch_size=1)
    sampled = graphs.add(
        prompt, "KSampler", model=model, positive=said, negative=unwanted, latent_image=empty, seed=job.seed, steps=30,
        cfg=7.0, sampler_name="dpmpp_2m", scheduler="karras", denoise=1.0,
    )  # fmt: skip
    picture = graphs.add(prompt, "VAEDecode", samples=sampled, vae=vae)
    save = graphs.add(prompt, "SaveImage", images=picture, filename_prefix="PnP-MIX scene")
    return Work(prompt, None, {}, f"{safe(job.name or 'scene')}-{mark(prompt)}.png", save[0])
