"""Trains a concept and blends it into new pictures: python -m demo --method latexblend

It is trained from five drawn photos, and blended alone and with others that were trained before.
"""

import argparse
import time
from pathlib import Path

import torch
from pnpmix.latexblend.bank import Features, from_tensors
from torch import Tensor
from tqdm import tqdm

from .concepts import load_concept
from .diffusers_host import DemoModel, load_model
from .learning import LEARNING_RATE, STEPS, BlendSettings, learn, prompt_with, sample_blended, strips
from .model import CHANNELS, GRID, PLACES
from .own_things import LOOKS, PHOTOS, photos
from .pictures import panels, side_by_side, stacked


def read_options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m demo --method latexblend", description=__doc__)
    parser.add_argument("--noun", choices=list(LOOKS), default="cup", help="what is learned; default: %(default)s")
    parser.add_argument("--learned-before", action="store_true", help="learn nothing: take the file in demo/concepts")
    parser.add_argument("--prompt", help="with nouns of concepts; default: the noun in places, alone and with others")
    parser.add_argument("--learning-steps", type=int, default=STEPS, help="default: %(default)s")
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=20, help="of sampling; default: %(default)s")
    parser.add_argument("--cfg", type=float, default=3.0, help="default: %(default)s")
    parser.add_argument("--bind", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--region", type=float, default=0.0, help="share 0..1; concepts keep to strips, left to right")
    parser.add_argument("--scale", type=float, default=0.0, help="of blending guidance; default: %(default)s")
    parser.add_argument("--g1", type=float, default=1.0, help="default: %(default)s")
    parser.add_argument("--g2", type=float, default=1.0, help="default: %(default)s")
    parser.add_argument("--start-percent", type=float, default=0.0, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the pictures; default: %(default)s")
    parser.add_argument("--output", type=Path, default=Path("demo-result"), help="name of the file, without ending")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    options = read_options(arguments)
    model, own = load_model(), photos(options.noun)
    concepts = {noun: from_tensors(load_concept(noun)) for noun in LOOKS}
    if not options.learned_before:
        started = time.perf_counter()
        concepts[options.noun] = learned(model, own, options)
        print(f"learned in {time.perf_counter() - started:.0f} s")
    names = BlendSettings.__dataclass_fields__
    settings = BlendSettings(**{name: getattr(options, name) for name in names})
    rows = [panels([("photos", side_by_side(own))])]
    for texts in texts_of(options.noun, options.prompt):
        noise = torch.randn((PHOTOS, CHANNELS, GRID, GRID), generator=torch.Generator().manual_seed(options.seed))

        def drawn(known: dict[str, Features], texts: list[str] = texts, noise: Tensor = noise) -> Tensor:
            prompts = []
            for text in texts:
                inside = {word: known[word] for word in text.replace(",", " ").split() if word in known}
                masks = strips(list(inside)) if inside and settings.region else None
                prompts.append(prompt_with(model, text, inside, masks))
            return sample_blended(model, prompts, noise, options.steps, options.cfg, settings)

        rows.append(panels([("the plain words: " + "; ".join(texts), side_by_side(drawn({})))]))
        rows.append(panels([("with what was learned", side_by_side(drawn(concepts)))]))
    picture = options.output.with_suffix(".png")
    picture.parent.mkdir(parents=True, exist_ok=True)
    stacked(rows).save(picture)
    print(picture)


def learned(model: DemoModel, own: Tensor, options: argparse.Namespace) -> Features:
    with tqdm(total=options.learning_steps, desc=options.noun, unit="step") as progress:

        def tell(step: int, loss: float) -> bool:
            progress.update()
            progress.set_postfix(loss=f"{loss:.3f}")
            return False

        return learn(
            model, own, options.noun, None, options.learning_steps, options.learning_rate, callback=tell
        ).features


def texts_of(noun: str, prompt: str | None) -> list[list[str]]:
    """Returns for each sheet of PHOTOS pictures its prompts, which have as many phrases."""
    if prompt is not None:
        return [[prompt] * PHOTOS]
    others, places = [x for x in LOOKS if x != noun], list(PLACES)
    return [
        [f"{noun}, {places[k]}" for k in range(PHOTOS)],
        [f"{noun}, {others[k % 2]}, {places[k]}" for k in range(PHOTOS)],
    ]
