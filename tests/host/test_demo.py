"""The demo model in ComfyUI: stands in for a checkpoint, and gives what it gives without ComfyUI."""

import gc
import sys

import pytest
import torch
from demo.diffusers_host import Settings, blend, empty, invert, load_model
from demo.model import FLOW_WEIGHTS, WEIGHTS
from demo.scenes import COLORS, draw_concepts, draw_scene, random_blend

from comfy_host import Graph, output, refused
from oracle import relative_error
from workflow_files import read, to_api

STEPS = dict(steps=8, skip_steps=3)
FEW = Settings(steps=4, skip_steps=2)  # half precision is slow on a CPU


def demo_graph(
    settings: Settings, seed: int, concepts: int, unet=None, network="unet", scheduler="ddim_uniform"
) -> tuple[Graph, list]:
    """The shipped template's graph, with the finished picture before the original pixels are put back."""
    graph = Graph()
    loaded = graph.add("PnPMixDemoModel", network=network)
    model, clip, vae = (loaded if unet is None else graph.given(unet)), output(loaded, 1), output(loaded, 2)
    scene = graph.add("PnPMixDemoScene", seed=seed, concepts=concepts)
    pictures, masks = ([output(scene, first + k) for k in range(concepts)] for first in (1, 4))
    positive = graph.add("CLIPTextEncode", clip=clip, text=output(scene, 7))
    negative = graph.add("CLIPTextEncode", clip=clip, text="")

    everything = masks[0]
    for mask in masks[1:]:
        everything = graph.add("MaskComposite", destination=everything, source=mask, x=0, y=0, operation="add")
    inpainted = graph.add("PnPMixInpaintBackground", image=scene, mask=everything, expand=3, feather=1)
    latent = {
        name: graph.add("VAEEncode", pixels=image, vae=vae)
        for name, image in [("scene", scene), ("inpainted", inpainted), *enumerate(pictures)]
    }
    inversion = graph.add(
        "PnPMixDDPMInvert",
        model=model,
        positive=positive,
        negative=negative,
        latent=latent["scene"],
        steps=settings.steps,
        skip_steps=settings.skip_steps,
        cfg=settings.inversion_cfg,
        seed=settings.noise_seed,
        scheduler=scheduler,
    )
    chain = None
    for k in range(concepts):
        own_seed = settings.concept_seed + k
        inputs = dict(latent=latent[k], mask=masks[k], concepts=chain)
        if settings.object_mask or settings.adain:
            inputs["object_mask"] = output(scene, 8 + k)
        chain = graph.add("PnPMixConcept", seed=own_seed, name="", **inputs)
    patched = graph.add(
        "PnPMixAppearance",
        model=model,
        alpha=settings.alpha,
        layers=settings.layers,
        start_percent=settings.start_percent,
        end_percent=settings.end_percent,
        adain=settings.adain,
    )
    patched = graph.add(
        "PnPMixDilution",
        model=patched,
        latent=latent["inpainted"],
        beta=settings.beta,
        expand=settings.expand,
        outside=settings.outside,
    )
    mixed = graph.add(
        "PnPMixSampler",
        model=patched,
        inversion=inversion,
        concepts=chain,
        positive=positive,
        negative=negative,
        cfg=settings.cfg,
        swap_guidance=settings.swap_guidance,
        mix_reference_noise=settings.mix_reference_noise,
        feather=settings.feather,
        overlap=settings.overlap,
    )
    return graph, graph.add("VAEDecode", samples=mixed, vae=vae)


def blended(settings: Settings, seed: int, concepts: int, weights=WEIGHTS) -> torch.Tensor:
    """The same picture without ComfyUI."""
    task, demo = random_blend(seed, concepts), load_model(weights)
    scene, masks = draw_scene(task.scene)
    pictures, own_masks = draw_concepts(task)
    prompt = task.scene.nouns()
    inversion = invert(demo, scene, prompt, settings)
    return blend(demo, inversion, empty(scene, masks), masks, pictures, own_masks, prompt, settings)[0]


@pytest.mark.parametrize("concepts", [1, 3])
def test_comfyui_and_diffusers_agree(concepts):
    assert_agreement(concepts, Settings(**STEPS))


