"""Flow-matching transformers of every family: the node graph gives what the equations give."""

from functools import cache

import numpy as np
import pytest
import torch

from comfy_host import Graph, output, refused
from diffusers_flux_oracle import DiffusersFluxPnPMix
from flow_oracle import FlowPnPMix
from mixer_graph import appearance, concept, dilution, invert, mixer
from oracle import OracleConcept, relative_error
from small_transformers import FAMILIES, available, conditioning, picture_comes_first, small_transformer

STEPS, SKIP, CELLS = 6, 2, (6, 8)


@cache
def model_of(family: str):
    return small_transformer(family)


@pytest.fixture(scope="module", autouse=True)
def forget_models():
    yield
    model_of.cache_clear()


def picture(family: str, seed: int, cells=CELLS) -> torch.Tensor:
    """(1, C, h, w)"""
    return torch.randn(1, FAMILIES[family].channels, *cells, generator=torch.Generator().manual_seed(seed))


def encoded(family: str, seed: int, cells=CELLS) -> dict:
    """As this family's VAE gives it."""
    samples = picture(family, seed, cells)
    return {"samples": samples.unsqueeze(2) if FAMILIES[family].frames else samples}


def blob(family: str, k: int, cells=CELLS) -> np.ndarray:
    """Mask in pixels; 0 and 1 are apart, 2 is elsewhere and larger."""
    ratio = FAMILIES[family].ratio
    top, left, height, width = [(0.4, 0.3, 2.3, 2.4), (2.6, 5.2, 3.3, 2.4), (1.2, 3.1, 3.4, 4.4)][k]
    mask = np.zeros((cells[0] * ratio, cells[1] * ratio), dtype=np.float32)
    mask[round(top * ratio) : round((top + height) * ratio), round(left * ratio) : round((left + width) * ratio)] = 1
    return mask


@cache
def prompts(family: str) -> dict:
    return {"positive": conditioning(family, 1), "negative": conditioning(family, 2, tokens=9)}


def graph_result(family, model, cells=CELLS, concepts=2, object_only=(), guidance=None, **settings) -> torch.Tensor:
    """Output and references of the nodes, (1 + concepts, C, H, W)."""
    graph, link = Graph(), None
    latents = [encoded(family, seed, cells) for seed in range(3 + concepts)]
    common = prompts(family)
    inversion = invert(
        graph, model, latent=latents[0], steps=STEPS, skip_steps=SKIP, scheduler="simple", cfg=2.0, **common
    )
    for k in range(concepts):
        own = {"object_mask": torch.from_numpy(blob(family, 2 - k % 2, cells))[None]} if k in object_only else {}
        mask = torch.from_numpy(blob(family, k, cells))[None]
        link = concept(graph, k, link, latent=latents[2 + k], mask=mask, **own)
    patched = dilution(graph, appearance(graph, model, **(guidance or {})), latent=latents[1])
    mixed = mixer(graph, patched, inversion, link, **common, **settings)
    result = graph.run(latent=mixed, references=output(mixed, 1))
    samples = torch.cat([result["latent"]["samples"], result["references"]["samples"]])
    return samples.squeeze(2) if FAMILIES[family].frames else samples


