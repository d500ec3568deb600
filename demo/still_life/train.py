"""Trains a model of these scenes from nothing: python -m demo.still_life.train [--model autoencoder, unet or flow]

Scenes are drawn first, once, and encoded for the networks, which need the autoencoder. Stopped and started again with
the same options it goes on where it was. Weights, loss curve and a sheet of samples lie in the folder at the end.
"""

import argparse
import copy
import os
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from tqdm import tqdm

from ..pictures import panels, stacked
from ..train import machine_kind, write_loss_curve, write_weights
from .autoencoder import CHANNELS, DOWNSCALE, Autoencoder
from .model import FLOW, GRID, PATCH, POOLED, TIMESTEPS, UNET, Words, alphas_cumprod, flow_level, padded, tokenize
from .scenes import SIZE, draw_scene, random_scene

WARMUP = 300  # steps
PICTURES, CROP, CROPS = 1000, 96, 16  # of the autoencoder: scenes, pixels, of them in a step
LATENT_NOISE, LATENT_PULL = 0.03, 0.01
DECAY = 0.4  # share of the steps of the last stage over which the learning rate falls to zero
SHARD = 500  # scenes in a file
SCENES = 12_000

AUTOENCODER = Path(__file__).parent / "autoencoder.safetensors"


# ---- scenes, drawn and encoded once


def load_autoencoder(device: str = "cpu") -> Autoencoder:
    model = Autoencoder().eval().requires_grad_(False)
    weights = safetensors.torch.load_file(AUTOENCODER)
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return model.to(device)


class Drawn(NamedTuple):
    """Scenes with their latents, at full size and at half."""

    latents: dict[int, Tensor]  # by the grid's side: (N, 8, side, side) in half precision
    phrases: list[list[tuple[str, str]]]  # of each scene: (words, noun) of each object, the table and the wall


