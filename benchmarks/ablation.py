"""What each part of the method contributes, measured on the demo model: python -m benchmarks.ablation

The paper's rows (a) to (e), what the paper leaves open, and inputs beyond it, on the same scenes. Writes
benchmarks/results/ablation.json and prints the table.
"""

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch
from demo import diffusers_host
from demo.diffusers_host import Settings, blend, empty, invert, load_model
from demo.measures import Measures, measure
from demo.scenes import SIZE, Blend, Scene, draw_concepts, draw_scene, random_blend
from pnpmix.masks import grow
from pnpmix.metrics.statistics import interval
from pnpmix.mixer.inversion import Inversion, edit_friendly_trajectory
from torch import Tensor
from tqdm import tqdm

FIRST_SEED = 1000  # scenes that nobody looked at while choosing anything
BASE = Settings(steps=25, skip_steps=8)
RESULTS = Path(__file__).parent / "results" / "ablation.json"
SHARED = "overlap shared evenly"
FULL = "(e) (d) + background dilution++: the defaults"


class Case(NamedTuple):
    """One scene and its concepts."""

    task: Blend
    scene: Tensor  # (H, W, 3)
    masks: Tensor  # (n, H, W) of the scene's things
    pictures: list[Tensor]  # n concepts (H, W, 3)
    own_masks: Tensor  # (n, H, W) of the concepts' things in their pictures
    inpainted: Tensor  # (H, W, 3)


@dataclass(frozen=True)
class Variant:
    """A row of the table: what differs from the defaults."""

    inputs: dict = field(default_factory=dict)  # of the nodes
    applied: Callable = lambda case, inversion: nullcontext(case)  # context manager that gives the case to run
    overlapping: bool = False  # run on scenes whose things overlap, with a mask of all of each thing


def dilution_without_inpainting(**inputs) -> Variant:
    """Returns the variant with the authors' earlier dilution, taken as eq. 3.5 with the scene's own latent."""
    return Variant(inputs, lambda case, inversion: nullcontext(case._replace(inpainted=case.scene)))


def same_noise() -> Variant:
    @contextmanager
    def applied(case: Case, inversion: Inversion) -> Iterator[Case]:
        def with_the_scenes_noise(x0: Tensor, sigmas: Tensor, seed: int, **others) -> Tensor:
            return edit_friendly_trajectory(x0, sigmas, inversion.seed, **others)

        with patch.object(diffusers_host, "edit_friendly_trajectory", with_the_scenes_noise):
            yield case

    return Variant({}, applied)


def grown_masks(pixels: int) -> Variant:
    """Returns the variant whose masks are larger by so many pixels, as Grow Mask before Concept makes them."""
    return Variant({}, lambda case, inversion: nullcontext(case._replace(masks=grow(case.masks, pixels))))


# group → row → inputs that differ from the defaults, or a variant
ROWS: dict[str, dict[str, dict | Variant]] = {
    "The paper's ablation": {
        "no guided appearance": dict(guided=False),
        "(a) key and value replaced, noise mixed": dict(alpha=0.0, mix_reference_noise=False, diluted=False),
        "(b) (a) + guided appearance (alpha 0.15)": dict(mix_reference_noise=False, diluted=False),
        "(c) (b) + earlier dilution (the scene itself, scaled)": dilution_without_inpainting(mix_reference_noise=False),
        "(d) (c) + reference noise mixing": dilution_without_inpainting(),
        FULL: {},
    },
    "What the paper leaves open": {
        "(d) without any dilution": dict(diluted=False),
        "outside blended": dict(outside="blended"),
        "layers decoder": dict(layers="decoder"),
        **{f"alpha {alpha}": dict(alpha=alpha) for alpha in (0.0, 0.3, 0.5)},
        **{f"beta {beta}": dict(beta=beta) for beta in (0.0, 0.4, 1.0)},
        **{f"expand {pixels} pixels of 64": dict(expand=pixels) for pixels in (0, 2, 8)},
        **{f"swap_guidance {scale}": dict(swap_guidance=scale) for scale in (1.0, 2.0, 6.0)},
        **{f"swap_guidance {scale}, cfg 3": dict(swap_guidance=scale, cfg=3.0) for scale in (1.0, 2.0, 3.5, 6.0)},
        "inversion cfg 1": dict(inversion_cfg=1.0),
        **{f"skip {steps} of 25 steps": dict(skip_steps=steps) for steps in (0, 4, 12)},
        "the concepts' noise is the scene's": same_noise(),
        "masks grown by 1 pixel": grown_masks(1),
        **{f"feather {pixels} pixels of 64": dict(feather=pixels) for pixels in (1, 2, 4)},
    },
    "Beyond the paper": {
        "AdaIN towards the concept's object": dict(adain=True),
        "appearance up to 80 % of the steps": dict(end_percent=0.8),
        "appearance from 10 % to 90 %": dict(start_percent=0.1, end_percent=0.9),
        "only the concept's object is read, by the target": dict(object_mask=True),
        "inversion cfg 1 and AdaIN": dict(inversion_cfg=1.0, adain=True),
    },
    "Beyond the paper, where things overlap": {
        SHARED: Variant(overlapping=True),
        "overlap goes to the last concept, which is in front": Variant(dict(overlap="last in front"), overlapping=True),
    },
}


def variants() -> dict[str, tuple[str, dict | Variant]]:
    return {row: (group, variant) for group, rows in ROWS.items() for row, variant in rows.items()}


