"""Measures the method, and what its parts contribute, on a folder of tasks: pictures, scores and a page with both.

Each task is blended once for each row: the ablation of the paper, the settings of the templates, and fewer steps. What
is there is not made again: after a stop, the same command goes on where it was. Options behind -- are handed to the
ComfyUI that is started, such as: -- --lowvram
"""

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Sequence
from datetime import date
from functools import cache, partial
from pathlib import Path
from typing import Annotated, NamedTuple

from PIL import Image
from pydantic import Field, TypeAdapter

from . import methods
from .blend import split_options
from .files import NotWritable, check_writable, write_whole
from .jobs import BadTable, Job, JobFailed, Work, masks_work, prompt_of, read_table, scene_work, work_of
from .server import Server, ServerEnded, ServerGone, comfyui_server
from .tasks import MAKERS, make_tasks, pictures_of, read_tasks
from .variants import OTHER_METHODS, ROWS, Variant, change, for_demo

OUTPUT = Path("evaluation")
GIGABYTE = 1e9


class Made(NamedTuple):
    """One picture of one task."""

    path: Path
    scores: dict[str, float]


class Evaluated(NamedTuple):
    """One task; where something failed, `faults` says what, by the row's name, or by "" where nothing could be run."""

    job: Job
    made: dict[str, Made]  # by the row's name
    faults: dict[str, str]


