"""How fast the pack is, beside a plain loop on the same weights: python -m benchmarks.speed

Needs a ComfyUI, which is found as the tests find it. Writes benchmarks/results/speed-<machine>-<layout>.json.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import torch

TESTS = Path(__file__).resolve().parents[1] / "tests" / "tools"
RESULTS = Path(__file__).parent / "results"
SIZES = {"small": 128, "sd21": 512, "sdxl": 1024, "flux": 1024}  # of the square pictures, in pixels


def read_options() -> argparse.Namespace:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--layout", choices=SIZES, default="sd21" if gpu else "small")
    parser.add_argument("--size", type=int, help="of the pictures, in pixels; default: what the layout is made for")
    parser.add_argument("--concepts", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--skip-steps", type=int, default=32)
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float16" if gpu else "float32")
    parser.add_argument(
        "--loop-up-to", type=int, default=2, help="concepts; the plain loop is slow, and of UNets alone"
    )
    parser.add_argument("--memory", type=float, help="GiB that the GPU's allocator may take")
    parser.add_argument("--compile", action="store_true", help="through ComfyUI's TorchCompileModel")
    parser.add_argument("--profile", action="store_true", help="also where one step of two concepts spends its time")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    options.command = " ".join(["python -m benchmarks.speed", *sys.argv[1:]])  # ComfyUI's options take its place
    return options


@dataclass
class Task:
    model: object  # ModelPatcher
    positive: list
    negative: list
    latents: torch.Tensor  # (n + 2, 4, h, w): background, emptied background, concepts
    masks: torch.Tensor  # (n, H, W)
    steps: int
    skip_steps: int
    inverting: dict = field(default_factory=dict)  # other inputs of DDPM Invert than its defaults
    mixing: dict = field(default_factory=dict)  # of the Mask Noise Mixer


@dataclass
class Stage:
    rows: int = 0  # latents that the UNet saw
    calls: int = 0
    seconds: float = 0.0
    unet_seconds: float = 0.0
    peak_memory: int = 0  # bytes on the GPU; 0 without one


@dataclass
class Meter:
    """Watches a UNet; `stage` begins the next stage."""

    unet: torch.nn.Module
    device: torch.device
    stages: dict[str, Stage] = field(default_factory=dict)
    current: Stage | None = None
    began: float = 0.0
    marks: list = field(default_factory=list)
    clock: Callable[[], float] = time.perf_counter  # of a CPU

    def now(self):
        """Marks a moment in the order of the device's work."""
        if self.device.type != "cuda":
            return self.clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def stage(self, name: str | None) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        if self.current is not None:
            self.current.seconds = self.clock() - self.began
            between = (lambda a, b: a.elapsed_time(b) / 1000) if self.device.type == "cuda" else (lambda a, b: b - a)
            self.current.unet_seconds = sum(
                between(*pair) for pair in zip(self.marks[::2], self.marks[1::2], strict=True)
            )
            self.current.peak_memory = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0
        self.marks, self.current, self.began = [], None, self.clock()
        if name is not None:
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            self.current = self.stages[name] = Stage()

    def before(self, _, args) -> None:
        if self.current is not None:
            self.current.rows += len(args[0])
            self.current.calls += 1
            self.marks.append(self.now())

    def after(self, *_) -> None:
        if self.current is not None:
            self.marks.append(self.now())

    def measure(self, run: Callable, task: Task) -> tuple[dict[str, Stage], torch.Tensor]:
        """Returns the stages that `run` begins, and what it returns."""
        self.stages = {}
        handles = [self.unet.register_forward_pre_hook(self.before), self.unet.register_forward_hook(self.after)]
        try:
            result = run(task, self.stage)
            self.stage(None)
        finally:
            for handle in handles:
                handle.remove()
        return self.stages, result


def run_pack(task: Task, stage: Callable[[str], None]) -> torch.Tensor:
    """Returns output and references of the nodes, run by ComfyUI's executor."""
    stage("invert")
    inversion = invert(task)
    stage("blend")
    return blend(task, inversion)


def invert(task: Task):
    import mixer_graph
    from comfy_host import Graph

    graph = Graph()
    settings = dict(steps=task.steps, skip_steps=task.skip_steps, positive=task.positive, negative=task.negative)
    settings |= dict(latent={"samples": task.latents[:1]}, **task.inverting)
    return graph.run(inversion=mixer_graph.invert(graph, task.model, **settings))["inversion"]


