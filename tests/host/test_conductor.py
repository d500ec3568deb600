"""What people rely on beside the Conductor's pictures: nothing is left behind, and bad input is named."""

import pickle

import pytest
import safetensors.torch
import torch

from comfy_host import Graph, GraphError, output, refused
from conductor_graph import (
    NEGATIVE,
    POSITIVE,
    alignment,
    chain,
    conductor,
    prompts,
    reference,
    refinement,
    run_conductor,
    with_hooks,
)
from conductor_oracle import random_lora
from oracle import relative_error
from pictures import latent, mask_batch
from small_models import conditioning
from stand_ins import conducted_with_demo_model
from workflow_files import CONDUCTOR, WITHOUT_DOWNLOADS, read, to_api

SMALL = {"samples": torch.zeros_like(latent(0))}


@pytest.fixture
def loras(unet):
    return [random_lora(unet, k) for k in range(2)]


def weights(model) -> dict[str, torch.Tensor]:
    return {name: x.clone() for name, x in model.model.state_dict().items()}


def assert_as_before(model, before: dict[str, torch.Tensor]) -> None:
    after = model.model.state_dict()
    assert all(torch.equal(after[name], x) for name, x in before.items())


def ksampler(model) -> torch.Tensor:
    graph = Graph()
    link = graph.add(
        "KSampler",
        model=model,
        positive=POSITIVE,
        negative=NEGATIVE,
        latent_image=SMALL,
        seed=7,
        steps=3,
        cfg=3.0,
        sampler_name="euler",
        scheduler="normal",
        denoise=1.0,
    )
    return graph.run(latent=link)["latent"]["samples"]


def test_model_is_bitwise_the_same_afterwards(model, loras):
    before, picture, options = weights(model), ksampler(model), repr(model.model_options)
    run_conductor(model, loras, steps=2)
    assert_as_before(model, before)
    assert torch.equal(ksampler(model), picture)
    assert repr(model.model_options) == options


@pytest.mark.parametrize("call", [2, 9])
def test_cancel_leaves_nothing_behind(model, loras, call):
    """In the layout's inversion, and between two branches' weights."""
    import comfy.model_management

    before, calls = weights(model), []

    def cancel(*_):
        calls.append(None)
        if len(calls) == call:
            comfy.model_management.interrupt_current_processing(True)

    hook = model.model.diffusion_model.register_forward_pre_hook(cancel)
    try:
        graph = Graph()
        patched = alignment(graph, model, reference(graph, model, steps=4))
        with pytest.raises(GraphError):
            graph.run(latent=conductor(graph, patched, chain(graph, loras), steps=4))
    finally:
        hook.remove()
        comfy.model_management.interrupt_current_processing(False)
    assert len(calls) == call
    assert_as_before(model, before)


@pytest.mark.oldest
def test_an_error_in_the_middle_leaves_nothing_behind(model, loras):
    before, calls = weights(model), []

    def fail(*_):
        calls.append(None)
        if len(calls) == 4:
            raise ValueError("of another pack")

    hook = model.model.diffusion_model.register_forward_pre_hook(fail)
    try:
        graph = Graph()
        with refused("of another pack"):
            graph.run(latent=conductor(graph, model, chain(graph, loras), steps=4))
    finally:
        hook.remove()
    assert_as_before(model, before)


@pytest.mark.oldest
def test_concepts_of_the_base_itself_change_nothing(model, loras):
    """Strength 0 and the base's prompts: what a plain DDIM run gives."""
    graph = Graph()
    positive, negative = with_hooks((POSITIVE, NEGATIVE), loras[0], strength=0.0)
    link = chain(graph, [loras[0]], positive=positive, negative=negative)
    result = graph.run(latent=conductor(graph, model, link, steps=3, scheduler="normal"))["latent"]["samples"]
    assert relative_error(result, ksampler(model)) < 1e-5


@pytest.mark.oldest
def test_order_of_concepts_apart_does_not_matter(model, loras):
    def run(order: list[int]) -> torch.Tensor:
        graph, link = Graph(), None
        for k in order:
            positive, negative = with_hooks(prompts(k), loras[k])
            inputs = dict(positive=positive, negative=negative, mask=mask_batch(k), name="")
            link = graph.add("PnPMixConductedConcept", concepts=link, **inputs)
        return graph.run(latent=conductor(graph, model, link, steps=2))["latent"]["samples"]

    assert relative_error(run([0, 1]), run([1, 0])) < 1e-5