def read_options(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options, and those of ComfyUI."""
    ours, theirs = split_options(arguments)
    parser = argparse.ArgumentParser(
        prog="run.py evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=Path, help="folder with a tasks.csv; see cli/evaluation.md")
    parser.add_argument(
        "--demo", type=int, nargs="?", const=10, metavar="N",
        help="without a download: the demo model on N tasks that are drawn, with shorter schedules; default: 10",
    )  # fmt: skip
    parser.add_argument(
        "--make", nargs=2, metavar=("KIND", "FILE"),
        help=f"only write the folder --tasks, from a data set on this disk; KIND: {' or '.join(MAKERS)}",
    )  # fmt: skip
    parser.add_argument("--limit", type=int, metavar="N", help="of tasks, spread evenly over the data set")
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"folder of all results; default: {OUTPUT}")
    parser.add_argument("--rows", nargs="*", default=[], help="parts of the rows' names; default: all")
    parser.add_argument("--checkpoint", default="", help="file in models/checkpoints; default: the template's")
    parser.add_argument("--template", default="", help="default: the one for as many things")
    parser.add_argument("--clip-vision", default="", help="file in models/clip_vision, for CLIP-I and CLIP-T")
    parser.add_argument("--dino", default="", help="DINOv2's file in models/clip_vision, for DINO")
    parser.add_argument("--clip-text", default="", help="text encoder of the same CLIP in models/text_encoders")
    parser.add_argument(
        "--segsim", action="store_true", help="also SegSim, with the template's Grounding DINO and SAM and --dino"
    )
    parser.add_argument("--url", help="of a ComfyUI that runs already, with this pack; default: one is started")
    options = parser.parse_args(ours)
    if options.make and (options.make[0] not in MAKERS or not options.tasks):
        parser.error(f"--make: {' or '.join(MAKERS)}, its JSON file, and --tasks for the folder to be written")
    if options.demo is not None and (options.demo < 1 or options.tasks):
        parser.error("--demo: 1 task or more, which it draws itself; leave out --tasks")
    if options.limit is not None and options.limit < 1:
        parser.error("--limit: 1 task or more")
    if not (options.demo or options.tasks):
        parser.error("give --tasks or --demo")
    if options.clip_text and not options.clip_vision:
        parser.error("--clip-text needs --clip-vision of the same CLIP")
    if options.segsim and not (options.dino or options.clip_vision):
        parser.error("--segsim needs --dino, or --clip-vision")
    if not rows_of(options):
        parser.error("--rows: there are " + "; ".join(variant.name for variant in (*ROWS, *OTHER_METHODS)))
    return options, theirs


def rows_of(options: argparse.Namespace) -> list[Variant]:
    rows = ROWS if options.demo else (*ROWS, *OTHER_METHODS)  # no file goes with what is drawn
    chosen = [x for x in rows if not options.rows or any(part in x.name for part in options.rows)]
    return list(map(for_demo, chosen)) if options.demo else chosen


def tasks_of(options: argparse.Namespace) -> list[Job | JobFailed]:
    defaults = Job(None, (), (), checkpoint=options.checkpoint, template=options.template)
    if options.demo:
        from .drawn import draw_jobs

        check_writable(options.output)
        tasks = read_table(draw_jobs(options.output / "demo", options.demo), defaults)
    else:
        tasks = read_tasks(options.tasks, defaults)
    if options.limit is not None and options.limit < len(tasks):
        tasks = [tasks[k * len(tasks) // options.limit] for k in range(options.limit)]
    return tasks


def completed(job: Job, folder: Path, server: Callable[[], Server]) -> Job:
    """The job with its prompt, its scene and its masks, which are found once for all rows.

    Raises:
        JobFailed: one of them could not be made.
    """
    job = job._replace(prompt=job.prompt or prompt_of(job.words))
    for path in job.references:
        pictures_of(path)
    if job.scene is None:
        work = scene_work(job)
        job = job._replace(scene=folder / "scenes" / work.output)
        if not job.scene.exists():
            write_whole(job.scene, picture_of(work, server()))
    if not (job.masks and job.object_masks):
        prompt, saves, files = masks_work(job)
        mark = Path(work_of(job).output).stem
        paths = [folder / "masks" / f"{mark} {k}.png" for k in range(1, len(saves) + 1)]
        if not all(path.exists() for path in paths):
            for path, content in zip(paths, server().pictures(prompt, saves, files), strict=True):
                write_whole(path, content)
        count = len(job.things)
        job = job._replace(masks=tuple(paths[:count]), object_masks=tuple(paths[count:]))
    return job


def picture_of(work: Work, server: Server, watch: Callable[[], None] = lambda: None) -> bytes:
    (content,) = server.pictures(work.prompt, [work.save], work.files, work.workflow, watch)
    return content


def make(job: Job, variant: Variant, options: argparse.Namespace, server: Callable[[], Server]) -> tuple[Made, bool]:
    """The picture of one row, with its scores, and whether it was there already.

    Raises:
        JobFailed: ComfyUI could not make or measure it.
    """
    from . import scores  # needs torch, which takes seconds to import

    encoders = scores.Encoders(options.clip_vision, options.dino, options.clip_text, options.segsim)
    own = job._replace(steps=variant.steps, template=variant.template or job.template)
    if variant.needs:
        work = methods.work_of(own, variant.steps, variant.template, partial(change, variant))
    else:
        work = work_of(own, options.demo is not None, partial(change, variant))
    path = options.output / "pictures" / work.output
    noted = path.with_suffix(".json")
    values = read_notes(noted) if is_picture(path) else {}
    there = bool(values)
    if not there:
        held: list[int] = []

        def watch() -> None:
            held.append(server().memory() or 0)

        started = time.perf_counter()
        content = picture_of(work, server(), watch)
        values["seconds"] = time.perf_counter() - started
        if any(held):
            values["memory"] = max(held) / GIGABYTE
        result = scores.read_picture(content)
        if not variant.needs:  # the others draw a new picture
            values |= scores.of_background(job, result)
        if options.demo:
            values |= scores.of_drawing(job, result)
        write_whole(path, content)
    if not encoders.measures() <= values.keys():
        there = False
        values |= scores.by_encoders(job, path, encoders, server())
    if not there:
        write_whole(noted, json.dumps(values).encode())
    return Made(path, values), there


NOTES = TypeAdapter(dict[str, Annotated[float, Field(allow_inf_nan=False)]])


def read_notes(path: Path) -> dict[str, float]:
    """What an earlier run measured of a picture; nothing where that is missing or damaged, so that it is done again."""
    try:
        return NOTES.validate_json(path.read_bytes(), strict=True)
    except (OSError, ValueError):
        return {}


def is_picture(path: Path) -> bool:
    try:
        Image.open(path).load()
    except Exception:  # of a damaged file Pillow raises almost anything
        return False
    return True


def evaluate(options: argparse.Namespace, server: Callable[[], Server]) -> list[Evaluated]:
    """Every row of every task, with one line for each."""
    tasks, rows = tasks_of(options), rows_of(options)
    total, number, results = len(tasks) * len(rows), 0, []
    for task in tasks:
        if isinstance(task, JobFailed):
            number += len(rows)
            results.append(Evaluated(Job(None, (), ()), {}, {"": str(task)}))
            print(f"[{number}/{total}] FAILED: {task}", flush=True)
            continue
        try:
            job = completed(task, options.output, server)
        except (JobFailed, ServerEnded, OSError) as error:
            number += len(rows)
            results.append(Evaluated(task, {}, {"": f"{task.where}: {error}"}))
            print(f"[{number}/{total}] FAILED: {task.where}: {error}", flush=True)
            if isinstance(error, ServerEnded):
                server().restart()
            continue
        results.append(Evaluated(job, {}, {}))
        for row in rows:
            number += 1
            if row.needs and not getattr(job, row.needs):
                continue
            name = f"{job.name or job.scene.stem}, {row.name}"
            try:
                made, there = make(job, row, options, server)
                results[-1].made[row.name] = made
                said = f"{name}: " + ("is there" if there else f"{made.scores['seconds']:.1f} s")
            except (JobFailed, ServerEnded, OSError) as error:
                results[-1].faults[row.name] = f"{task.where}: {error}"
                said = f"FAILED: {task.where}: {name}: {error}"
                if isinstance(error, ServerEnded):
                    server().restart()
            print(f"[{number}/{total}] {said}", flush=True)
    return results


def main(arguments: Sequence[str]) -> int:
    """The exit code: 0 if all is there, 1 if something failed, 2 if nothing can be run."""
    options, comfyui_options = read_options(arguments)
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

            about = {"date": str(date.today()), "checkpoint": options.checkpoint or "the template's"}
            if options.demo:
                about["checkpoint"] = "the demo model, on drawn tasks"
            results = evaluate(options, server)
    except (BadTable, JobFailed, NotWritable, ServerGone) as error:
        print(f"run.py evaluate: {error}", flush=True)
        return 2
    from .report import write_report

    rows = [row for row in rows_of(options) if not row.needs or any(getattr(x.job, row.needs) for x in results)]
    try:
        path = write_report(options.output, rows, results, about)
    except OSError as error:
        print(f"run.py evaluate: the report cannot be written into {options.output} ({error.strerror})", flush=True)
        return 2
    failed = sum(len(x.faults) for x in results)
    print(f"{sum(len(x.made) for x in results)} pictures, {failed} failures, in {path}", flush=True)
    return 1 if failed else 0
