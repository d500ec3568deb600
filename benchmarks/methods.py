"""All methods of the pack on the same tasks, with the demo model: python -m benchmarks.methods

A task is a drawn scene with two things, each of which is to get the look of a concept that exists as a photo, as a
LoRA, and as a learned concept of LaTexBlend. Methods that edit keep the scene; the others draw a new picture in its
layout. Each task is written to benchmarks/results/methods.json at once, so a run that is stopped goes on where it was;
--table prints what is there.
"""

import argparse
import io
import json
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
from demo import loras
from demo.conducting import Concept, ConductorSettings, conduct, in_pixels, read_layout
from demo.diffusers_host import DemoModel, Settings, blend, empty, invert, load_model
from demo.learning import learn, mix_learned, prompt_with, sample_blended
from demo.measures import background_error, measure_conducted
from demo.model import CHANNELS, GRID
from demo.own_things import PHOTOS, photographed
from demo.scenes import UNNAMED_LOOKS, draw_scene, prompts_of, random_layout
from PIL import Image
from pnpmix.latexblend.bank import Features, from_tensors, to_tensors
from pnpmix.metrics.statistics import mean_with_interval
from torch import Tensor

FIRST_SEED = 3000  # scenes that nobody looked at while choosing anything
RESULTS = Path(__file__).parent / "results" / "methods.json"
EDITED = Settings(steps=12, skip_steps=4, inversion_cfg=1.0, object_mask=True, adain=True)
CONDUCTED = ConductorSettings()
LEARNING_STEPS, LEARNING_RATE, DRAWING_STEPS = 400, 1e-3, 12
# measure → title, digits
COLUMNS = {
    "fidelity": ("fidelity ▲", 2),
    "leakage": ("leakage ▼", 3),
    "background": ("background changed, of 255 ▼", 1),
    "layout": ("layout kept ▲", 2),
    "rows": ("rows", 0),
    "seconds": ("seconds", 1),
}


class Learned(NamedTuple):
    features: Features
    seconds: float
    bytes: int


class Task:
    """One scene, and its concepts in all their forms."""

    def __init__(self, seed: int, folder: Path):
        self.seed, self.folder, self.layout = seed, folder, random_layout(seed, 2)
        self.scene, self.masks = draw_scene(self.layout)
        self.prompt, self.own_prompts = prompts_of(self.layout)
        shapes = [thing.shape for thing in self.layout.things]
        rng = np.random.default_rng([seed, 4])
        drawn = [photographed(rng, shape, UNNAMED_LOOKS[shape]) for shape in shapes]
        self.photos, self.own_masks = [x[1] for x in drawn], torch.stack([x[2] for x in drawn])
        self.loras = [loras.load_lora(shape) for shape in shapes]

    @cached_property
    def features(self) -> dict[str, Features]:
        learned = learned_things(self.folder)
        return {thing.shape: learned[thing.shape].features for thing in self.layout.things}

    def mixed(
        self, model: DemoModel, scene: Tensor, masks: Tensor, learned: bool = False, guided: bool = True
    ) -> Tensor:
        """Returns PnP-MIX's result, with the concepts' photos, with what was trained on them in their rows, or both."""
        settings = EDITED if guided else Settings(**vars(EDITED) | dict(guided=False, adain=False))
        inversion = invert(model, scene, self.prompt, settings)
        given = (model, inversion, empty(scene, masks), masks, self.photos, self.own_masks, self.prompt, settings)
        return mix_learned(*given, self.features) if learned else blend(*given)[0]

    @cached_property
    def conducted(self) -> tuple[Tensor, Tensor]:
        """Returns Concept Conductor's picture and its refined masks (2, 64, 64)."""
        zipped = zip(self.loras, self.own_prompts, self.masks, strict=True)
        given = [Concept(lora, text, mask) for lora, text, mask in zipped]
        model, settings = load_model(), ConductorSettings(**vars(CONDUCTED) | dict(noise_seed=self.seed))
        layout = read_layout(model, self.scene, self.prompt, settings)
        result, found = conduct(model, layout, self.prompt, self.prompt, given, settings)
        return result, in_pixels(found)

    def merged(self) -> Tensor:
        """Returns the picture with all LoRAs merged at once, and no more."""
        model = load_model()
        model.unet.load_state_dict(loras.merged(model.unet.state_dict(), self.loras))
        settings = ConductorSettings(**vars(CONDUCTED) | dict(noise_seed=self.seed, refined=False))
        return conduct(model, None, self.prompt, self.prompt, [], settings)[0]

    def blended(self, model: DemoModel) -> Tensor:
        """Returns LaTexBlend's picture, each concept in the region that the layout has for it."""
        noise = torch.randn((1, CHANNELS, GRID, GRID), generator=torch.Generator().manual_seed(self.seed))
        regions = dict(zip(self.features, self.masks, strict=True))
        return sample_blended(model, [prompt_with(model, self.prompt, self.features, regions)], noise, DRAWING_STEPS)[0]

    def refined(self, model: DemoModel) -> Tensor:
        """Photos blended into Concept Conductor's picture, where its refined masks say that the things are."""
        picture, masks = self.conducted
        empty_masks = masks.flatten(1).amax(1) == 0
        return self.mixed(model, picture, torch.where(empty_masks[:, None, None], self.masks, masks))


