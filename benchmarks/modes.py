"""What each mode costs in rows, calls and seconds, in one run: python -m benchmarks.modes

Needs a ComfyUI, as benchmarks.speed does. Prints two tables of two concepts: the modes on its small UNet, beside the
plain loop, and everything that is not the UNet at 4 steps. All runs in one thread, and seconds are the processor's,
which other programs leave nearly as they are. Writes benchmarks/results/modes.json.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from benchmarks.speed import (
    RESULTS,
    SIZES,
    TESTS,
    Meter,
    Stage,
    Task,
    blend,
    draw_task,
    invert,
    run_pack,
    run_plain_loop,
)

CPU, CONCEPTS, FULL_WIDTH = torch.device("cpu"), 2, 320
FEW, SGM = (4, 1), {"scheduler": "sgm_uniform", "cfg": 1.0}
# mode → steps and skip_steps, inputs of DDPM Invert, inputs of the mixer
MODES = {
    "100 / 32, as in the paper": ((100, 32), {}, {}),
    "100 / 32, inversion cfg 1": ((100, 32), {"cfg": 1.0}, {}),
    "50 / 16, inversion cfg 1: the templates": ((50, 16), {"cfg": 1.0}, {}),
    "25 / 8, inversion cfg 1": ((25, 8), {"cfg": 1.0}, {}),
    "8 / 2, sgm_uniform": ((8, 2), SGM, {}),
    "4 / 1, sgm_uniform: the few-step templates": (FEW, SGM, {}),
    "4 / 1, constant swap_guidance 1": (FEW, SGM, {"swap_guidance": 1.0, "falling_guidance": False}),
    "4 / 1, keep_personal, the second run": (FEW, SGM, {"keep_personal": True}),
}
NARROW = {"sd21": "small", "sdxl": "narrow sdxl"}  # UNets of the same layers
NAMES = {"sd21": "SD 2.1 at 512 × 512", "sdxl": "SDXL at 1024 × 1024"}


def run_again(task: Task, stage: Callable[[str], None]) -> torch.Tensor:
    """The same inversion once more, with what was kept."""
    inversion = invert(task)
    blend(task, inversion)
    stage("blend")
    return blend(task, inversion)


def measure_modes(model, size: int) -> list[list[str]]:
    meter, lines = Meter(model.model.diffusion_model, CPU, clock=time.process_time), []
    first = draw_task(model, "small", size, CONCEPTS, *FEW)
    meter.measure(run_pack, first)  # warms up

    def line(name: str, stages: dict[str, Stage]) -> list[str]:
        rows, calls, seconds = (sum(getattr(x, key) for x in stages.values()) for key in ("rows", "calls", "seconds"))
        return [name, str(rows), str(calls), f"{seconds:.2f}"]

    for name, ((steps, skip_steps), inverting, mixing) in MODES.items():
        task = replace(first, steps=steps, skip_steps=skip_steps, inverting=inverting, mixing=mixing)
        stages, _ = meter.measure(run_again if "second" in name else run_pack, task)
        lines.append(line(name, stages))
    stages, _ = meter.measure(run_plain_loop, replace(first, steps=100, skip_steps=32))
    return [line("100 / 32, plain loop", stages), *lines]


def attention_sizes(unet, side: int, prompt: list) -> list[tuple[int, int]]:
    """(tokens, channels) of each self-attention, for a latent of side × side, if the UNet had its full width."""
    blocks, sizes = [x for x in unet.modules() if type(x).__name__ == "BasicTransformerBlock"], []
    widen = FULL_WIDTH // unet.model_channels
    hooks = [
        x.register_forward_pre_hook(lambda _, given: sizes.append((given[0].shape[1], given[0].shape[2] * widen)))
        for x in blocks
    ]
    y = None if unet.num_classes is None else torch.zeros(1, unet.label_emb[0][0].in_features)
    unet(torch.zeros(1, 4, side, side), torch.ones(1), context=prompt[0][0], y=y)
    for hook in hooks:
        hook.remove()
    return sizes


def outside_the_unet(layout: str) -> float:
    """Seconds of a step: of all that the nodes, ComfyUI and the patches in self-attention do, with a UNet that computes
    nothing. Attention itself is the UNet's."""
    from benchmarks.unets import random_model, random_prompt

    model, side = random_model(NARROW[layout], torch.float32, CPU), SIZES[layout] // 8
    unet = model.model.diffusion_model
    sizes, states = attention_sizes(unet, side, random_prompt(NARROW[layout], 1)), {}

    def nothing(x, timesteps, context=None, transformer_options={}, **_):  # noqa: B006 as ComfyUI's own has it
        told = {**transformer_options, "block": ("output", 0), "block_index": 0, "n_heads": 8}
        for size in sizes:
            shape = (len(x), *size)
            if shape not in states:
                states[shape] = torch.zeros(shape)
            given = [states[shape]] * 3
            for patch in transformer_options.get("patches", {}).get("attn1_patch", []):
                given = patch(*given, told)
        return torch.zeros_like(x)

    unet.forward = nothing
    task = draw_task(model, NARROW[layout], SIZES[layout], CONCEPTS, *FEW)
    return seconds_a_step(Meter(unet, CPU, clock=time.process_time), task, unet_too=True)


