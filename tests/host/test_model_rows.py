"""How much work the UNet gets: the rows that are needed, in as few calls as memory allows."""

import pytest
import torch

from comfy_host import Graph
from mixer_graph import SKIP, STEPS, appearance, chain, dilution, invert, mixer
from oracle import relative_error
from small_models import LAYOUTS, comfy_model

N = STEPS - SKIP


@pytest.fixture(scope="module")
def model():
    return comfy_model(LAYOUTS["SD 1.x"])


@pytest.fixture
def calls(model):
    """Rows of each call of the UNet."""
    rows = []
    hook = model.model.diffusion_model.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[0]))
    yield rows
    hook.remove()


def rows_of_mixer(calls: list, model, n: int, guided: dict | None = None, **inputs) -> list:
    """Rows of each call of the mixer alone: concepts and inpainted background must not have cost any."""
    graph = Graph()
    inversion = graph.run(inversion=invert(graph, model))["inversion"]
    calls.clear()
    graph = Graph()
    patched = dilution(graph, model if guided is None else appearance(graph, model, **guided))
    graph.run(latent=mixer(graph, patched, inversion, chain(graph, n), **inputs))
    return list(calls)


@pytest.mark.parametrize("cfg, factor", [(1.0, 1), (3.5, 2)])
def test_inversion_takes_one_row_a_step_in_batches(calls, model, cfg, factor):
    graph = Graph()
    graph.run(inversion=invert(graph, model, steps=100, skip_steps=32, cfg=cfg))
    assert sum(calls) == factor * 68
    assert len(calls) <= 68 / 10


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("cfg, factor", [(1.0, 1), (4.0, 2)])
def test_three_rows_a_concept_and_step(calls, model, n, cfg, factor):
    assert rows_of_mixer(calls, model, n, {}, cfg=cfg) == [3 * n * factor] * N


def test_two_rows_at_swap_guidance_1(calls, model):
    assert rows_of_mixer(calls, model, 2, {}, swap_guidance=1.0) == [4] * N


def test_one_row_without_the_appearance_patch(calls, model):
    assert rows_of_mixer(calls, model, 2) == [2] * N


def test_one_row_outside_start_and_end(calls, model):
    """Timesteps 501, 401, ..., 1: only the first two are before 60 % of the schedule."""
    assert rows_of_mixer(calls, model, 2, {"end_percent": 0.6}) == [6, 6, 2, 2, 2, 2]


def test_concepts_that_do_not_fit_together_take_turns(calls, model, monkeypatch):
    whole = result(model)
    monkeypatch.setattr(model.model, "memory_usage_factor", 1e9)  # ComfyUI's own estimate
    calls.clear()
    split = result(model)
    assert max(calls) == 3
    assert sum(calls) == 2 * N + 3 * 3 * N
    assert relative_error(split, whole) < 1e-4


def test_running_out_of_memory_splits_the_batch(calls, model):
    def refuse(_, args):
        if args[0].shape[0] > 4:
            raise torch.cuda.OutOfMemoryError

    whole = result(model)
    calls.clear()
    hook = model.model.diffusion_model.register_forward_pre_hook(refuse)
    try:
        split = result(model)
    finally:
        hook.remove()
    assert relative_error(split, whole) < 1e-4
    # the size that failed is not tried again at the next step
    assert [rows for rows in calls if rows > 4] == [2 * N, 2 * (N // 2), 3 * 3]


def result(model):
    graph = Graph()
    patched = dilution(graph, appearance(graph, model))
    return graph.run(latent=mixer(graph, patched, invert(graph, model), chain(graph, 3)))["latent"]["samples"]
