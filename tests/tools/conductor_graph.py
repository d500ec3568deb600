"""The graph of the Conductor on a small model: what its host tests run, with what they vary."""

import torch

from comfy_host import Graph, output
from pictures import latent, mask_batch
from small_models import conditioning

STEPS = 4
POSITIVE, NEGATIVE, LAYOUT_PROMPT = conditioning(1), conditioning(2), conditioning(5)


def prompts(k: int) -> tuple[list, list]:
    return conditioning(10 + k), conditioning(20 + k)


def with_hooks(conditionings, lora: dict | None, strength: float = 0.7) -> list[list]:
    """What Concept LoRA gives: both with the same weights."""
    import comfy.hooks
    from node_helpers import conditioning_set_values

    if lora is None:
        return list(conditionings)
    hooks = comfy.hooks.create_hook_lora(lora, strength, strength)
    return [conditioning_set_values(x, {"hooks": hooks}) for x in conditionings]


def reference(graph: Graph, model, **inputs) -> list:
    defaults = dict(positive=LAYOUT_PROMPT, latent={"samples": latent(3)}, method="ddim", steps=STEPS, seed=0)
    return graph.add("PnPMixLayoutReference", model=model, **(defaults | inputs))


def alignment(graph: Graph, model, layout, **inputs) -> list:
    defaults = dict(weight=0.0, concept_weight=1.0, end=0.3)
    return graph.add("PnPMixLayoutAlignment", model=model, layout=layout, **(defaults | inputs))


def refinement(graph: Graph, model, **inputs) -> list:
    defaults = dict(start=0.25, end=0.6, updates=2, threshold=0.0, restarts=5)
    return graph.add("PnPMixMaskRefinement", model=model, **(defaults | inputs))


def chain(graph: Graph, loras: list[dict | None], strength: float = 0.7, **inputs) -> list:
    link = None
    for k, lora in enumerate(loras):
        positive, negative = with_hooks(prompts(k), lora, strength)
        defaults = dict(positive=positive, negative=negative, mask=mask_batch(k), name=f"concept {k}")
        link = graph.add("PnPMixConductedConcept", concepts=link, **(defaults | inputs))
    return link


def conductor(graph: Graph, model, concepts, **inputs) -> list:
    defaults = dict(
        positive=POSITIVE,
        negative=NEGATIVE,
        latent={"samples": torch.zeros_like(latent(0))},
        seed=7,
        steps=STEPS,
        cfg=3.0,
        scheduler="ddim_uniform",
        inject="both",
    )
    return graph.add("PnPMixConductor", model=model, concepts=concepts, **(defaults | inputs))


def run_conductor(model, loras: list[dict | None], **inputs) -> dict:
    """The whole graph with both patches; `inputs` go to the Conductor."""
    graph = Graph()
    patched = refinement(graph, alignment(graph, model, reference(graph, model)))
    link = conductor(graph, patched, chain(graph, loras), **inputs)
    results = graph.run(latent=link, masks=output(link, 1))
    return {"latent": results["latent"]["samples"], "masks": results["masks"]}
