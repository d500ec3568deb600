"""Trains a demo model from scratch on drawn scenes: python -m demo.train [--model flow]

Stopped and started again with the same options it goes on where it was, and ends with the same weights.
"""

import argparse
import copy
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from .diffusers_host import DemoModel, FlowModel, sample
from .model import FLOW_WEIGHTS, TIMESTEPS, WEIGHTS, alphas_cumprod, fold, normalize
from .pictures import panels, stacked
from .scenes import Scene, draw_scene, random_scene

WARMUP = 300  # steps
DECAY = 0.4  # share of all steps over which the learning rate falls to zero at the end


def random_prompt(scene: Scene, rng: np.random.Generator) -> str:
    """Returns words for some of the scene: objects with or without their look, in any order, or nothing at all."""
    if rng.random() < 0.1:
        return ""
    phrases = [thing.shape if rng.random() < 0.5 else thing.words() for thing in scene.things] + [scene.place]
    kept = [phrase for phrase in phrases if rng.random() < 0.9]
    return ", ".join(rng.permutation(kept)) if kept else ""


def random_timesteps(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.integers(0, TIMESTEPS, count)


def random_sigmas(rng: np.random.Generator, count: int) -> np.ndarray:
    """Returns noise levels, most of them in the middle: logit-normal, as in Stable Diffusion 3 (arXiv 2403.03206)."""
    return 1 / (1 + np.exp(rng.standard_normal(count, dtype=np.float32)))


def batch(seed: int, step: int, size: int, random_levels: Callable) -> tuple[Tensor, list[str], Tensor, Tensor]:
    """Returns latents (B, 12, 32, 32), prompts, noise levels (B,) and noise of one step, the same for the same seed."""
    rng = np.random.default_rng([seed, step])
    scenes = [random_scene(rng) for _ in range(size)]
    latents = normalize(fold(torch.stack([draw_scene(scene)[0] for scene in scenes])))
    prompts = [random_prompt(scene, rng) for scene in scenes]
    levels = torch.from_numpy(random_levels(rng, size))
    noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32))
    return latents, prompts, levels, noise


def v_loss(model: nn.Module, latents: Tensor, prompts: list[str], timesteps: Tensor, noise: Tensor) -> Tensor:
    """Returns the mean squared error of v = sqrt(alpha) noise - sqrt(1 - alpha) x0 (arXiv 2202.00512)."""
    alpha = alphas_cumprod().to(latents)[timesteps].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    v = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
    return F.mse_loss(model(noisy, timesteps, prompts).float(), v)


def flow_loss(model: nn.Module, latents: Tensor, prompts: list[str], sigma: Tensor, noise: Tensor) -> Tensor:
    """Returns the mean squared error of the velocity of a rectified flow (arXiv 2209.03003)."""
    share = sigma.view(-1, 1, 1, 1)
    return F.mse_loss(model((1 - share) * latents + share * noise, sigma, prompts).float(), noise - latents)


class Recipe(NamedTuple):
    """What differs between the models."""

    model: type[nn.Module]
    weights: Path
    random_levels: Callable[[np.random.Generator, int], np.ndarray]
    loss: Callable[..., Tensor]
    batch: int  # scenes in a step
    steps: int  # by default
    learning_rate: float
    bfloat16: bool  # which CPUs compute convolutions quickly in, but not all of them matrices


RECIPES = {
    "unet": Recipe(DemoModel, WEIGHTS, random_timesteps, v_loss, 16, 12300, 6e-4, True),
    "flow": Recipe(FlowModel, FLOW_WEIGHTS, random_sigmas, flow_loss, 8, 4800, 1e-3, False),
}


def learning_rate(step: int, steps: int) -> float:
    """Returns a share of the highest learning rate: it rises, stays, and falls linearly to zero at the end."""
    return min(1, (step + 1) / WARMUP, (steps - step) / (DECAY * steps))


