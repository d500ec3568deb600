"""Flow-matching transformers of every family: the node graph gives what the equations give."""

from functools import cache

import numpy as np
import pytest
import torch

from comfy_host import Graph, output
from flow_oracle import FlowPnPMix
from mixer_graph import appearance, concept, dilution, invert, mixer
from oracle import OracleConcept, relative_error
from small_transformers import FAMILIES, available, conditioning, picture_comes_first, small_transformer

STEPS, SKIP, CELLS = 6, 2, (6, 8)


def pytest_generate_tests(metafunc):
    if "family" in metafunc.fixturenames:  # known once there is a ComfyUI
        metafunc.parametrize("family", FAMILIES)


@cache
def model_of(family: str):
    if family not in available():
        pytest.skip("this ComfyUI does not have it")
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


def oracle_result(family, model, cells=CELLS, concepts=2, object_only=(), guidance=None, **settings) -> torch.Tensor:
    import comfy.samplers

    sampling, small = model.model.model_sampling, FAMILIES[family]
    sigmas = [float(sigma) for sigma in comfy.samplers.calculate_sigmas(sampling, "simple", STEPS)][SKIP:]
    guidance = {"alpha": 0.15, "position": "target", "layers": "all"} | (guidance or {})
    layers = {"all": None, "decoder": {2, 3}}[guidance["layers"]]
    method = FlowPnPMix(
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