def seconds_a_step(meter: Meter, task: Task, unet_too: bool) -> float:
    """Inverting included."""
    task = replace(task, inverting=SGM)
    meter.measure(run_pack, task)  # warms up
    stages, _ = meter.measure(run_pack, task)
    unet = 0 if unet_too else sum(x.unet_seconds for x in stages.values())
    return (sum(x.seconds for x in stages.values()) - unet) / (task.steps - task.skip_steps)


def demo_task() -> Task:
    from comfy_host import Graph, output

    graph = Graph()
    model = graph.add("PnPMixDemoModel")
    prompts = {
        name: graph.add("CLIPTextEncode", text=text, clip=output(model, 1))
        for name, text in (("positive", "cup, fish, sea"), ("negative", ""))
    }
    given = graph.run(model=model, **prompts)
    picture = graph.run(latent=graph.add("VAEEncode", pixels=torch.rand(1, 64, 64, 3), vae=output(model, 2)))["latent"]
    latents = torch.randn(CONCEPTS + 2, *picture["samples"].shape[1:], generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(CONCEPTS, 64, 64)
    masks[0, 8:32, 8:32] = masks[1, 32:56, 32:56] = 1
    return Task(given["model"], given["positive"], given["negative"], latents, masks, *FEW)


def full_row() -> float:
    """Seconds of one latent in the full SD 2.1 UNet at 512 × 512, which takes 4 GiB."""
    from benchmarks.unets import random_model, random_prompt

    unet, prompt = random_model("sd21", torch.float32, CPU).model.diffusion_model, random_prompt("sd21", 1)
    began = time.process_time()
    unet(torch.zeros(1, 4, 64, 64), torch.ones(1), context=prompt[0][0])
    return time.process_time() - began


def table(header: list[str], lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *lines))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.modes", description=__doc__)
    parser.add_argument("--size", type=int, default=SIZES["small"], help="of the modes' pictures; default: %(default)s")
    options = parser.parse_args()
    sys.path.insert(0, str(TESTS))
    torch.set_num_threads(1)
    import packages  # noqa: F401
    from comfy_host import COMFYUI, boot

    if COMFYUI is None:
        raise SystemExit("No ComfyUI was found: set COMFYUI_DIR.")
    boot(Path(tempfile.mkdtemp()), "--cpu")
    from benchmarks.unets import random_model

    with torch.inference_mode():
        modes = measure_modes(random_model("small", torch.float32, CPU), options.size)  # before what fills the memory
        task = demo_task()
        unet = task.model.model.diffusion_model
        outside = {"the demo model": seconds_a_step(Meter(unet, CPU, clock=time.process_time), task, unet_too=False)}
        outside |= {f"the layers of full {name}": outside_the_unet(layout) for layout, name in NAMES.items()}
        row = full_row()
    print(table(["steps / skip_steps", "rows", "calls", "seconds"], modes))
    print(f"\nOne row of the full SD 2.1 UNet at 512 × 512: {row:.1f} s\n")
    lines = [[name, f"{x:.3f}", f"{x / row:.1%}"] for name, x in outside.items()]
    print(table(["beside the UNet of", "seconds a step", "of one row of the full SD 2.1 UNet"], lines))
    results = {"size": options.size, "rows, calls, seconds": modes, "seconds of a full row": row, "outside": outside}
    (RESULTS / "modes.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