def train(
    folder: Path, steps: int, seed: int, device: str, recipe: Recipe = RECIPES["unet"]
) -> tuple[nn.Module, list[float], float]:
    """Trains a model, from its last state where the folder holds one.

    Args:
        folder: for the state to resume from.
        recipe: of the model.

    Returns:
        the average of the weights over the last thousand steps or so, the loss of every step, and the time in seconds.

    Raises:
        ValueError: the folder holds a training with another seed.
    """
    torch.manual_seed(seed)
    model = recipe.model().to(device).train()
    average = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=0.01)
    losses: list[float] = []
    seconds = 0.0

    state_file = folder / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        if state["seed"] != seed:
            raise ValueError(f"{state_file} was made with seed {state['seed']}. Choose another folder or that seed.")
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        losses, seconds = state["losses"], state["seconds"]

    def save() -> None:
        state = {"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save({**state, "losses": losses, "seconds": seconds, "seed": seed}, state_file.with_suffix(".new"))
        os.replace(state_file.with_suffix(".new"), state_file)  # never half a file

    progress = tqdm(range(len(losses), steps), initial=len(losses), total=steps, unit="step")
    for step in progress:
        started = time.perf_counter()
        latents, prompts, levels, noise = batch(seed, step, recipe.batch, recipe.random_levels)
        with torch.autocast(device, torch.bfloat16, enabled=recipe.bfloat16):
            loss = recipe.loss(model, latents.to(device), prompts, levels.to(device), noise.to(device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * learning_rate(step, steps)
        optimizer.step()

        decay = min(0.999, (step + 1) / (step + 10))
        for mean, current in zip(average.parameters(), model.parameters(), strict=True):
            mean.lerp_(current.detach(), 1 - decay)
        losses.append(loss.item())
        seconds += time.perf_counter() - started
        if len(losses) % 100 == 0 or len(losses) == steps:
            progress.set_postfix(loss=f"{np.mean(losses[-100:]):.4f}")
            save()
    return average, losses, seconds


def write_weights(path: Path, model: nn.Module, **provenance: object) -> None:
    """Writes weights in half precision, with what is known of their making in the file's metadata."""
    weights = {name: tensor.half().cpu().contiguous() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(weights, path, {name: str(value) for name, value in provenance.items()})


def write_loss_curve(path: Path, losses: list[float]) -> None:
    matplotlib.use("agg")
    from matplotlib import pyplot

    window = min(100, len(losses))
    mean = np.convolve(losses, np.ones(window) / window, "valid")
    figure, axes = pyplot.subplots(figsize=(7, 3), layout="constrained")
    axes.plot(np.arange(len(mean)) + window, mean, linewidth=1)
    axes.set(xlabel="step", ylabel=f"loss, mean of {window} steps", yscale="log")
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=110)


def write_sample_sheet(path: Path, model: nn.Module) -> None:
    """Draws pictures of prompts that no one chose: words of scenes drawn at random."""
    rng, rows = np.random.default_rng(12345), []
    for seed in range(4):
        prompts = [random_scene(rng).words() for _ in range(7)]
        rows.append(panels(list(zip(prompts, sample(model, prompts, seed), strict=True)), enlarge=2))
    stacked(rows).save(path)


def machine_kind(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU, {os.cpu_count()} cores, {platform.machine()}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.train", description=__doc__)
    parser.add_argument("--model", choices=RECIPES, default="unet", help="which one; default: %(default)s")
    defaults = ", ".join(f"{recipe.steps} ({name})" for name, recipe in RECIPES.items())
    parser.add_argument("--steps", type=int, help=f"default: {defaults}")
    parser.add_argument("--seed", type=int, default=0, help="of the first weights and of all scenes")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--folder", type=Path, default=Path("training"), help="where to keep and find the state")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    recipe = RECIPES[options.model]
    steps = options.steps or recipe.steps

    model, losses, seconds = train(options.folder, steps, options.seed, options.device, recipe)
    provenance = dict(
        seed=options.seed,
        steps=steps,
        batch=recipe.batch,
        seconds=round(seconds),
        machine=machine_kind(options.device),
        torch=torch.__version__,
        loss=round(float(np.mean(losses[-500:])), 5),
    )
    write_weights(options.folder / recipe.weights.name, model, **provenance)
    write_loss_curve(options.folder / "loss.png", losses)
    write_sample_sheet(options.folder / "samples.png", model.cpu())
    print(f"{provenance}\nWeights, loss.png and samples.png are in {options.folder}.")


if __name__ == "__main__":
    main()