@pytest.mark.oldest
def test_each_picture_of_a_batch_is_the_one_it_is_alone(model, loras):
    graph = Graph()
    both = {"samples": torch.zeros(2, 4, 12, 16), "batch_index": [0, 1]}
    alone = {"samples": torch.zeros(1, 4, 12, 16), "batch_index": [1]}
    patched = refinement(graph, model, updates=1)
    links = [conductor(graph, patched, chain(graph, loras), latent=x, steps=2) for x in (both, alone)]
    results = graph.run(both=links[0], alone=links[1], masks=output(links[0], 1))
    assert relative_error(results["both"]["samples"][1:], results["alone"]["samples"]) < 1e-4
    assert results["masks"].shape == (4, 96, 128)


@pytest.mark.oldest
def test_reference_features_are_kept_for_the_next_run(model, loras):
    graph = Graph()
    layout = graph.run(layout=reference(graph, model, steps=2))["layout"]

    def calls() -> int:
        count = []
        hook = model.model.diffusion_model.register_forward_pre_hook(lambda *_: count.append(None))
        graph = Graph()
        graph.run(latent=conductor(graph, alignment(graph, model, layout), chain(graph, loras), steps=2))
        hook.remove()
        return len(count)

    first = calls()
    assert first == 2 + 2 * 3 + 2 * 3, "references, gradients, branches"
    assert calls() == first - 2


@pytest.mark.oldest
def test_reference_features_are_kept_for_another_seed(model, loras):
    """The same MODEL, as ComfyUI hands it over when nothing but the seed was changed, with a LoRA of its own on it."""
    graph = Graph()
    patched = model.clone()
    name = next(iter(model.model_state_dict()))
    patched.add_patches({name: (torch.zeros_like(model.model_state_dict()[name]),)})
    layout = graph.run(layout=reference(graph, patched, steps=2))["layout"]
    graph = Graph()
    aligned, count = graph.run(model=alignment(graph, patched, layout))["model"], []
    hook = model.model.diffusion_model.register_forward_pre_hook(lambda *_: count.append(None))
    try:
        for seed in (0, 1):
            graph = Graph()
            graph.run(latent=conductor(graph, aligned, chain(graph, loras), steps=2, seed=seed))
    finally:
        hook.remove()
    assert len(count) == 14 + 12, "the second time without the two references"


@pytest.mark.oldest
def test_reference_features_of_two_conductors_with_other_models_do_not_displace_each_other(model, loras):
    graph, other, count = Graph(), model.clone(), []
    other.set_model_attn1_output_patch(lambda x, extra_options: x * 1.1)
    layout = graph.run(layout=reference(graph, model, steps=2))["layout"]
    graph = Graph()
    links = [conductor(graph, alignment(graph, x, layout), chain(graph, loras), steps=2) for x in (model, other)]
    hook = model.model.diffusion_model.register_forward_pre_hook(lambda *_: count.append(None))
    try:
        graph.run(one=links[0], two=links[1])
        first = len(count)
        graph.run(one=links[0], two=links[1])
    finally:
        hook.remove()
    assert len(count) - first == first - 4


@pytest.mark.oldest
@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (dict(mask=torch.zeros(1, 96, 128)), ("Conducted Concept 'concept 0'", "'mask'", "empty")),
        (dict(mask=torch.eye(96, 128)[None] * (torch.arange(128) < 1)), ("'mask'", "too small")),
        (dict(negative=conditioning(2)), ("Conducted Concept", "'negative'", "same Concept LoRA")),
        (dict(positive=conditioning(1) * 2, negative=conditioning(2)), ("'positive'", "combined")),
    ],
    ids=["empty mask", "too small a mask", "other weights", "two prompts"],
)
def test_bad_concept(model, loras, inputs, words):
    graph = Graph()
    link = chain(graph, loras[:1], **inputs)
    with refused(*words):
        graph.run(latent=conductor(graph, model, link, steps=2))


@pytest.mark.oldest
def test_lora_that_changes_nothing_or_is_of_another_family(model, loras):
    name = next(iter(loras[0]))
    other = {"lora_unet_no_such_layer.lora_up.weight": loras[0][name]}
    wide = {key: torch.zeros(8 * len(x), x.shape[1]) if "up" in key else x for key, x in loras[0].items()}
    for lora, words in ((other, "changes nothing"), (wide, "another model family")):
        graph = Graph()
        with refused("Concept LoRA", "'lora_name'", words):
            graph.run(latent=conductor(graph, model, chain(graph, [lora]), steps=2))


@pytest.mark.newest
def test_several_gpus_at_once_are_refused(model, loras):
    """As MultiGPU Work Units leave them in a MODEL."""
    graph, shared = Graph(), model.clone()
    shared.set_additional_models("multigpu", [model.clone()])
    with refused("Conductor", "'model'", "several GPUs", "Bypass"):
        graph.run(latent=conductor(graph, shared, chain(graph, loras), steps=2))


