"""The mixer as guider, sampler and schedule of ComfyUI's custom sampling."""

import pytest
import torch

from comfy_host import Graph, GraphError, output, refused
from mixer_graph import SKIP, STEPS, appearance, chain, custom_mixer, dilution, invert, mixer, sampled
from pictures import ellipse, latent
from small_models import LAYOUTS, comfy_model, conditioning

SAMPLES = "SamplerCustomAdvanced"


@pytest.fixture(scope="module")
def model():
    return comfy_model(LAYOUTS["SD 1.x"])


@pytest.fixture(scope="module")
def inversion(model):
    graph = Graph()
    return graph.run(inversion=invert(graph, model))["inversion"]


def custom(graph: Graph, model, inversion) -> list:
    patched = dilution(graph, appearance(graph, model))
    return mixer(graph, patched, inversion, chain(graph, 2), node="PnPMixCustomSampler")


def by_the_mixer(model, inversion) -> torch.Tensor:
    """Output and reference latents."""
    graph = Graph()
    mixed = mixer(graph, dilution(graph, appearance(graph, model)), inversion, chain(graph, 2))
    results = graph.run(latent=mixed, references=output(mixed, 1))
    return torch.cat([results["latent"]["samples"], results["references"]["samples"]])


@pytest.mark.parametrize("inputs", [{}, dict(cfg=3.0, feather=8, overlap="last in front", keep_personal=True)], ids=str)
def test_custom_sampling_gives_what_the_mixer_gives_bit_for_bit(model, inputs):
    results = []
    for blend in (mixer, custom_mixer):
        graph = Graph()
        inverted = invert(graph, model, cfg=1.0)  # anew, so that no cached features change how rows are batched
        patched = dilution(graph, appearance(graph, model))
        mixed = blend(graph, patched, inverted, chain(graph, 3, positive=conditioning(3, tokens=14)), **inputs)
        results.append(graph.run(latent=mixed, references=output(mixed, 1), mask=output(mixed, 2)))
    ours, theirs = results
    for name in ("latent", "references"):
        assert torch.equal(ours[name]["samples"], theirs[name]["samples"])
    assert torch.equal(ours["mask"], theirs["mask"])
    assert len(theirs["references"]["samples"]) == 3


class WrapSampler:
    """The smallest wrapper of a sampler object: it notes what the step callback gets."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("SAMPLER",), "wrap", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"sampler": ("SAMPLER", {})}}

    def wrap(self, sampler):
        import comfy.samplers

        class Wrapped(comfy.samplers.Sampler):
            def sample(self, model_wrap, sigmas, extra_args, callback, *args):
                def note(step, denoised, x, steps):
                    noted.append((step, denoised.clone(), x.clone(), steps))
                    callback(step, denoised, x, steps)

                return sampler.sample(model_wrap, sigmas, extra_args, note, *args)

        noted.clear()
        return (Wrapped(),)


class WrapFunction(WrapSampler):
    """The smallest wrapper of a sampler function like k-diffusion's: it notes every model call."""

    def wrap(self, sampler):
        import comfy.samplers

        def wrapped(model, x, sigmas, *, extra_args=None, callback=None, disable=None, **kwargs):
            def noting(x, sigma, **args):
                noted.append((len(x), float(sigma[0])))
                return model(x, sigma, **args)

            noting.inner_model = model.inner_model
            return sampler.sampler_function(
                noting, x, sigmas, extra_args=extra_args, callback=callback, disable=disable, **kwargs
            )

        noted.clear()
        return (comfy.samplers.KSAMPLER(wrapped, sampler.extra_options),)


class SplitInside(WrapSampler):
    """It samples in two halves."""

    def wrap(self, sampler):
        import comfy.samplers

        def wrapped(model, x, sigmas, **kwargs):
            for part in (sigmas[:3], sigmas[2:]):
                x = sampler.sampler_function(model, x, part, **kwargs)
            return x

        return (comfy.samplers.KSAMPLER(wrapped),)


noted: list[tuple] = []


@pytest.fixture
def wrapped(monkeypatch):
    """Puts a wrapper node of the test between the mixer and SamplerCustomAdvanced."""
    import nodes

    def wrap(graph: Graph, made: list, kind: type) -> list:
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "TestWrap", kind)
        return graph.add("TestWrap", sampler=output(made, 1))

    return wrap


def test_a_wrapped_sampler_gets_every_step_with_all_latents(model, inversion, wrapped):
    graph = Graph()
    made = custom(graph, model, inversion)
    result = graph.run(latent=sampled(graph, made, sampler=wrapped(graph, made, WrapSampler)))["latent"]["samples"]
    assert torch.equal(result, by_the_mixer(model, inversion))
    assert [step for step, *_ in noted] == list(range(STEPS - SKIP))
    for step, denoised, x, steps in noted:
        assert steps == STEPS - SKIP
        assert denoised.shape == x.shape == result.shape
        outside = torch.from_numpy(ellipse(0) + ellipse(1)).reshape(12, 8, 16, 8).amax((1, 3)) == 0
        assert torch.equal(x[0, :, outside], inversion.inversion.trajectory[step][:, outside])


def test_a_wrapped_sampler_function_gets_every_model_call(model, inversion, wrapped):
    graph = Graph()
    made = custom(graph, model, inversion)
    result = graph.run(latent=sampled(graph, made, sampler=wrapped(graph, made, WrapFunction)))["latent"]["samples"]
    assert torch.equal(result, by_the_mixer(model, inversion))
    assert noted == [(6, sigma) for sigma in inversion.inversion.sigmas[:-1].tolist()], "three batch rows a concept"


