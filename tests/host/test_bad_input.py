"""Every wrong input gets an error that names the node, the input and the remedy."""

import pytest
import torch

from comfy_host import Given, Graph, pack_module, refused
from mixer_graph import NEGATIVE, appearance, chain, concept, dilution, invert, mixer
from pictures import HEIGHT, WIDTH, latent
from small_models import LAYOUTS, Layout, comfy_model, conditioning


@pytest.fixture(scope="module")
def model():
    return comfy_model(LAYOUTS["SD 1.x"])


@pytest.fixture(scope="module")
def inversion(model):
    """Of two steps, for tests of what comes with it."""
    graph = Graph()
    return graph.run(inversion=invert(graph, model, steps=4, skip_steps=2))["inversion"]


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


def numbers() -> list[tuple[str, str]]:
    """Node and input of every number of the pack."""
    import nodes

    found = []
    for node_id, node in nodes.NODE_CLASS_MAPPINGS.items():
        if node_id.startswith("PnPMix"):
            inputs = [pair for group in node.INPUT_TYPES().values() for pair in group.items()]
            found += [(node_id, name) for name, spec in inputs if spec[0] in ("INT", "FLOAT")]
    return found


def test_not_a_number_in_any_number():
    """JSON allows NaN, and no minimum or maximum refuses it."""
    import nodes

    assert len(numbers()) > 20
    for node_id, number in numbers():
        required = nodes.NODE_CLASS_MAPPINGS[node_id].INPUT_TYPES()["required"]
        others = {name: spec[1].get("default", object()) for name, spec in required.items() if name != number}
        for value in (float("nan"), float("inf")):
            graph = Graph()
            link = graph.add(node_id, **others)
            graph.prompt[link[0]]["inputs"][number] = graph.add("TestGiven", key=f"{node_id} {number}")
            Given.values[f"{node_id} {number}"] = value
            stops(graph, link, f"input '{number}'", f"it is {value}")


def test_not_a_number_in_a_widget(model):
    graph = Graph()
    stops(graph, appearance(graph, model, alpha=float("nan")), "Guided Appearance Attention", "'alpha'", "nan")


def test_scheduler_that_gives_no_numbers(model, monkeypatch):
    """As another pack adds its own."""
    import comfy.samplers

    def broken(model_sampling, steps):
        return torch.cat([torch.full((steps,), float("nan")), torch.zeros(1)])

    handler = comfy.samplers.SchedulerHandler(broken)
    monkeypatch.setitem(comfy.samplers.SCHEDULER_HANDLERS, "broken", handler)
    monkeypatch.setattr(comfy.samplers, "SCHEDULER_NAMES", [*comfy.samplers.SCHEDULER_NAMES, "broken"])
    graph = Graph()
    stops(graph, invert(graph, model, scheduler="broken"), "DDPM Invert", "'scheduler'", "ddim_uniform")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_model_that_predicts_no_numbers(model, inversion, value):
    patched = model.clone()
    patched.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * value)
    graph = Graph()
    stops(
        graph,
        invert(graph, patched, steps=2, skip_steps=1),
        "DDPM Invert",
        "'model'",
        "NaN or infinity",
        "--force-fp32",
    )
    graph = Graph()
    mixed = mixer(graph, patched, inversion, chain(graph, 1))
    stops(graph, mixed, "Mask Noise Mixer", "'model'", "NaN or infinity", "--force-fp32")


def test_latents_that_are_none(model):
    for samples, words in (
        (latent(0)[:0], ("is empty", "VAE")),
        (latent(0)[..., :0], ("is empty", "VAE")),
        (latent(0)[0], ("shape (4, 12, 16)", "VAE")),
        (torch.nested.as_nested_tensor([latent(0)[0]], layout=torch.jagged), ("several latents", "VAE")),
    ):
        graph = Graph()
        stops(graph, invert(graph, model, latent={"samples": samples}), "DDPM Invert", "'latent'", *words)
        graph = Graph()
        stops(graph, concept(graph, 0, latent={"samples": samples}), "Concept", "'latent'", *words)


