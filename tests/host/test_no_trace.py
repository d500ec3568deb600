"""A MODEL that went through PnP-MIX is the MODEL it was."""

import pytest
import torch

from comfy_host import Graph, GraphError
from mixer_graph import NEGATIVE, POSITIVE, appearance, dilution, run_pnp_mix
from pictures import latent
from small_models import LAYOUTS, comfy_model


def plain_ksampler(model) -> torch.Tensor:
    graph = Graph()
    samples = graph.add(
        "KSampler",
        model=model,
        positive=POSITIVE,
        negative=NEGATIVE,
        latent_image={"samples": latent(3)},
        seed=11,
        steps=4,
        cfg=4.0,
        sampler_name="euler",
        scheduler="normal",
        denoise=1.0,
    )
    return graph.run(latent=samples)["latent"]["samples"]


@pytest.fixture(scope="module")
def model():
    return comfy_model(LAYOUTS["SD 1.x"])


def test_ksampler_is_the_same_before_and_after(model):
    before, options = plain_ksampler(model), repr(model.model_options)
    run_pnp_mix(model)
    assert torch.equal(plain_ksampler(model), before)
    assert repr(model.model_options) == options


def test_patched_model_is_as_good_as_unpatched_in_ksampler(model):
    graph = Graph()
    patched = graph.run(model=dilution(graph, appearance(graph, model)))["model"]
    assert torch.equal(plain_ksampler(patched), plain_ksampler(model))


def test_patches_that_another_sampler_does_not_read_are_said_in_the_log_once(model, caplog):
    graph = Graph()
    patched = graph.run(model=dilution(graph, appearance(graph, appearance(graph, model))))["model"]
    plain_ksampler(patched)
    said = [x.getMessage() for x in caplog.records if "did nothing" in x.getMessage()]
    assert said == [
        f"{node} did nothing in this run: only the node Mask Noise Mixer reads it."
        for node in ("Guided Appearance Attention", "Background Dilution++")
    ]
    caplog.clear()
    run_pnp_mix(model)
    assert "did nothing" not in caplog.text


def test_the_same_graph_twice_gives_the_same(model):
    first, second = run_pnp_mix(model), run_pnp_mix(model)
    assert torch.equal(first["latent"], second["latent"])


def test_the_last_appearance_node_wins(model):
    graph = Graph()
    twice = appearance(graph, appearance(graph, model, alpha=0.5), alpha=0.15)
    once = appearance(graph, model)
    results = graph.run(twice=twice, once=once)
    assert results["twice"].model_options == results["once"].model_options


@pytest.mark.parametrize("stop_at", [1, 3])
def test_cancel_stops_within_one_model_call(model, stop_at):
    """The first call is the inversion's, the third one of the mixer's."""
    import comfy.model_management

    before, calls = plain_ksampler(model), []

    def cancel(*_):
        calls.append(None)
        if len(calls) == stop_at:
            comfy.model_management.interrupt_current_processing(True)

    hook = model.model.diffusion_model.register_forward_pre_hook(cancel)
    try:
        with pytest.raises(GraphError):
            run_pnp_mix(model)
    finally:
        hook.remove()
        comfy.model_management.interrupt_current_processing(False)
    assert len(calls) == stop_at
    assert torch.equal(plain_ksampler(model), before)
