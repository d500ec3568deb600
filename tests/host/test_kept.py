"""What is read of the concepts' pictures may be kept for the next run."""

import gc
import weakref

import pytest
import torch

from comfy_host import Graph, output, pack_module, refused
from mixer_graph import POSITIVE, appearance, chain, concept, custom_mixer, dilution, invert, mixer
from oracle import relative_error
from pictures import mask_batch
from small_models import LAYOUTS, comfy_model, conditioning


@pytest.fixture(scope="module")
def model():
    return comfy_model(LAYOUTS["SD 1.x"])


def blend(
    model, inversion, keep: bool, alpha=0.15, cfg=1.0, chained=None, by=mixer, **inputs
) -> tuple[torch.Tensor, int]:
    """Output and references, and how many rows the UNet saw."""
    rows = []
    hook = model.model.diffusion_model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    try:
        graph = Graph()
        patched = dilution(graph, appearance(graph, model, alpha=alpha))
        link = chain(graph, 2, **(chained or {}))
        mixed = by(graph, patched, inversion, link, keep_personal=keep, cfg=cfg, **inputs)
        results = graph.run(latent=mixed, references=output(mixed, 1))
    finally:
        hook.remove()
    return torch.cat([results["latent"]["samples"], results["references"]["samples"]]), sum(rows)


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_another_try_takes_a_third_less_and_gives_the_same(model, cfg):
    graph = Graph()
    inversion = graph.run(inversion=invert(graph, model, steps=4, skip_steps=1))["inversion"]
    _, whole = blend(model, inversion, keep=True, cfg=cfg)
    other = dict(alpha=0.4, swap_guidance=2.5, cfg=cfg, chained=dict(object_mask=mask_batch(1)))
    again, rows = blend(model, inversion, keep=True, **other)
    expected, all_rows = blend(model, inversion, keep=False, **other)
    assert (rows, all_rows) == (whole * 2 // 3, whole)
    assert relative_error(again, expected) < 1e-5
    assert blend(model, inversion, keep=True, **other)[1] == whole, "switched off, it keeps nothing any longer"


def test_custom_sampling_caches_the_same_features(model):
    graph = Graph()
    inversion = graph.run(inversion=invert(graph, model, steps=4, skip_steps=1))["inversion"]
    _, whole = blend(model, inversion, keep=True, by=custom_mixer)
    _, rows = blend(model, inversion, keep=True, by=custom_mixer, alpha=0.4)
    assert rows == whole * 2 // 3


def test_the_mixer_and_custom_sampling_in_one_graph_both_cache(model):
    """Each for its own concepts."""
    graph, rows = Graph(), []
    inversion = graph.run(inversion=invert(graph, model, steps=4, skip_steps=1))["inversion"]
    hook = model.model.diffusion_model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    runs = []
    for alpha in (0.15, 0.4):
        graph = Graph()
        patched = appearance(graph, model, alpha=alpha)
        mixed = {
            by.__name__: by(graph, patched, inversion, concept(graph, k), keep_personal=True)
            for k, by in enumerate((mixer, custom_mixer))
        }
        graph.run(**mixed)
        runs.append(sum(rows))
        rows.clear()
    hook.remove()
    assert runs[1] == runs[0] * 2 // 3


def test_another_picture_prompt_or_model_is_read_anew(model):
    graph = Graph()
    inversion = graph.run(inversion=invert(graph, model, steps=4, skip_steps=2))["inversion"]
    _, whole = blend(model, inversion, keep=True)
    assert blend(model, inversion, keep=True)[1] < whole
    for change in (dict(chained=dict(seed=9)), dict(chained=dict(positive=conditioning(5)))):
        again, rows = blend(model, inversion, keep=True, **change)
        assert rows == whole
        assert relative_error(again, blend(model, inversion, keep=False, **change)[0]) < 1e-6
        blend(model, inversion, keep=True)
    patched = model.clone()
    patched.set_model_attn1_output_patch(lambda x, extra_options: x * 1.1)
    assert blend(patched, inversion, keep=True)[1] == whole


def two_mixers(model, inversion, keep: tuple[bool, bool]) -> int:
    """How many rows the UNet saw in a graph of two mixers."""
    graph, rows = Graph(), []
    patched = dilution(graph, appearance(graph, model))
    mixed = [mixer(graph, patched, inversion, chain(graph, 2), keep_personal=k) for k in keep]
    hook = model.model.diffusion_model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    try:
        graph.run(first=mixed[0], second=mixed[1])
    finally:
        hook.remove()
    return sum(rows)


def test_a_mixer_that_keeps_nothing_leaves_what_another_one_has_kept(model):
    graph = Graph()
    inversion = graph.run(inversion=invert(graph, model, steps=4, skip_steps=2))["inversion"]
    before = [x.clone() for x in inversion.inversion[:3]]
    whole = two_mixers(model, inversion, (False, False))
    two_mixers(model, inversion, (True, False))
    assert two_mixers(model, inversion, (True, False)) == whole // 2 + whole // 2 * 2 // 3
    assert all(map(torch.equal, inversion.inversion[:3], before))


def test_what_is_kept_goes_with_the_inversion(model):
    graph = Graph()
    inversion = graph.run(inversion=invert(graph, model, steps=4, skip_steps=2))["inversion"]
    blend(model, inversion, keep=True)
    kept, picture = pack_module("common.beside").KEPT, weakref.ref(inversion.inversion.eps)
    count = len(kept)
    assert picture() in kept
    del inversion, graph
    Graph()
    gc.collect()
    assert picture() is None and len(kept) < count, "other tests may have left some, too"


def test_memory_that_runs_out_in_a_run_that_keeps_is_made_do_with(model, monkeypatch):
    """The call is tried again in halves, of which the first finds nothing of what the failed one has read."""
    graph = Graph()
    inversion = graph.run(inversion=invert(graph, model, steps=4, skip_steps=2))["inversion"]
    expected, _ = blend(model, inversion, keep=False)
    middle = model.model.diffusion_model.middle_block[0]

    def too_many(_, args):
        if len(args[0]) == 6:
            raise torch.cuda.OutOfMemoryError("of the test")

    hook = middle.register_forward_pre_hook(too_many)
    try:
        short = blend(model, inversion, keep=True)[0]
    finally:
        hook.remove()
    assert relative_error(short, expected) < 1e-4
    assert relative_error(blend(model, inversion, keep=True)[0], expected) < 1e-4


@pytest.mark.parametrize("node, inputs", [("PerturbedAttentionGuidance", dict(scale=3.0))])
def test_guidance_that_reads_the_pictures_otherwise_is_refused(model, node, inputs):
    """A further call would leave its own features behind."""
    graph = Graph()
    guided = graph.run(model=graph.add(node, model=model, **inputs))["model"]
    inversion = graph.run(inversion=invert(graph, guided, steps=4, skip_steps=2))["inversion"]
    with refused("Mask Noise Mixer", "'keep_personal'", "further call", "Switch it off"):
        blend(guided, inversion, keep=True)


def test_a_prompt_in_parts_is_refused(model):
    graph = Graph()
    inversion = graph.run(inversion=invert(graph, model, steps=4, skip_steps=2))["inversion"]
    with refused("Mask Noise Mixer", "'keep_personal'", "Switch it off"):
        blend(model, inversion, keep=True, positive=POSITIVE + conditioning(4))