def draw_shard(seed: int, number: int, autoencoder: Autoencoder, device: str) -> dict:
    rng = np.random.default_rng([seed, number])
    latents: dict[int, list[Tensor]] = {SIZE // 8: [], SIZE // 16: []}
    phrases = []
    for _ in range(SHARD):
        scene = random_scene(rng)
        picture = draw_scene(scene)[0][None].to(device)
        half = F.avg_pool2d(picture.movedim(-1, 1), 2).movedim(1, -1)
        for view in (picture, half):
            latent = autoencoder.encode(view).half().cpu()
            latents[latent.shape[-1]].append(latent)
        objects = [(thing.words(), thing.kind) for thing in scene.objects]
        phrases.append([*objects, (f"{scene.table} table", "table"), (f"{scene.wall} wall", "wall")])
    return {"latents": {side: torch.cat(all_) for side, all_ in latents.items()}, "phrases": phrases}


def drawn_scenes(folder: Path, seed: int, count: int, device: str) -> Drawn:
    """Reads the scenes, and draws those that are missing."""
    autoencoder, shards = None, []
    for number in tqdm(range(-(-count // SHARD)), desc="scenes", unit=f"x{SHARD}"):
        file = folder / f"scenes-{seed}-{number}.pt"
        if not file.exists():
            autoencoder = autoencoder or load_autoencoder(device)
            torch.save(draw_shard(seed, number, autoencoder, device), file.with_suffix(".new"))
            os.replace(file.with_suffix(".new"), file)
        shards.append(torch.load(file, weights_only=True))
    sides = shards[0]["latents"]
    return Drawn(
        {side: torch.cat([shard["latents"][side] for shard in shards]) for side in sides},
        [phrases for shard in shards for phrases in shard["phrases"]],
    )


def random_prompt(phrases: list[tuple[str, str]], rng: np.random.Generator) -> str:
    """Returns words for some of the scene: objects with or without their look, in any order, or nothing at all."""
    if rng.random() < 0.1:
        return ""
    kept = [noun if rng.random() < 0.5 else words for words, noun in phrases if rng.random() < 0.9]
    return ", ".join(rng.permutation(kept)) if kept else ""


# ---- autoencoder


def drawn_pictures(folder: Path, seed: int) -> Tensor:
    """Returns pictures (PICTURES, SIZE, SIZE, 3) in 0..255, drawn once."""
    file = folder / f"pictures-{seed}.pt"
    if not file.exists():
        rng = np.random.default_rng([seed, SCENES])
        drawn = [draw_scene(random_scene(rng))[0].mul(255).round().byte() for _ in tqdm(range(PICTURES), desc="scenes")]
        torch.save(torch.stack(drawn), file)
    return torch.load(file, weights_only=True)


def autoencoder_loss(model: Autoencoder, pictures: Tensor, noise: Tensor) -> Tensor:
    """Returns L1 of pixels and of their differences, plus a pull of each channel's latents to mean 0 and variance 1."""
    latents = model.encode(pictures)
    made = model.decoder(latents + LATENT_NOISE * noise).movedim(1, -1) / 2 + 0.5
    edges = [(x.diff(dim=1), x.diff(dim=2)) for x in (made, pictures)]
    loss = F.l1_loss(made, pictures) + sum(F.l1_loss(a, b) for a, b in zip(*edges, strict=True))
    spread, mean = torch.var_mean(latents.float(), (0, 2, 3))
    return loss + LATENT_PULL * (mean.square() + (spread - 1).square()).mean()


def crops(pictures: Tensor, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Returns crops (CROPS, CROP, CROP, 3) in 0..1 and noise for their latents, the same for the same seed and step."""
    rng = np.random.default_rng([seed, step])
    places = rng.integers([0, 0, 0], [len(pictures), SIZE - CROP, SIZE - CROP], (CROPS, 3))
    cut = torch.stack([pictures[i, y : y + CROP, x : x + CROP] for i, y, x in places]).float() / 255
    side = CROP // DOWNSCALE
    return cut, torch.from_numpy(rng.standard_normal((CROPS, CHANNELS, side, side), dtype=np.float32))


@torch.no_grad()
def psnr(model: Autoencoder, count: int = 24) -> tuple[float, float]:
    """Returns mean and least PSNR over held-out scenes, in dB."""
    rng, found = np.random.default_rng(77), []
    for _ in range(count):
        picture = draw_scene(random_scene(rng))[0][None]
        found.append(-10 * float((model.decode(model.encode(picture)) - picture).square().mean().log10()))
    return float(np.mean(found)), min(found)


# ---- networks


class DemoModel(nn.Module):
    """The UNet and its table of words, in the layout of the file that ships."""

    def __init__(self):
        super().__init__()
        self.unet = UNet2DConditionModel(**UNET)
        self.unet.set_attn_processor(AttnProcessor())  # on CPUs the fused one is slow to differentiate
        self.words = Words()

    def forward(self, x: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        return self.unet(x, timesteps, self.words(tokens)).sample


class FlowModel(nn.Module):
    """The transformer and its table of words."""

    def __init__(self):
        super().__init__()
        self.transformer = FluxTransformer2DModel(**FLOW)
        self.words = Words()

    def forward(self, x: Tensor, sigma: Tensor, tokens: Tensor) -> Tensor:
        side = x.shape[-1] // PATCH
        packed = F.pixel_unshuffle(x, PATCH).flatten(2).mT
        rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        image_ids = torch.stack([torch.zeros_like(rows), rows, columns], -1).view(-1, 3).to(x)
        context = self.words(tokens)
        velocity = self.transformer(
            hidden_states=packed,
            encoder_hidden_states=context,
            pooled_projections=x.new_zeros(len(x), POOLED),
            timestep=sigma,
            img_ids=image_ids,
            txt_ids=x.new_zeros(context.shape[1], 3),
        ).sample
        return F.pixel_shuffle(velocity.mT.unflatten(2, (side, side)), PATCH)


def random_timesteps(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.integers(0, TIMESTEPS, count)


def random_sigmas(rng: np.random.Generator, count: int) -> np.ndarray:
    """Returns noise levels, most of them in the middle: logit-normal, as in Stable Diffusion 3 (arXiv 2403.03206)."""
    return 1 / (1 + np.exp(rng.standard_normal(count, dtype=np.float32)))


def v_loss(model: nn.Module, latents: Tensor, tokens: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
    """Returns the mean squared error of v = sqrt(alpha) noise - sqrt(1 - alpha) x0 (arXiv 2202.00512)."""
    alpha = alphas_cumprod().to(latents)[timesteps].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    v = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
    return F.mse_loss(model(noisy, timesteps, tokens).float(), v)


def flow_loss(model: nn.Module, latents: Tensor, tokens: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """Returns the mean squared error of the velocity of a rectified flow (arXiv 2209.03003)."""
    share = sigma.view(-1, 1, 1, 1)
    return F.mse_loss(model((1 - share) * latents + share * noise, sigma, tokens).float(), noise - latents)


class Stage(NamedTuple):
    side: int  # of the latents' grid; of the autoencoder's crops there is one
    batch: int  # scenes in a step
    steps: int
    learning_rate: float


class Recipe(NamedTuple):
    """What differs between the models."""

    model: type[nn.Module]
    stages: tuple[Stage, ...]
    loss: Callable[..., Tensor]  # loss(model, *batch)
    random_levels: Callable[[np.random.Generator, int], np.ndarray] | None = None


RECIPES = {
    "autoencoder": Recipe(Autoencoder, (Stage(CROP // DOWNSCALE, CROPS, 5500, 1.2e-3),), autoencoder_loss),
    "unet": Recipe(
        DemoModel, (Stage(GRID // 2, 48, 3000, 1e-3), Stage(GRID, 16, 10000, 6e-4)), v_loss, random_timesteps
    ),
    "flow": Recipe(
        FlowModel, (Stage(GRID // 2, 48, 3000, 1e-3), Stage(GRID, 16, 6000, 8e-4)), flow_loss, random_sigmas
    ),
}


def learning_rate(step: int, stages: tuple[Stage, ...]) -> float:
    """Rises at first, is the stage's, and falls linearly to zero at the end of the last."""
    before = 0
    for stage in stages:
        if step < before + stage.steps:
            break
        before += stage.steps
    falling = (before + stage.steps - step) / (DECAY * stage.steps) if stage is stages[-1] else 1
    return stage.learning_rate * min(1, (step + 1) / WARMUP, falling)


def stage_of(step: int, stages: tuple[Stage, ...]) -> Stage:
    return next(stage for k, stage in enumerate(stages) if step < sum(s.steps for s in stages[: k + 1]))


def batch(scenes: Drawn | Tensor, seed: int, step: int, stage: Stage, recipe: Recipe) -> tuple[Tensor, ...]:
    """Returns what `recipe.loss` takes besides the model, the same for the same seed and step."""
    if isinstance(scenes, Tensor):
        return crops(scenes, seed, step)
    rng = np.random.default_rng([seed, step])
    chosen = rng.integers(0, len(scenes.phrases), stage.batch)
    latents = scenes.latents[stage.side][chosen].float()
    tokens = torch.tensor([padded(tokenize(random_prompt(scenes.phrases[i], rng))) for i in chosen])
    levels = torch.from_numpy(recipe.random_levels(rng, stage.batch))
    noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32))
    return latents, tokens, levels, noise


def train(
    folder: Path,
    name: str,
    scenes: Drawn | Tensor,
    seed: int,
    device: str,
    recipe: Recipe | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> tuple[nn.Module, list[float], float]:
    """Trains a model, from its last state where the folder holds one.

    Args:
        folder: for the state to resume from.
        scenes: for the autoencoder its pictures.
        recipe: that of the name, if it is None.
        dtype: of the arithmetic; the weights are float32.

    Returns:
        the average of the weights over the last thousand steps or so, the loss of every step, and the time in seconds.

    Raises:
        ValueError: the folder holds a training with another seed.
    """
    recipe = recipe or RECIPES[name]
    torch.manual_seed(seed)
    model = recipe.model().to(device).train()
    average = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    losses: list[float] = []
    seconds = 0.0

    state_file = folder / f"{name}-state.pt"
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

    steps = sum(stage.steps for stage in recipe.stages)
    progress = tqdm(range(len(losses), steps), initial=len(losses), total=steps, unit="step")
    for step in progress:
        started = time.perf_counter()
        given = batch(scenes, seed, step, stage_of(step, recipe.stages), recipe)
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            loss = recipe.loss(model, *(x.to(device) for x in given))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe.stages)
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


@torch.no_grad()
def sample(model: nn.Module, prompts: list[str], seed: int, steps: int = 50, cfg: float = 3.0) -> Tensor:
    """Samples latents (B, 8, 32, 32) from prompts alone, without further noise (DDIM, or Euler of a flow)."""
    tokens = torch.tensor([padded(tokenize(text)) for text in (*prompts, *[""] * len(prompts))])
    x = torch.randn((len(prompts), CHANNELS, GRID, GRID), generator=torch.Generator().manual_seed(seed))

    def guided(x: Tensor, level: Tensor) -> Tensor:
        cond, uncond = model(torch.cat([x, x]), level.expand(2 * len(x)), tokens).float().chunk(2)
        return uncond + cfg * (cond - uncond)

    if isinstance(model, FlowModel):
        for level, lower in pairwise(torch.cat([flow_level(torch.linspace(1, 0, steps + 1)[:-1]), torch.zeros(1)])):
            x = x + (lower - level) * guided(x, level)
        return x
    alphas = torch.cat([torch.ones(1), alphas_cumprod().float()])  # of timestep t at t + 1; the first: no noise
    for t, t_next in pairwise(torch.linspace(TIMESTEPS, 0, steps + 1).round().long()):
        (a, b), (a_next, b_next) = ((alphas[i].sqrt(), (1 - alphas[i]).sqrt()) for i in (t, t_next))
        v = guided(x, t - 1)
        x = a_next * (a * x - b * v) + b_next * (b * x + a * v)
    return x


def write_sample_sheet(path: Path, model: nn.Module) -> None:
    """Draws 28 pictures of prompts that nobody chose: words of scenes drawn at random."""
    rng, autoencoder, rows = np.random.default_rng(12345), load_autoencoder(), []
    for seed in range(4):
        prompts = [random_scene(rng).words() for _ in range(7)]
        with torch.no_grad():
            pictures = autoencoder.decode(sample(model, prompts, seed))
        rows.append(panels(list(zip(prompts, pictures, strict=True)), enlarge=1))
    stacked(rows).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.still_life.train", description=__doc__)
    parser.add_argument("--model", choices=RECIPES, default="unet", help="which one; default: %(default)s")
    parser.add_argument("--scenes", type=int, default=SCENES, help="how many to draw; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the first weights and of all scenes")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--folder", type=Path, default=Path("training"), help="where to keep and find the state")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    seed, device, folder = options.seed, options.device, options.folder
    if options.model == "autoencoder":
        model, losses, seconds = train(folder, options.model, drawn_pictures(folder, seed), seed, device)
        told = dict(zip(("psnr", "least_psnr"), psnr(model.cpu()), strict=True))
    else:
        scenes = drawn_scenes(folder, seed, options.scenes, device)
        model, losses, seconds = train(folder, options.model, scenes, seed, device)
        write_sample_sheet(folder / f"{options.model}-samples.png", model.cpu())
        told = {"scenes": options.scenes}
    told |= {"seed": seed, "steps": len(losses), "seconds": round(seconds), "machine": machine_kind(device)}
    told |= {"torch": torch.__version__, "loss": round(float(np.mean(losses[-500:])), 5)}
    write_weights(folder / f"{options.model}.safetensors", model, **told)
    write_loss_curve(folder / f"{options.model}-loss.png", losses)
    print(f"{told}\nWeights, loss curve and samples are in {folder}.")


if __name__ == "__main__":
    main()
