"""What the choices for transformers are worth, measured on the demo's flow model: python -m benchmarks.flow

On the scenes of the UNet's ablation. Goes on where it was stopped. Writes benchmarks/results/flow.json and prints the
table.
"""

import argparse
import json
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch
from benchmarks.ablation import FIRST_SEED, Case, draw_case
from demo import diffusers_host
from demo.diffusers_host import FlowModel, Settings, blend, invert, load_model
from demo.measures import Measures, measure
from demo.model import FLOW_WEIGHTS
from pnpmix.metrics.statistics import interval
from pnpmix.vision.framing import Frame, bounding_frame, cut_masks, cut_pictures
from torch import Tensor
from tqdm import tqdm

RESULTS = Path(__file__).parent / "results" / "flow.json"
# no negative prompts, which is how models are used that had their guidance distilled into them
SETTINGS = Settings(steps=8, skip_steps=3, object_mask=True, inversion_cfg=1.0)


class Row(NamedTuple):
    """What differs from SETTINGS."""

    inputs: dict = {}
    moved: bool = False  # whether each concept's picture is scaled and moved until its object lies on the target
    whole: bool = False  # whether targets read all of a picture whose keys are turned, which no input asks for
    scenes: int = 50


BASE = "keys turned to the target, only the object read: the defaults"
ROWS = {
    BASE: Row(),
    "no guided appearance": Row(dict(guided=False)),
    "eq. 3.3 as it stands (no object_mask)": Row(dict(object_mask=False)),
    "keys turned, the whole picture read": Row(whole=True),
    "position kept: only the object read, keys not turned": Row(dict(position="kept")),
    "eq. 3.3 on pictures moved and scaled": Row(dict(object_mask=False), moved=True),
    "pictures moved and scaled, only the object read": Row(moved=True),
    "layers decoder": Row(dict(layers="decoder")),
    "AdaIN too": Row(dict(adain=True)),
    "alpha 0": Row(dict(alpha=0.0)),
    "swap_guidance 1": Row(dict(swap_guidance=1.0)),
    "swap_guidance 2": Row(dict(swap_guidance=2.0)),
    "inversion cfg 3": Row(dict(inversion_cfg=3.0)),
    "inversion cfg 3, mixer cfg 3": Row(dict(inversion_cfg=3.0, cfg=3.0), scenes=25),
    "4 steps, skip 1": Row(dict(steps=4, skip_steps=1)),
    "16 steps, skip 5": Row(dict(steps=16, skip_steps=5)),
    "28 steps, skip 9": Row(dict(steps=28, skip_steps=9), scenes=25),
}
COLUMNS = {"fidelity": 2, "leakage": 3, "seam_error": 1, "shape_kept": 2}


def run_scene(model: FlowModel, seed: int, row: Row) -> Measures:
    case, settings = draw_case(seed, 2, overlapping=False), replace(SETTINGS, **row.inputs)
    prompt = case.task.scene.nouns()
    inversion = invert(model, case.scene, prompt, settings)
    pictures, own_masks = moved_to_targets(case) if row.moved else (case.pictures, case.own_masks)
    with reading_everything() if row.whole else nullcontext():
        result, _ = blend(model, inversion, case.inpainted, case.masks, pictures, own_masks, prompt, settings)
    return measure(case.task, result)


def moved_to_targets(case: Case) -> tuple[list[Tensor], Tensor]:
    """The concepts' pictures and masks, so that each object's box has its target's middle and, roughly, size."""
    pictures, masks = [], []
    for target, picture, mask in zip(case.masks, case.pictures, case.own_masks, strict=True):
        (there, own), size = (bounding_frame(target), bounding_frame(mask)), tuple(mask.shape)
        scale = max(own.size) / max(there.size)
        starts = (round(sum(a) / 2 - scale * sum(b) / 2) for a, b in zip(own, there, strict=True))
        frame = Frame(*((start, start + round(scale * side)) for start, side in zip(starts, size, strict=True)))
        pictures.append(cut_pictures(picture[None], frame, size)[0])
        masks.append(cut_masks(mask[None], frame, size)[0])
    return pictures, torch.stack(masks)


def reading_everything() -> AbstractContextManager:
    def attend_to_objects(attend, output: Tensor, *_) -> Tensor:
        return output

    return patch.object(diffusers_host, "attend_to_objects", attend_to_objects)


def table(results: dict[str, dict[str, list[float]]]) -> str:
    """Markdown: mean ± half a 95 % interval, and the difference in fidelity from BASE on the same scenes."""
    names = [name.replace("_", " ") for name in COLUMNS]
    names.insert(1, "Δ fidelity")
    lines = ["| | scenes | " + " | ".join(names) + " |", "| --- " * (len(names) + 2) + "|"]
    for row, by_scene in results.items():
        gains = [x[0] - results[BASE][seed][0] for seed, x in by_scene.items() if seed in results[BASE]]
        cells = [row, str(len(by_scene))]
        for name, digits in COLUMNS.items():
            mean, half = interval([getattr(Measures(*x), name) for x in by_scene.values()])
            cells.append(f"{mean:.{digits}f} ± {half:.{digits}f}")
        cells.insert(3, "" if row == BASE else "{:+.3f} ± {:.3f}".format(*interval(gains)))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flow", description=__doc__)
    parser.add_argument("--scenes", type=int, default=50, help="at most; default: %(default)s")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), help="their names; default: all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    model = load_model(FLOW_WEIGHTS)
    for seed in tqdm(range(FIRST_SEED, FIRST_SEED + options.scenes), unit="scene"):
        for row in options.rows:
            done = results.setdefault(row, {})
            if seed < FIRST_SEED + ROWS[row].scenes and str(seed) not in done:
                done[str(seed)] = [round(x, 5) for x in run_scene(model, seed, ROWS[row])]
        text = json.dumps(results).replace("}, ", "},\n")
        RESULTS.with_suffix(".new").write_text(text + "\n", encoding="utf-8")
        os.replace(RESULTS.with_suffix(".new"), RESULTS)
    print(table({row: results[row] for row in options.rows}))


if __name__ == "__main__":
    main()