def oracle_result(
    family, model, cells=CELLS, concepts=2, object_only=(), guidance=None, oracle=FlowPnPMix, **settings
) -> torch.Tensor:
    import comfy.samplers

    sampling, small = model.model.model_sampling, FAMILIES[family]
    sigmas = [float(sigma) for sigma in comfy.samplers.calculate_sigmas(sampling, "simple", STEPS)][SKIP:]
    guidance = {"alpha": 0.15, "position": "target", "layers": "all"} | (guidance or {})
    layers = {"all": None, "decoder": {2, 3}}[guidance["layers"]]
    method = oracle(
        model,
        "velocity",
        *prompts(family).values(),
        STEPS,
        SKIP,
        inversion_cfg=2.0,
        seed=7,
        beta=0.8,
        alpha=guidance["alpha"],
        small=small,
        sigmas=sigmas,
        image_first=picture_comes_first(family),
        turned=guidance["position"] == "target",
        own_layers=layers,
        **settings,
    )

    def inner(seed: int) -> torch.Tensor:
        latent = picture(family, seed, cells)
        return (
            model.model.process_latent_in(latent.unsqueeze(2)).squeeze(2)
            if small.frames
            else (model.model.process_latent_in(latent))
        )

    given = [
        OracleConcept(
            inner(2 + k),
            blob(family, k, cells),
            blob(family, 2 - k % 2, cells),
            object_only=k in object_only,
            seed=1 + k,
        )
        for k in range(concepts)
    ]
    result, references = method.run(inner(0), given, inpainted=inner(1))
    together = torch.cat([result, *references])
    together = together.unsqueeze(2) if small.frames else together
    outer = model.model.process_latent_out(together)
    return outer.squeeze(2) if small.frames else outer


def assert_same(result: torch.Tensor, expected: torch.Tensor) -> None:
    assert result.shape == expected.shape
    for ours, theirs in zip(result, expected, strict=True):
        assert relative_error(ours, theirs) < 2e-4


@pytest.mark.parametrize("family", available())
def test_families_agree_with_the_equations(family):
    """The negative prompt has another length than the positive one; one concept of two says where its object is."""
    model, settings = model_of(family), dict(cfg=3.0, object_only=(0,))
    assert_same(graph_result(family, model, **settings), oracle_result(family, model, **settings))


@pytest.mark.oldest
@pytest.mark.parametrize(
    "settings",
    [
        dict(concepts=1, object_only=(0,), guidance=dict(position="kept")),
        dict(cells=(5, 7), object_only=(0, 1), guidance=dict(layers="decoder")),
        dict(swap_guidance=1.0, guidance=dict(alpha=0.6)),
    ],
    ids=str,
)
def test_every_setting(settings):
    """Also pictures whose cells do not fill whole tokens."""
    model = model_of("Flux.1")
    assert_same(graph_result("Flux.1", model, **settings), oracle_result("Flux.1", model, **settings))


@pytest.mark.oldest
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_flux_agrees_with_the_flux_of_diffusers(cfg):
    model, settings = model_of("Flux.1"), dict(cfg=cfg, object_only=(0,))
    expected = oracle_result("Flux.1", model, oracle=DiffusersFluxPnPMix, **settings)
    assert_same(graph_result("Flux.1", model, **settings), expected)


def ksampler(family: str, model) -> torch.Tensor:
    graph = Graph()
    settings = dict(seed=11, steps=2, cfg=2.0, sampler_name="euler", scheduler="simple", denoise=1.0)
    samples = graph.add("KSampler", model=model, latent_image=encoded(family, 3), **prompts(family), **settings)
    return graph.run(latent=samples)["latent"]["samples"]


@pytest.mark.parametrize("family", ["Qwen-Image"])
def test_a_run_leaves_no_trace_and_a_patched_model_samples_as_before(family):
    model = model_of(family)
    before, options = ksampler(family, model), repr(model.model_options)
    first = graph_result(family, model, concepts=1, object_only=(0,))
    assert torch.equal(first, graph_result(family, model, concepts=1, object_only=(0,)))
    assert torch.equal(ksampler(family, model), before) and repr(model.model_options) == options
    graph = Graph()
    patched = graph.run(model=dilution(graph, appearance(graph, model), latent=encoded(family, 1)))["model"]
    assert torch.equal(ksampler(family, patched), before)


