"""Teaches the demo model to need few steps: python -m demo.distil

The model itself, guided and in many small steps, is the teacher: the student is to see at every noise level what the
teacher's trajectory ends in (arXiv 2101.02388, in between as well). It is a LoRA, as people use LCM-LoRA. Stopped and
started again with the same options it goes on where it was.
"""

import argparse
import os
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from .diffusers_host import DemoModel, all_sigmas, denoise_with_cfg, load_model
from .lora import FEW_STEPS, Lora
from .model import TIMESTEPS
from .train import RECIPES, batch, machine_kind

UNET = RECIPES["unet"]
SCENES = 10**6  # added to the seed: other scenes than those that the model was trained on
STEP = 100  # timesteps between two levels of the teacher, at most
CFG = 2.0  # of the teacher, which the student has built in
RANK = 4
LEARNING_RATE, WARMUP = 1e-3, 2  # batches
HUBER = 0.1  # difference of a latent's cell above which the loss grows no faster than it


def levels_from(timestep: int) -> list[int]:
    """Falling timesteps, evenly spread, and without the 0 that they lead to."""
    count = -(-timestep // STEP)
    return [round(timestep * (count - i) / count) for i in range(count)]


@torch.no_grad()
def teacher_trajectory(model: DemoModel, x: Tensor, sigmas: Tensor, prompts: list[str]) -> Iterator[Tensor]:
    """DDIM from the first of (N + 1,) noise levels: x at each of them, at last the picture."""
    positive, negative = model.words(prompts), model.words([""]).expand(len(prompts), -1, -1)
    yield x
    for sigma, sigma_next in pairwise(sigmas):
        denoised = denoise_with_cfg(model, x, sigma.expand(len(x)), positive, negative, CFG)
        x = denoised + sigma_next / sigma * (x - denoised)
        yield x


def pseudo_huber(x: Tensor, y: Tensor) -> Tensor:
    """Mean over all cells, of arXiv 2310.14189."""
    return ((x - y).square() + HUBER**2).sqrt().mean() - HUBER


def train(folder: Path, batches: int, seed: int, scenes: int) -> tuple[Lora, list[float], float]:
    """
    Args:
        folder: for the state to resume from.
        scenes: in a batch, whose trajectory gives the student one step for each of its levels.
    Returns:
        the average of the last steps' LoRAs, the mean loss of every batch, and the time in seconds.
    """
    torch.manual_seed(seed)
    model = load_model()
    lora = Lora(model.unet, RANK)
    average = {name: x.clone() for name, x in lora.state_dict().items()}
    optimizer = torch.optim.AdamW(lora.parameters(), betas=(0.9, 0.99), weight_decay=0.0)
    losses: list[float] = []
    seconds = 0.0

    state_file = folder / "distil.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        lora.load_state_dict(state["lora"])
        optimizer.load_state_dict(state["optimizer"])
        average, losses, seconds = state["average"], state["losses"], state["seconds"]

    progress = tqdm(range(len(losses), batches), initial=len(losses), total=batches, unit="batch")
    for step in progress:
        started = time.perf_counter()
        latents, prompts, _, noise = (x[:scenes] for x in batch(SCENES + seed, step, UNET.batch, UNET.random_levels))
        first = int(np.random.default_rng([SCENES + seed, step, 1]).integers(1, TIMESTEPS))
        sigmas = torch.cat([all_sigmas()[levels_from(first)], torch.zeros(1)])
        with lora.off():
            *points, picture = teacher_trajectory(model, latents + sigmas[0] * noise, sigmas, prompts)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / WARMUP, (batches - step) / (0.4 * batches))
        context, own = model.words(prompts), []
        for x, sigma in zip(points, sigmas, strict=False):
            loss = pseudo_huber(model.denoise(x, sigma.expand(len(x)), context), picture)
            optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_(lora.parameters(), 1.0)
            optimizer.step()
            for name, current in lora.state_dict().items():
                average[name].lerp_(current, 1 - min(0.98, (step + 1) / (step + 10)))
            own.append(loss.item())
        losses.append(float(np.mean(own)))
        seconds += time.perf_counter() - started
        progress.set_postfix(loss=f"{np.mean(losses[-10:]):.4f}")
        if len(losses) % 10 == 0 or len(losses) == batches:
            state = {"lora": lora.state_dict(), "average": average, "optimizer": optimizer.state_dict()}
            torch.save({**state, "losses": losses, "seconds": seconds}, state_file.with_suffix(".new"))
            os.replace(state_file.with_suffix(".new"), state_file)  # never half a file
    lora.load_state_dict(average)
    return lora, losses, seconds


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.distil", description=__doc__)
    parser.add_argument("--batches", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--scenes", type=int, default=8, help="in a batch; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the LoRA's first weights and of all scenes")
    parser.add_argument("--folder", type=Path, default=Path("training"), help="where to keep and find the state")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)

    lora, losses, seconds = train(options.folder, options.batches, options.seed, options.scenes)
    provenance = dict(
        seed=options.seed,
        batches=options.batches,
        scenes=options.scenes,
        seconds=round(seconds),
        machine=machine_kind("cpu"),
        torch=torch.__version__,
        loss=round(float(np.mean(losses[-20:])), 5),
    )
    safetensors.torch.save_file(
        lora.weights(), options.folder / FEW_STEPS.name, {name: str(value) for name, value in provenance.items()}
    )
    print(f"{provenance}\n{FEW_STEPS.name} is in {options.folder}.")


if __name__ == "__main__":
    main()
