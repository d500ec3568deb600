"""Blends your own things into scenes, one or hundreds of them, with the templates and without the editor.

One job from options, or many from a table. A picture that is there already is not made again: after a stop the same
command goes on where it was. Options behind -- are handed to the ComfyUI that is started, such as: -- --lowvram
"""

import argparse
import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path

from .jobs import BadTable, Job, JobFailed, Work, check, checkpoints_of, in_order, read_table, work_of
from .server import Server, ServerEnded, ServerGone, comfyui_server

OUTPUT = Path("blends")


def read_options(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options, and those of ComfyUI."""
    ours, theirs = list(arguments), []
    if "--" in ours:
        at = ours.index("--")
        ours, theirs = ours[:at], [x for x in ours[at + 1 :] if x != "--"]
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
    parser.add_argument("--table", type=Path, help="a CSV file with a job in each row; see headless/README.md")
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
    if options.url and theirs:
        parser.error("--url: the options behind -- are for a ComfyUI that is started")
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


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that is never seen half; of two programs that write the same, one wins.

    Raises:
        OSError: the disk is full, or the folder cannot be written to. Nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(part, 0o666 & ~file_mask())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise


def file_mask() -> int:
    """Of this process: what new files do not allow. It can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def run_work(work: Work, server: Server) -> bytes:
    """The finished picture.

    Raises:
        JobFailed: a file is not there, or ComfyUI could not run the graph.
        ServerGone: it does not answer.
    """
    for file in checkpoints_of(work):
        known = server.choices("CheckpointLoaderSimple", "ckpt_name")
        if file not in known:
            there = "There are: " + ", ".join(known) if known else "There is none"
            raise JobFailed(f"the checkpoint '{file}' is not in ComfyUI's models/checkpoints. {there}")
    for name, path in work.files.items():
        server.send(name, path)
    saved = server.run(work.prompt, work.workflow)[work.save]["images"][0]
    content = server.fetch(saved)
    server.forget(saved)
    return content


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
            if path.exists():
                there += 1
                said = f"{path} is there"
            else:
                write_whole(path, run_work(work, server()))
                made += 1
                said = f"{path}, {time.perf_counter() - started:.1f} s"
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
            return stack.enter_context(comfyui_server(options.url, comfyui_options))

        try:
            came_out = run_jobs(jobs_of(options), options.output, server, options.demo is not None)
        except (BadTable, JobFailed, ServerGone) as error:
            print(f"run.py blend: {error}", flush=True)
            return 2
    return 0 if came_out else 1
