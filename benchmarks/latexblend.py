"""How well learned concepts come out, alone and blended, with the demo model: python -m benchmarks.latexblend

Learns the three things of `demo.own_things`, draws the same prompts with each setting, and measures what is seen.
Stopped and started again it goes on where it was.
"""

import argparse
import json
import math
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.ndimage
import torch
import torch.nn.functional as F
from demo.diffusers_host import load_model
from demo.learning import (
    LEARNING_RATE,
    STEPS,
    BlendSettings,
    Learned,
    Prompt,
    attending,
    embed,
    learn,
    plain_attention,
    prompt_with,
    sample_blended,
    slots_of,
    strips,
)
from demo.measures import color_names, fidelity, leakage
from demo.model import CHANNELS, GRID, parse
from demo.own_things import LOOKS, photographed, photos
from demo.scenes import PLACES, SHAPES, Look, Scene, Thing, draw_scene
from pnpmix.latexblend.training import apply_delta
from torch import Tensor

RESULTS = Path(__file__).parent / "results" / "latexblend.json"
SAMPLING_STEPS, CFG = 8, 3.0
PROMPTS = 10  # for each number of concepts
SATURATED = 6  # colours that no place has are the first of the palette
LEAST_PIXELS, LIKE = 40, 0.6  # of a thing: its area, and its overlap with the shape that it is taken for
GUIDANCE = 0.3  # scale: of 0.3, 1, 3 and 10 the one that harms least, on other noise than is measured
MEASURES, NAIVE = ("fidelity", "leakage", "missing", "place"), "naive sum"
PLAIN = BlendSettings(bind=False, region=0.0)
SETTINGS = {
    "the look told in words": None,
    "identifiers alone": None,
    NAIVE: None,
    "LaTexBlend": PLAIN,
    "LaTexBlend, binding": replace(PLAIN, bind=True),
    "LaTexBlend, g1": replace(PLAIN, scale=GUIDANCE, g2=0.0),
    "LaTexBlend, g2": replace(PLAIN, scale=GUIDANCE, g1=0.0),
    "LaTexBlend, region": replace(PLAIN, region=1.0),
    "LaTexBlend, binding and region": BlendSettings(),
    "LaTexBlend, binding, region, g1 and g2": BlendSettings(scale=GUIDANCE),
}


class Task(NamedTuple):
    nouns: tuple[str, ...]
    place: str
    seed: int

    def text(self) -> str:
        return ", ".join([*self.nouns, self.place])


def tasks(count: int) -> list[Task]:
    """Of so many concepts."""
    rng = np.random.default_rng(count)
    nouns = list(LOOKS)
    chosen = [rng.permutation([*nouns[i % 3 :], *nouns[: i % 3]][:count]) for i in range(PROMPTS)]
    return [Task(tuple(map(str, own)), list(PLACES)[i % 6], 100 * count + i) for i, own in enumerate(chosen)]


def noise_of(own: list[Task]) -> Tensor:
    return torch.stack(
        [torch.randn(CHANNELS, GRID, GRID, generator=torch.Generator().manual_seed(t.seed)) for t in own]
    )


def draw(model, own: list[Task], name: str, learned: dict[str, Learned]) -> Tensor:
    """A picture of each task, (n, 64, 64, 3)."""
    settings = SETTINGS[name]
    sample = partial(sample_blended, model, noise=noise_of(own), steps=SAMPLING_STEPS, cfg=CFG)
    if name == "the look told in words":
        words = [", ".join([*(f"{LOOKS[noun].words()} {noun}" for noun in t.nouns), t.place]) for t in own]
        return sample([Prompt(embed(model, parse(text))) for text in words])
    if settings is None:
        prompts = [Prompt(with_identifiers(model, t, learned)) for t in own]
        if name == "identifiers alone":
            return sample(prompts)
        with summed(model, own, learned):
            return sample(prompts, attends=False)
    prompts = [
        prompt_with(
            model,
            t.text(),
            {noun: learned[noun].features for noun in t.nouns},
            strips(t.nouns) if settings.region else None,
        )
        for t in own
    ]
    return sample(prompts, settings=settings)