def test_latent_of_picture_and_sound(model):
    try:
        import comfy.nested_tensor as nested
    except ImportError:  # the oldest host has no such latents
        import comfyui_version

        assert comfyui_version.__version__ == "0.3.64"
        return
    both = nested.NestedTensor([latent(0), torch.zeros(1, 8, 20)])
    graph = Graph()
    stops(graph, invert(graph, model, latent={"samples": both}), "DDPM Invert", "'latent'", "several latents")


def test_batch_of_latents(model):
    two = {"samples": torch.cat([latent(0), latent(1)])}
    graph = Graph()
    stops(graph, invert(graph, model, latent=two), "DDPM Invert", "'latent'", "batch of 2", "Latent From Batch")
    graph = Graph()
    stops(graph, concept(graph, 0, latent=two), "Concept", "'latent'", "batch of 2")


def test_video_latent(model):
    """Of more than one frame, which is how some models have their pictures."""
    graph = Graph()
    video = {"samples": latent(0)[:, :, None].repeat(1, 1, 2, 1, 1)}
    stops(graph, invert(graph, model, latent=video), "DDPM Invert", "'latent'", "shape")


def test_skip_steps_leave_nothing_of_a_wired_schedule(model):
    graph = Graph()
    wired = dict(sigmas=torch.tensor([3.0, 2.0, 1.0, 0.0]), skip_steps=3)
    stops(graph, invert(graph, model, **wired), "DDPM Invert", "'skip_steps'", "below 3")


@pytest.mark.parametrize(
    "sigmas",
    [[3.0, 2.0, 1.0], [0.0, 1.0, 2.0], [3.0, 1.0, 2.0, 0.0], [3.0, 0.0, 0.0], [0.0], [], [float("nan"), 1.0, 0.0]],
    ids=str,
)
def test_sigmas_that_are_no_schedule(model, sigmas):
    graph = Graph()
    wired = dict(sigmas=torch.tensor(sigmas), skip_steps=0)
    stops(graph, invert(graph, model, **wired), "DDPM Invert", "'sigmas'", "fall", "scheduler node")


def test_sigmas_for_another_kind_of_model(model):
    graph = Graph()
    wired = dict(sigmas=torch.tensor([700.0, 3.0, 0.0]), skip_steps=0)
    stops(graph, invert(graph, model, **wired), "DDPM Invert", "'sigmas'", "700", "14.61")


@pytest.mark.parametrize("steps, skip", [(10, 10), (10, 11), (1, 1)])
def test_skip_steps_leave_nothing(model, steps, skip):
    graph = Graph()
    stops(graph, invert(graph, model, steps=steps, skip_steps=skip), "DDPM Invert", "'skip_steps'", f"below {steps}")