def blend(task: Task, inversion) -> torch.Tensor:
    import mixer_graph
    from comfy_host import Graph, output

    graph, link = Graph(), None
    for k, mask in enumerate(task.masks):
        latent = {"samples": task.latents[k + 2 : k + 3]}
        link = graph.add("PnPMixConcept", latent=latent, mask=mask[None], concepts=link, seed=1 + k, name=str(k))
    patched = mixer_graph.appearance(graph, task.model)
    patched = mixer_graph.dilution(graph, patched, latent={"samples": task.latents[1:2]})
    settings = dict(positive=task.positive, negative=task.negative, **task.mixing)
    mixed = mixer_graph.mixer(graph, patched, inversion, link, **settings)
    results = graph.run(latent=mixed, references=output(mixed, 1))
    return torch.cat([results["latent"]["samples"], results["references"]["samples"]])


def run_plain_loop(task: Task, stage: Callable[[str], None]) -> torch.Tensor:
    """Returns the same of the plain loop."""
    import comfy.samplers
    from benchmarks.plain_loop import PlainSampler
    from pnpmix.masks import expanded_box_mask, share_overlaps, token_weights

    grid, count = tuple(task.latents.shape[-2:]), len(task.masks)
    sampler = PlainSampler(
        task.latents[1:],
        [7, 7, *range(1, 1 + count)],
        share_overlaps(torch.stack([token_weights(mask, grid)[None] for mask in task.masks])),
        torch.stack([expanded_box_mask(mask, grid, 16)[None] for mask in task.masks]),
        inversion_cfg=3.5,
        alpha=0.15,
        beta=0.8,
        swap_guidance=3.5,
        stage=stage,
    )
    sampling = task.model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "ddim_uniform", task.steps)[
        -(task.steps - task.skip_steps + 1) :
    ]
    guider = comfy.samplers.CFGGuider(task.model)
    guider.set_conds(task.positive, task.negative)
    noise = torch.zeros_like(task.latents[:1])
    return guider.sample(noise, task.latents[:1], sampler, sigmas.float(), seed=7).cpu()


