"""What few steps cost, and what helps there, measured on the demo model: python -m benchmarks.few_steps

With --few-steps-lora on the model that demo/distil.py taught to need few steps. Goes on where it was stopped. Writes
benchmarks/results/few-steps-<model>-<concepts>.json and prints the table.
"""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

import torch
from benchmarks.ablation import FIRST_SEED, draw_case
from demo.diffusers_host import DemoModel, Settings, blend, invert, load_model
from demo.lora import FEW_STEPS
from demo.measures import Measures, measure
from pnpmix.metrics.statistics import interval
from tqdm import tqdm

RESULTS = Path(__file__).parent / "results"
TEMPLATES = Settings(object_mask=True, adain=True, inversion_cfg=1.0)
FEW = replace(TEMPLATES, steps=4, skip_steps=1, scheduler="sgm_uniform")
BASE = "4 / 1"
# row → settings, and on how many scenes: the long ones are dear, and known not to differ
ROWS = {
    BASE: (FEW, 50),
    "4 / 1, ddim_uniform": (replace(FEW, scheduler="ddim_uniform"), 50),
    "5 / 1": (replace(FEW, steps=5), 50),
    "8 / 2": (replace(FEW, steps=8, skip_steps=2), 50),
    "12 / 4": (replace(FEW, steps=12, skip_steps=4), 50),
    "25 / 8, ddim_uniform": (replace(TEMPLATES, steps=25, skip_steps=8), 50),
    "100 / 32, ddim_uniform": (replace(TEMPLATES, steps=100, skip_steps=32), 4),
    **{
        f"4 / 1, constant swap_guidance {scale:g}": (replace(FEW, swap_guidance=scale, falling_guidance=False), 50)
        for scale in (1.0, 2.0, 3.0, 4.0)
    },
    "4 / 1, inversion cfg 3.5": (replace(FEW, inversion_cfg=3.5), 20),
}
COLUMNS = {"fidelity": 2, "leakage": 3, "seam_error": 1, "shape_kept": 2, "background_error": 2}


def run_scene(model: DemoModel, seed: int, concepts: int, settings: Settings) -> Measures:
    case = draw_case(seed, concepts, overlapping=False)
    prompt = case.task.scene.nouns()
    inversion = invert(model, case.scene, prompt, settings)
    inputs = (case.inpainted, case.masks, case.pictures, case.own_masks, prompt, settings)
    return measure(case.task, blend(model, inversion, *inputs)[0])


def model_rows(settings: Settings, concepts: int) -> int:
    """Latents that go through the UNet."""
    steps = settings.steps - settings.skip_steps
    inverting = steps * (1 if settings.inversion_cfg == 1 else 2)
    return inverting + steps * concepts * (2 if settings.swap_guidance == 1 else 3)


def table(results: dict[str, dict[str, list[float]]], concepts: int) -> str:
    """Markdown: mean ± half a 95 % interval, and the difference from BASE on the same scenes."""
    names = [name.replace("_", " ") for name in COLUMNS]
    lines = ["| steps / skip_steps | scenes | rows | Δ fidelity | " + " | ".join(names) + " |"]
    lines.append("| --- " * (len(names) + 4) + "|")
    for row, by_scene in results.items():
        pairs = [(x, results[BASE][seed]) for seed, x in by_scene.items() if seed in results[BASE]]
        gain = "{:+.3f} ± {:.3f}".format(*interval([ours[0] - theirs[0] for ours, theirs in pairs]))
        cells = [row, str(len(by_scene)), str(model_rows(ROWS[row][0], concepts)), "" if row == BASE else gain]
        for name, digits in COLUMNS.items():
            mean, half = interval([getattr(Measures(*x), name) for x in by_scene.values()])
            cells.append(f"{mean:.{digits}f} ± {half:.{digits}f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.few_steps", description=__doc__)
    parser.add_argument("--few-steps-lora", action="store_true")
    parser.add_argument("--concepts", type=int, default=2)
    parser.add_argument("--scenes", type=int, default=50, help="at most; default: %(default)s")
    parser.add_argument("--rows", nargs="*", help="their names; default: all")
    options = parser.parse_args()
    path = RESULTS / f"few-steps-{'distilled' if options.few_steps_lora else 'base'}-{options.concepts}.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    model = load_model(lora=FEW_STEPS if options.few_steps_lora else None)

    rows = options.rows or list(ROWS)
    for k in tqdm(range(options.scenes), unit="scene"):
        for row in rows:
            settings, scenes = ROWS[row]
            done, seed = results.setdefault(row, {}), str(FIRST_SEED + k)
            if k < scenes and seed not in done:
                measures = run_scene(model, int(seed), options.concepts, settings)
                done[seed] = [round(x, 5) for x in measures]
        text = json.dumps(results).replace("}, ", "},\n")
        path.with_suffix(".new").write_text(text + "\n", encoding="utf-8")
        os.replace(path.with_suffix(".new"), path)
    print(table({row: results[row] for row in ROWS if len(results.get(row, ())) > 1}, options.concepts))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