def test_the_first_sigmas_alone_give_the_latents_at_the_last_of_them(model, inversion, wrapped):
    graph = Graph()
    made = custom(graph, model, inversion)
    graph.run(latent=sampled(graph, made, sampler=wrapped(graph, made, WrapSampler)))
    _, _, expected, _ = noted[3]
    split = graph.add("SplitSigmas", sigmas=output(made, 2), step=3)
    result = graph.run(latent=sampled(graph, made, sigmas=split))["latent"]["samples"]
    assert torch.equal(result, model.model.process_latent_out(expected))


def test_the_estimate_that_comes_with_it_splits_alike(model, inversion):
    graph = Graph()
    made = custom(graph, model, inversion)
    split = graph.add("SplitSigmas", sigmas=output(made, 2), step=3)
    estimate = output(sampled(graph, made, sigmas=split), 1)
    parts = graph.add("PnPMixSplitResult", latent=estimate, guider=made)
    results = graph.run(latent=parts, references=output(parts, 1))
    assert results["latent"]["samples"].shape == latent(0).shape
    assert len(results["references"]["samples"]) == 2


def test_a_sampler_that_shortens_the_sigmas_on_its_own_is_refused(model, inversion, wrapped):
    graph = Graph()
    made = custom(graph, model, inversion)
    with refused(f"{SAMPLES}, input 'sigmas'", "SplitSigmas"):
        graph.run(latent=sampled(graph, made, sampler=wrapped(graph, made, SplitInside)))


@pytest.mark.parametrize(
    "change",
    [
        lambda sigmas: sigmas.flip(0),
        lambda sigmas: sigmas[2:],
        lambda sigmas: sigmas * 0.99,
        lambda sigmas: sigmas[::2],
        lambda sigmas: sigmas[:1],
        lambda sigmas: sigmas[:0],
        lambda sigmas: torch.cat([sigmas, sigmas[-1:]]),
    ],
    ids=["flipped", "without the noisiest", "scaled", "every second", "one", "none", "one more"],
)
def test_sigmas_that_are_not_the_inversions_are_refused(model, inversion, change):
    graph = Graph()
    made = custom(graph, model, inversion)
    with refused(f"{SAMPLES}, input 'sigmas'", "noise levels of the inversion", "Mask Noise Mixer (custom sampling)"):
        graph.run(latent=sampled(graph, made, sigmas=change(inversion.inversion.sigmas)))


def foreign(graph: Graph, name: str, model):
    """What a user may wire by mistake."""
    if name == "noise":
        return graph.add("RandomNoise", noise_seed=1)
    if name == "sampler":
        return graph.add("KSamplerSelect", sampler_name="euler")
    if name == "guider":
        return graph.add("CFGGuider", model=model, positive=conditioning(1), negative=conditioning(2), cfg=1.0)
    return {"samples": latent(0)}


@pytest.mark.parametrize("name", ["noise", "sampler", "guider", "latent_image"])
def test_what_is_not_the_mixers_is_refused(model, inversion, name):
    graph = Graph()
    made = custom(graph, model, inversion)
    with refused(f"{SAMPLES}, input '{name}'", "Wire"):
        graph.run(latent=sampled(graph, made, **{name: foreign(graph, name, model)}))


def test_another_sampler_is_refused_before_its_first_model_call(model, inversion):
    """Also where its batch is as large as the mixer's result."""
    graph, calls = Graph(), []
    made = mixer(graph, model, inversion, chain(graph, 1), node="PnPMixCustomSampler", swap_guidance=1.0)
    hook = model.model.diffusion_model.register_forward_pre_hook(lambda *_: calls.append(None))
    with refused(f"{SAMPLES}, input 'sampler'"):
        graph.run(latent=sampled(graph, made, sampler=foreign(graph, "sampler", model)))
    hook.remove()
    assert calls == []


def test_a_noise_mask_is_refused(model, inversion):
    graph = Graph()
    made = custom(graph, model, inversion)
    masked = graph.add("SetLatentNoiseMask", samples=output(made, 3), mask=torch.ones(1, 96, 128))
    with refused(f"{SAMPLES}, input 'latent_image'"):
        graph.run(latent=sampled(graph, made, latent_image=masked))


def test_only_a_result_of_the_mixer_can_be_split(model, inversion):
    graph = Graph()
    made = custom(graph, model, inversion)
    with refused("Split Mixer Result, input 'latent'", "batch of 1", "2 reference latents"):
        graph.run(latent=graph.add("PnPMixSplitResult", latent={"samples": latent(0)}, guider=made))
    graph = Graph()
    other = foreign(graph, "guider", model)
    with refused("Split Mixer Result, input 'guider'"):
        graph.run(latent=graph.add("PnPMixSplitResult", latent={"samples": latent(0)}, guider=other))


def test_cancel_stops_within_one_model_call_and_the_next_run_is_whole(model, inversion):
    import comfy.model_management

    calls, expected = [], by_the_mixer(model, inversion)

    def cancel(*_):
        calls.append(None)
        if len(calls) == 2:
            comfy.model_management.interrupt_current_processing(True)

    hook = model.model.diffusion_model.register_forward_pre_hook(cancel)
    graph = Graph()
    link = sampled(graph, custom(graph, model, inversion))
    try:
        with pytest.raises(GraphError):
            graph.run(latent=link)
    finally:
        hook.remove()
        comfy.model_management.interrupt_current_processing(False)
    assert len(calls) == 2
    assert torch.equal(graph.run(latent=link)["latent"]["samples"], expected)