@pytest.mark.oldest
@pytest.mark.parametrize(
    ("concepts", "settings"),
    [
        (2, Settings(**STEPS, cfg=2.0, layers="decoder", outside="blended", expand=2, alpha=0.4, feather=3)),
        (2, Settings(**STEPS, overlap="last in front", swap_guidance=1.0)),
        (3, Settings(**STEPS, object_mask=True)),
        (2, Settings(**STEPS, adain=True, swap_guidance=2.0)),
        (2, Settings(**STEPS, start_percent=0.2, end_percent=0.8, inversion_cfg=1.0, mix_reference_noise=False)),
    ],
    ids=["many settings", "last in front", "object mask", "adain", "some steps only"],
)
def test_comfyui_and_diffusers_agree_on_other_settings(concepts, settings):
    assert_agreement(concepts, settings)


@pytest.mark.parametrize(
    "settings",
    [
        Settings(**STEPS, object_mask=True, cfg=2.0),
        pytest.param(Settings(**STEPS, object_mask=True, layers="decoder", adain=True), marks=pytest.mark.oldest),
    ],
    ids=["object mask", "decoder, adain"],
)
def test_the_transformer_gives_the_same_in_comfyui_and_diffusers(settings):
    assert_agreement(2, settings, FLOW_WEIGHTS, network="flow", scheduler="simple")


def assert_agreement(concepts: int, settings: Settings, weights=WEIGHTS, **host) -> None:
    graph, picture = demo_graph(settings, seed=3, concepts=concepts, **host)
    expected, scene = blended(settings, 3, concepts, weights), draw_scene(random_blend(3, concepts).scene)[0]
    assert (expected - scene).abs().max() > 0.1, "the blend changed nothing"
    assert relative_error(graph.run(picture=picture)["picture"][0], expected) < 2e-4


@pytest.mark.parametrize("dtype", [pytest.param(torch.float16, marks=pytest.mark.oldest), torch.bfloat16], ids=str)
def test_half_precision_gives_the_same_picture(dtype):
    graph = Graph()
    unet = graph.run(model=graph.add("PnPMixDemoModel"))["model"]
    with torch.inference_mode():
        unet.model.diffusion_model.to(dtype).dtype = dtype  # as ComfyUI loads UNets on a GPU
    graph, picture = demo_graph(FEW, 3, 1, unet)
    expected = blended(FEW, 3, 1)
    assert 1e-6 < relative_error(graph.run(picture=picture)["picture"][0], expected) < 1e-2


def test_the_scene_node_gives_pictures_masks_and_words():
    graph = Graph()
    scene = graph.add("PnPMixDemoScene", seed=5, concepts=3)
    results = graph.run(**{name: output(scene, i) for i, name in enumerate("b123456p")})
    task = random_blend(5, 3)
    picture, masks = draw_scene(task.scene)
    assert torch.equal(results["b"], picture[None])
    for k in range(3):
        assert torch.equal(results[str(k + 1)], draw_scene(task.concepts[k])[0][None])
        assert torch.equal(results[str(k + 4)], masks[k][None])
    assert results["p"] == ", ".join([*(thing.shape for thing in task.scene.things), task.scene.place])


@pytest.mark.oldest
def test_the_scene_node_gives_several_photos_of_a_concept():
    """The first is the one that it gives alone; the others show the same thing elsewhere."""
    graph = Graph()
    one, five = (graph.add("PnPMixDemoScene", seed=5, concepts=2, photos=n) for n in (1, 5))
    results = graph.run(one=output(one, 2), five=output(five, 2), masks=output(five, 9))
    photos, masks = results["five"], results["masks"]
    assert photos.shape == (5, 64, 64, 3) and masks.shape == (5, 64, 64)
    assert torch.equal(photos[:1], results["one"])
    look = random_blend(5, 2).concepts[1].things[0].look
    colors = torch.tensor([COLORS[name] for name in look.colors])
    for photo, mask in zip(photos, masks, strict=True):
        inside = photo[mask == 1]
        nearest = torch.cdist(inside, colors).amin(1)
        assert (nearest < 0.1).float().mean() > 0.8
    assert (photos[1] - photos[2]).abs().max() > 0.1


def test_the_vae_loses_nothing():
    graph = Graph()
    model, scene = graph.add("PnPMixDemoModel"), graph.add("PnPMixDemoScene", seed=1, concepts=2)
    vae = output(model, 2)
    for encode, decode, sizes in [
        ("VAEEncode", "VAEDecode", {}),
        ("VAEEncodeTiled", "VAEDecodeTiled", dict(tile_size=64, overlap=32, temporal_size=64, temporal_overlap=8)),
    ]:
        latent = graph.add(encode, pixels=scene, vae=vae, **sizes)
        results = graph.run(before=scene, after=graph.add(decode, samples=latent, vae=vae, **sizes))
        assert (results["after"] - results["before"]).abs().max() < 1e-6


