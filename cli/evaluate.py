"""Measures the method, and what its parts contribute, on a folder of tasks: results, scores and a page with both.

Each task is blended once for each row: the paper's ablation, the settings of the templates, and fewer steps. What is
there is not made again: after a stop, the same command resumes. Options after -- are passed to the ComfyUI that is
started, such as: -- --lowvram
"""

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from functools import cache, partial
from pathlib import Path
from typing import Annotated

from PIL import Image
from pydantic import Field, TypeAdapter

from . import methods
from .blend import command_parser, split_options
from .datasets import MAKERS, make_tasks
from .errors import BadTable, JobFailed, NotWritable, ServerEnded, ServerGone
from .files import check_writable, write_whole
from .jobs import TEMPLATE, read_table
from .server import Server, comfyui_server
from .tasks import CompleteTask, Evaluated, Made, Task, images_of, read_tasks, spread
from .variants import OTHER_METHODS, ROWS, Variant, change, for_demo
from .work import Work, masks_work, prompt_of, scene_work, work_of

OUTPUT = Path("evaluation")
GIGABYTE = 1e9
NOTES = TypeAdapter(dict[str, Annotated[float, Field(allow_inf_nan=False)]])


def read_options(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Returns the options, and those of ComfyUI."""
    ours, theirs = split_options(arguments)
    parser = command_parser("evaluate", __doc__, Task)
    option = parser.add_argument
    option("--tasks", type=Path, help="folder with a tasks.csv, whose columns are listed below")
    option("--demo", type=int, nargs="?", const=10, metavar="N",
           help="without downloads: the demo model on N drawn tasks, with shorter schedules; default: 10")  # fmt: skip
    option("--make", nargs=2, metavar=("KIND", "FILE"),
           help=f"only write the folder --tasks, from a data set on disk; KIND: {' or '.join(MAKERS)}")  # fmt: skip
    option("--limit", type=int, metavar="N", help="number of tasks, spread evenly over all")
    option("--output", type=Path, default=OUTPUT, help=f"folder of the results; default: {OUTPUT}")
    option("--rows", nargs="*", default=[], help="parts of the rows' names; default: all")
    option("--checkpoint", default="", help="file in models/checkpoints; default: the template's")
    option("--template", default="", help=f"default: {TEMPLATE}")
    option("--clip-vision", default="", help="file in models/clip_vision, for CLIP-I and CLIP-T")
    option("--dino", default="", help="DINOv2's file in models/clip_vision, for DINO")
    option("--clip-text", default="", help="text encoder of the same CLIP in models/text_encoders")
    option("--segsim", action="store_true", help="also SegSim, with the template's Grounding DINO and SAM and --dino")
    option("--url", help="of a ComfyUI that runs already, with this pack; default: one is started")
    options = parser.parse_args(ours)
    faults = {
        f"--make: {' or '.join(MAKERS)}, its JSON file, and --tasks for the folder to be written":
            options.make and (options.make[0] not in MAKERS or not options.tasks),
        "--demo: 1 task or more, which it draws itself; leave out --tasks":
            options.demo is not None and (options.demo < 1 or options.tasks),
        "--limit: 1 task or more": options.limit is not None and options.limit < 1,
        "give --tasks or --demo": not (options.demo or options.tasks),
        "--clip-text needs --clip-vision of the same CLIP": options.clip_text and not options.clip_vision,
        "--segsim needs --dino, or --clip-vision": options.segsim and not (options.dino or options.clip_vision),
        "--rows: there are " + "; ".join(variant.name for variant in (*ROWS, *OTHER_METHODS)): not rows_of(options),
    }  # fmt: skip
    for fault, is_there in faults.items():
        if is_there:
            parser.error(fault)
    return options, theirs


def rows_of(options: argparse.Namespace) -> list[Variant]:
    """Returns the rows of the ablation and of other methods that the options choose."""
    rows = ROWS if options.demo else (*ROWS, *OTHER_METHODS)  # drawn tasks have no files of other methods
    chosen = [x for x in rows if not options.rows or any(part in x.name for part in options.rows)]
    return list(map(for_demo, chosen)) if options.demo else chosen


def tasks_of(options: argparse.Namespace) -> list[Task | JobFailed]:
    """Returns the tasks; instead of one that is not right, what is wrong.

    Raises:
        BadTable: of --tasks.
        NotWritable: the folder --output.
    """
    defaults = dict(checkpoint=options.checkpoint, template=options.template)
    if not options.demo:
        return spread(read_tasks(options.tasks, **defaults), options.limit)
    from .drawn import draw_jobs  # needs torch, which takes seconds to import

    check_writable(options.output)
    return spread(read_table(draw_jobs(options.output / "demo", options.demo), Task, **defaults), options.limit)


# --- Running tasks


def completed(given: Task, folder: Path, server: Callable[[], Server]) -> CompleteTask:
    """Returns the task with its prompt, its scene and its masks, which are made once for all rows.

    Raises:
        JobFailed: one of them could not be made.
    """
    for path in given.references:
        images_of(path)
    fields = dict(given) | {"prompt": given.prompt or prompt_of(given.objects)}
    task = CompleteTask(**fields | {"scene": given.scene or generated_scene(given, folder, server)})
    if not (task.target_masks and task.object_masks):
        prompt, saves, files = masks_work(task)
        mark, count = Path(work_of(task).output).stem, len(task.concepts)
        paths = [folder / "masks" / f"{mark} {k}.png" for k in range(1, len(saves) + 1)]
        if not all(path.exists() for path in paths):
            for path, content in zip(paths, server().images(prompt, saves, files), strict=True):
                write_whole(path, content)
        task = task.model_copy(update={"target_masks": tuple(paths[:count]), "object_masks": tuple(paths[count:])})
    return task


def generated_scene(task: Task, folder: Path, server: Callable[[], Server]) -> Path:
    """Returns the scene that the checkpoint generates for a task, or that it generated in an earlier run.

    Raises:
        JobFailed: ComfyUI could not generate it.
    """
    work = scene_work(task)
    path = folder / "scenes" / work.output
    if not path.exists():
        write_whole(path, image_of(work, server()))
    return path


def image_of(work: Work, server: Server, watch: Callable[[], None] = lambda: None) -> bytes:
    """Returns the one image that a graph saves, as a file's content."""
    (content,) = server.images(work.prompt, [work.save], work.files, work.workflow, watch)
    return content


def make(
    task: CompleteTask, variant: Variant, options: argparse.Namespace, server: Callable[[], Server]
) -> tuple[Made, bool]:
    """Returns the result of one row, with its scores, and whether it was there already.

    Raises:
        JobFailed: ComfyUI could not make or measure it.
    """
    from . import scores  # needs torch, which takes seconds to import

    encoders = scores.Encoders(options.clip_vision, options.dino, options.clip_text, options.segsim)
    if variant.needs:
        work = methods.work_of(task, variant.steps, variant.template, partial(change, variant))
    else:
        own = dict(steps=variant.steps, template=variant.template or task.template)
        work = work_of(task.model_copy(update=own), options.demo is not None, partial(change, variant))
    path = options.output / "pictures" / work.output
    noted = path.with_suffix(".json")
    values = read_notes(noted) if is_image(path) else {}
    there = bool(values)
    if not there:
        held: list[int] = []
        started = time.perf_counter()
        content = image_of(work, server(), lambda: held.append(server().memory() or 0))
        values["seconds"] = time.perf_counter() - started
        if any(held):
            values["memory"] = max(held) / GIGABYTE
        result = scores.read_image(content)
        if not variant.needs:  # the others draw a new scene
            values |= scores.of_background(task, result)
        if options.demo:
            values |= scores.of_drawing(task, result)
        write_whole(path, content)
    if not encoders.measures() <= values.keys():
        there = False
        values |= scores.by_encoders(task, path, encoders, server())
    if not there:
        write_whole(noted, json.dumps(values).encode())
    return Made(path, values), there


def read_notes(path: Path) -> dict[str, float]:
    """Returns what an earlier run measured of a result; nothing where that is missing or damaged."""
    try:
        return NOTES.validate_json(path.read_bytes(), strict=True)
    except (OSError, ValueError):
        return {}


def is_image(path: Path) -> bool:
    """Tells whether Pillow can read a file."""
    try:
        Image.open(path).load()
    except Exception:  # of a damaged file Pillow raises almost anything
        return False
    return True


def evaluate(options: argparse.Namespace, server: Callable[[], Server]) -> list[Evaluated]:
    """Runs every row of every task, with one line for each."""
    tasks, rows, results = tasks_of(options), rows_of(options), []
    total = len(tasks) * len(rows)
    for at, given in enumerate(tasks):
        if isinstance(given, JobFailed):
            results.append(Evaluated(None, {}, {"": str(given)}))
            print(f"[{(at + 1) * len(rows)}/{total}] FAILED: {given}", flush=True)
            continue
        made: dict[str, Made] = {}
        faults: dict[str, str] = {}
        with failures(faults, "", given, f"[{(at + 1) * len(rows)}/{total}]", server):
            given = task = completed(given, options.output, server)
            for number, row in enumerate(rows, at * len(rows) + 1):
                if row.needs and not getattr(task, row.needs):
                    continue
                name = f"{task.name or task.scene.stem}, {row.name}"
                with failures(faults, row.name, task, f"[{number}/{total}]", server, f"{name}: "):
                    made[row.name], there = make(task, row, options, server)
                    took = "is there" if there else f"{made[row.name].scores['seconds']:.1f} s"
                    print(f"[{number}/{total}] {name}: {took}", flush=True)
        results.append(Evaluated(given, made, faults))
    return results


@contextlib.contextmanager
def failures(
    faults: dict[str, str], row: str, task: Task, number: str, server: Callable[[], Server], name: str = ""
) -> Iterator[None]:
    """Notes and prints what fails in the block, and starts a ComfyUI again that ended in it."""
    try:
        yield
    except (JobFailed, ServerEnded, OSError) as error:
        faults[row] = f"{task.where}: {error}"
        print(f"{number} FAILED: {task.where}: {name}{error}", flush=True)
        if isinstance(error, ServerEnded):
            server().restart()


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code: 0 if all is there, 1 if something failed, 2 if nothing can be run."""
    options, comfyui_options = read_options(arguments)
    about = {"date": str(date.today()), "checkpoint": options.checkpoint or "the template's"}
    if options.demo:
        about["checkpoint"] = "the demo model, on drawn tasks"
    try:
        if options.make:
            kind, file = options.make
            print(make_tasks(kind, Path(file), options.tasks, options.limit))
            return 0
        with contextlib.ExitStack() as stack:

            @cache
            def server() -> Server:
                check_writable(options.output)
                started = stack.enter_context(comfyui_server(options.url, comfyui_options))
                about.update(started.about())
                return started

            results = evaluate(options, server)
    except (BadTable, JobFailed, NotWritable, ServerGone) as error:
        print(f"run.py evaluate: {error}", flush=True)
        return 2
    from .report import write_report

    tasks = [x.task for x in results if x.task]
    rows = [row for row in rows_of(options) if not row.needs or any(getattr(task, row.needs) for task in tasks)]
    try:
        path = write_report(options.output, rows, results, about)
    except OSError as error:
        print(f"run.py evaluate: the report cannot be written into {options.output} ({error.strerror})", flush=True)
        return 2
    failed = sum(len(x.faults) for x in results)
    print(f"{sum(len(x.made) for x in results)} results, {failed} failures, in {path}", flush=True)
    return 1 if failed else 0
