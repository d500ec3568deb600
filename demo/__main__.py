"""Blends drawn concepts into a drawn scene with the demo model: python -m demo

Writes a picture of every stage and a film of the denoising, and says how well it came out.
"""

import argparse
import time
from dataclasses import fields
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from . import conducting, latexblend
from .diffusers_host import Settings, blend, empty, invert, load_model
from .measures import measure
from .model import FLOW_WEIGHTS, WEIGHTS
from .pictures import draw_masks, panels, save_film, side_by_side
from .scenes import MAX_THINGS, draw_concepts, draw_scene, random_blend

FRAMES = 25  # of the film, at most
# The settings of the templates, measured to be better than the paper's, which are the nodes' own defaults (see
# benchmarks/README.md). Of 50 seeds' pictures this seed's is among the best.
DEFAULTS = Settings(steps=50, skip_steps=16, object_mask=True, adain=True)
SEED = 18
METHODS = ["mixer", "conductor", "latexblend"]
MODELS = {"unet": WEIGHTS, "flow": FLOW_WEIGHTS}


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--method", choices=METHODS, default="mixer", help="the other two have options of their own")
    parser.add_argument("--seed", type=int, default=SEED, help=f"of the scene and the concepts; default: {SEED}")
    parser.add_argument("--concepts", type=int, default=2, help=f"how many, 1 to {MAX_THINGS}; default: 2")
    parser.add_argument("--prompt", help='default: the things and the place, such as "cup, fish, meadow"')
    parser.add_argument("--output", type=Path, default=Path("demo-result"), help="name of the files, without ending")
    parser.add_argument("--model", choices=MODELS, default="unet", help="which of the two; default: unet")
    settings = parser.add_argument_group("inputs of the nodes, by their names")
    for field in fields(Settings):
        default = getattr(DEFAULTS, field.name)
        choices, kind = get_args(field.type) or None, type(default)
        action = {"action": argparse.BooleanOptionalAction} if kind is bool else {"type": kind, "choices": choices}
        name = "--" + field.name.replace("_", "-")
        settings.add_argument(name, default=default, help=f"default: {default}", **action)
    return parser.parse_args()


def mix() -> None:
    """Runs PnP-MIX and writes its pictures."""
    options, started = read_options(), time.perf_counter()
    settings = Settings(**{field.name: getattr(options, field.name) for field in fields(Settings)})
    task = random_blend(options.seed, options.concepts)
    scene, masks = draw_scene(task.scene)
    concepts, own_masks = draw_concepts(task)
    prompt = task.scene.nouns() if options.prompt is None else options.prompt

    estimates: list[Tensor] = []

    def keep(result: Tensor, branches: Tensor) -> None:
        estimates.append(side_by_side(torch.stack([result, *branches])))

    model, inpainted = load_model(MODELS[options.model]), empty(scene, masks)
    inversion = invert(model, scene, prompt, settings)
    result, _ = blend(model, inversion, inpainted, masks, concepts, own_masks, prompt, settings, keep)
    stages = [
        ("scene", scene),
        ("concepts", side_by_side(torch.stack(concepts))),
        ("masks", draw_masks(masks)),
        ("inpainted", inpainted),
        ("result", result),
    ]
    picture, film = (options.output.with_suffix(ending) for ending in (".png", ".gif"))
    picture.parent.mkdir(parents=True, exist_ok=True)
    panels(stages).save(picture)
    every = -(-len(estimates) // FRAMES)
    frames = estimates[:-1:every] + estimates[-1:]
    save_film(film, [panels([("result, then each concept's branch", frame)]) for frame in frames])

    values = measure(task, result)
    print(f"scene: {task.scene.words()}; concepts: {', '.join(c.things[0].words() for c in task.concepts)}")
    print(f"fidelity {values.fidelity:.2f} of 1, leakage {values.leakage:.1%} of the objects' pixels, ", end="")
    print(f"background error {values.background_error:.3f} of 255")
    print(f"{picture} and {film}, {time.perf_counter() - started:.0f} s")


def main() -> None:
    """Runs the method that --method names, which has options of its own."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--method", choices=METHODS, default="mixer")
    chosen, rest = parser.parse_known_args()
    if chosen.method == "mixer":
        mix()
    else:
        {"conductor": conducting, "latexblend": latexblend}[chosen.method].main(rest)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        raise SystemExit(f"python -m demo: {error}") from error