CHAINED_TO, CHAINED = "Concept Conductor", "Concept Conductor, then photos"
ROWS: dict[str, Callable[[Task, DemoModel], Tensor]] = {
    "PnP-MIX, photos": lambda task, model: task.mixed(model, task.scene, task.masks),
    "PnP-MIX, learned": lambda task, model: task.mixed(model, task.scene, task.masks, learned=True, guided=False),
    "PnP-MIX, photos and learned": lambda task, model: task.mixed(model, task.scene, task.masks, learned=True),
    CHAINED_TO: lambda task, model: task.conducted[0],
    CHAINED: lambda task, model: task.refined(model),
    "LoRAs merged": lambda task, model: task.merged(),
    "LaTexBlend in regions": lambda task, model: task.blended(model),
}


def learned_things(folder: Path) -> dict[str, Learned]:
    """Returns concepts of the looks that the LoRAs have, each trained once, on five photos."""
    learned = {}
    for k, (shape, look) in enumerate(UNNAMED_LOOKS.items()):
        file = folder / f"{shape}.safetensors"
        if not file.exists():
            rng, started = np.random.default_rng([3, k]), time.process_time()
            photos = torch.stack([photographed(rng, shape, look)[1] for _ in range(PHOTOS)])
            features = learn(load_model(), photos, shape, steps=LEARNING_STEPS, learning_rate=LEARNING_RATE).features
            folder.mkdir(parents=True, exist_ok=True)
            seconds = f"{time.process_time() - started:.0f}"
            safetensors.torch.save_file(to_tensors(features), file, {"seconds": seconds})
            print(f"{shape}: learned in {seconds} s", flush=True)
        with safetensors.safe_open(file, "pt") as opened:
            seconds = float(opened.metadata()["seconds"])
        learned[shape] = Learned(from_tensors(safetensors.torch.load_file(file)), seconds, file.stat().st_size)
    return learned


def measured(task: Task, result: Tensor) -> dict[str, float]:
    alike, _, leaked, layout, *_ = measure_conducted(task.layout, result)
    changed = background_error(result, task.scene, task.masks)
    return {"fidelity": alike, "leakage": leaked, "background": changed, "layout": layout}


def run(task: Task, row: str) -> dict[str, float]:
    """Returns what a row scores and what it costs: latents through the UNet, and seconds of one core."""
    model, rows = load_model(), [0]
    forward = type(model.unet).forward

    def counted(unet, sample: Tensor, *args, **kwargs):
        rows[0] += len(sample)
        return forward(unet, sample, *args, **kwargs)

    type(model.unet).forward = counted  # of every copy that a method loads
    is_there = row == CHAINED and "conducted" in vars(task)
    try:
        started = time.process_time()
        result = ROWS[row](task, model)
    finally:
        type(model.unet).forward = forward
    cost = {"rows": rows[0], "seconds": time.process_time() - started}
    if is_there:  # the row pays for the picture that it begins with, too
        cost = {name: x + read()[str(task.seed)][CHAINED_TO][name] for name, x in cost.items()}
    return {name: round(float(x), 4) for name, x in {**measured(task, result), **cost}.items()}


def read() -> dict[str, dict[str, dict[str, float]]]:
    """Returns the results so far: task → row → measure."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def kept(folder: Path) -> str:
    """Returns what a concept takes on the disk and to prepare, as far as it is there."""
    photo = io.BytesIO()
    Image.fromarray((Task(FIRST_SEED, folder).photos[0] * 255).round().byte().numpy()).save(photo, "PNG")
    lora = max(path.stat().st_size for path in loras.FOLDER.glob("*.safetensors"))
    said = f"Bytes of a concept: photo {len(photo.getvalue())}, LoRA {lora}"
    if all((folder / f"{shape}.safetensors").exists() for shape in UNNAMED_LOOKS):
        learned = learned_things(folder).values()
        said += f", learned {max(x.bytes for x in learned)}; seconds to learn: {[x.seconds for x in learned]}"
    return said


def table(done: dict[str, dict[str, dict[str, float]]]) -> str:
    lines = ["| | tasks | " + " | ".join(title for title, _ in COLUMNS.values()) + " |"]
    lines.append("| --- |" + " ---: |" * (len(COLUMNS) + 1))
    for row in ROWS:
        values = [task[row] for task in done.values() if row in task]
        if values:
            cells = [mean_with_interval([x[name] for x in values], digits) for name, (_, digits) in COLUMNS.items()]
            lines.append(f"| {row} | {len(values)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def differences(done: dict[str, dict[str, dict[str, float]]]) -> str:
    """Returns what training adds to the photos, and the photos to training, on the same tasks."""
    both, lines = "PnP-MIX, photos and learned", []
    for other in ("PnP-MIX, photos", "PnP-MIX, learned"):
        pairs = [(x[both]["fidelity"], x[other]["fidelity"]) for x in done.values() if x.keys() >= {both, other}]
        if pairs:
            lines.append(f"Fidelity of both less that of '{other}': {mean_with_interval([a - b for a, b in pairs], 3)}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=__doc__)
    parser.add_argument("--tasks", type=int, default=30, help="default: %(default)s")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), help="their names; default: all")
    parser.add_argument("--folder", type=Path, default=Path("methods-benchmark"), help="for what is learned")
    parser.add_argument("--table", action="store_true", help="print the table and measure nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.table:
        learned_things(options.folder)  # now, so that no row is charged with it
    for seed in range(FIRST_SEED, FIRST_SEED + (0 if options.table else options.tasks)):
        task = Task(seed, options.folder)
        for row in options.rows:
            if row not in read().get(str(seed), {}):
                values = run(task, row)
                done = read()  # another process may measure other rows
                done.setdefault(str(seed), {})[row] = values
                RESULTS.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
                print(seed, row, values, flush=True)
    done = read()
    print(table(done))
    print(kept(options.folder))
    print(differences(done))


if __name__ == "__main__":
    main()
