"""What fewer steps save and cost, measured on the demo model: python -m benchmarks.steps

Prints a table and writes benchmarks/results/steps.json. Another number of steps draws other noise, so that a result
is another variant of the same picture; the distance between two seeds says how much of a distance that explains.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from benchmarks.ablation import FIRST_SEED, draw_case
from demo.diffusers_host import Settings, blend, invert, load_model
from demo.measures import measure
from pnpmix.metrics.statistics import interval
from tqdm import tqdm

RESULTS = Path(__file__).parent / "results" / "steps.json"
FULL = Settings(steps=100, skip_steps=32)
ROWS = {
    "100 / 32": FULL,
    "100 / 32, another seed": Settings(steps=100, skip_steps=32, noise_seed=100, concept_seed=101),
    "50 / 16": Settings(steps=50, skip_steps=16),
    "25 / 8": Settings(steps=25, skip_steps=8),
    "20 / 6": Settings(steps=20, skip_steps=6),
    "10 / 3": Settings(steps=10, skip_steps=3),
}


def run(model, seed: int, settings: Settings) -> tuple[torch.Tensor, torch.Tensor, float, float]:
    """Result (H, W, 3), where its things are (H, W), fidelity, seconds."""
    case = draw_case(seed, 2, overlapping=False)
    prompt, began = case.task.scene.nouns(), time.perf_counter()
    inversion = invert(model, case.scene, prompt, settings)
    inputs = (case.inpainted, case.masks, case.pictures, case.own_masks, prompt, settings)
    result, _ = blend(model, inversion, *inputs)
    return result, case.masks.amax(0) > 0.5, measure(case.task, result).fidelity, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps", description=__doc__)
    parser.add_argument("--scenes", type=int, default=10)
    options = parser.parse_args()
    model, values = load_model(), {row: [] for row in ROWS}
    model.unet.forward = torch.autocast("cpu", torch.bfloat16)(model.unet.forward)
    for seed in tqdm(range(FIRST_SEED, FIRST_SEED + options.scenes), unit="scene"):
        for row, settings in ROWS.items():
            result, inside, alike, seconds = run(model, seed, settings)
            if row == "100 / 32":
                full = result
            values[row].append((float((result - full)[inside].abs().mean() * 255), alike, seconds))

    lines = ["| steps / skip_steps | time | distance from 100 / 32 | fidelity |", "| --- | --- | --- | --- |"]
    whole = sum(seconds for _, _, seconds in values["100 / 32"])
    for row, results in values.items():
        distances, alike, seconds = zip(*results, strict=True)
        cells = ["{:.1f} ± {:.1f}".format(*interval(distances)), "{:.2f} ± {:.2f}".format(*interval(alike))]
        lines.append(f"| {row} | {sum(seconds) / whole:.2f} | " + " | ".join(cells) + " |")
    RESULTS.write_text(json.dumps({"distance in 1/255, fidelity, seconds": values}) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
