"""The Conductor's graph gives what the paper's equations give."""

from functools import cache

import pytest
import torch

from comfy_host import Graph, output
from conductor_graph import (
    LAYOUT_PROMPT,
    NEGATIVE,
    POSITIVE,
    STEPS,
    alignment,
    chain,
    conductor,
    prompts,
    reference,
    refinement,
)
from conductor_oracle import Branch, ConceptConductor, random_lora, with_lora
from oracle import Prompt, relative_error
from pictures import HEIGHT, WIDTH, ellipse, latent
from small_models import LAYOUTS, comfy_model, diffusers_unet

SEED = 7
ROUNDING = 5e-5  # what float32 may change in k-means: a few millionths of attention, whose rows are alike
SDXL_LAYER = "up_blocks.0.attentions.1.transformer_blocks.1.attn1"


@cache
def small_model(layout: str):
    unet = diffusers_unet(LAYOUTS[layout])
    return comfy_model(LAYOUTS[layout], unet), unet


@pytest.fixture(scope="module", autouse=True)
def forget_models():
    """Before Python takes ComfyUI apart, which makes models that are still alive complain."""
    yield
    small_model.cache_clear()


def noise(seed: int) -> torch.Tensor:
    return torch.randn(latent(0).shape, generator=torch.manual_seed(seed))


def prompt(layout: str, cond) -> Prompt:
    return Prompt(cond[0][0], cond[0][1]["pooled_output"] if layout == "SDXL" else None, (HEIGHT, WIDTH))


def expected(family: str, concepts: int = 2, strength: float = 0.7, aligned=True, seed: int = SEED, **settings):
    """From the equations: latent and masks."""
    model, unet = small_model(family)
    scale = model.model.latent_format.scale_factor
    branches = [
        Branch(
            with_lora(unet, random_lora(unet, k), strength),
            *(prompt(family, x) for x in prompts(k)),
            mask=ellipse(k),
        )
        for k in range(concepts)
    ]
    method = ConceptConductor(
        Branch(unet, prompt(family, POSITIVE), prompt(family, NEGATIVE)),
        branches,
        "v_prediction" if LAYOUTS[family].model_type == "V_PREDICTION" else "epsilon",
        settings.pop("steps", STEPS),
        layout_prompt=prompt(family, LAYOUT_PROMPT),
        layout=latent(3) * scale if aligned else None,
        inversion_steps=settings.pop("inversion_steps", STEPS),
        **(dict(keys=SDXL_LAYER, attention=SDXL_LAYER, levels=2) if family == "SDXL" else {}),
        **settings,
    )
    result, masks = method.run(noise(seed))
    assert method.margin > ROUNDING, "with this seed, rounding decides where a cluster ends: take another"
    return result / scale, masks


def given(layout: str, concepts: int = 2, strength: float = 0.7, aligned=True, refined=False, **settings):
    """From the nodes."""
    model, unet = small_model(layout)
    graph = Graph()
    patched = model
    named = {
        kind: {name: settings.pop(name) for name in names if name in settings}
        for kind, names in {
            "reference": ("method", "inversion_steps"),
            "alignment": ("weight", "concept_weight", "align_end"),
            "refinement": ("start", "end", "updates", "threshold", "restarts"),
        }.items()
    }
    if aligned:
        inputs = {"steps": named["reference"].pop("inversion_steps", STEPS), **named["reference"]}
        if "align_end" in named["alignment"]:
            named["alignment"]["end"] = named["alignment"].pop("align_end")
        patched = alignment(graph, patched, reference(graph, model, **inputs), **named["alignment"])
    if refined:
        patched = refinement(graph, patched, **named["refinement"])
    link = chain(graph, [random_lora(unet, k) for k in range(concepts)], strength)
    result = conductor(graph, patched, link, **({"seed": SEED} | settings))
    results = graph.run(latent=result, masks=output(result, 1))
    return results["latent"]["samples"], results["masks"]


def assert_same(ours, theirs) -> None:
    assert relative_error(ours[0], theirs[0]) < 1e-3
    for mask, wanted in zip(ours[1], theirs[1], strict=True):
        assert torch.equal(mask[::8, ::8] > 0.5, torch.tensor(wanted))


@pytest.mark.parametrize(
    "layout", [pytest.param(x, marks=pytest.mark.oldest) if x == "SD 2.x eps" else x for x in LAYOUTS]
)
def test_all_parts_together(layout):
    """Layout alignment, injection and mask refinement, of every family."""
    weight = 40.0 if layout == "SDXL" else 10.0
    seed = 8 if layout == "SDXL" else SEED
    settings = dict(refine=(0.25, 0.6, 2), weight=weight)
    assert_same(given(layout, refined=True, seed=seed), expected(layout, seed=seed, **settings))


@pytest.mark.oldest
@pytest.mark.parametrize(
    ("inputs", "settings"),
    [
        (dict(aligned=False, concepts=1, steps=20, cfg=1.0), dict(aligned=False, concepts=1, steps=20, cfg=1.0)),
        (dict(aligned=False, inject="self", strength=0.2), dict(aligned=False, inject=("self",), strength=0.2)),
        (dict(aligned=False, inject="cross", concepts=3), dict(aligned=False, inject=("cross",), concepts=3)),
        (
            dict(weight=100.0, concept_weight=0.0, inversion_steps=10),
            dict(weight=100.0, concept_weight=0.0, inversion_steps=10),
        ),
        (
            dict(method="noised", concept_weight=3.0, align_end=0.0),
            dict(noised=0, concept_weight=3.0, align_end=0.0),
        ),
        (
            dict(aligned=False, refined=True, start=0.1, end=0.7, updates=3, restarts=3),
            dict(aligned=False, refine=(0.1, 0.7, 3), restarts=3),
        ),
        (
            dict(aligned=False, refined=True, updates=1, threshold=0.9),
            dict(aligned=False, refine=(0.25, 0.6, 1), threshold=0.9),
        ),
    ],
    ids=lambda x: " ".join(f"{key}={value}" for key, value in x.items()),
)
def test_every_setting(inputs, settings):
    assert_same(given("SD 1.x", **inputs), expected("SD 1.x", **settings))


@pytest.mark.oldest
def test_a_picture_stays_outside_the_noise_mask():
    model, _ = small_model("SD 1.x")
    scale, mask = model.model.latent_format.scale_factor, torch.zeros(1, 1, 12, 16)
    mask[..., 2:10, 3:14] = 1
    inputs = {"samples": latent(8), "noise_mask": mask[0]}
    ours, masks = given("SD 1.x", aligned=False, latent=inputs)
    assert_same((ours, masks), expected("SD 1.x", aligned=False, placed=(latent(8) * scale, mask)))
    outside = (mask == 0).expand_as(ours)
    assert relative_error(ours[outside], latent(8)[outside]) < 1e-5
