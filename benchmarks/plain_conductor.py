"""Concept Conductor as its paper says it, without what the pack saves: python -m benchmarks.plain_conductor

Each branch has a UNet copied for the occasion, every call has one row and runs to its end, the layout's features are
computed again in each aligned step, one graph holds all branches, and the base's attention is clustered for every
concept. Latents are the paper's z. Prints model rows, calls, copies, clusterings and seconds of one core on the demo
model, of both, and how far the two results are apart.
"""

import argparse
import copy
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from unittest import mock

import torch
from demo.conducting import ATTENTION, GRIDS, KEYS, Concept, ConductorSettings, conduct, read_layout
from demo.diffusers_host import DemoModel, load_model, to_pictures
from demo.loras import load_lora, merged
from demo.model import CHANNELS, GRID
from demo.scenes import draw_scene, prompts_of, random_layout
from pnpmix.conductor import refinement
from pnpmix.conductor.injection import all_grids, first_masks, on_grid
from pnpmix.conductor.layout import Layout, nearest_level
from torch import Tensor, nn


def attend(name: str, seen: dict, change: Callable, attn: nn.Module, hidden: Tensor, encoder_hidden_states=None, **_):
    """Explicit attention that notes keys and probabilities, and lets `change(name, output)` answer."""
    context = hidden if encoder_hidden_states is None else encoder_hidden_states
    query, key, value = (
        project(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        for project, x in ((attn.to_q, hidden), (attn.to_k, context), (attn.to_v, context))
    )
    weights = (query @ key.mT * key.shape[-1] ** -0.5).softmax(-1)
    seen[name] = key.transpose(1, 2).flatten(2), weights.mean(1)
    return change(name, attn.to_out[0]((weights @ value).transpose(1, 2).flatten(2)))


def run(branch: DemoModel, z: Tensor, alpha: Tensor, context: Tensor, counts: Counter, change: Callable | None = None):
    """Noise prediction of one row, and what its attention layers saw."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for name, module in branch.unet.named_modules():
        if name.endswith((".attn1", ".attn2")):
            module.processor = partial(attend, name, seen, change or (lambda _, output: output))
    counts.update(rows=1, calls=1)
    sigma = ((1 - alpha) / alpha).sqrt()
    x = z / alpha.sqrt()
    return (x - branch.denoise(x, sigma[None], context)) / sigma, seen


def fused(outputs: list[dict[str, Tensor]], masks: dict, name: str, hidden: Tensor) -> Tensor:
    """h <- h_k * M_k + h * (1 - M_k) in the decoder."""
    if name.startswith("up_blocks"):
        side = round(hidden.shape[1] ** 0.5)
        for own, mask in zip(outputs, masks[side, side], strict=True):
            hidden = torch.where(mask.flatten(1)[..., None], own[name], hidden)
    return hidden


def plain_conduct(
    model: DemoModel,
    layout: Layout,
    layout_prompt: str,
    prompt: str,
    concepts: list[Concept],
    inputs: ConductorSettings,
) -> tuple[Tensor, Counter]:
    """What `demo.conducting.conduct` returns, and what it took."""
    n, counts, base = len(concepts), Counter(), model.unet.state_dict()
    alphas = 1 / (1 + model.schedule(inputs.steps) ** 2)
    steps = len(alphas) - 1
    words = [model.words([text, ""]).split(1) for text in (prompt, *(concept.prompt for concept in concepts))]

    def branch(k: int) -> DemoModel:
        own = copy.deepcopy(model)
        if k:
            own.unet.load_state_dict(merged(base, [concepts[k - 1].lora], inputs.strength))
        counts["weights changed"] += 1
        return own

    z = torch.randn((1, CHANNELS, GRID, GRID), generator=torch.Generator().manual_seed(inputs.noise_seed))
    final = all_grids(first_masks(torch.stack([x.mask for x in concepts]), (GRID, GRID), 1), GRIDS)
    customs, bases = [list(final[GRID // 2, GRID // 2][:, 0]) for _ in range(2)]
    updates = refinement.Refinement(inputs.start, inputs.end, inputs.updates, inputs.threshold, inputs.restarts)
    refined = refinement.refined_steps(updates, steps)
    for i in range(steps):
        if i <= round(inputs.align_end * steps):
            level = nearest_level(layout, ((1 - alphas[i]) / alphas[i]).sqrt())
            alpha = 1 / (1 + layout.sigmas[level] ** 2)
            known = layout.trajectory[level : level + 1] * alpha.sqrt()
            reference = run(branch(0), known, alpha, model.words([layout_prompt]), counts)[1][KEYS][0]
            with torch.enable_grad():
                z = z.detach().requires_grad_()
                losses = []
                for k in range(n + 1):
                    keys = run(branch(k), z, alphas[i], words[k][0], counts)[1][KEYS][0]
                    losses.append((keys - reference).square().mean())
                loss = losses[0] + inputs.concept_weight * sum(losses[1:]) / n
                z = (z - inputs.weight * torch.autograd.grad(loss, z)[0]).detach()
        outputs, attention = [], []
        for k in range(1, n + 1):
            own = branch(k)
            for row in range(2):
                kept: dict[str, Tensor] = {}
                _, seen = run(own, z, alphas[i], words[k][row], counts, kept.setdefault)
                outputs.append(kept)
                attention += [seen[ATTENTION][1]] if row == 0 else []
        eps, own = [], branch(0)
        for row in range(2):
            inject = partial(fused, outputs[row::2], final)
            predicted, seen = run(own, z, alphas[i], words[0][row], counts, inject)
            eps.append(predicted)
            attention += [seen[ATTENTION][1]] if row == 0 else []
        if i in refined:
            for k in range(n):
                for masks, rows in ((customs, attention[k][0]), (bases, attention[n][0])):
                    found = refinement.segments(rows, range(n + 1, 2 * n + 2), inputs.restarts)
                    masks[k] = refinement.best_segment(found, masks[k], inputs.threshold)
            for grid, before in final.items():
                both = [on_grid(torch.stack(x)[:, None], grid) for x in (customs, bases)]
                union = both[0] | both[1]
                final[grid] = torch.where(union.sum(0) > 1, before, union)
        guided = eps[1] + inputs.cfg * (eps[0] - eps[1])
        x0 = (z - (1 - alphas[i]).sqrt() * guided) / alphas[i].sqrt()
        z = alphas[i + 1].sqrt() * x0 + (1 - alphas[i + 1]).sqrt() * guided
    return to_pictures(z)[0], counts


@torch.no_grad()
def compare(seed: int, concepts: int, inputs: ConductorSettings) -> tuple[dict[str, Counter], float]:
    """What each takes, and the relative distance (L2) of the two pictures."""
    scene = random_layout(seed, concepts)
    picture, masks = draw_scene(scene)
    prompt, own = prompts_of(scene)
    given = [Concept(load_lora(x.shape), text, mask) for x, text, mask in zip(scene.things, own, masks, strict=True)]
    layout = read_layout(load_model(), picture, prompt, inputs)
    task = layout, prompt, prompt, given, inputs
    taken, results = {}, []
    for name in ("the pack", "plain"):
        with mock.patch.object(refinement, "k_means", wraps=refinement.k_means) as clusterings:
            began = time.process_time()
            if name == "plain":
                result, counts = plain_conduct(load_model(), *task)
            else:
                counts = Counter()
                result, _ = conduct(load_model(), *task, counts=counts)
            counts["seconds"] = round(time.process_time() - began)
        counts["clusterings"] = clusterings.call_count
        taken[name] = counts
        results.append(result)
    return taken, float((results[0] - results[1]).norm() / results[1].norm())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plain_conductor", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--concepts", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    taken, distance = compare(options.seed, options.concepts, ConductorSettings(noise_seed=options.seed))
    columns = ["rows", "rows to the keys", "rows to the last attention", "calls", "weights changed", "clusterings"]
    columns.append("seconds")
    print(f"| | {' | '.join(columns)} |\n| --- |" + " ---: |" * len(columns))
    for name, counts in taken.items():
        print(f"| {name} | {' | '.join(str(counts[column]) for column in columns)} |")
    print(f"\nThe pictures are {distance:.1e} apart (relative L2).")


if __name__ == "__main__":
    main()
