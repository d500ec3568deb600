"""Every wrong input gets an error that names the node, the input and the remedy."""

import pytest
import torch

from comfy_host import Graph, pack_module, refused
from mixer_graph import NEGATIVE, appearance, chain, concept, dilution, invert, mixer
from pictures import HEIGHT, WIDTH, latent
from small_models import LAYOUTS, Layout, comfy_model, conditioning


@pytest.fixture(scope="module")
def model():
    return comfy_model(LAYOUTS["SD 1.x"])


def stops(graph: Graph, link: list, *words: str) -> None:
    with refused(*words):
        graph.run(result=link)


def broken(samples: torch.Tensor, value: float) -> dict:
    samples = samples.clone()
    samples[0, 0, 0, 0] = value
    return {"samples": samples}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_a_number_in_a_latent(model, value):
    graph = Graph()
    stops(graph, invert(graph, model, latent=broken(latent(0), value)), "DDPM Invert", "'latent'", "NaN", "VAE")
    graph = Graph()
    stops(graph, concept(graph, 0, latent=broken(latent(0), value)), "Concept 'concept 0'", "'latent'", "NaN")
    graph = Graph()
    stops(graph, dilution(graph, model, latent=broken(latent(0), value)), "Background Dilution++", "NaN")


def test_batch_of_latents(model):
    two = {"samples": torch.cat([latent(0), latent(1)])}
    graph = Graph()
    stops(graph, invert(graph, model, latent=two), "DDPM Invert", "'latent'", "batch of 2", "Latent From Batch")
    graph = Graph()
    stops(graph, concept(graph, 0, latent=two), "Concept", "'latent'", "batch of 2")


def test_video_latent(model):
    graph = Graph()
    video = {"samples": latent(0)[:, :, None]}
    stops(graph, invert(graph, model, latent=video), "DDPM Invert", "'latent'", "shape")


@pytest.mark.parametrize("steps, skip", [(10, 10), (10, 11), (1, 1)])
def test_skip_steps_leave_nothing(model, steps, skip):
    graph = Graph()
    stops(graph, invert(graph, model, steps=steps, skip_steps=skip), "DDPM Invert", "'skip_steps'", f"below {steps}")


