"""What the choices for transformers are worth, measured on the demo's flow model: python -m benchmarks.flow

Prints a table and writes benchmarks/results/flow.json. The scenes are those of the UNet's ablation.
"""

import argparse
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch
from benchmarks.ablation import FIRST_SEED, draw_case, interval, read, write
from demo.diffusers_host import Settings, blend, invert, load_model
from demo.measures import Measures, measure
from demo.model import FLOW_WEIGHTS
from tqdm import tqdm

RESULTS = Path(__file__).parent / "results" / "flow.json"
BASE = Settings(steps=16, skip_steps=5, object_mask=True, inversion_cfg=1.0)
ROWS = {
    "keys turned to the target, only the object read: the default": {},
    "no guided appearance": dict(guided=False),
    "eq. 3.3 as it stands (no object_mask)": dict(object_mask=False),
    "only the object read, keys not turned": dict(position="kept"),
    "layers decoder (second half of the blocks)": dict(layers="decoder"),
    "AdaIN too": dict(adain=True),
    "swap_guidance 1": dict(swap_guidance=1.0),
    "8 steps, skip 3": dict(steps=8, skip_steps=3),
    "28 steps, skip 9": dict(steps=28, skip_steps=9),
}


def run_scene(model, seed: int, rows: list[str]) -> dict[str, Measures]:
    case, results = draw_case(seed, 2, overlapping=False), {}
    prompt = case.task.scene.nouns()
    inversions: dict[tuple, object] = {}
    for row in rows:
        settings = replace(BASE, **ROWS[row])
        key = (settings.steps, settings.skip_steps)
        if key not in inversions:
            inversions[key] = invert(model, case.scene, prompt, settings)
        inputs = (case.inpainted, case.masks, case.pictures, case.own_masks, prompt, settings)
        results[row] = measure(case.task, blend(model, inversions[key], *inputs)[0])
    return results


def table(results: list[dict[str, Measures]]) -> str:
    lines = ["| | fidelity | leakage | shape kept |", "| --- | --- | --- | --- |"]
    for row in results[0]:
        measures = [result[row] for result in results]
        cells = [interval([getattr(x, name) for x in measures]) for name in ("fidelity", "leakage", "shape_kept")]
        lines.append(f"| {row} | " + " | ".join(f"{mean:.3f} ± {half:.3f}" for mean, half in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flow", description=__doc__)
    parser.add_argument("--scenes", type=int, default=50)
    parser.add_argument("--rows", nargs="*", help="parts of the rows' names; default: all")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for row in ROWS if not options.rows or any(part in row for part in options.rows)]
    model, results = load_model(FLOW_WEIGHTS), []
    about = dict(date=str(date.today()), torch=torch.__version__, concepts=2)
    for seed in tqdm(range(FIRST_SEED, FIRST_SEED + options.scenes), unit="scene"):
        results.append(run_scene(model, seed, rows))
        write(options.output, about | {"scenes": list(range(FIRST_SEED, seed + 1))}, results)  # stopped, it is kept
    print(table(read(options.output)))


if __name__ == "__main__":
    main()
