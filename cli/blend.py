"""Blends your own objects into scenes, one or hundreds of them, with the templates, from the command line.

One job from options, or many from a table. A result that is there already is not made again: after a stop the same
command resumes. Options after -- are passed to the ComfyUI that is started, such as: -- --lowvram
"""

import argparse
import contextlib
import re
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path

from .errors import BadTable, JobFailed, NotWritable, ServerEnded, ServerGone
from .files import check_writable, write_whole
from .jobs import TEMPLATE, Job, Request, help_of, job_of, read_table
from .pictures import changed_share, with_profile
from .server import Server, comfyui_server
from .work import work_of

OUTPUT = Path("blends")
WORTH_SAYING = re.compile("Warning|Changed")  # of what the nodes say


def split_options(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the options of the command, and, after --, those of ComfyUI."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return list(arguments[:at]), [x for x in arguments[at:] if x != "--"]


def command_parser(name: str, description: str | None, table: type[Request]) -> argparse.ArgumentParser:
    """Returns the parser of a command, whose help ends with the columns of its table."""
    return argparse.ArgumentParser(
        prog=f"run.py {name}",
        description=description,
        epilog=help_of(table),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def read_options(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Returns the options, and those of ComfyUI."""
    ours, theirs = split_options(arguments)
    parser = command_parser("blend", __doc__, Job)
    option = parser.add_argument
    option("--scene", type=Path, help="your photo")
    option("--concept", action="append", default=[],
           help='up to three times: what it replaces = its image, "dog=my_dog.jpg"')  # fmt: skip
    option("--table", type=Path, help="a CSV file with a job in each row, whose columns are listed below")
    option("--demo", type=int, nargs="?", const=1, metavar="N",
           help="without downloads: the demo model instead of the checkpoint; without a table, on N drawn scenes, "
           "written with concepts, masks and a table into the output folder; default: 1")  # fmt: skip
    option("--output", type=Path, default=OUTPUT, help=f"folder of the results; default: {OUTPUT}")
    option("--prompt", default="", help="prompt of the result; default: made of the objects")
    option("--seed", type=int, default=0, help="default: 0")
    option("--steps", type=int, help="of the whole schedule; default: the template's")
    option("--checkpoint", default="", help="file in models/checkpoints; default: the template's")
    option("--template", default="", help=f"default: {TEMPLATE}")
    option("--url", help="of a ComfyUI that runs already, with this pack; default: one is started")
    options = parser.parse_args(ours)
    if options.table and (options.scene or options.concept):
        parser.error("--table has the scenes and concepts; leave out --scene and --concept")
    if options.demo is not None and options.demo < 1:
        parser.error("--demo: 1 scene or more")
    if not (options.table or options.demo or (options.scene and options.concept)):
        parser.error("give --scene and --concept, or --table, or --demo")
    if options.demo and (options.scene or options.concept):
        parser.error("--demo finds nothing by words: give its scenes in a --table, with masks, or let it draw them")
    return options, theirs


def jobs_of(options: argparse.Namespace) -> list[Job | JobFailed]:
    """Returns the jobs; instead of one of a table that is not right, what is wrong.

    Raises:
        BadTable: of --table.
        JobFailed: of --concept and the like.
    """
    defaults = {name: getattr(options, name) for name in ("prompt", "seed", "steps", "checkpoint", "template")}
    if options.table:
        return read_table(options.table, Job, **defaults)
    if options.demo:
        from .drawn import draw_jobs  # needs torch, which takes seconds to import

        check_writable(options.output)
        return read_table(draw_jobs(options.output / "demo", options.demo), Job, **defaults)
    pairs = [[part.strip() for part in concept.partition("=")] for concept in options.concept]
    for (word, _, file), concept in zip(pairs, options.concept, strict=True):
        if not (word and file):
            raise JobFailed(f'--concept "{concept}": write what it replaces = its image, such as "dog=my_dog.jpg"')
    words, _, files = zip(*pairs, strict=True)
    return [job_of({**defaults, "scene": options.scene, "objects": words, "concepts": files}, Job, Path())]


def in_order(jobs: Sequence[Job]) -> list[Job]:
    """Returns the jobs with those that share a scene's inversion one after another: ComfyUI caches it."""

    def shared(job: Job) -> tuple:
        return job.checkpoint, job.template, job.scene, job.target_masks, job.objects, job.prompt, job.seed, job.steps

    first: dict[tuple, int] = {}
    for k, job in enumerate(jobs):
        first.setdefault(shared(job), k)
    return sorted(jobs, key=lambda job: first[shared(job)])


def run_jobs(jobs: Iterable[Job | JobFailed], folder: Path, server: Callable[[], Server], demo: bool) -> bool:
    """Runs what is not there yet, with one line for each job; returns whether all came out.

    Args:
        server: starts it, if it is needed, the first time.

    Raises:
        ServerGone: it does not answer, or cannot be started.
    """
    wrong = [job for job in jobs if isinstance(job, JobFailed)]
    right = in_order([job for job in jobs if isinstance(job, Job)])
    ordered: list[Job | JobFailed] = [*wrong, *right]
    made, there, failed = 0, 0, 0
    for number, job in enumerate(ordered, 1):
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
                (result,) = server().images(work.prompt, [work.save], work.files, work.workflow)
                write_whole(path, with_profile(result, work.profile))
                made += 1
                said = f"{path}, {time.perf_counter() - started:.1f} s"
                messages = [text for text in server().messages if WORTH_SAYING.search(text)]
                if changed_share(job.scene, result) > 0.5:
                    messages.append(
                        "Warning: more than half of the scene changed; in a mask white marks what is replaced"
                    )
                said = "; ".join([said, *work.notes, *(text.rstrip(".") for text in messages)])
        except (JobFailed, ServerEnded, OSError) as error:
            failed += 1
            where = f"{job.where}: " if isinstance(job, Job) and job.where else ""
            said = f"FAILED: {where}{error}"
            if isinstance(error, ServerEnded):
                server().restart()
        print(f"[{number}/{len(ordered)}] {said}", flush=True)
    print(f"{made} made, {there} there already, {failed} failed, in {folder}", flush=True)
    return failed == 0


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code: 0 if every result is there, 1 if a job failed, 2 if nothing can be run."""
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