def test_concept_of_another_size_or_model(model):
    for wrong, words in (
        (latent(1, HEIGHT, WIDTH + 16), ("shape", "Scale")),
        (torch.zeros(1, 16, HEIGHT // 8, WIDTH // 8), ("16 channels", "VAE of the same checkpoint")),
    ):
        graph = Graph()
        link = concept(graph, 0, latent={"samples": wrong})
        mixed = mixer(graph, model, invert(graph, model), link)
        stops(graph, mixed, "Concept 'concept 0'", "'latent'", *words)


def test_inpainted_background_of_another_size(model):
    graph = Graph()
    patched = dilution(graph, model, latent={"samples": latent(5, HEIGHT, WIDTH + 8)})
    mixed = mixer(graph, patched, invert(graph, model), chain(graph, 1))
    stops(graph, mixed, "Background Dilution++", "'latent'", "shape")


def test_mask_that_is_empty(model):
    graph = Graph()
    stops(graph, concept(graph, 0, mask=torch.zeros(1, HEIGHT, WIDTH)), "Concept", "'mask'", "empty", "white")
    speck = torch.zeros(1, HEIGHT, WIDTH)
    speck[0, 20:24, 20:24] = 1  # a quarter of a cell
    graph = Graph()
    mixed = mixer(graph, model, invert(graph, model), concept(graph, 0, mask=speck))
    stops(graph, mixed, "Concept 'concept 0'", "'mask'", "latent grid", "8 pixels")


def test_object_mask_that_is_missing_or_empty(model):
    graph = Graph()
    mixed = mixer(graph, appearance(graph, model, adain=True), invert(graph, model), concept(graph, 0))
    stops(graph, mixed, "Concept 'concept 0'", "'object_mask'", "not wired", "switch adain off")
    graph = Graph()
    empty = torch.zeros(1, HEIGHT, WIDTH)
    stops(graph, concept(graph, 0, object_mask=empty), "Concept 'concept 0'", "'object_mask'", "empty", "your picture")
    graph = Graph()
    speck = torch.zeros(1, HEIGHT, WIDTH)
    speck[0, 20:24, 20:24] = 1  # a quarter of a cell
    mixed = mixer(graph, model, invert(graph, model), concept(graph, 0, object_mask=speck))
    stops(graph, mixed, "Concept 'concept 0'", "'object_mask'", "latent grid", "8 pixels")


def test_concept_hidden_by_those_in_front(model):
    graph = Graph()
    everywhere = torch.ones(1, HEIGHT, WIDTH)
    link = concept(graph, 1, concept(graph, 0), mask=everywhere)
    mixed = mixer(graph, model, invert(graph, model), link, overlap="last in front")
    stops(graph, mixed, "Concept 'concept 0'", "'mask'", "in front", "later place", "shared")


def test_batch_of_masks(model):
    graph = Graph()
    stops(graph, concept(graph, 0, mask=torch.ones(2, HEIGHT, WIDTH)), "Concept", "'mask'", "batch of 2")


def test_mask_of_another_size_is_resized(model):
    """No error: a mask of half the size means the same place."""
    small = torch.zeros(1, HEIGHT // 2, WIDTH // 2)
    small[0, 8:32, 16:40] = 1
    large = small.repeat_interleave(2, 1).repeat_interleave(2, 2)
    results = []
    for mask in (small, large):
        graph = Graph()
        mixed = mixer(graph, model, invert(graph, model), concept(graph, 0, mask=mask))
        results.append(graph.run(latent=mixed)["latent"]["samples"])
    assert torch.equal(*results)


def test_inversion_of_another_family_or_channels(model):
    other = comfy_model(LAYOUTS["SD 2.x eps"])
    graph = Graph()
    mixed = mixer(graph, model, invert(graph, other), chain(graph, 1))
    stops(graph, mixed, "Mask Noise Mixer", "'inversion'", "SD20 EPS", "SD15 EPS", "Invert the background")
    graph = Graph()
    other = comfy_model(LAYOUTS["SD 2.x v"])
    mixed = mixer(graph, comfy_model(LAYOUTS["SD 2.x eps"]), invert(graph, other), chain(graph, 1))
    stops(graph, mixed, "Mask Noise Mixer", "'inversion'", "V_PREDICTION")


def test_inversion_of_another_shape(model):
    graph = Graph()
    smaller = invert(graph, model, latent={"samples": latent(0, HEIGHT, WIDTH - 16)})
    stops(graph, mixer(graph, model, smaller, chain(graph, 1)), "'latent'", "not that of the inversion")


def flow_model():
    return comfy_model(Layout("SD15", "FLOW", LAYOUTS["SD 1.x"].diffusers, LAYOUTS["SD 1.x"].comfy))


def transformer_model():
    """A small SD 3."""
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.SD3({"in_channels": 16, "patch_size": 2, "depth": 1, "input_size": None})
    config.unet_config = dict(
        in_channels=16, patch_size=2, depth=1, input_size=None, adm_in_channels=8, dtype=torch.float32
    )
    model = comfy.model_base.SD3(config)
    return comfy.model_patcher.ModelPatcher(model, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))


def inpainting_model():
    layout = LAYOUTS["SD 1.x"]
    return comfy_model(Layout("SD15", "EPS", layout.diffusers | {"in_channels": 9}, layout.comfy | {"in_channels": 9}))


def depth_model():
    """As Lotus: a UNet that turns a photo into depth in one step."""
    layout = LAYOUTS["SD 1.x"]
    return comfy_model(Layout("SD15", "IMG_TO_IMG", layout.diffusers, layout.comfy))


def model_with_another_latent_format():
    import comfy.latent_formats

    patched = comfy_model(LAYOUTS["SD 1.x"]).clone()
    patched.add_object_patch("latent_format", comfy.latent_formats.SD3())
    return patched


@pytest.mark.parametrize(
    "make, words",
    [
        (depth_model, ("single step", "SDXL checkpoint")),
        (model_with_another_latent_format, ("4 channels instead of 16",)),
        (flow_model, ("flow-matching", "SDXL checkpoint")),
        (transformer_model, ("transformer", "SDXL checkpoint")),
        (inpainting_model, ("9 channels", "base checkpoint")),
    ],
)
def test_models_that_cannot_do_it(make, words):
    for node, add in (
        ("DDPM Invert", lambda graph, model: invert(graph, model)),
        ("Guided Appearance Attention", lambda graph, model: appearance(graph, model)),
        ("Background Dilution++", lambda graph, model: dilution(graph, model)),
    ):
        graph = Graph()
        stops(graph, add(graph, make()), f"{node}, input 'model'", *words)


def test_mixer_refuses_such_models_too(model):
    graph = Graph()
    stops(graph, mixer(graph, flow_model(), invert(graph, model), chain(graph, 1)), "Mask Noise Mixer", "'model'")


def test_a_checkpoint_patched_to_flow_matching(model):
    graph = Graph()
    patched = graph.add("ModelSamplingSD3", model=model, shift=3.0)
    stops(graph, invert(graph, patched), "DDPM Invert", "'model'", "flow-matching")


def test_percents_reversed(model):
    graph = Graph()
    link = appearance(graph, model, start_percent=0.6, end_percent=0.2)
    stops(graph, link, "Guided Appearance Attention", "'start_percent'", "0.6", "0.2", "at most end_percent")


def own_prompts():
    plain, tokens = conditioning(8), conditioning(9)
    return {
        "combined": plain + tokens,
        "area": [[plain[0][0], {**plain[0][1], "area": (4, 4, 0, 0)}]],
        "timed": [[plain[0][0], {**plain[0][1], "start_percent": 0.0, "end_percent": 0.5}]],
        "masked": [[plain[0][0], {**plain[0][1], "mask": torch.ones(1, HEIGHT, WIDTH)}]],
    }


@pytest.mark.parametrize("kind", own_prompts())
def test_special_prompt_of_a_concept(model, kind):
    graph = Graph()
    link = concept(graph, 0, positive=own_prompts()[kind])
    mixed = mixer(graph, model, invert(graph, model), link)
    stops(graph, mixed, "Concept 'concept 0'", "'positive'", "plain prompt")


def test_special_prompt_that_every_row_shares(model):
    """No error: wired to both, it is one prompt for all rows."""
    graph = Graph()
    combined = graph.given(own_prompts()["combined"])
    link = concept(graph, 0, positive=combined)
    mixed = mixer(graph, appearance(graph, model), invert(graph, model), link, positive=combined)
    assert graph.run(latent=mixed)["latent"]["samples"].isfinite().all()


def test_batch_of_prompts(model):
    batch = conditioning(8)
    batch = [[batch[0][0].repeat(2, 1, 1), batch[0][1]]]
    graph = Graph()
    stops(graph, invert(graph, model, positive=batch), "DDPM Invert", "'positive'", "batch of 2 prompts")
    graph = Graph()
    mixed = mixer(graph, model, invert(graph, model), chain(graph, 1), positive=batch, negative=NEGATIVE)
    stops(graph, mixed, "Mask Noise Mixer", "'positive'")


def test_choice_that_does_not_exist(model):
    """Newer hosts refuse it themselves."""
    graph = Graph()
    stops(graph, appearance(graph, model, layers="encoder"), "layers", "'encoder'", "all")
    graph = Graph()
    stops(graph, dilution(graph, model, outside="sideways"), "outside", "'sideways'", "scaled")
    graph = Graph()
    stops(graph, invert(graph, model, scheduler="fast"), "scheduler", "'fast'")
    graph = Graph()
    mixed = mixer(graph, model, invert(graph, model), chain(graph, 1), overlap="hidden")
    stops(graph, mixed, "overlap", "'hidden'", "shared")


@pytest.mark.parametrize("name, ratio", [("SD15", 8), ("HunyuanImage21", 32), ("LTXV", 32), ("Wan22", 16)])
def test_pixels_to_a_cell_are_those_of_the_family(model, name, ratio):
    """Also on hosts that do not tell."""
    import comfy.latent_formats

    patched = model.clone()
    patched.add_object_patch("latent_format", getattr(comfy.latent_formats, name)())
    assert pack_module("host.checks").downscale_ratio(patched) == ratio