@pytest.mark.oldest
def test_layout_of_another_size(model, loras):
    graph = Graph()
    layout = reference(graph, model, latent={"samples": latent(3, 64, 64)}, method="noised")
    patched = alignment(graph, model, layout)
    with refused("Layout Alignment", "'layout'", "64 x 64 pixels, the new image", "Scale the layout image"):
        graph.run(latent=conductor(graph, patched, chain(graph, loras), steps=2))


@pytest.mark.oldest
def test_refinement_that_starts_after_its_end(model):
    graph = Graph()
    with refused("Mask Refinement", "'start'", "after end"):
        graph.run(model=refinement(graph, model, start=0.5, end=0.4))


@pytest.mark.oldest
def test_compiled_model(model, loras):
    from comfy.patcher_extension import WrappersMP
    from comfy_api.torch_helpers.torch_compile import COMPILE_KEY

    compiled = model.clone()
    compiled.add_wrapper_with_key(WrappersMP.APPLY_MODEL, COMPILE_KEY, lambda executor, *a, **k: executor(*a, **k))
    graph = Graph()
    with refused("Conductor", "'model'", "compiled"):
        graph.run(latent=conductor(graph, compiled, chain(graph, loras), steps=2))


class Harm:
    def __reduce__(self):
        return (open, ("harm", "w"))


@pytest.mark.oldest
@pytest.mark.parametrize("kind", ["code", "cut short", "missing", "outside"])
def test_files_that_are_no_lora(tmp_path, kind):
    import folder_paths

    place = folder_paths.folder_names_and_paths["loras"]
    folder_paths.folder_names_and_paths["loras"] = ([str(tmp_path)], place[1])
    names = {"code": "a.pth", "cut short": "b.safetensors", "missing": "c.safetensors", "outside": "../d.safetensors"}
    (tmp_path / "a.pth").write_bytes(pickle.dumps(Harm()))
    safetensors.torch.save_file({"x": torch.zeros(100)}, tmp_path / "whole.safetensors")
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-50])
    try:
        graph = Graph()
        clip = graph.add("PnPMixDemoModel")
        inputs = dict(clip=[clip[0], 1], lora_name=names[kind], strength=1.0, text="cup", negative_text="")
        with refused("lora_name"):
            graph.run(positive=graph.add("PnPMixConceptLora", **inputs))
    finally:
        folder_paths.folder_names_and_paths["loras"] = place
    assert not (tmp_path / "harm").exists()


@pytest.mark.oldest
def test_demo_loras_conduct_the_demo_model(tmp_path):
    """From a file to a picture: another one than without the LoRA, in the concept's place."""
    results = []
    for strength in (1.0, 0.0):
        graph = Graph()
        demo = graph.add("PnPMixDemoModel")
        words = [graph.add("CLIPTextEncode", clip=[demo[0], 1], text=text) for text in ("cup, sea", "")]
        own = graph.add(
            "PnPMixConceptLora",
            clip=[demo[0], 1],
            lora_name="demo model: cup.safetensors",
            strength=strength,
            text="cup, sea",
            negative_text="",
        )
        mask = torch.zeros(1, 64, 64)
        mask[:, 16:48, 16:48] = 1
        link = graph.add("PnPMixConductedConcept", positive=own, negative=output(own, 1), mask=mask, name="cup")
        empty = {"samples": torch.zeros(1, 12, 32, 32)}
        inputs = dict(positive=words[0], negative=words[1], latent=empty, steps=2)
        results.append(graph.run(latent=conductor(graph, demo, link, **inputs))["latent"]["samples"])
    change = (results[0] - results[1]).abs().mean((0, 1))
    assert change[8:24, 8:24].mean() > 1.2 * change.mean() > 0


@pytest.mark.oldest
@pytest.mark.parametrize("name", CONDUCTOR)
def test_template_gives_a_picture_with_the_demo_model_in_the_place_of_its_files(name):
    """In few steps."""
    prompt, graph = to_api(read(name)), Graph()
    graph.prompt = prompt if name in WITHOUT_DOWNLOADS else conducted_with_demo_model(prompt)
    nodes = {node["class_type"]: node["inputs"] for node in graph.prompt.values()}
    nodes["PnPMixConductor"]["steps"] = nodes["PnPMixLayoutReference"]["steps"] = 2
    nodes["PnPMixMaskRefinement"]["restarts"] = 5
    picture = graph.run(finished=nodes["SaveImage"]["images"])["finished"]
    assert picture.shape[1:] in ((512, 512, 3), (64, 64, 3)) and picture.std() > 0.05
