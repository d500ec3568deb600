"""The node graph gives what the paper's equations give."""

from functools import cache

import pytest
import torch

from comfy_host import Graph, output
from mixer_graph import NEGATIVE, POSITIVE, SKIP, STEPS, appearance, concept, dilution, invert, mixer
from oracle import OracleConcept, PnPMix, Prompt, relative_error
from pictures import HEIGHT, WIDTH, ellipse, latent, mask_batch
from small_models import LAYOUTS, comfy_model, conditioning, diffusers_unet

OWN_PROMPT = conditioning(3, tokens=14)


def graph_result(layout: str, model, concepts=2, own_prompt=False, object_only=(), **settings) -> torch.Tensor:
    """Output and references of the nodes, (1 + concepts, C, H, W)."""
    graph, link, patched = Graph(), None, model
    schedule = settings.pop("schedule", {})
    inversion = invert(graph, model, cfg=settings.pop("inversion_cfg", 3.5), **schedule)
    for k in range(concepts):
        own = {"positive": OWN_PROMPT} if own_prompt and k == concepts - 1 else {}
        if k in object_only or settings.get("adain"):
            own["object_mask"] = mask_batch(1 - k % 2)
        link = concept(graph, k, link, **own)

    names = ("alpha", "layers", "start_percent", "end_percent", "adain")
    settings = {"alpha": 0.15, "beta": 0.8} | settings
    guidance = {name: settings.pop(name) for name in names if name in settings}
    if guidance["alpha"] is not None:
        patched = appearance(graph, patched, **guidance)
    diluting = {name: settings.pop(name) for name in ("beta", "expand", "outside") if name in settings}
    if diluting["beta"] is not None:
        patched = dilution(graph, patched, **diluting)
    if "mix_branches" in settings:
        settings["mix_reference_noise"] = settings.pop("mix_branches")
    if "constant_guidance" in settings:
        settings["falling_guidance"] = not settings.pop("constant_guidance")

    mixed = mixer(graph, patched, inversion, link, **settings)
    result = graph.run(latent=mixed, references=output(mixed, 1))
    return torch.cat([result["latent"]["samples"], result["references"]["samples"]])


def oracle_result(
    layout: str, unet, scale: float, concepts=2, own_prompt=False, object_only=(), **settings
) -> torch.Tensor:
    """The same from the equations."""

    def prompt(cond) -> Prompt:
        return Prompt(cond[0][0], cond[0][1]["pooled_output"] if layout == "SDXL" else None, (HEIGHT, WIDTH))

    prediction = "v_prediction" if LAYOUTS[layout].model_type == "V_PREDICTION" else "epsilon"
    settings = {"beta": 0.8, "seed": 7} | settings
    method = PnPMix(unet, prediction, prompt(POSITIVE), prompt(NEGATIVE), STEPS, SKIP, **settings)
    own = [prompt(OWN_PROMPT) if own_prompt and k == concepts - 1 else None for k in range(concepts)]
    given = [
        OracleConcept(
            latent(10 + k) * scale,
            ellipse(k),
            ellipse(1 - k % 2),
            object_only=k in object_only or bool(settings.get("adain")),
            seed=1 + k,
            prompt=own[k],
        )
        for k in range(concepts)
    ]
    expected, references = method.run(latent(0) * scale, given, inpainted=latent(5) * scale)
    return torch.cat([expected, *references]) / scale


@cache
def small_model(layout: str):
    unet = diffusers_unet(LAYOUTS[layout])
    return comfy_model(LAYOUTS[layout], unet), unet


@cache
def expected_by_default(layout: str) -> torch.Tensor:
    model, unet = small_model(layout)
    return oracle_result(layout, unet, model.model.latent_format.scale_factor)


def assert_same(result: torch.Tensor, expected: torch.Tensor) -> None:
    assert result.shape == expected.shape
    for ours, theirs in zip(result, expected, strict=True):
        assert relative_error(ours, theirs) < 2e-4