@pytest.mark.oldest
def test_the_model_draws_from_words_with_an_ordinary_sampler():
    graph = Graph()
    model = graph.add("PnPMixDemoModel")
    clip, vae = output(model, 1), output(model, 2)
    gray = graph.add("EmptyImage", width=64, height=64, batch_size=8, color=0xA6A6A6)
    empty = graph.add("VAEEncode", pixels=gray, vae=vae)
    samples = graph.add(
        "KSampler",
        model=model,
        seed=4,
        steps=10,
        cfg=3.0,
        sampler_name="euler_ancestral",
        scheduler="normal",
        positive=graph.add("CLIPTextEncode", clip=clip, text="a red ball in the snow"),
        negative=graph.add("CLIPTextEncode", clip=clip, text=""),
        latent_image=empty,
        denoise=1.0,
    )
    pictures = graph.run(pictures=graph.add("VAEDecode", samples=samples, vae=vae))["pictures"]
    red = ((pictures[..., 0] > 0.6) & (pictures[..., 1:].amax(-1) < 0.4)).float().mean((1, 2))
    assert ((red > 0.03) & (red < 0.4)).sum() >= 6, "most of them show a red ball"
    assert (pictures.mean((1, 2, 3)) > 0.5).sum() >= 6, "most of them show snow"


def test_unknown_words_are_refused():
    graph = Graph()
    clip = output(graph.add("PnPMixDemoModel"), 1)
    with refused("does not know the word 'dog'", "cup", "meadow"):
        graph.run(conditioning=graph.add("CLIPTextEncode", clip=clip, text="a cup and a dog"))


def test_the_text_encoder_stays_in_the_hands_of_the_host():
    """Which takes it for a memory leak where what it has loaded is gone and the weights are not."""
    import comfy.model_management

    graph = Graph()
    clip = graph.run(clip=output(graph.add("PnPMixDemoModel"), 1))["clip"]
    gc.collect()
    assert not [x for x in comfy.model_management.current_loaded_models if x.is_dead()]
    assert {clip.patcher.load_device.type, clip.patcher.offload_device.type} == {"cpu"}


def test_a_concept_that_the_scene_does_not_have_is_refused(monkeypatch):
    import server

    told = []
    monkeypatch.setattr(
        server.PromptServer.instance, "send_sync", lambda event, data, sid=None: told.append((event, data))
    )
    graph = Graph()
    scene = graph.add("PnPMixDemoScene", seed=0, concepts=2)
    assert not graph.run(picture=graph.add("ImageInvert", image=output(scene, 3)))
    (message,) = (data["exception_message"] for event, data in told if event == "execution_error")
    assert "Demo Scene, input 'concepts': it is 2" in message
    with refused("concepts"):
        graph.run(picture=graph.add("PnPMixDemoScene", seed=0, concepts=4))


def test_weights_cut_short_are_refused(tmp_path, monkeypatch):
    (module,) = (module for name, module in sys.modules.items() if name.endswith("nodes.demo"))
    cut = tmp_path / "weights.safetensors"
    cut.write_bytes(module.demo.WEIGHTS.read_bytes()[:100_000])
    monkeypatch.setitem(module.NETWORKS, "unet", cut)
    graph = Graph()
    with refused("weights.safetensors", "cut short", "git checkout"):
        graph.run(model=graph.add("PnPMixDemoModel"))


def test_the_template_shows_what_the_command_shows():
    graph = Graph()
    graph.prompt = to_api(read("try_it_without_downloads"))
    (inversion,) = (node for node in graph.prompt.values() if node["class_type"] == "PnPMixDDPMInvert")
    inversion["inputs"] |= STEPS
    (decode,) = (key for key, node in graph.prompt.items() if node["class_type"] == "VAEDecode")
    (finished,) = (key for key, node in graph.prompt.items() if node["class_type"] == "ImageCompositeMasked")
    results = graph.run(decoded=[decode, 0], finished=[finished, 0])
    expected = blended(Settings(**STEPS, object_mask=True), seed=2, concepts=2)
    assert relative_error(results["decoded"][0], expected) < 2e-4
    assert relative_error(results["finished"][0], expected) < 5e-3, "only the masks' soft rims are mixed anew"
