"""The graph of the workflows, on a small model: what most host tests run, with what they vary."""

import torch

from comfy_host import Graph, output
from pictures import latent, mask_batch
from small_models import conditioning

STEPS, SKIP = 10, 4
POSITIVE, NEGATIVE = conditioning(1), conditioning(2)


def invert(graph: Graph, model, **inputs) -> list:
    defaults = dict(
        positive=POSITIVE,
        negative=NEGATIVE,
        latent={"samples": latent(0)},
        steps=STEPS,
        skip_steps=SKIP,
        cfg=3.5,
        seed=7,
        scheduler="ddim_uniform",
    )
    return graph.add("PnPMixDDPMInvert", model=model, **(defaults | inputs))


def concept(graph: Graph, k: int, before=None, **inputs) -> list:
    defaults = dict(
        latent={"samples": latent(10 + k)}, mask=mask_batch(k), concepts=before, seed=1 + k, name=f"concept {k}"
    )
    return graph.add("PnPMixConcept", **(defaults | inputs))


def chain(graph: Graph, count: int, **inputs) -> list:
    link = None
    for k in range(count):
        link = concept(graph, k, link, **inputs)
    return link


def appearance(graph: Graph, model, **inputs) -> list:
    defaults = dict(alpha=0.15, layers="all", start_percent=0.0, end_percent=1.0, adain=False)
    return graph.add("PnPMixAppearance", model=model, **(defaults | inputs))


def dilution(graph: Graph, model, **inputs) -> list:
    defaults = dict(latent={"samples": latent(5)}, beta=0.8, expand=16, outside="scaled")
    return graph.add("PnPMixDilution", model=model, **(defaults | inputs))


def mixer(graph: Graph, model, inversion, concepts, node="PnPMixSampler", **inputs) -> list:
    defaults = dict(
        positive=POSITIVE,
        negative=NEGATIVE,
        cfg=1.0,
        swap_guidance=3.5,
        mix_reference_noise=True,
        feather=0,
        overlap="shared",
    )
    return graph.add(node, model=model, inversion=inversion, concepts=concepts, **(defaults | inputs))


def sampled(graph: Graph, custom: list, **others) -> list:
    """SamplerCustomAdvanced behind the mixer for custom sampling; `others` take the place of its outputs."""
    names = ("guider", "sampler", "sigmas", "latent_image")
    wired = {name: output(custom, i) for i, name in enumerate(names)} | {"noise": graph.add("DisableNoise")}
    return graph.add("SamplerCustomAdvanced", **(wired | others))


def custom_mixer(graph: Graph, *args, **inputs) -> list:
    """The same as `mixer`, by custom sampling."""
    custom = mixer(graph, *args, node="PnPMixCustomSampler", **inputs)
    return graph.add("PnPMixSplitResult", latent=sampled(graph, custom), guider=custom)


def run_pnp_mix(model, concepts: int = 2, positive=POSITIVE, own_positive=None, object_mask=None, **inputs) -> dict:
    """The whole graph with both patches; `inputs` go to the mixer. Returns the samples of both outputs."""
    graph = Graph()
    inversion = invert(graph, model, positive=positive)
    patched = dilution(graph, appearance(graph, model))
    link = chain(graph, concepts, positive=own_positive, object_mask=object_mask)
    mixed = mixer(graph, patched, inversion, link, positive=positive, **inputs)
    results = graph.run(latent=mixed, references=output(mixed, 1))
    return {name: result["samples"] for name, result in results.items()}


def mix(model, inversion, alpha: float = 0.15, layers: str = "all", concepts: int = 2, **of_concepts) -> torch.Tensor:
    """The mixer's result with an inversion that has been made; what is left of the inputs goes to each concept."""
    graph = Graph()
    patched = appearance(graph, model, alpha=alpha, layers=layers)
    mixed = mixer(graph, patched, inversion, chain(graph, concepts, **of_concepts))
    return graph.run(latent=mixed)["latent"]["samples"]