@pytest.fixture(scope="module", autouse=True)
def forget_models():
    """Before Python takes ComfyUI apart, which makes models that are still alive complain."""
    yield
    small_model.cache_clear()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_default_settings(layout):
    assert_same(graph_result(layout, small_model(layout)[0]), expected_by_default(layout))


def test_few_steps_with_what_helps_there():
    model, unet = small_model("SD 2.x v")
    settings = dict(constant_guidance=True, adain=True)
    expected = oracle_result("SD 2.x v", unet, model.model.latent_format.scale_factor, **settings)
    assert_same(graph_result("SD 2.x v", model, **settings), expected)


def test_sdxl_with_a_prompt_of_its_own():
    """Its pooled prompt and picture size travel with each row."""
    model, unet = small_model("SDXL")
    settings = dict(cfg=4.0, own_prompt=True)
    expected = oracle_result("SDXL", unet, model.model.latent_format.scale_factor, **settings)
    assert_same(graph_result("SDXL", model, **settings), expected)


@pytest.mark.parametrize(
    "layout, scheduler, inputs",
    [
        ("SD 1.x", "AlignYourStepsScheduler", dict(model_type="SD1", steps=7, denoise=1.0)),
        ("SDXL", "AlignYourStepsScheduler", dict(model_type="SDXL", steps=10, denoise=0.6)),
        ("SD 2.x v", "KarrasScheduler", dict(steps=7, sigma_max=14.614642, sigma_min=0.0291675, rho=7.0)),
        ("SD 1.x", "BetaSamplingScheduler", dict(steps=7, alpha=0.6, beta=0.6)),
        ("SD 1.x", "GITSScheduler", dict(coeff=1.2, steps=7, denoise=1.0)),
        ("SD 1.x", "KarrasScheduler", dict(steps=5, sigma_max=3.0, sigma_min=0.2, rho=5.0)),
    ],
    ids=str,
)
def test_the_schedule_of_any_scheduler_node(layout, scheduler, inputs):
    model, unet = small_model(layout)
    graph = Graph()
    given = {"model": model} if scheduler == "BetaSamplingScheduler" else {}
    sigmas = graph.run(sigmas=graph.add(scheduler, **given, **inputs))["sigmas"]
    expected = oracle_result(layout, unet, model.model.latent_format.scale_factor, sigmas=sigmas.tolist()[2:])
    # steps and scheduler have no effect then
    wired = dict(sigmas=sigmas, steps=3, skip_steps=2, scheduler="normal")
    assert_same(graph_result(layout, model, schedule=wired), expected)


@pytest.mark.oldest
@pytest.mark.parametrize("layout", ["SD 1.x", "SD 2.x eps", "SD 2.x v"])
@pytest.mark.parametrize(
    "settings",
    [
        dict(concepts=1),
        dict(concepts=3),
        dict(cfg=4.0),
        dict(cfg=4.0, own_prompt=True, concepts=3),
        dict(inversion_cfg=1.0),
        dict(alpha=None),
        dict(alpha=0.0),
        dict(layers="decoder"),
        dict(start_percent=0.2, end_percent=0.6),
        dict(swap_guidance=1.0),
        dict(beta=None),
        dict(outside="blended", expand=4),
        dict(mix_branches=False),
        dict(own_prompt=True),
        dict(object_only=(0,)),
        dict(object_only=(0, 1, 2), layers="decoder", concepts=3, cfg=2.0),
        dict(adain=True),
        dict(adain=True, start_percent=0.3, cfg=2.0, concepts=1),
        dict(feather=12, concepts=3),
        dict(overlap="last in front", concepts=3),
        dict(constant_guidance=True, swap_guidance=2.0),
    ],
    ids=str,
)
def test_every_setting(layout, settings):
    model, unet = small_model(layout)
    expected = oracle_result(layout, unet, model.model.latent_format.scale_factor, **settings)
    assert_same(graph_result(layout, model, **settings), expected)

    rows = min(len(expected), 3)
    difference = relative_error(expected[:rows], expected_by_default(layout)[:rows])
    assert difference > 2e-3, "the setting makes too little difference to be tested by this"
