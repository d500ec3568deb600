"""Learns a concept from five drawn photos, and puts it into new pictures: python -m demo --method latexblend"""

import argparse
import time
from pathlib import Path

import torch

from .diffusers_host import load_model
from .learning import BlendSettings, learn, prompt_with, sample_blended
from .model import CHANNELS, GRID, PLACES
from .own_things import LOOKS, photos
from .pictures import panels, side_by_side, stacked

PICTURES = 3


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m demo --method latexblend", description=__doc__)
    parser.add_argument("--noun", choices=list(LOOKS), default="cup", help="what is learned; default: %(default)s")
    parser.add_argument("--prompt", help="with the noun; default: the noun in three places")
    parser.add_argument("--learning-steps", type=int, default=300, help="default: %(default)s")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=20, help="of sampling; default: %(default)s")
    parser.add_argument("--bind", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seed", type=int, default=0, help="of the pictures; default: %(default)s")
    parser.add_argument("--output", type=Path, default=Path("demo-result"), help="name of the file, without ending")
    options = parser.parse_args(arguments)

    model, own, started = load_model(), photos(options.noun), time.perf_counter()
    texts = [options.prompt or f"{options.noun}, {place}" for place in list(PLACES)[:PICTURES]]
    learned = learn(model, own, options.noun, steps=options.learning_steps, learning_rate=options.learning_rate)
    seconds = time.perf_counter() - started
    noise = torch.randn((PICTURES, CHANNELS, GRID, GRID), generator=torch.Generator().manual_seed(options.seed))

    def drawn(features: dict) -> torch.Tensor:
        prompts = [prompt_with(model, text, {options.noun: features} if features else {}) for text in texts]
        return sample_blended(model, prompts, noise, options.steps, settings=BlendSettings(bind=options.bind))

    rows = [
        panels([("photos", side_by_side(own[:PICTURES]))]),
        panels([("the plain words: " + "; ".join(texts), side_by_side(drawn({})))]),
        panels([("with what was learned", side_by_side(drawn(learned.features)))]),
    ]
    picture = options.output.with_suffix(".png")
    picture.parent.mkdir(parents=True, exist_ok=True)
    stacked(rows).save(picture)
    print(f"learned in {seconds:.0f} s; {picture}")