def draw_task(model, layout: str, size: int, count: int, steps: int, skip_steps: int) -> Task:
    from benchmarks.unets import random_prompt

    channels = model.model.latent_format.latent_channels
    latents = torch.randn(count + 2, channels, size // 8, size // 8, generator=torch.Generator().manual_seed(0))
    across = -(-count // 2)
    masks = torch.zeros(count, size, size)
    for k in range(count):  # in two rows
        top, left = k // across * size // 2, k % across * size // across
        masks[
            k, top + size // 16 : top + size * 7 // 16, left + size // across // 8 : left + size // across * 7 // 8
        ] = 1
    inverting = {"scheduler": "simple", "cfg": 1.0} if layout == "flux" else {}
    prompts = random_prompt(layout, 1), random_prompt(layout, 2)
    return Task(model, *prompts, latents, masks, steps, skip_steps, inverting)


def flops_per_row(meter: Meter, model, layout: str, size: int) -> float:
    """Returns the FLOPs of one latent through the UNet, attention included."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter:
        stages, _ = meter.measure(run_pack, draw_task(model, layout, size, 1, 2, 1))
    return counter.get_total_flops() / sum(stage.rows for stage in stages.values())


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measures the FLOP/s of a large matrix product."""
    size, times = (8192, 20) if device.type == "cuda" else (2048, 3)
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    a @ b
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        a @ b
    if device.type == "cuda":
        torch.cuda.synchronize()
    return times * 2 * size**3 / (time.perf_counter() - began)


def profile(meter: Meter, task: Task) -> str:
    """Returns a table of where the blending of a few steps spends its time, operator by operator."""
    from torch.profiler import ProfilerActivity

    gpu = meter.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with torch.profiler.profile(activities=activities) as profiler:
        meter.measure(run_pack, task)
    order = "self_cuda_time_total" if gpu else "self_cpu_time_total"
    return profiler.key_averages().table(sort_by=order, row_limit=30)


def row(count: int, who: str, stages: dict[str, Stage], flops: float, rate: float) -> dict:
    """Returns what is reported of one run."""
    rows, seconds = (sum(getattr(stage, name) for stage in stages.values()) for name in ("rows", "seconds"))
    blend = stages["blend"]
    return {
        "concepts": count,
        "who": who,
        "rows": rows,
        "calls": sum(stage.calls for stage in stages.values()),
        "seconds": seconds,
        "seconds inverting": stages["invert"].seconds,
        "seconds blending": blend.seconds,
        "outside the UNet while blending": 1 - blend.unet_seconds / blend.seconds,
        "peak GiB": max(stage.peak_memory for stage in stages.values()) / 2**30,
        "share of the matrix rate": rows * flops / seconds / rate,
    }


def slope(xs: list[float], ys: list[float]) -> tuple[float, float]:
    """Returns slope and intercept of the least-squares line."""
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    rise = sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)
    return rise, y - rise * x


def table(rows: list[dict]) -> str:
    names = list(rows[0])
    cells = [
        [x if isinstance(x, str) else f"{x:.3g}" if isinstance(x, float) else str(x) for x in r.values()] for r in rows
    ]
    lines = ["| " + " | ".join(line) + " |" for line in (names, ["---"] * len(names), *cells)]
    return "\n".join(lines)


def main() -> None:
    options = read_options()
    sys.path.insert(0, str(TESTS))
    import packages  # noqa: F401
    from comfy_host import COMFYUI, boot

    if COMFYUI is None:
        raise SystemExit("No ComfyUI was found: set COMFYUI_DIR.")
    gpu = torch.cuda.is_available()
    boot(Path(tempfile.mkdtemp()), *([] if gpu else ["--cpu"]))
    from benchmarks.unets import random_model

    if options.memory is not None:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(options.memory * 2**30 / total)
    device, dtype = torch.device("cuda" if gpu else "cpu"), getattr(torch, options.dtype)
    size = options.size or SIZES[options.layout]
    with torch.inference_mode():
        report(options, random_model(options.layout, dtype, device), device, dtype, size)


def report(options: argparse.Namespace, model, device: torch.device, dtype: torch.dtype, size: int) -> None:
    meter = Meter(model.model.diffusion_model, device)
    rate, flops = matrix_rate(device, dtype), flops_per_row(meter, model, options.layout, size)
    if options.compile:
        from comfy_api.torch_helpers import set_torch_compile_wrapper

        model = model.clone()
        set_torch_compile_wrapper(model=model, backend="inductor")

    rows, distances = [], {}
    for count in options.concepts:
        task = draw_task(model, options.layout, size, count, options.steps, options.skip_steps)
        few = draw_task(model, options.layout, size, count, 4, 2)
        meter.measure(run_pack, few)  # warms up
        stages, result = meter.measure(run_pack, task)
        rows.append(row(count, "pack", stages, flops, rate))
        if count <= options.loop_up_to and options.layout != "flux":
            stages, expected = meter.measure(run_plain_loop, task)
            rows.append(row(count, "plain loop", stages, flops, rate))
            distances[count] = float((result - expected).norm() / expected.norm())

    pack, loop = ({r["concepts"]: r for r in rows if r["who"] == who} for who in ("pack", "plain loop"))
    steps = options.steps - options.skip_steps
    rise, start = slope(list(pack), [r["seconds blending"] / steps for r in pack.values()]) if len(pack) > 1 else (0, 0)
    results = {
        "date": str(date.today()),
        "machine": torch.cuda.get_device_name()
        if device.type == "cuda"
        else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "command": options.command,
        "layout": options.layout,
        "size": size,
        "dtype": options.dtype,
        "steps": [options.steps, options.skip_steps],
        "TFLOP a row": flops / 1e12,
        "measured matrix TFLOP/s": rate / 1e12,
        "seconds a step": {"a concept more": rise, "without concepts": start},
        "pack / loop": {n: {name: pack[n][name] / loop[n][name] for name in ("rows", "seconds")} for n in loop},
        "relative distance of the results": distances,
        "rows": rows,
    }
    name = f"speed-{'gpu' if device.type == 'cuda' else 'cpu'}-{options.layout}{'-compiled' if options.compile else ''}"
    path = options.output or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(rows))
    print(json.dumps({key: value for key, value in results.items() if key != "rows"}, indent=1))
    if options.profile:
        few = draw_task(model, options.layout, size, 2, 4, 2)
        path.with_suffix(".txt").write_text(profile(meter, few), encoding="utf-8")


if __name__ == "__main__":
    main()
