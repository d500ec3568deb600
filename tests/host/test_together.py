"""All methods in one graph, after a few steps."""

import pytest
import torch.nn.functional as F

from comfy_host import Graph
from workflow_files import ALL_METHODS, read, to_api

# kind → inputs that take less time
SHORTER = {
    "PnPMixTrainConcept": {"steps": 2},
    "PnPMixDDPMInvert": {"steps": 8, "skip_steps": 2},
    "PnPMixLayoutReference": {"steps": 4},
    "PnPMixConductor": {"steps": 4},
}


@pytest.mark.newest
def test_a_photo_goes_where_concept_conductor_has_drawn_the_object():
    """The mask that it gives is the target, its latent the scene, and nothing else changes."""
    graph, prompt = Graph(), to_api(read(ALL_METHODS))
    for node in prompt.values():
        node["inputs"] |= SHORTER.get(node["class_type"], {})
    graph.prompt = prompt
    ids = {node["_meta"]["title"]: node_id for node_id, node in prompt.items()}
    asked = {"Scene": "drawn", "Its mask": "mask", "Finished": "finished"}
    results = graph.run(**{name: [ids[title], 0] for title, name in asked.items()})
    change, (mask,) = (results["finished"] - results["drawn"])[0].abs().amax(-1), results["mask"]
    assert 0.01 < mask.mean() < 0.6
    assert change[mask > 0.5].mean() > 0.02
    assert change[F.max_pool2d(mask[None], 5, stride=1, padding=2)[0] == 0].max() < 1e-4
