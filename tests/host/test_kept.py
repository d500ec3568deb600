"""What is read of the concepts' pictures may be kept for the next run."""

import pytest
import torch

from comfy_host import Graph, output, refused
from mixer_graph import POSITIVE, appearance, chain, dilution, invert, mixer
from oracle import relative_error
from pictures import mask_batch
from small_models import LAYOUTS, comfy_model, conditioning


@pytest.fixture(scope="module")
def model():
    return comfy_model(LAYOUTS["SD 1.x"])


def blend(model, inversion, keep: bool, alpha=0.15, cfg=1.0, chained=None, **inputs) -> tuple[torch.Tensor, int]:
    """Output and references, and how many rows the UNet saw."""
    rows = []
    hook = model.model.diffusion_model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    try:
        graph = Graph()
        patched = dilution(graph, appearance(graph, model, alpha=alpha))
        link = chain(graph, 2, **(chained or {}))
        mixed = mixer(graph, patched, inversion, link, keep_personal=keep, cfg=cfg, **inputs)
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
    assert not inversion.kept.inputs, "switched off, it keeps nothing any longer"


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


def test_a_prompt_in_parts_is_refused(model):
    graph = Graph()
    inversion = graph.run(inversion=invert(graph, model, steps=4, skip_steps=2))["inversion"]
    with refused("Mask Noise Mixer", "'keep_personal'", "Switch it off"):
        blend(model, inversion, keep=True, positive=POSITIVE + conditioning(4))
