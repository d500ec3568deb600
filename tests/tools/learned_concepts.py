"""Learned concepts of random numbers for the small models, and graphs that blend them."""

import torch

from comfy_host import Graph, output, pack_module
from pictures import HEIGHT, WIDTH

TEXT = "a photo of a dog and the sports car on a beach"
DOG, CAR = [4, 5], [7, 8, 9]  # tokens of "a dog" and "the sports car" in it, after the start token
STEPS = 2


def learned(model, noun: str, seed: int, tokens: int = 2, **fields):
    """PNPMIX_LEARNED"""
    types, layers, checks = (pack_module(x) for x in ("common.types", "latexblend.layers", "common.checks"))
    generator = torch.Generator().manual_seed(seed)
    features = {
        name: tuple(torch.randn(tokens, width, generator=generator) for _ in "kv")
        for name, width in layers.layer_widths(model.model.diffusion_model).items()
    }
    own = dict(features=features, name=noun, noun=noun, family=checks.model_family(model), checkpoint="a.safetensors")
    own |= dict(fingerprint=layers.fingerprint(model), settings={})
    return types.TrainedConcept(**{**own, **fields})


def diffusers_names(model) -> dict[str, str]:
    """Ours of each cross-attention layer → that of its W_k."""
    import comfy.utils

    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    return {
        ours[: -len(".to_k.weight")]: theirs for theirs, ours in names.items() if theirs.endswith("attn2.to_k.weight")
    }


def blend_concept(graph: Graph, concept, concepts=None, **settings) -> list:
    inputs = {"occurrence": 1, "strength": 1.0, **settings}
    return graph.add("PnPMixBlendConcept", learned=concept, concepts=concepts, **inputs)


def blend(graph: Graph, model, clip, concepts: list, text: str = TEXT, **settings) -> tuple[list, list]:
    """MODEL and positive."""
    inputs = {"start_percent": 0.1, "bind": True, "slot": "auto", "region": 1.0, **settings}
    link = graph.add("PnPMixBlend", model=model, clip=clip, text=text, concepts=concepts, **inputs)
    return link, output(link, 1)


def guidance(graph: Graph, model, **settings) -> list:
    inputs = {"scale": 1.0, "g1": 1.0, "g2": 1.0, "start_percent": 0.0, "end_percent": 0.2, **settings}
    return graph.add("PnPMixBlendingGuidance", model=model, **inputs)


def encode(graph: Graph, clip, text: str) -> list:
    return graph.add("CLIPTextEncode", clip=clip, text=text)


def ksampler(graph: Graph, model, positive, negative, seed: int = 3, batch: int = 1, **settings) -> list:
    latent = {"samples": torch.zeros(batch, 4, HEIGHT // 8, WIDTH // 8)}
    inputs = dict(seed=seed, steps=STEPS, cfg=3.0, sampler_name="euler", scheduler="ddim_uniform", denoise=1.0)
    link = graph.add(
        "KSampler", model=model, positive=positive, negative=negative, latent_image=latent, **{**inputs, **settings}
    )
    return link


def samples(graph: Graph, *links: list) -> list[torch.Tensor]:
    results = graph.run(**{str(i): link for i, link in enumerate(links)})
    return [results[str(i)]["samples"] for i in range(len(links))]


class Vae:
    """Cells of 8 × 8 pixels, their mean color and a fourth channel."""

    def encode(self, pixels):
        color = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8)
        return torch.cat([color, color.mean(1, keepdim=True)], 1)


def photos(count: int = 2, size: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, size, size + 8, 3, generator=torch.Generator().manual_seed(seed))


def learn(graph: Graph, model, clip, **settings) -> list:
    inputs = dict(images=photos(), noun="dog", steps=3, learning_rate=1e-3, resolution=64, rank=0, seed=5)
    inputs |= dict(augment=True, prior_weight=1.0, dtype="fp32", name="") | settings
    return graph.add("PnPMixTrainConcept", model=model, clip=clip, vae=Vae(), **inputs)


def closest(one, other) -> float:
    pairs = [(x, y) for k in one.features for x, y in zip(one.features[k], other.features[k], strict=True)]
    return max(float((x - y).abs().max()) for x, y in pairs)