def test_concept_of_another_size_or_model(model):
    for wrong, words in (
        (
            latent(1, HEIGHT, WIDTH + 16),
            (f"{WIDTH + 16} x {HEIGHT} pixels, the scene {WIDTH} x {HEIGHT}", "Scale"),
        ),
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
    sizes = f"its picture is {WIDTH + 8} x {HEIGHT} pixels, the scene {WIDTH} x {HEIGHT}."
    stops(graph, mixed, "Background Dilution++", "'latent'", sizes)


def test_mask_that_is_empty(model):
    graph = Graph()
    stops(graph, concept(graph, 0, mask=torch.zeros(1, HEIGHT, WIDTH)), "Concept", "'mask'", "empty", "Paint")
    speck = torch.zeros(1, HEIGHT, WIDTH)
    speck[0, 20:24, 20:24] = 1  # a quarter of a latent token
    graph = Graph()
    mixed = mixer(graph, model, invert(graph, model), concept(graph, 0, mask=speck))
    stops(graph, mixed, "Concept 'concept 0'", "'mask'", "too small", "8 pixels")


def test_object_mask_that_is_missing_or_empty(model):
    graph = Graph()
    mixed = mixer(graph, appearance(graph, model, adain=True), invert(graph, model), concept(graph, 0))
    stops(graph, mixed, "Concept 'concept 0'", "'object_mask'", "not wired", "switch adain off")
    graph = Graph()
    empty = torch.zeros(1, HEIGHT, WIDTH)
    stops(graph, concept(graph, 0, object_mask=empty), "Concept 'concept 0'", "'object_mask'", "empty", "concept image")
    graph = Graph()
    speck = torch.zeros(1, HEIGHT, WIDTH)
    speck[0, 20:24, 20:24] = 1  # a quarter of a latent token
    mixed = mixer(graph, model, invert(graph, model), concept(graph, 0, object_mask=speck))
    stops(graph, mixed, "Concept 'concept 0'", "'object_mask'", "too small", "8 pixels")


def test_concept_hidden_by_those_in_front(model):
    graph = Graph()
    everywhere = torch.ones(1, HEIGHT, WIDTH)
    link = concept(graph, 1, concept(graph, 0), mask=everywhere)
    mixed = mixer(graph, model, invert(graph, model), link, overlap="last in front")
    stops(graph, mixed, "Concept 'concept 0'", "'mask'", "in front", "later place", "shared")


def test_of_a_batch_of_masks_each_concept_takes_its_own():
    graph, masks, link = Graph(), torch.eye(2)[:, :, None].expand(-1, -1, 8), None
    for k in range(2):
        link = concept(graph, k, link, mask=masks)
    assert all(torch.equal(x.mask, mask) for x, mask in zip(graph.run(link=link)["link"], masks, strict=True))
    stops(graph, concept(graph, 2, link, mask=masks), "Concept", "'mask'", "batch of 2", "concept 3")


def test_a_mask_of_the_photo_is_cropped_as_its_scene_was():
    graph, mask = Graph(), torch.zeros(1, 90, 120)
    mask[:, 30:60, 50:80] = 1
    settings = dict(width=64, height=64, mode="crop", margin=20, multiple=8)
    fitted = graph.add("PnPMixFitPicture", image=torch.rand(1, 90, 120, 3), mask=mask, **settings)
    place = [fitted[0], 2]
    results = graph.run(link=concept(graph, 0, mask=mask, place=place), cut=[fitted[0], 1])
    assert torch.equal(results["link"][0].mask, results["cut"][0]) and results["cut"].any()
    other = concept(graph, 0, mask=torch.ones(1, 50, 50), place=place)
    stops(graph, other, "Concept", "'mask'", "50 x 50", "photo of 120 x 90", "Fit Picture")


@pytest.mark.parametrize(
    "titles, called",
    [
        (["My dog", "My cat"], "My dog"),
        (["Dog", "Dog"], "1"),  # one title tells nobody which
        (["Concept", "My cat"], "1"),  # nobody gave it
        ([None, None], "1"),  # a graph that comes from no editor
    ],
)
def test_a_concept_without_a_name_is_called_by_its_title_or_number(titles, called):
    graph = Graph()
    first = concept(graph, 0, name="", mask=torch.zeros(1, HEIGHT, WIDTH))
    second = concept(graph, 1, first, name="")
    for link, title in zip((first, second), titles, strict=True):
        if title is not None:
            graph.prompt[link[0]]["_meta"] = {"title": title}
    stops(graph, second, f"Concept '{called}', input 'mask'")


@pytest.mark.parametrize("title, shown", [("My dog", " (node 'My dog')"), ("dog", ""), ("Concept", "")])
@pytest.mark.parametrize(
    "fault", [dict(latent={"samples": latent(1, HEIGHT, WIDTH + 16)}), dict(mask=torch.ones(1, HEIGHT, 8))]
)
def test_a_fault_of_a_concept_that_the_mixer_finds_names_both_it_and_its_node(model, monkeypatch, title, shown, fault):
    import server

    told = []
    monkeypatch.setattr(
        server.PromptServer.instance, "send_sync", lambda event, data, sid=None: told.append((event, data))
    )
    if "mask" in fault:
        fault["mask"][0, :, :4] = 0
    graph = Graph()
    link = concept(graph, 0, name="dog", **fault)
    graph.prompt[link[0]]["_meta"] = {"title": title}
    stops(graph, mixer(graph, model, invert(graph, model), link), f"Concept 'dog'{shown}, input ")
    assert [data["node"] for event, data in told if event == "pnpmix.fault"] == [link[0]]


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


def blob(height: int, width: int) -> torch.Tensor:
    """A mask with an object in its upper left quarter."""
    mask = torch.zeros(1, height, width)
    mask[0, : height // 2, : width // 2] = 1
    return mask


@pytest.mark.parametrize("name", ["mask", "object_mask"])
def test_mask_of_another_shape_is_not_squeezed(model, inversion, name):
    for height, width in ((HEIGHT, HEIGHT), (WIDTH, HEIGHT), (HEIGHT, WIDTH + 24), (400, 600)):
        graph = Graph()
        link = concept(graph, 0, **{name: blob(height, width)})
        stops(
            graph,
            mixer(graph, model, inversion, link),
            f"Concept 'concept 0', input '{name}'",
            f"{width} x {height}",
            f"{WIDTH} x {HEIGHT}",
            "together with its picture",
        )


def test_mask_of_another_shape_than_the_picture_to_empty():
    graph = Graph()
    link = graph.add(
        "PnPMixInpaintBackground", image=torch.rand(1, HEIGHT, WIDTH, 3), mask=blob(HEIGHT, HEIGHT), expand=2, feather=1
    )
    words = (f"{HEIGHT} x {HEIGHT}", f"{WIDTH} x {HEIGHT}", "together with its picture")
    stops(graph, link, "Inpaint Background, input 'mask'", *words)


def test_mask_of_a_picture_that_was_cut_to_whole_cells(model, inversion):
    """No error: VAE Encode takes less than a cell off each side, and other nodes round to cells."""
    for height, width in ((HEIGHT + 7, WIDTH), (HEIGHT, WIDTH + 7), (HEIGHT - 4, WIDTH + 4), (13, 17), (750, 1000)):
        graph = Graph()
        link = concept(graph, 0, mask=blob(height, width), object_mask=blob(height, width))
        assert graph.run(latent=mixer(graph, model, inversion, link))["latent"]["samples"].isfinite().all()


def test_mask_that_is_white_everywhere_fits_every_picture(model, inversion):
    graph = Graph()
    mixed = mixer(graph, model, inversion, concept(graph, 0, mask=torch.ones(1, 64, 64)))
    assert graph.run(latent=mixed)["latent"]["samples"].isfinite().all()


def test_mask_beyond_black_and_white(model, inversion):
    """No error: other nodes make them by adding and subtracting; they mean black and white."""
    mask = blob(HEIGHT, WIDTH)
    results = []
    for wild in (mask, mask * 6 - 3):
        graph = Graph()
        link = concept(graph, 0, mask=wild, object_mask=wild)
        mixed = mixer(graph, appearance(graph, model, adain=True), inversion, link, feather=20)
        results.append(graph.run(latent=mixed)["latent"]["samples"])
    assert torch.equal(*results)


def test_picture_that_is_empty():
    for shape in ((0, HEIGHT, WIDTH, 3), (1, 0, WIDTH, 3), (HEIGHT, WIDTH, 3)):
        graph = Graph()
        mask = torch.ones(1, HEIGHT, WIDTH)
        link = graph.add("PnPMixInpaintBackground", image=torch.zeros(shape), mask=mask, expand=2, feather=1)
        stops(graph, link, "Inpaint Background, input 'image'", f"shape {shape}")


def test_inversion_of_another_family_or_channels(model):
    other = comfy_model(LAYOUTS["SD 2.x eps"])
    graph = Graph()
    mixed = mixer(graph, model, invert(graph, other), chain(graph, 1))
    stops(graph, mixed, "Mask Noise Mixer", "'inversion'", "SD20 EPS", "SD15 EPS", "Invert the scene")
    graph = Graph()
    other = comfy_model(LAYOUTS["SD 2.x v"])
    mixed = mixer(graph, comfy_model(LAYOUTS["SD 2.x eps"]), invert(graph, other), chain(graph, 1))
    stops(graph, mixed, "Mask Noise Mixer", "'inversion'", "V_PREDICTION")


def test_inversion_of_another_shape(model):
    graph = Graph()
    smaller = invert(graph, model, latent={"samples": latent(0, HEIGHT, WIDTH - 16)})
    stops(
        graph,
        mixer(graph, model, smaller, chain(graph, 1)),
        "'latent'",
        f"{WIDTH} x {HEIGHT} pixels, the scene {WIDTH - 16} x {HEIGHT}",
    )


def flow_model():
    return comfy_model(Layout("SD15", "FLOW", LAYOUTS["SD 1.x"].diffusers, LAYOUTS["SD 1.x"].comfy))


def transformer_model():
    """Of a family that the mixer does not know: AuraFlow."""
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.AuraFlow({"cond_seq_dim": 8})
    config.unet_config = dict(cond_seq_dim=8, n_double_layers=1, n_layers=1, dim=64, n_heads=2, max_seq=16)
    config.unet_config["dtype"] = torch.float32
    model = comfy.model_base.AuraFlow(config)
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
        (transformer_model, ("AuraFlow", "transformer", "SDXL checkpoint", "Qwen-Image")),
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


@pytest.mark.parametrize("options, word", [({}, "no pooled output"), ({"pooled_output": torch.zeros(1, 40)}, "32")])
def test_a_prompt_without_what_sdxl_reads_beside_its_words(options, word):
    """As other nodes than CLIP Text Encode may give it."""
    graph, prompt = Graph(), [[conditioning(1)[0][0], options]]
    link = invert(graph, comfy_model(LAYOUTS["SDXL"]), positive=prompt)
    stops(graph, link, "DDPM Invert", "'positive'", "pooled output", word, "CLIP")


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


def test_prompt_of_another_text_encoder(model, inversion):
    wide = [[torch.zeros(1, 77, 2048), {"pooled_output": torch.zeros(1, 1280)}]]
    words = ("2048 numbers wide", "reads 48", "CLIP of the same checkpoint")
    for name in ("positive", "negative"):
        graph = Graph()
        stops(graph, invert(graph, model, **{name: wide}), f"DDPM Invert, input '{name}'", *words)
        graph = Graph()
        mixed = mixer(graph, model, inversion, chain(graph, 1), **{name: wide})
        stops(graph, mixed, f"Mask Noise Mixer, input '{name}'", *words)
    graph = Graph()
    mixed = mixer(graph, model, inversion, chain(graph, 1, positive=wide))
    stops(graph, mixed, "Concept 'concept 0', input 'positive'", *words)


def test_no_prompt_at_all(model, inversion):
    words = ("no prompt", "CLIP Text Encode")
    for name in ("positive", "negative"):
        graph = Graph()
        stops(graph, invert(graph, model, **{name: []}), f"DDPM Invert, input '{name}'", *words)
        graph = Graph()
        mixed = mixer(graph, model, inversion, chain(graph, 1), **{name: []})
        stops(graph, mixed, f"Mask Noise Mixer, input '{name}'", *words)
    graph = Graph()
    mixed = mixer(graph, model, inversion, chain(graph, 1, positive=[]))
    stops(graph, mixed, "Concept 'concept 0', input 'positive'", *words)


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
    assert pack_module("common.checks").downscale_ratio(patched) == ratio


def test_two_concepts_for_one_object_are_refused(model, inversion):
    """As two searches for the same word give them; masks that overlap less are two objects, one behind the other."""
    mask = torch.zeros(1, HEIGHT, WIDTH)
    mask[:, 8:40, 8:40] = 1
    nearly, apart = mask.clone(), torch.zeros_like(mask)
    nearly[:, 8:11] = 0
    apart[:, 20:52, 8:40] = 1
    for other, is_same in ((nearly, True), (apart, False)):
        graph = Graph()
        concepts = concept(graph, 1, concepts=concept(graph, 0, mask=mask), mask=other)
        link = mixer(graph, model, inversion, concepts)
        if is_same:
            stops(graph, link, "Concept 'concept 1'", "'mask'", "same object", "'concept 0'", "in order")
        else:
            graph.run(result=link)


def test_an_object_mask_of_what_is_transparent_is_refused():
    """Where the picture was encoded without Fit Picture, its latent tells: three corners, and one flat color."""
    samples = latent(0).clone()
    object_mask = torch.ones(1, HEIGHT, WIDTH)
    object_mask[:, 16:40, 16:40] = 0
    flat = samples.clone()
    flat[..., torch.nn.functional.adaptive_avg_pool2d(object_mask, flat.shape[-2:])[0] > 0.5] = 0.3
    graph = Graph()
    link = concept(graph, 0, latent={"samples": flat}, object_mask=object_mask)
    stops(graph, link, "Concept 'concept 0'", "'object_mask'", "one flat color", "Invert Mask")
    graph = Graph()
    graph.run(x=concept(graph, 0, latent={"samples": samples}, object_mask=object_mask))
    graph = Graph()
    graph.run(x=concept(graph, 0, latent={"samples": flat}, object_mask=1 - object_mask))