def with_identifiers(model, task: Task, learned: dict[str, Learned]) -> Tensor:
    phrases, firsts = slots_of(parse(task.text()), list(task.nouns))
    context = embed(model, phrases)
    for noun, first in zip(task.nouns, firsts, strict=True):
        context[0, first] = learned[noun].identifier
    return context


def summed(model, own: list[Task], learned: dict[str, Learned]):
    """With the learned weights of all of a task's concepts at once, for every word."""

    def changes(layer: str, side: str, context: Tensor) -> Tensor:
        rows = [
            sum(apply_delta(learned[noun].deltas[f"{layer}.{side}"], x) for noun in own[row % len(own)].nouns)
            for row, x in enumerate(context)  # conditional rows, then unconditional ones
        ]
        return torch.stack(rows)

    def attend(layer, attn, query, key, value, context):
        return plain_attention(attn, query, key + changes(layer, "k", context), value + changes(layer, "v", context))

    return attending(model.unet, attend)


# What is seen in a picture


def outline(shape: str) -> Tensor:
    _, masks = draw_scene(Scene("room", 40, (0, 0, 0), (Thing(shape, Look("plain", ("red",)), 32, 32, 15),)))
    return framed(masks[0] >= 0.5)


def framed(mask: Tensor) -> Tensor:
    """(24, 24) of what is inside the mask's bounding box, in its own proportions."""
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    part = mask[int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1].float()
    side = max(part.shape)
    down, across = side - part.shape[0], side - part.shape[1]
    part = F.pad(part, (across // 2, across - across // 2, down // 2, down - down // 2))
    return F.interpolate(part[None, None], (24, 24), mode="area")[0, 0] >= 0.5


def things_seen(picture: Tensor) -> list[tuple[str, float, Tensor]]:
    """Shape, how like it (0..1), and mask of each thing."""
    labels, count = scipy.ndimage.label((color_names(picture) < SATURATED).numpy(), np.ones((3, 3)))
    outlines, seen = {shape: outline(shape) for shape in SHAPES}, []
    for k in range(1, count + 1):
        mask = torch.from_numpy(scipy.ndimage.binary_fill_holes(labels == k))
        if mask.sum() >= LEAST_PIXELS:
            own = framed(mask)
            like = {s: float((own & theirs).sum() / (own | theirs).sum()) for s, theirs in outlines.items()}
            shape = max(like, key=lambda s: like[s])
            seen.append((shape, like[shape], mask))
    return seen


def place_seen(picture: Tensor) -> str:
    free = color_names(picture) >= SATURATED

    def mean(rows: slice) -> Tensor:
        return picture[rows][free[rows]].mean(0) if free[rows].any() else torch.full((3,), 0.5)

    top, ground = mean(slice(0, 12)), mean(slice(54, 64))
    return min(
        PLACES,
        key=lambda p: float((top - torch.tensor(PLACES[p][0])).norm() + (ground - torch.tensor(PLACES[p][2])).norm()),
    )


def measure(task: Task, picture: Tensor) -> dict[str, float]:
    """fidelity 0..1 (0 of what is missing), leakage 0..1 of what is there (or NaN), missing 0..1, place 0 or 1."""
    seen, alike, leaked, missing = things_seen(picture), [], [], 0
    for noun in task.nouns:
        found = [(like, mask) for shape, like, mask in seen if shape == noun and like >= LIKE]
        if not found:
            missing += 1
            alike.append(0.0)
            continue
        _, mask = max(found, key=lambda x: x[0])
        radius = float(mask.sum() / math.pi) ** 0.5
        scene, photo, own_mask = photographed(np.random.default_rng(3), noun, LOOKS[noun])
        thing = Thing(noun, LOOKS[noun], 0, 0, radius)
        alike.append(fidelity(picture, mask.float(), thing, photo, own_mask, scene.things[0]))
        others = [Thing(x, LOOKS[x], 0, 0, 0) for x in task.nouns if x != noun]
        if others:
            leaked.append(leakage(picture, mask.float(), others))
    return {
        "fidelity": sum(alike) / len(alike),
        "leakage": sum(leaked) / len(leaked) if leaked else math.nan,
        "missing": missing / len(task.nouns),
        "place": float(place_seen(picture) == task.place),
    }


def learned_things(model, folder: Path, steps: int, learning_rate: float) -> dict[str, Learned]:
    learned = {}
    for noun in LOOKS:
        file = folder / f"{noun}.pt"
        if not file.exists():
            started = time.process_time()
            own = learn(model, photos(noun), noun, steps=steps, learning_rate=learning_rate)
            torch.save([*own, time.process_time() - started], file)
            print(f"{noun}: {time.process_time() - started:.0f} s", flush=True)
        learned[noun] = Learned(*torch.load(file, weights_only=True)[:4])
    return learned


def interval(values: list[float]) -> tuple[float, float, float]:
    """Mean and its bootstrapped 95 % interval."""
    known = np.array([x for x in values if not math.isnan(x)])
    if len(known) == 0:
        return (math.nan,) * 3
    rng = np.random.default_rng(0)
    means = known[rng.integers(0, len(known), (2000, len(known)))].mean(1)
    return float(known.mean()), *(float(x) for x in np.quantile(means, (0.025, 0.975)))


def cell(values: list[float], sign: str = "") -> str:
    mean, low, high = interval(values)
    return "–" if math.isnan(mean) else f"{mean:{sign}.2f} ({low:{sign}.2f} to {high:{sign}.2f})"


def table(results: dict) -> str:
    """By number of concepts; then of two and three concepts the differences from the naive sum on the same prompts."""
    lines: list[str] = []

    def begin(title: str) -> None:
        lines.extend(["", title, "", "| | " + " | ".join(MEASURES) + " |", "| --- |" + " --- |" * len(MEASURES)])

    for count in ("1", "2", "3"):
        begin(f"{count} concept{'s' * (count != '1')}, {PROMPTS} prompts:")
        for setting, by_count in results.items():
            if count in by_count:
                shown = [cell([row[name] for row in by_count[count]]) for name in MEASURES]
                lines.append(f"| {setting} | " + " | ".join(shown) + " |")
    begin("2 and 3 concepts, less the naive sum on the same prompts:")
    for setting, by_count in results.items():
        pairs = [pair for n in "23" for pair in zip(by_count.get(n, ()), results[NAIVE][n], strict=n in by_count)]
        if setting != NAIVE:
            shown = [cell([ours[name] - theirs[name] for ours, theirs in pairs], "+") for name in MEASURES]
            lines.append(f"| {setting} | " + " | ".join(shown) + " |")
    return "\n".join(lines[1:])


def read(file: Path = RESULTS) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latexblend", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("latexblend-benchmark"), help="what is learned")
    parser.add_argument("--steps", type=int, default=STEPS, help="of learning; default: %(default)s")
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE, help="default: %(default)s")
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS))
    parser.add_argument("--table", type=Path, help="show what such a file has, and nothing else")
    options = parser.parse_args()
    if options.table:
        print(table(read(options.table)))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    model = load_model()
    learned = learned_things(model, options.folder, options.steps, options.learning_rate)
    file = options.folder / "results.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for name in options.settings:
        for count in (1, 2, 3):
            if str(count) in results.get(name, {}):
                continue
            own, started = tasks(count), time.process_time()
            pictures = draw(model, own, name, learned)
            torch.save(pictures, options.folder / f"{name}-{count}.pt")
            results.setdefault(name, {})[str(count)] = [measure(*x) for x in zip(own, pictures, strict=True)]
            file.write_text(json.dumps(results))
            print(f"{name}, {count}: {time.process_time() - started:.0f} s", flush=True)
    results = {name: results[name] for name in SETTINGS if name in results}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