@pytest.mark.parametrize("family", ["Flux.1"])
def test_outside_the_masks_the_background_comes_back_and_inside_it_is_the_branch(family):
    model, background = model_of(family), picture(family, 0)
    output_latent, *branches = graph_result(family, model, object_only=(0, 1))
    inside = [torch.from_numpy(blob(family, k)).reshape(CELLS[0], 8, CELLS[1], 8).mean((1, 3)) >= 0.5 for k in range(2)]
    outside = ~(inside[0] | inside[1])
    assert relative_error(output_latent[:, outside], background[0][:, outside]) < 1e-6
    for mask, branch in zip(inside, branches, strict=True):
        assert mask.any() and torch.equal(output_latent[:, mask], branch[:, mask])


def test_another_packs_attention_is_called_in_its_turn():
    """Which sees every call, and whose result counts."""
    model, calls = model_of("Flux.1").clone(), []

    def theirs(func, *args, **kwargs):
        calls.append(args[0].shape[0])
        return func(*args, **kwargs)

    model.model_options["transformer_options"]["optimized_attention_override"] = theirs
    assert_same(graph_result("Flux.1", model, concepts=1), graph_result("Flux.1", model_of("Flux.1"), concepts=1))
    assert {1, 3} <= set(calls) and calls.count(3) == 4 * (STEPS - SKIP), "four blocks in each step's three rows"


def test_a_model_whose_attention_goes_elsewhere_is_refused(monkeypatch):
    import comfy.ldm.flux.math

    def elsewhere(query, key, value, heads, **_):
        return torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)

    monkeypatch.setattr(comfy.ldm.flux.math, "optimized_attention", elsewhere)
    with refused("Mask Noise Mixer", "'model'", "does not go through ComfyUI's"):
        graph_result("Flux.1", model_of("Flux.1"), concepts=1)


def test_own_prompts_of_another_length_are_refused():
    graph, model, family = Graph(), model_of("Flux.1"), "Flux.1"
    inversion = invert(
        graph, model, latent=encoded(family, 0), steps=4, scheduler="simple", skip_steps=2, **prompts(family)
    )
    own = dict(latent=encoded(family, 2), mask=torch.from_numpy(blob(family, 0))[None])
    for tokens, fine in ((7, True), (8, False)):
        link = concept(graph, 0, positive=conditioning(family, 3, tokens), **own)
        mixed = mixer(graph, appearance(graph, model), inversion, link, **prompts(family))
        if fine:
            graph.run(latent=mixed)
        else:
            with refused("Mask Noise Mixer", "'concepts'", "number of tokens", "same length"):
                graph.run(latent=mixed)


@pytest.mark.parametrize(
    "make, inputs, words",
    [
        (lambda: small_transformer("Flux.1", in_channels=96), {}, ("'model'", "96 channels", "base model")),
        (lambda: model_of("Flux.1"), dict(positive="reference"), ("'positive'", "Reference Latent")),
        (lambda: model_of("Flux.1"), dict(latent="film"), ("'latent'", "shape")),
        (lambda: model_of("Flux.1"), dict(positive="narrow"), ("'positive'", "48", "CLIP")),
    ],
    ids=["inpainting", "reference latent", "several frames", "another encoder"],
)
def test_what_cannot_work_is_refused(make, inputs, words):
    other = {
        "reference": conditioning("Flux.1", 1, reference_latents=[picture("Flux.1", 1)]),
        "film": {"samples": torch.zeros(1, 16, 2, *CELLS)},
        "narrow": [[torch.zeros(1, 7, 40), {"pooled_output": None}]],
    }
    graph = Graph()
    given = {"latent": encoded("Flux.1", 0), **prompts("Flux.1")} | {name: other[key] for name, key in inputs.items()}
    with refused("DDPM Invert", *words):
        graph.run(inversion=invert(graph, make(), **given))


@pytest.mark.parametrize("family", ["Qwen-Image"])
def test_vital_layers_are_flux_1s_alone(family):
    graph = Graph()
    with refused("Guided Appearance Attention", "'layers'", "Flux.1 alone"):
        graph.run(model=appearance(graph, model_of(family), layers="vital"))
    graph.run(model=appearance(graph, model_of("Flux.1"), layers="vital"))