def draw_case(seed: int, concepts: int, overlapping: bool) -> Case:
    task = random_blend(seed, concepts)
    if overlapping:
        task = task._replace(scene=move_together(task.scene))
    scene, masks = draw_scene(task.scene)
    if overlapping:
        alone = [task.scene._replace(things=(thing,)) for thing in task.scene.things]
        masks = torch.cat([draw_scene(scene)[1] for scene in alone])
    return Case(task, scene, masks, *draw_concepts(task), empty(scene, masks))


def move_together(scene: Scene) -> Scene:
    """Returns the scene with each object over the one before it, nearer to the picture's center."""
    things = list(scene.things)
    for k in range(1, len(things)):
        behind, distance = things[k - 1], 0.65 * (things[k - 1].radius + things[k].radius)
        angle = math.atan2(SIZE / 2 - behind.y, SIZE / 2 - behind.x)
        x, y = behind.x + distance * math.cos(angle), behind.y + distance * math.sin(angle)
        things[k] = things[k]._replace(x=x, y=y)
    return scene._replace(things=tuple(things))


def run_scene(seed: int, concepts: int, rows: list[str]) -> dict[str, Measures]:
    """Measures the given rows on one scene; the UNet runs in bfloat16, everything else in float32."""
    torch.set_num_threads(1)
    model, inversions, results = load_model(), {}, {}
    model.unet.forward = torch.autocast("cpu", torch.bfloat16)(model.unet.forward)
    for row in rows:
        _, variant = variants()[row]
        variant = Variant(variant) if isinstance(variant, dict) else variant
        case, settings = draw_case(seed, concepts, variant.overlapping), replace(BASE, **variant.inputs)
        prompt = case.task.scene.nouns()
        key = (variant.overlapping, settings.skip_steps, settings.inversion_cfg)
        if key not in inversions:
            inversions[key] = invert(model, case.scene, prompt, settings)
        with variant.applied(case, inversions[key]) as changed:
            inputs = (changed.inpainted, changed.masks, changed.pictures, changed.own_masks, prompt, settings)
            result, _ = blend(model, inversions[key], *inputs)
        results[row] = measure(case.task, result)
    return results


def write(path: Path, about: dict, results: list[dict[str, Measures]]) -> None:
    rows = {row: [[round(x, 5) for x in result[row]] for result in results] for row in results[0]}
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"about": about, "measures": Measures._fields, "rows": rows})
    path.write_text(text.replace("]], ", "]],\n") + "\n", encoding="utf-8")


def read(path: Path) -> list[dict[str, Measures]]:
    """Returns what `write` wrote."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    scenes = zip(*rows.values(), strict=True)
    return [dict(zip(rows, (Measures(*values) for values in scene), strict=True)) for scene in scenes]


# measure → its digits in the table, and whether more of it is better
COLUMNS = {
    "fidelity": (2, True),
    "leakage": (3, False),
    "background_error": (2, False),
    "seam_error": (1, False),
    "shape_kept": (2, True),
}


def table(results: list[dict[str, Measures]]) -> str:
    """Returns a table in Markdown: mean ± half a 95 % interval.

    Marked is what is better (▲) or worse (▼) than the group's base on the same scenes by more than the interval of
    the difference; for fidelity this difference has a column.
    """
    names = [name.replace("_", " ") for name in COLUMNS]
    names.insert(1, "Δ fidelity")
    lines = ["| | " + " | ".join(names) + " |", "| --- " * (len(names) + 1) + "|"]
    group = None
    for row in results[0]:
        if variants()[row][0] != group:
            group = variants()[row][0]
            lines.append(f"| **{group}** |" + " |" * len(names))
        base = SHARED if group == variants()[SHARED][0] else FULL
        cells = []
        for name, (digits, more_is_better) in COLUMNS.items():
            values, before = ([getattr(result[which], name) for result in results] for which in (row, base))
            mean, half = interval(values)
            gain, of_gain = interval([ours - theirs for ours, theirs in zip(values, before, strict=True)])
            mark = "" if abs(gain) <= of_gain else " ▲" if (gain > 0) == more_is_better else " ▼"
            cells.append(f"{mean:.{digits}f} ± {half:.{digits}f}{mark}")
            if name == "fidelity":
                cells.append("" if row == base else f"{gain:+.3f} ± {of_gain:.3f}")
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__)
    parser.add_argument("--scenes", type=int, default=50)
    parser.add_argument("--concepts", type=int, default=2)
    parser.add_argument("--rows", nargs="*", help="parts of the rows' names; default: all")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    parts = [FULL, SHARED, *options.rows] if options.rows else [""]
    rows = [row for row in variants() if any(part in row for part in parts)]

    started = time.perf_counter()
    seeds = range(FIRST_SEED, FIRST_SEED + options.scenes)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        runs = pool.map(partial(run_scene, concepts=options.concepts, rows=rows), seeds)
        results = list(tqdm(runs, total=len(seeds), unit="scene"))
    about = dict(
        date=str(date.today()),
        machine=f"CPU, {os.cpu_count()} cores, {platform.machine()}",
        torch=torch.__version__,
        seconds=round(time.perf_counter() - started),
        scenes=list(seeds),
        concepts=options.concepts,
        defaults=asdict(BASE),
    )
    write(options.output, about, results)
    print(table(results))


if __name__ == "__main__":
    main()
