"""Blends your own things into scenes, one or hundreds of them, with the templates and without the editor.

One job from options, or many from a table. A picture that is there already is not made again: after a stop the same
command goes on where it was. Options behind -- are handed to the ComfyUI that is started, such as: -- --lowvram
"""

import argparse
import contextlib
import re
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path

from .files import NotWritable, check_writable, write_whole
from .jobs import BadTable, Job, JobFailed, check, in_order, read_table, work_of
from .pictures import changed_share, with_profile
from .server import Server, ServerEnded, ServerGone, comfyui_server

OUTPUT = Path("blends")
WORTH_SAYING = re.compile("Warning|Changed")  # of what the nodes say


def split_options(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those of the command, and, behind --, those of ComfyUI."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return list(arguments[:at]), [x for x in arguments[at:] if x != "--"]


def read_options(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options, and those of ComfyUI."""
    ours, theirs = split_options(arguments)
    parser = argparse.ArgumentParser(
        prog="run.py blend", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scene", type=Path, help="your photo")
    parser.add_argument(
        "--thing",
        action="append",
        default=[],
        help='up to three times: what it replaces = its picture, "dog=my_dog.jpg"',
    )
    parser.add_argument("--table", type=Path, help="a CSV file with a job in each row; see cli/README.md")
    parser.add_argument(
        "--demo", type=int, nargs="?", const=1, metavar="N",
        help="without a download: the demo model in the place of the checkpoint; without a table, on N scenes that "
        "are drawn, with their things, masks and a table, into the output folder; default: 1",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"folder of the pictures; default: {OUTPUT}")
    parser.add_argument("--prompt", default="", help="the finished picture in words; default: from the things' words")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--steps", type=int, help="of the whole schedule; default: the template's")
    parser.add_argument("--checkpoint", default="", help="file in models/checkpoints; default: the template's")
    parser.add_argument("--template", default="", help="default: the one for as many things")
    parser.add_argument("--url", help="of a ComfyUI that runs already, with this pack; default: one is started")
    options = parser.parse_args(ours)
    if options.table and (options.scene or options.thing):
        parser.error("--table has the scenes and things; leave out --scene and --thing")
    if options.demo is not None and options.demo < 1:
        parser.error("--demo: 1 scene or more")
    if not (options.table or options.demo or (options.scene and options.thing)):
        parser.error("give --scene and --thing, or --table, or --demo")
    if options.demo and (options.scene or options.thing):
        parser.error("--demo finds nothing by words: give its scenes in a --table, with masks, or let it draw them")
    return options, theirs


def jobs_of(options: argparse.Namespace) -> list[Job | JobFailed]:
    """
    Raises:
        BadTable: of --table.
        JobFailed: of --thing and the like.
    """
    given = {name: getattr(options, name) for name in ("prompt", "seed", "steps", "checkpoint", "template")}
    defaults = Job(Path(), (), (), **given)
    if options.table:
        return read_table(options.table, defaults)
    if options.demo:
        from .drawn import draw_jobs  # needs torch, which takes seconds to import

        check_writable(options.output)
        return read_table(draw_jobs(options.output / "demo", options.demo), defaults)
    pairs = [thing.partition("=") for thing in options.thing]
    for (word, _, file), thing in zip(pairs, options.thing, strict=True):
        if not (word.strip() and file.strip()):
            raise JobFailed(f'--thing "{thing}": write what it replaces = its picture, such as "dog=my_dog.jpg"')
    job = defaults._replace(
        scene=options.scene,
        words=tuple(word.strip() for word, _, _ in pairs),
        things=tuple(Path(file.strip()) for _, _, file in pairs),
    )
    check(job)
    return [job]


def run_jobs(jobs: Iterable[Job | JobFailed], folder: Path, server: Callable[[], Server], demo: bool) -> bool:
    """Runs what is not there yet, with one line for each job; whether all came out.

    Args:
        server: starts it, if it is needed, the first time.

    Raises:
        ServerGone: it does not answer, or cannot be started.
    """
    wrong = [job for job in jobs if isinstance(job, JobFailed)]
    right = in_order([job for job in jobs if isinstance(job, Job)])
    total, made, there, failed = len(wrong) + len(right), 0, 0, 0
    for number, job in enumerate([*wrong, *right], 1):
        started = time.perf_counter()
        try:
            if isinstance(job, JobFailed):
                raise job
            work = work_of(job, demo)
            path = folder / work.output
            if path.is_file():
                there += 1
                said = f"{path} is there"
            else:
                (picture,) = server().pictures(work.prompt, [work.save], work.files, work.workflow)
                write_whole(path, with_profile(picture, work.profile))
                made += 1
                said = f"{path}, {time.perf_counter() - started:.1f} s"
                told = [text for text in server().told if WORTH_SAYING.search(text)]
                if changed_share(job.scene, picture) > 0.5:
                    told.append("Warning: more than half of the scene changed; in a mask white marks what is replaced")
                said = "; ".join([said, *work.notes, *(text.rstrip(".") for text in told)])
        except (JobFailed, ServerEnded, OSError) as error:
            failed += 1
            where = f"{job.where}: " if isinstance(job, Job) and job.where else ""
            said = f"FAILED: {where}{error}"
            if isinstance(error, ServerEnded):
                server().restart()
        print(f"[{number}/{total}] {said}", flush=True)
    print(f"{made} made, {there} there already, {failed} failed, in {folder}", flush=True)
    return failed == 0


def main(arguments: Sequence[str]) -> int:
    """The exit code: 0 if every picture is there, 1 if a job failed, 2 if nothing can be run."""
    options, comfyui_options = read_options(arguments)
    with contextlib.ExitStack() as stack:

        @cache
        def server() -> Server:
            check_writable(options.output)
            return stack.enter_context(comfyui_server(options.url, comfyui_options))

        try:
            came_out = run_jobs(jobs_of(options), options.output, server, options.demo is not None)
        except (BadTable, JobFailed, NotWritable, ServerGone) as error:
            print(f"run.py blend: {error}", flush=True)
            return 2
    return 0 if came_out else 1
