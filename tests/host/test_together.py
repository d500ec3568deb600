"""The templates of several methods in one graph, after a few steps."""

import pytest
import torch
import torch.nn.functional as F

from comfy_host import Graph
from stand_ins import conducted_with_demo_model
from workflow_files import TOGETHER, TOGETHER_OWN, read, to_api

# kind → inputs that take less time
SHORTER = {
    "PnPMixTrainConcept": {"steps": 2},
    "PnPMixDDPMInvert": {"steps": 8, "skip_steps": 2},
    "PnPMixLayoutReference": {"steps": 4},
    "PnPMixConductor": {"steps": 4},
    "PnPMixMaskRefinement": {"updates": 1, "restarts": 2},
}


def run(name: str, **asked: tuple[str, int]) -> dict[str, torch.Tensor]:
    """Outputs of nodes of a template, which are named by type or title; of several the first."""
    graph, prompt = Graph(), to_api(read(name))
    if name == TOGETHER_OWN:
        prompt = conducted_with_demo_model(prompt)
    for node in prompt.values():
        node["inputs"] |= SHORTER.get(node["class_type"], {})
    graph.prompt = prompt

    def node_id(which: str) -> str:
        return next(x for x, node in prompt.items() if which in (node["class_type"], node["_meta"]["title"]))

    return graph.run(**{key: [node_id(which), slot] for key, (which, slot) in asked.items()})


def changed(result: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """(H, W)"""
    return (result - before)[0].abs().amax(-1)


@pytest.mark.newest
def test_a_learned_concept_and_a_photo_change_the_things_and_nothing_else():
    asked = {f"mask {k}": ("PnPMixDemoScene", 3 + k) for k in (1, 2)}
    results = run(TOGETHER[0], result=("PnPMixPasteBack", 0), scene=("PnPMixDemoScene", 0), **asked)
    change = changed(results["result"], results["scene"])
    masks = torch.cat([results["mask 1"], results["mask 2"]])
    assert all(change[mask > 0.5].mean() > 0.05 for mask in masks)
    grown = F.max_pool2d(masks.amax(0)[None], 9, stride=1, padding=4)[0]
    assert change[grown == 0].max() < 1 / 255


@pytest.mark.newest
@pytest.mark.parametrize("name", [TOGETHER[1], TOGETHER_OWN])
def test_a_photo_goes_where_concept_conductor_has_drawn_the_thing(name):
    """The mask that it gives is the target, and its latent the background as it is."""
    asked = dict(drawn=("Scene", 0), mask=("Its mask", 0), finished=("Finished", 0))
    results = run(name, **asked)
    change, (mask,) = changed(results["finished"], results["drawn"]), results["mask"]
    assert 0.01 < mask.mean() < 0.6
    assert change[mask > 0.5].mean() > 0.02
    assert change[F.max_pool2d(mask[None], 5, stride=1, padding=2)[0] == 0].max() < 1e-4


@pytest.mark.newest
def test_a_blend_is_the_layout_of_concept_conductor():
    prompt = to_api(read(TOGETHER[2]))
    (reference,) = [node for node in prompt.values() if node["class_type"] == "PnPMixLayoutReference"]
    assert prompt[reference["inputs"]["latent"][0]]["class_type"] == "PnPMixSampler"
    results = run(TOGETHER[2], drawn=("What the LoRAs drew", 0), blend=("Finished", 0))
    assert torch.isfinite(results["drawn"]).all()
    assert changed(results["drawn"], results["blend"]).mean() > 0.01
