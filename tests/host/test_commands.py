"""Every command that a page names runs, in its smallest form.

In this process, without what a command sets up first (environments, ComfyUI): that takes seconds for each. What
`run.py blend` and `run.py evaluate` do is tested in test_blend.py and test_evaluate.py.
"""

import contextlib
import importlib
import inspect
import re
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import pytest
import torch
from benchmarks.unets import LAYOUTS

from comfy_host import PACK
from small_models import CONTEXT, small_clip

pytestmark = pytest.mark.oldest
PAGES = [page for page in PACK.rglob("*.md") if ".venv" not in page.parts and page.name != "CHANGELOG.md"]
TEXT = "\n".join(page.read_text(encoding="utf-8").replace("\\\n", " ") for page in PAGES)
ONE = ["--scenes", "1"]


def few(settings, **others):
    """Settings with the fewest steps."""
    return replace(settings, steps=2, **({"skip_steps": 0} if hasattr(settings, "skip_steps") else {}), **others)


def tiny_ablation(module) -> dict:
    return {"BASE": few(module.BASE), "ProcessPoolExecutor": lambda _: ThreadPoolExecutor(1)}


def tiny_methods(module) -> dict:
    conducted = few(module.CONDUCTED, inversion_steps=2, updates=1, restarts=1)
    return {"LEARNING_STEPS": 1, "DRAWING_STEPS": 1, "EDITED": few(module.EDITED), "CONDUCTED": conducted}


def tiny_train(module) -> dict:
    recipes = {name: recipe._replace(batch=1) for name, recipe in module.RECIPES.items()}
    return {"RECIPES": recipes, "sample": partial(module.sample, steps=1)}


def tiny_still_life(module) -> dict:
    recipe = module.RECIPES["flow"]._replace(stages=(module.Stage(16, 1, 1, 1e-3),))
    in_float32 = partial(module.train, recipe=recipe, dtype=torch.float32)
    return {"SHARD": 1, "train": in_float32, "sample": partial(module.sample, steps=1)}


def tiny_full_size(_) -> dict:
    kind, config = LAYOUTS["small"]
    layouts = LAYOUTS | {"small": (kind, config | {"context_dim": CONTEXT})}

    def measured(run, _) -> dict[str, float]:
        """Once, and not again when it is warm."""
        run()
        return {"seconds": 0.0}

    return {
        "SIZES": {"small": 64}, "random_clip": lambda _: small_clip("SD 1.x"), "measured": measured,
        "benchmarks.unets.LAYOUTS": layouts,
    }  # fmt: skip


# module → options, and what is made small of what has no option
COMMANDS = {
    "demo": (["--steps", "2", "--skip-steps", "0", "--output", "demo"], None),
    "demo.train": (["--model", "flow", "--steps", "1", "--folder", "."], tiny_train),
    "demo.still_life.train": (["--model", "flow", "--scenes", "1", "--folder", "."], tiny_still_life),
    "demo.train_loras": (["--steps", "1", "--shapes", "cup", "--folder", "."], None),
    "demo.learn_concepts": (
        ["--nouns", "cup", "--folder", "."],
        lambda module: {"learn": partial(module.learn, steps=1)},
    ),
    "benchmarks.ablation": ([*ONE, "--rows", "noise is the scene's", "--output", "ablation.json"], tiny_ablation),
    "benchmarks.speed": (["--size", "64", "--concepts", "1", "--steps", "2", "--skip-steps", "0"], None),
    "benchmarks.methods": (
        ["--tasks", "1", "--folder", "learned", "--rows", "PnP-MIX, photos and learned", "Concept Conductor"],
        tiny_methods,
    ),
    "benchmarks.full_size": (["--layout", "small", "--steps", "1", "--learning-steps", "1"], tiny_full_size),
}


def documented() -> set[str]:
    return set(re.findall(r"python3? -m ((?:demo|benchmarks)[.\w]*)", TEXT))


def test_every_command_of_a_page_is_tried_here():
    assert documented() <= COMMANDS.keys()


@pytest.fixture
def run(monkeypatch, tmp_path):
    def run(name: str, arguments: list[str], tiny) -> None:
        module = importlib.import_module("demo.__main__" if name == "demo" else name)
        if hasattr(module, "RESULTS"):
            monkeypatch.setattr(module, "RESULTS", tmp_path / ("x.json" if module.RESULTS.suffix else ""))
        for key, value in (tiny(module) if tiny else {}).items():
            monkeypatch.setattr(*(key,) if "." in key else (module, key), value)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        draws = "set_grad_enabled(False)" in inspect.getsource(module)  # before its main
        with torch.no_grad() if draws else contextlib.nullcontext():
            module.main()

    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("comfy_host.boot", lambda *_: None)  # it is there
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield run
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", COMMANDS)
def test_it_runs(run, name):
    run(name, *COMMANDS[name])


def lines_of_run_py() -> list[list[str]]:
    """Of each `run.py blend` and `run.py evaluate` with options, the options."""
    lines = re.findall(r"^\s*python3 run\.py (?:blend|evaluate) -.*$", TEXT, re.MULTILINE)
    return [shlex.split(line.split("#")[0])[2:] for line in lines]


@pytest.mark.parametrize("command", lines_of_run_py(), ids=" ".join)
def test_run_py_knows_every_option_that_a_page_shows(command):
    kind, *options = command
    importlib.import_module(f"cli.{kind}").read_options(options)
