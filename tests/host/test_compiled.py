"""Compiled models: each change between two runs of one process has its effect, as without torch.compile."""

import pytest
import torch

from comfy_host import Graph
from learned_concepts import blend, blend_concept, closest, encode, guidance, ksampler, learn, learned, samples
from mixer_graph import NEGATIVE, POSITIVE, invert, mix
from oracle import relative_error
from pictures import HEIGHT, WIDTH, mask_batch
from small_models import as_on_a_gpu, conditioning, small_clip, smallest_model


@pytest.fixture(scope="module")
def model():
    patched = smallest_model()
    patched.model_options["transformer_options"]["optimized_attention_override"] = as_on_a_gpu
    return patched


@pytest.fixture
def compiled(model):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield torch_compile_model(model)
    torch._dynamo.reset()


def torch_compile_model(model):
    """As ComfyUI's node does it, which drops guards where the host is new; with a backend that needs no GPU."""
    from comfy_extras.nodes_torch_compile import TorchCompileModel

    return TorchCompileModel.execute(model, "aot_eager").args[0]


def graphs() -> int:
    """How many have been compiled, none of them of a part of the network."""
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"]
    return counters["stats"]["unique_graphs"]


def inverted(model):
    graph = Graph()
    return graph.run(inversion=invert(graph, model))["inversion"]


@pytest.mark.parametrize("patch", [None, "attn1_patch"])
def test_timesteps_of_an_inversion_share_calls_unless_something_patches_the_model(patch):
    """How it is compiled does not matter here."""
    model, rows = smallest_model(), []
    if patch:
        model.set_model_attn1_patch(lambda q, k, v, _: (q, k, v))
    model.model.diffusion_model.register_forward_pre_hook(lambda _, arguments: rows.append(len(arguments[0])))
    with torch.compiler.set_stance("force_eager"):
        inverted(torch_compile_model(model))
    assert rows == ([2] * 6 if patch else [12])


# of the mixer → how many graphs they add, at most
CHANGES = [
    ({}, 1),
    (dict(alpha=1.0), 0),
    (dict(positive=conditioning(6)), 0),
    (dict(object_mask=mask_batch(1)), 1),
    (dict(layers="decoder"), 1),
    (dict(concepts=3), 1),
    ({}, 0),
]


@pytest.mark.newest  # where guards are dropped; some 30 seconds
def test_every_change_of_the_mixer_has_its_effect(model, compiled):
    graph = Graph()
    samples(graph, ksampler(graph, compiled, POSITIVE, NEGATIVE, batch=6, cfg=1.0))  # of as many rows as the mixer's
    inversion = inverted(model)
    assert relative_error(inverted(compiled).inversion.eps, inversion.inversion.eps) < 2e-4
    before = mix(model, inversion)
    for change, most in CHANGES:
        count, expected = graphs(), mix(model, inversion, **change)
        result = mix(compiled, inversion, **change)
        assert relative_error(result, expected) < 2e-4, change
        assert not change or relative_error(expected, before) > 2e-3, change
        assert graphs() - count <= most, change


@pytest.fixture(scope="module")
def clip():
    return small_clip("SD 1.x")


def blended(model, clip, concept, guided=None, **settings) -> torch.Tensor:
    graph = Graph()
    patched, positive = blend(graph, model, clip, blend_concept(graph, concept, **settings))
    if guided:
        patched = guidance(graph, patched, **guided)
    return samples(graph, ksampler(graph, patched, positive, encode(graph, clip, "blurry")))[0]


@pytest.mark.newest
def test_every_change_of_a_blend_has_its_effect(model, compiled, clip):
    """With any sampler. The pass that guidance takes its gradient from is not compiled, nor is training."""
    mask = torch.zeros(1, HEIGHT, WIDTH)
    mask[:, : HEIGHT // 2] = 1
    changes = [
        (dict(concept=learned(model, "dog", 1)), 1),
        (dict(concept=learned(model, "dog", 2)), 0),
        (dict(guided=dict(scale=50.0, end_percent=0.6)), 0),
        (dict(strength=0.5), 1),
        (dict(mask=mask), 2),  # the first call computes what is added to the logits
    ]
    common = dict(changes[0][0])
    before = blended(model, clip, **common)
    for i, (change, most) in enumerate(changes):
        count, expected = graphs(), blended(model, clip, **common | change)
        result = blended(compiled, clip, **common | change)
        assert relative_error(result, expected) < 2e-4, change.keys()
        assert i == 0 or relative_error(expected, before) > 2e-3, change.keys()
        assert graphs() - count <= most, change.keys()

    graph, count = Graph(), graphs()
    trained = graph.run(eager=learn(graph, model, clip), compiled=learn(graph, compiled, clip))
    assert closest(trained["eager"], trained["compiled"]) < 1e-5
    assert graphs() == count
