"""Trains the LoRAs of the demo model, each on drawn scenes with one shape in its own look: python -m demo.train_loras

Scenes, seeds and weights are the same on every run.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from tqdm import tqdm

from .diffusers_host import DemoModel, load_model
from .loras import FOLDER, RANK, key_of
from .model import TIMESTEPS, fold, normalize
from .scenes import SHAPES, UNNAMED_LOOKS, Scene, Thing, draw_scene, random_look, random_places, random_setting
from .train import v_loss

BATCH = 4
LEARNING_RATE = 4e-3
WARMUP = 30  # steps


class LowRank(nn.Module):
    """A linear layer, which stays as it is, and a low-rank map beside it."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.layer = layer
        self.down = nn.Linear(layer.in_features, RANK, bias=False)
        self.up = nn.Linear(RANK, layer.out_features, bias=False)
        nn.init.normal_(self.down.weight, std=layer.in_features**-0.5)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.up(self.down(x))


def add_low_rank(model: DemoModel) -> dict[str, LowRank]:
    """Adds low-rank layers to the projections of the UNet's attention and returns them by the projections' names."""
    layers = {
        name: module
        for name, module in model.unet.named_modules()
        if isinstance(module, nn.Linear) and (".attn1." in name or ".attn2." in name)
    }
    added = {name: LowRank(layer) for name, layer in layers.items()}
    for name, module in added.items():
        parent, _, own = name.rpartition(".")
        setattr(model.unet.get_submodule(parent), own, module)
    return added


def random_scene_with(shape: str, rng: np.random.Generator) -> Scene:
    """Returns a scene of one or two objects of the shape, in its own look, and up to one other."""
    count, others = int(rng.choice([1, 2])), int(rng.choice([0, 1]))
    shapes = [shape] * count + [str(rng.choice([x for x in SHAPES if x != shape]))] * others
    places = random_places(rng, len(shapes), (10, 16) if len(shapes) == 1 else (9.5, 13))
    things = tuple(
        Thing(name, UNNAMED_LOOKS[shape] if name == shape else random_look(rng), *place)
        for name, place in zip(shapes, places, strict=True)
    )
    return Scene(**random_setting(rng), things=things)


def random_prompt(scene: Scene, shape: str, rng: np.random.Generator) -> str:
    """Returns words for some of the scene; the shape is always named, and never its look."""
    phrases = [thing.shape if thing.shape == shape or rng.random() < 0.5 else thing.words() for thing in scene.things]
    kept = [phrase for phrase in phrases if phrase == shape or rng.random() < 0.9] + [scene.place]
    return ", ".join(rng.permutation(kept))


def batch(shape: str, step: int) -> tuple[Tensor, list[str], Tensor, Tensor]:
    """Returns latents (B, 12, 32, 32), prompts, timesteps (B,) and noise of one step, the same for the same step."""
    rng = np.random.default_rng([SHAPES.index(shape), step])
    scenes = [random_scene_with(shape, rng) for _ in range(BATCH)]
    latents = normalize(fold(torch.stack([draw_scene(scene)[0] for scene in scenes])))
    prompts = [random_prompt(scene, shape, rng) for scene in scenes]
    timesteps = torch.from_numpy(rng.integers(0, TIMESTEPS, BATCH))
    noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32))
    return latents, prompts, timesteps, noise


def train(shape: str, steps: int) -> tuple[dict[str, Tensor], list[float]]:
    """Returns the LoRA in the names that every host knows, and the loss of each step."""
    torch.manual_seed(SHAPES.index(shape))
    model = load_model()
    added = add_low_rank(model)
    weights = [x for module in added.values() for x in (module.up.weight, module.down.weight)]
    optimizer = torch.optim.AdamW(weights, betas=(0.9, 0.99), weight_decay=0.01)
    losses = []
    progress = tqdm(range(steps), desc=shape, unit="step")
    for step in progress:
        loss = v_loss(model, *batch(shape, step))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / WARMUP, (steps - step) / (0.5 * steps))
        optimizer.step()
        losses.append(loss.item())
        if step % 20 == 19:
            progress.set_postfix(loss=f"{np.mean(losses[-100:]):.4f}")
    lora = {}
    for name, module in added.items():
        lora[f"{key_of(name)}.lora_up.weight"] = module.up.weight.detach().half()
        lora[f"{key_of(name)}.lora_down.weight"] = module.down.weight.detach().half()
        lora[f"{key_of(name)}.alpha"] = torch.tensor(float(RANK)).half()
    return lora, losses


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.train_loras", description=__doc__)
    parser.add_argument("--steps", type=int, default=300, help="of 4 scenes each; default: %(default)s")
    parser.add_argument("--shapes", nargs="+", choices=list(UNNAMED_LOOKS), default=list(UNNAMED_LOOKS))
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the files go")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for shape in options.shapes:
        started = time.perf_counter()
        lora, losses = train(shape, options.steps)
        path = options.folder / f"{shape}.safetensors"
        loss = f"{np.mean(losses[-100:]):.4f}"
        safetensors.torch.save_file(lora, path, {"steps": str(options.steps), "batch": str(BATCH), "loss": loss})
        print(f"{path}: loss {loss}, {time.perf_counter() - started:.0f} s, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
