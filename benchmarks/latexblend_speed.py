"""What learning a concept, blending and blending guidance cost on the demo model: python -m benchmarks.latexblend_speed

Needs a ComfyUI, which is found as the tests find it. Writes benchmarks/results/latexblend-speed.json.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

TESTS = Path(__file__).resolve().parents[1] / "tests" / "tools"
RESULTS = Path(__file__).parent / "results" / "latexblend-speed.json"
LEARNING_STEPS, RUNS = 8, 7
NOUNS = ("cup", "fish")
SAMPLING = dict(seed=1, steps=8, cfg=3.0, sampler_name="euler", scheduler="normal", denoise=1.0)


class Meter:
    """Rows that a UNet sees, and when."""

    def __init__(self, unet: nn.Module):
        self.rows: list[int] = []
        self.times: list[float] = []
        unet.register_forward_pre_hook(self.before)

    def before(self, _, args) -> None:
        self.rows.append(len(args[0]))
        self.times.append(time.process_time())

    def of(self, run: Callable[[], object]) -> "Meter":
        self.rows, self.times = [], []
        run()
        return self

    def seconds_a_step(self) -> float:
        """Of the median step."""
        return statistics.median(b - a for a, b in zip(self.times, self.times[1:], strict=False))


def peak(run: Callable[[], object]) -> float:
    """MB that `run` has allocated at its highest."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = highest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        highest = max(highest, now)
    return highest / 1e6


def fine_tune(model, clip, pictures: Tensor, steps: int) -> None:
    """The plain way: K and V of every layer, and the identifier, trained for all words of one prompt."""
    from pnpmix.latexblend import training

    from comfy_host import pack_module

    base, gradients = model.model, pack_module("common.gradients")
    unet = base.diffusion_model
    latents = base.process_latent_in(pictures.clone())
    with gradients.with_gradients(unet):
        learned = {}
        for name, module in unet.named_modules():
            if name.endswith(("attn2.to_k", "attn2.to_v")):
                learned[name] = module.weight
                module.weight = nn.Parameter(module.weight.detach().clone())
        table = clip.cond_stage_model.table.weight.detach().clone()
        identifier = nn.Parameter(table[0].clone())
        parameters = {"identifier": identifier, **{name: unet.get_submodule(name).weight for name in learned}}
        noun = table[next(row[0][0] for row in clip.tokenize(NOUNS[0])["words"])]

        def loss_of(step: int) -> Tensor:
            drawn = training.draw(42, step, len(latents), 0, latents.shape[1:])
            sigma, x0 = base.model_sampling.sigma(drawn.timesteps).float(), latents[drawn.view][None]
            context = torch.stack([identifier, noun, *table[:1].expand(3, -1)])[None]
            denoised = base.apply_model(x0 + sigma.view(-1, 1, 1, 1) * drawn.noise, sigma, c_crossattn=context)
            return training.prediction_loss(denoised, x0, sigma, torch.ones_like(x0[:, :1]), True).sum()

        try:
            training.fit(parameters, loss_of, range(steps), 1e-3)
        finally:
            for name, weight in learned.items():
                unet.get_submodule(name).weight = weight


def main() -> None:
    sys.path.insert(0, str(TESTS))
    import packages  # noqa: F401
    from comfy_host import Graph, boot, output

    boot(Path(tempfile.mkdtemp()), "--cpu")
    graph = Graph()
    loaded = graph.add("PnPMixDemoModel")
    given = graph.run(model=loaded, clip=output(loaded, 1), vae=output(loaded, 2))
    model, clip, vae = given["model"], given["clip"], given["vae"]
    from demo.own_things import photos

    pictures, meter = photos(NOUNS[0]), Meter(model.model.diffusion_model)

    def learn(checkpointing: bool) -> None:
        graph = Graph()
        settings = dict(noun=NOUNS[0], steps=LEARNING_STEPS, learning_rate=1e-3, resolution=64, rank=0, seed=42)
        settings |= dict(augment=False, prior_weight=1.0, dtype="fp32", name="", checkpointing=checkpointing)
        link = graph.add("PnPMixTrainConcept", model=model, clip=clip, vae=vae, images=pictures, **settings)
        graph.run(learned=link)

    ways = {
        "Train Concept": lambda: learn(checkpointing=False),
        "Train Concept, checkpointing": lambda: learn(checkpointing=True),
        "the plain way: K and V fine-tuned": lambda: fine_tune(model, clip, vae.encode(pictures), LEARNING_STEPS),
    }
    results: dict[str, dict] = {"learning": {}, "sampling": {}}
    for name, run in ways.items():
        results["learning"][name] = {"steps a second": 1 / meter.of(run).seconds_a_step(), "peak MB": peak(run)}

    def sample(blended: bool, scale: float = 0.0) -> None:
        graph, latent = Graph(), {"samples": torch.zeros(1, 12, 32, 32)}
        text, patched = ", ".join(NOUNS), model  # with V* as many tokens as the empty prompt has: one call for both
        positive = graph.add("CLIPTextEncode", clip=clip, text=text)
        negative = graph.add("CLIPTextEncode", clip=clip, text="")
        if blended:
            chain = None
            for noun in NOUNS:
                concept = graph.add("PnPMixLoadConcept", file=f"demo model: {noun}.safetensors")
                chain = graph.add("PnPMixBlendConcept", learned=concept, occurrence=1, strength=1.0, concepts=chain)
            settings = dict(start_percent=0.0, bind=True, slot="auto", region=1.0)
            patched = graph.add("PnPMixBlend", model=model, clip=clip, text=text, concepts=chain, **settings)
            positive = output(patched, 1)
        if scale:
            settings = dict(scale=scale, g1=1.0, g2=1.0, start_percent=0.0, end_percent=0.2)
            patched = graph.add("PnPMixBlendingGuidance", model=patched, **settings)
        ends = dict(model=patched, positive=positive, negative=negative, latent_image=latent)
        graph.run(latent=graph.add("KSampler", **ends, **SAMPLING))

    kinds = {
        "plain words": lambda: sample(blended=False),
        "two concepts": lambda: sample(blended=True),
        "with guidance": lambda: sample(blended=True, scale=1.0),
    }
    steps: dict[str, list[float]] = {name: [] for name in kinds}
    graphs: dict[str, list[float]] = {name: [] for name in kinds}
    for k in range(RUNS + 1):  # in turns, because machines are not the same all the time; the first warms up
        for name, run in kinds.items():
            began = time.process_time()
            meter.of(run)
            results["sampling"][name] = {"model rows": sum(meter.rows), "calls": len(meter.rows)}
            if k:
                graphs[name].append(time.process_time() - began)
                steps[name].append(meter.seconds_a_step())
    for name in kinds:
        for what, own in (("step", steps), ("graph", graphs)):
            ratio = statistics.median(a / b for a, b in zip(own[name], own["plain words"], strict=True))
            results["sampling"][name][f"{what}, seconds"] = statistics.median(own[name])
            results["sampling"][name][f"{what}, of plain"] = ratio
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
