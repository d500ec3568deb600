"""What each part of Concept Conductor contributes, measured on the demo model: python -m benchmarks.conductor

Scenes with two and with three concepts in turn; each is measured in every row and written to
benchmarks/results/conductor.json at once, so a run that is stopped goes on where it was. --table prints what is there.
"""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import torch
from demo.conducting import Concept, ConductorSettings, conduct, read_layout
from demo.diffusers_host import load_model
from demo.loras import load_lora, merged
from demo.measures import ConductedMeasures, measure_conducted
from demo.scenes import draw_scene, prompts_of, random_layout
from pnpmix.metrics.statistics import mean_with_interval

FIRST_SEED = 1000  # scenes that nobody looked at while choosing anything
RESULTS = Path(__file__).parent / "results" / "conductor.json"
MERGED, ALONE = "LoRAs merged", "base model alone"
MERGED_ALIGNED = "LoRAs merged, with layout alignment"  # at strength 1, which they were trained for, as in MERGED
ROWS: dict[str, dict] = {
    MERGED: dict(aligned=False, refined=False),
    MERGED_ALIGNED: dict(refined=False),
    ALONE: dict(aligned=False, refined=False),
    "+ multipath sampling with injection": dict(aligned=False, refined=False),
    "+ layout alignment (without mask refinement)": dict(refined=False),
    "+ mask refinement: the whole method": {},
    "without layout alignment": dict(aligned=False),
    "without self-attention": dict(inject="cross"),
    "without cross-attention": dict(inject="self"),
}


def measure_scene(seed: int, concepts: int) -> dict[str, list[float]]:
    """Row → measures."""
    scene = random_layout(seed, concepts)
    layout, masks = draw_scene(scene)
    prompt, own = prompts_of(scene)
    loras = [load_lora(thing.shape) for thing in scene.things]
    given = [Concept(lora, text, mask) for lora, text, mask in zip(loras, own, masks, strict=True)]
    read = read_layout(load_model(), layout, prompt, ConductorSettings())
    values = {}
    for row, inputs in ROWS.items():
        model = load_model()
        if row in (MERGED, MERGED_ALIGNED):
            model.unet.load_state_dict(merged(model.unet.state_dict(), loras))
        settings = ConductorSettings(**inputs, noise_seed=seed)
        branches = [] if row in (MERGED, MERGED_ALIGNED, ALONE) else given
        result, _ = conduct(model, read if settings.aligned else None, prompt, prompt, branches, settings)
        values[row] = [round(float(x), 4) for x in measure_conducted(scene, result)]
    return values


def table(done: dict[str, dict[str, list[float]]], concepts: int) -> str:
    scenes = [rows for key, rows in done.items() if key.endswith(f" {concepts}")]
    lines = [
        f"| {len(scenes)} scenes, {concepts} concepts | {' | '.join(ConductedMeasures._fields).replace('_', ' ')} |",
        "| --- |" + " ---: |" * len(ConductedMeasures._fields),
    ]
    for row in ROWS:
        columns = zip(*(rows[row] for rows in scenes), strict=True)
        lines.append(f"| {row} | {' | '.join(mean_with_interval(values, 2) for values in columns)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conductor", description=__doc__)
    parser.add_argument("--scenes", type=int, default=15, help="of each number of concepts; default: %(default)s")
    parser.add_argument("--table", action="store_true", help="print the table and measure nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    content = (
        json.loads(RESULTS.read_text()) if RESULTS.exists() else {"settings": asdict(ConductorSettings()), "scenes": {}}
    )
    done = content["scenes"]
    for seed in range(FIRST_SEED, FIRST_SEED + (0 if options.table else options.scenes)):
        for concepts in (2, 3):
            key, started = f"{seed} {concepts}", time.process_time()
            if key in done:
                continue
            done[key] = measure_scene(seed, concepts)
            content["seconds"] = content.get("seconds", 0) + round(time.process_time() - started)
            RESULTS.write_text(json.dumps(content, indent=1))
            print(key, f"{time.process_time() - started:.0f} s", flush=True)
    for concepts in (2, 3):
        if any(key.endswith(f" {concepts}") for key in done):
            print(table(done, concepts))


if __name__ == "__main__":
    main()
