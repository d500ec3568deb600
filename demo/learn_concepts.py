"""Learns the things of `own_things` from their photos, for demo/concepts: python -m demo.learn_concepts

Photos, seeds and weights are the same on every run.
"""

import argparse
import time
from pathlib import Path

from pnpmix.latexblend.bank import Features, file_bytes, fingerprint

from .concepts import FOLDER
from .diffusers_host import DemoModel, load_model
from .learning import LEARNING_RATE, SEED, STEPS, cross_attentions, learn
from .own_things import LOOKS, photos

FAMILY = "DemoConfig V_PREDICTION"  # as ComfyUI's nodes call the demo model


def concept_file(model: DemoModel, noun: str, features: Features) -> bytes:
    """Returns the file of a concept as Save Concept writes it."""
    first = next(iter(cross_attentions(model.unet).values()))
    settings = {"steps": STEPS, "learning_rate": LEARNING_RATE, "seed": SEED, "rank": 0, "augment": False}
    told = {
        "name": noun,
        "noun": noun,
        "family": FAMILY,
        "checkpoint": "the demo model",
        "fingerprint": fingerprint(first.to_k.weight),
        "settings": {name: str(value) for name, value in settings.items()},
    }
    return file_bytes(features, told)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.learn_concepts", description=__doc__)
    parser.add_argument("--nouns", nargs="+", choices=list(LOOKS), default=list(LOOKS))
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the files go")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    model = load_model()
    for noun in options.nouns:
        started, path = time.perf_counter(), options.folder / f"{noun}.safetensors"
        path.write_bytes(concept_file(model, noun, learn(model, photos(noun), noun).features))
        print(f"{path}: {time.perf_counter() - started:.0f} s, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
