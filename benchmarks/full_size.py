"""What Concept Conductor and LaTexBlend take at full size, in time and memory: python -m benchmarks.full_size

Random weights in half precision, two concepts; the VAE is left out. Needs a ComfyUI, which is found as the tests find
it, and in earnest a GPU: without one it measures small pictures, which says that it runs and no more. Writes
benchmarks/results/full-size-<layout>.json.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from benchmarks.speed import RESULTS, TESTS, table
from torch import Tensor, nn

SIZES = {"sd15": 512, "sdxl": 1024}  # of the square pictures, in pixels
NOUNS, TEXT = ("dog", "cat"), "a photo of a dog and a cat"
SAMPLING = dict(seed=1, sampler_name="euler", scheduler="normal", denoise=1.0, cfg=7.5)
RANK, RATE = 16, 2e-5


def measured(run: Callable[[], object], steps: int) -> dict[str, float]:
    """Seconds of a step of all that `run` does, and what the GPU's allocator held at its highest."""
    gpu = torch.cuda.is_available()
    run()  # warms up
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    run()
    if gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    return {
        "seconds": round(seconds, 3),
        "seconds a step": round(seconds / steps, 4),
        "peak GiB": round(torch.cuda.max_memory_allocated() / 2**30, 2) if gpu else 0.0,
    }


def random_clip(layout: str):
    """Returns ComfyUI's CLIP with full-size text encoders and random weights."""
    import comfy.sd
    import comfy.sd1_clip
    import comfy.sdxl_clip
    from comfy.supported_models_base import ClipTarget

    parts = {
        "sd15": (comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel),
        "sdxl": (comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel),
    }
    clip = comfy.sd.CLIP(ClipTarget(*parts[layout]))
    for name, parameter in clip.cond_stage_model.named_parameters():
        parameter.requires_grad_(False)
        if parameter.ndim > 1:
            parameter.normal_(std=parameter.shape[-1] ** -0.5 if "embedding" not in name else 0.02)
        else:
            parameter.fill_(float(name.endswith("weight")))
    return clip


def random_lora(model, seed: int) -> dict[str, Tensor]:
    """Returns a random LoRA of all attention layers of a UNet, by the names that trainers use."""
    import comfy.lora

    generator, lora = torch.Generator().manual_seed(seed), {}
    for name, key in comfy.lora.model_lora_keys_unet(model.model, {}).items():
        if name.startswith("lora_unet_") and "_attn" in name and "transformer_blocks" in name:
            rows, columns = model.model.state_dict()[key].shape
            lora[f"{name}.lora_up.weight"] = torch.randn(rows, RANK, generator=generator) * 0.02
            lora[f"{name}.lora_down.weight"] = torch.randn(RANK, columns, generator=generator) * columns**-0.5
    return lora


