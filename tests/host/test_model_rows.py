"""How much work the UNet gets: the rows that are needed, in as few calls as memory allows."""

import pytest
import torch

from comfy_host import Graph, GraphError, pack_module
from mixer_graph import SKIP, STEPS, appearance, chain, dilution, invert, mixer, run_pnp_mix
from oracle import relative_error
from small_models import LAYOUTS, comfy_model, conditioning

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


@pytest.mark.parametrize("n", [1, 3])
def test_room_is_asked_for_the_rows_of_a_call(calls, model, monkeypatch, n):
    """Where other models hold memory, ComfyUI lets go of as many as one call of the UNet needs."""
    import comfy.sampler_helpers

    asked, prepare = [], comfy.sampler_helpers.prepare_sampling

    def watch(patcher, shape, *others, **options):
        asked.append(shape[0])
        return prepare(patcher, shape, *others, **options)

    monkeypatch.setattr(comfy.sampler_helpers, "prepare_sampling", watch)
    assert rows_of_mixer(calls, model, n, {}) == [3 * n] * N
    assert asked == [N, 3 * n]
    # more than there is beside the weights would make ComfyUI leave weights out
    monkeypatch.setattr(model.model, "memory_usage_factor", 1e9)
    rows_of_mixer(calls, model, n, {})
    assert asked[2:] == [1, 3]


def test_prompts_of_their_own_are_stacked_once_for_all_steps(model, monkeypatch):
    import comfy.conds

    stacked, concat = [], comfy.conds.CONDCrossAttn.concat
    monkeypatch.setattr(
        comfy.conds.CONDCrossAttn, "concat", lambda self, others: stacked.append(len(others)) or concat(self, others)
    )
    run_pnp_mix(model, own_positive=conditioning(3, tokens=14))
    assert stacked.count(5) == 1, "three rows for each of two concepts"


def test_conditionings_go_to_the_device_before_the_first_step(model):
    guider = pack_module("mixer.guider").RowGuider(model, conditioning(1), conditioning(2), 1.0)
    guider.conds = {"positive": [{"model_conds": model.model.extra_conds(**condition(1))}]}
    guider.bring_conditionings(torch.device("meta"))
    (entry,) = guider.conds["positive"]
    assert entry["model_conds"]["c_crossattn"].cond.device.type == "meta"


def condition(seed: int) -> dict:
    ((tokens, options),) = conditioning(seed)
    return dict(cross_attn=tokens, noise=torch.zeros(1, 4, 12, 16), device=torch.device("cpu"), **options)


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


def test_out_of_memory_is_what_the_host_calls_so(calls, model, monkeypatch):
    import comfy.model_management

    class Exhausted(Exception):
        pass

    def refuse(_, args):
        if args[0].shape[0] > 4:
            raise Exhausted

    whole = result(model)
    hook = model.model.diffusion_model.register_forward_pre_hook(refuse)
    try:
        with pytest.raises(GraphError):
            result(model)
        monkeypatch.setattr(comfy.model_management, "OOM_EXCEPTION", Exhausted)
        assert relative_error(result(model), whole) < 1e-4
    finally:
        hook.remove()


def test_cancel_is_never_taken_for_a_lack_of_memory(monkeypatch):
    """A torch without an error of its own for that makes ComfyUI take any error for it."""
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management, "OOM_EXCEPTION", Exception)
    is_oom = pack_module("common.memory").is_oom
    assert is_oom(RuntimeError())
    assert not is_oom(comfy.model_management.InterruptProcessingException())


@pytest.mark.parametrize("device, safe, pins", [("cuda", True, 1), ("cuda", False, 0), ("cpu", True, 0)])
def test_memory_is_pinned_where_the_host_holds_copies_that_nobody_waits_for_to_be_safe(monkeypatch, device, safe, pins):
    import comfy.model_management

    pinned = []
    monkeypatch.setattr(comfy.model_management, "device_supports_non_blocking", lambda _: safe)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: pinned.append(x) or x)
    pack_module("common.memory").pinned(torch.zeros(2), torch.device(device))
    assert len(pinned) == pins


def test_tokens_follow_the_device_that_computes():
    """By the `.to` that hosts with several GPUs call on patches; the others keep theirs."""
    attention, types = pack_module("mixer.hooks.unet_attention"), pack_module("common.types")
    grid, here = (12, 16), torch.tensor([1, 2])
    area = (*grid, 0, 0)
    appearance, tokens = types.Appearance(0.15, "all", 0, 1), {area: {grid: [None, (here, here)]}}
    patch = attention.ObjectAttention(appearance, tokens, grid, {}, attention.plain_attention)
    moved = patch.to(torch.device("meta"))
    none, pair = moved.tokens[area][grid]
    assert none is None and all(x.device.type == "meta" for x in pair)
    assert patch.tokens[area][grid][1][0].device.type == "cpu"
    assert patch.to(torch.float16) is patch


def result(model):
    graph = Graph()
    patched = dilution(graph, appearance(graph, model))
    return graph.run(latent=mixer(graph, patched, invert(graph, model), chain(graph, 3)))["latent"]["samples"]