class Case:
    def __init__(self, layout: str, size: int, steps: int, learning_steps: int):
        from benchmarks.unets import random_model, random_prompt

        gpu = torch.cuda.is_available()
        device, dtype = torch.device("cuda" if gpu else "cpu"), torch.float16 if gpu else torch.float32
        self.layout, self.size, self.steps, self.learning_steps = layout, size, steps, learning_steps
        self.model, self.clip = random_model(layout, dtype, device), random_clip(layout)
        self.prompts = [random_prompt(layout, k) for k in range(6)]
        self.cells = size // 8
        self.held: list = []  # models of graphs that are done: ComfyUI searches for leaks once one of them is gone
        self.loras = [random_lora(self.model, k) for k in range(len(NOUNS))]

    def latent(self, seed: int = 0) -> dict:
        generator = torch.Generator().manual_seed(seed)
        return {"samples": torch.randn(1, 4, self.cells, self.cells, generator=generator)}

    def masks(self) -> list[Tensor]:
        masks = torch.zeros(2, 1, self.size, self.size)
        masks[0, :, :, : self.size // 2] = masks[1, :, :, self.size // 2 :] = 1
        return list(masks)

    # Concept Conductor

    def conduct(self, aligned: bool) -> None:
        from comfy_host import Graph
        from conductor_graph import alignment, conductor, reference, refinement, with_hooks

        graph, model, link = Graph(), self.model, None
        if aligned:
            layout = reference(graph, model, positive=self.prompts[5], latent=self.latent(3), steps=self.steps)
            model = refinement(graph, alignment(graph, model, layout))
        for k, (lora, mask) in enumerate(zip(self.loras, self.masks(), strict=True)):
            positive, negative = with_hooks(self.prompts[2 * k : 2 * k + 2], lora)
            own = dict(positive=positive, negative=negative, mask=mask, name=NOUNS[k], concepts=link)
            link = graph.add("PnPMixConductedConcept", **own)
        common = dict(
            positive=self.prompts[0], negative=self.prompts[1], latent={"samples": self.latent()["samples"] * 0}
        )
        results = dict(latent=conductor(graph, model, link, steps=self.steps, cfg=7.5, **common))
        self.held.append(graph.run(**results | ({"model": model} if aligned else {})))

    # LaTexBlend

    def learn(self, checkpointing: bool, noun: str = NOUNS[0], steps: int | None = None):
        from comfy_host import Graph
        from learned_concepts import Vae

        graph = Graph()
        settings = dict(noun=noun, steps=steps or self.learning_steps, learning_rate=RATE, resolution=self.size, rank=0)
        settings |= dict(seed=42, augment=False, prior_weight=1.0, dtype="bf16", name="", checkpointing=checkpointing)
        photos = torch.rand(3, self.size, self.size, 3, generator=torch.Generator().manual_seed(0))
        given = dict(model=self.model, clip=self.clip, vae=Vae(), images=photos)
        return graph.run(learned=graph.add("PnPMixTrainConcept", **given, **settings))["learned"]

    def fine_tune(self) -> None:
        """Trains the plain way: K and V of every layer in single precision, without what saves memory."""
        import comfy.model_management
        from pnpmix.latexblend import training

        from comfy_host import pack_module

        base, unet = self.model.model, self.model.model.diffusion_model
        comfy.model_management.load_models_gpu([self.model])
        device = self.model.load_device
        layers = pack_module("latexblend.layers")
        with pack_module("common.gradients").with_gradients(unet), contextlib.ExitStack() as undone:
            parameters = {}
            x0 = self.latent()["samples"].to(device)
            for name, (_, module) in layers.cross_attentions(unet).items():
                for side in ("to_k", "to_v"):
                    linear = getattr(module, side)
                    undone.callback(setattr, linear, "weight", linear.weight)
                    linear.weight = nn.Parameter(linear.weight.detach().float())
                    parameters[f"{name}.{side}"] = linear.weight
            given = {"c_crossattn": self.prompts[0][0][0].clone().to(device)}
            if self.layout == "sdxl":
                given["y"] = torch.zeros(1, 2816, device=device)
            options = {"optimized_attention_override": pack_module("common.attention").differentiable_attention}

            def loss_of(step: int) -> Tensor:
                drawn = training.draw(42, step, 1, 0, x0.shape[1:])
                sigma = base.model_sampling.sigma(drawn.timesteps.to(device)).float()
                x = x0 + sigma.view(-1, 1, 1, 1) * drawn.noise.to(device)
                with torch.autocast(device.type, torch.bfloat16):
                    denoised = base.apply_model(x, sigma, transformer_options=options, **given)
                return training.prediction_loss(denoised, x0, sigma, torch.ones_like(x0[:, :1]), False).sum()

            training.fit(parameters, loss_of, range(self.learning_steps), RATE)

    def sample(self, learned: list | None, scale: float = 0.0) -> None:
        from comfy_host import Graph
        from learned_concepts import blend, blend_concept, encode, guidance

        graph, model = Graph(), self.model
        positive, negative = encode(graph, self.clip, TEXT), encode(graph, self.clip, "")
        if learned:
            chain = None
            for concept in learned:
                chain = blend_concept(graph, concept, chain)
            model, positive = blend(graph, model, self.clip, chain, text=TEXT, start_percent=0.0)
        if scale:
            model = guidance(graph, model, scale=scale)
        ends = dict(model=model, positive=positive, negative=negative, latent_image=self.latent())
        results = dict(latent=graph.add("KSampler", steps=self.steps, **ends, **SAMPLING))
        self.held.append(graph.run(**results | ({"model": model} if learned else {})))


def main() -> None:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.full_size", description=__doc__)
    parser.add_argument("--layout", choices=SIZES, default="sd15")
    parser.add_argument("--size", type=int, help="of the pictures, in pixels; default: what the layout is made for")
    parser.add_argument("--steps", type=int, default=20 if gpu else 2, help="of sampling; default: %(default)s")
    parser.add_argument("--learning-steps", type=int, default=20 if gpu else 2, help="default: %(default)s")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    size = options.size or (SIZES[options.layout] if gpu else 64)
    command = " ".join(["python -m benchmarks.full_size", *sys.argv[1:]])  # ComfyUI's options take its place
    sys.path.insert(0, str(TESTS))
    import packages  # noqa: F401
    from comfy_host import COMFYUI, boot

    if COMFYUI is None:
        raise SystemExit("No ComfyUI was found: set COMFYUI_DIR.")
    boot(Path(tempfile.mkdtemp()), *([] if gpu else ["--cpu"]))
    with torch.inference_mode():
        case = Case(options.layout, size, options.steps, options.learning_steps)
        learned = [case.learn(True, noun, steps=1) for noun in NOUNS]
        runs: dict[str, tuple[Callable[[], object], int]] = {
            "KSampler, one prompt": (lambda: case.sample(None), options.steps),
            "two concepts blended": (lambda: case.sample(learned), options.steps),
            "the same, guided in the first 20 %": (lambda: case.sample(learned, scale=1.0), options.steps),
            "Conductor, injection alone": (lambda: case.conduct(False), options.steps),
            "Conductor, its layout read, aligned and refined": (lambda: case.conduct(True), options.steps),
            "Train Concept": (lambda: case.learn(True), options.learning_steps),
            "Train Concept, checkpointing off": (lambda: case.learn(False), options.learning_steps),
            "the plain way: K and V fine-tuned": (case.fine_tune, options.learning_steps),
        }
        results = {}
        for name, (run, steps) in runs.items():
            results[name] = measured(run, steps)
            print(name, results[name], flush=True)
    machine = torch.cuda.get_device_name() if gpu else "CPU"
    told = {"machine": machine, "torch": torch.__version__, "command": command, "size": size, "results": results}
    path = options.output or RESULTS / f"full-size-{options.layout}.json"
    path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(table([{"": name, **own} for name, own in results.items()]))


if __name__ == "__main__":
    main()
