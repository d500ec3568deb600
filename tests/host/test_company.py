"""PnP-MIX beside what people already have in their graphs."""

import pytest
import torch

from comfy_host import Graph, output, pack_module, refused
from mixer_graph import NEGATIVE, POSITIVE, appearance, chain, invert, mix, mixer, run_pnp_mix
from oracle import relative_error
from other_caches import with_deep_cache, with_residual_cache
from pictures import HEIGHT, WIDTH, ellipse, latent, mask_batch
from small_models import LAYOUTS, as_on_a_gpu, comfy_model, conditioning, save_lora, small_control_net, smallest_model


@pytest.fixture(scope="module")
def model():
    return comfy_model(LAYOUTS["SD 1.x"])


@pytest.fixture(scope="module")
def plain(model):
    return run_pnp_mix(model)


def assert_invariants(result: dict, plain: dict) -> None:
    """Background untouched, references in the output, and the addition did something."""
    cells = [torch.from_numpy(ellipse(k)).reshape(12, 8, 16, 8).mean((1, 3)) >= 0.5 for k in range(2)]
    outside = ~(cells[0] | cells[1])
    assert relative_error(result["latent"][..., outside], latent(0)[..., outside]) < 1e-6
    for k, inside in enumerate(cells):
        assert torch.equal(result["latent"][0][:, inside], result["references"][k][:, inside])
    assert relative_error(result["latent"], plain["latent"]) > 1e-3


def test_lora(model, plain):
    save_lora("small.safetensors", "input_blocks_1_1_transformer_blocks_0_attn1_to_q", columns=32)
    graph = Graph()
    with_lora = graph.add("LoraLoaderModelOnly", model=model, lora_name="small.safetensors", strength_model=1.0)
    assert_invariants(run_pnp_mix(graph.run(model=with_lora)["model"]), plain)
    assert torch.equal(run_pnp_mix(model)["latent"], plain["latent"]), "the LoRA must be gone again"


@pytest.mark.parametrize("percents", [(0.0, 1.0), (0.0, 0.7)], ids=str)
def test_control_net(model, plain, percents):
    graph = Graph()
    controlled = graph.add(
        "ControlNetApplyAdvanced",
        positive=POSITIVE,
        negative=NEGATIVE,
        control_net=small_control_net(),
        image=torch.rand(1, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(0)),
        strength=1.0,
        start_percent=percents[0],
        end_percent=percents[1],
    )
    conditionings = graph.run(positive=controlled, negative=output(controlled, 1))
    assert_invariants(run_pnp_mix(model, **conditionings), plain)
    assert_invariants(run_pnp_mix(model, cfg=4.0, **conditionings), plain)


def personal_predictions(model, **inputs) -> list[torch.Tensor]:
    """What the UNet predicts for the personal rows, the first two of each call of the mixer."""
    predictions = []
    hook = model.model.diffusion_model.register_forward_hook(
        lambda _, args, output: predictions.append(output[:2].clone()) if len(output) == 6 else None
    )
    try:
        run_pnp_mix(model, **inputs)
    finally:
        hook.remove()
    return predictions[-6:]  # the inversion may have calls of as many rows


def test_a_control_nets_hint_is_not_added_to_the_persons_picture(model):
    graph = Graph()
    image = torch.rand(1, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(0))
    hint = dict(control_net=small_control_net(), image=image, strength=1.0, start_percent=0.0, end_percent=1.0)
    controlled = graph.add("ControlNetApplyAdvanced", positive=POSITIVE, negative=NEGATIVE, **hint)
    conditionings = graph.run(positive=controlled, negative=output(controlled, 1))
    plain, hinted = personal_predictions(model), personal_predictions(model, **conditionings)
    assert all(relative_error(theirs, ours) < 1e-5 for theirs, ours in zip(hinted, plain, strict=True))


@pytest.mark.parametrize(
    "node, inputs",
    [
        ("FreeU_V2", dict(b1=1.3, b2=1.4, s1=0.9, s2=0.2)),
        ("PerturbedAttentionGuidance", dict(scale=3.0)),
        ("SelfAttentionGuidance", dict(scale=0.5, blur_sigma=2.0)),
        ("HyperTile", dict(tile_size=32, swap_size=2, max_depth=0, scale_depth=False)),
        (
            "PatchModelAddDownscale",
            dict(
                block_number=3,
                downscale_factor=2.0,
                start_percent=0.0,
                end_percent=0.9,
                downscale_after_skip=True,
                downscale_method="bicubic",
                upscale_method="bicubic",
            ),
        ),
        ("ModelSamplingDiscrete", dict(sampling="lcm", zsnr=False)),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_people_patch_for_speed_or_quality(model, plain, node, inputs):
    graph = Graph()
    patched = graph.run(model=graph.add(node, model=model, **inputs))["model"]
    assert_invariants(run_pnp_mix(patched), plain)


def blend_and_count(model, end_percent: float = 0.7) -> dict:
    """The results, what the inversion predicts, and how many of the mixer's calls reach the depth of the UNet."""
    calls = []
    middle = model.model.diffusion_model.middle_block[0]
    hook = middle.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    try:
        graph = Graph()
        inversion = graph.run(inversion=invert(graph, model, steps=12, skip_steps=2))["inversion"]
        calls.clear()
        graph = Graph()
        mixed = mixer(graph, appearance(graph, model, end_percent=end_percent), inversion, chain(graph, 2))
        results = graph.run(latent=mixed, references=output(mixed, 1))
    finally:
        hook.remove()
    samples = {key: value["samples"] for key, value in results.items()}
    return samples | {"calls": len(calls), "eps": inversion.inversion.eps}


@pytest.fixture(scope="module")
def uncached(model):
    return blend_and_count(model)


@pytest.mark.parametrize("node", ["EasyCache", "LazyCache"])
@pytest.mark.parametrize("start, end, threshold", [(0.0, 1.0, 0.7), (0.15, 0.8, 1.5)])
def test_caches_that_keep_outputs_from_call_to_call(model, uncached, node, start, end, threshold):
    """Calls have other rows after the appearance's end_percent, and where concepts take turns; each kind of call has
    its own cache, and the timesteps of an inversion have none."""
    graph = Graph()
    settings = dict(reuse_threshold=threshold, start_percent=start, end_percent=end, verbose=False)
    cached = blend_and_count(graph.run(model=graph.add(node, model=model, **settings))["model"])
    assert relative_error(cached["eps"], uncached["eps"]) < 1e-4
    assert_invariants(cached, {"latent": latent(0)})
    assert cached["calls"] < uncached["calls"], "nothing was cached"
    if threshold < 1:  # beyond, random weights give something else altogether
        assert relative_error(cached["latent"], uncached["latent"]) < 0.3


@pytest.mark.oldest
@pytest.mark.parametrize("add", [with_residual_cache, with_deep_cache])
def test_caches_of_other_packs(model, add):
    """Where all calls have the same rows. Random weights keep nothing worth keeping, so how near is not asked."""
    cached = blend_and_count(add(model), end_percent=1.0)
    assert_invariants(cached, {"latent": latent(0)})
    assert cached["calls"] < 11, "nothing was cached"


@pytest.mark.oldest
@pytest.mark.parametrize("case", ["guidance ends", "concepts take turns"])
@pytest.mark.parametrize("add", [with_residual_cache, with_deep_cache])
def test_caches_of_other_packs_that_would_mistake_rows_are_refused(model, monkeypatch, add, case):
    """Nothing is blended of what was kept of another concept, or of the rows of another kind of call."""
    if case == "concepts take turns":
        monkeypatch.setattr(pack_module("mixer.run"), "rows_that_fit", lambda *_: 3)
    with refused("Mask Noise Mixer", "'model'", "one of its patches", "EasyCache"):
        blend_and_count(add(model), end_percent=0.7 if case == "guidance ends" else 1.0)


def with_skipped_layer(model):
    """As Skip Layer Guidance does it: a further call, in which one layer attends to nothing."""
    import comfy.model_patcher
    import comfy.samplers

    def guide(arguments):
        options = comfy.model_patcher.create_model_options_clone(arguments["model_options"])
        comfy.model_patcher.set_model_options_patch_replace(options, lambda q, k, v, _: v, "attn1", "middle", 0)
        given = (arguments["model"], [arguments["cond"]], arguments["input"], arguments["sigma"], options)
        (skipped,) = comfy.samplers.calc_cond_batch(*given)
        return arguments["denoised"] + 2.0 * (arguments["cond_denoised"] - skipped)

    patched = model.clone()
    patched.set_model_sampler_post_cfg_function(guide)
    return patched


def with_other_attention(model):
    """As Sage attention comes in: a kernel that computes a little less exactly."""

    def attend(func, query, *others, **options):
        return as_on_a_gpu(func, query.bfloat16().to(query), *others, **options)

    patched = model.clone()
    patched.model_options["transformer_options"]["optimized_attention_override"] = attend
    return patched


def with_node(class_type: str, **inputs):
    def add(model):
        graph = Graph()
        return graph.run(model=graph.add(class_type, model=model, **inputs))["model"]

    return add


# FreeU changes the lower one, and PAG what lies below it
TWO_LEVELS = dict(
    channel_mult=[1, 2],
    num_res_blocks=[1, 1],
    transformer_depth=[1, 0],
    transformer_depth_output=[1, 0, 0, 0],
    transformer_depth_middle=1,
)
CACHING = dict(reuse_threshold=0.7, start_percent=0.0, end_percent=1.0, verbose=False)


@pytest.mark.newest
@pytest.mark.parametrize(
    "add",
    [
        with_node("EasyCache", **CACHING),
        with_node("LazyCache", **CACHING),
        with_residual_cache,
        with_node("FreeU_V2", b1=1.3, b2=1.4, s1=0.9, s2=0.2),
        with_node("PerturbedAttentionGuidance", scale=3.0),
        with_skipped_layer,
        with_other_attention,
    ],
    ids=["EasyCache", "LazyCache", "as TeaCache", "FreeU", "PAG", "as SLG", "as Sage"],
)
def test_nothing_that_other_packs_store_leaks_into_the_next_run(add):
    """Of one MODEL whose concepts change from run to run."""
    model, graph = smallest_model(**TWO_LEVELS), Graph()
    kept, before = add(model), None
    inversion = graph.run(inversion=invert(graph, kept))["inversion"]
    for changes in ({}, dict(alpha=1.0), dict(layers="decoder"), dict(concepts=3), dict(object_mask=mask_batch(1))):
        after_others, alone, without = (mix(x, inversion, **changes) for x in (kept, add(model), model))
        assert torch.equal(after_others, alone), changes
        assert relative_error(alone, without) > 1e-5, "it does something"
        assert before is None or relative_error(alone, before) > 1e-3, "and so does the change"
        before = alone if before is None else before


def test_rescale_cfg(model):
    graph = Graph()
    rescaled = graph.run(model=graph.add("RescaleCFG", model=model, multiplier=0.7))["model"]
    assert_invariants(run_pnp_mix(rescaled, cfg=4.0), run_pnp_mix(model, cfg=4.0))


def test_another_attn1_patch(model, plain):
    seen = []

    def other_pack(q, key, value, extra_options):
        seen.append(q.shape[0])
        # more tokens than the layer has, as reference-image packs add them
        return q, torch.cat([key, key * 0.5], 1), torch.cat([value, value * 0.5], 1)

    patched = model.clone()
    patched.set_model_attn1_patch(other_pack)
    assert_invariants(run_pnp_mix(patched), plain)
    assert 6 in seen


def test_another_attn1_replacement_beside_object_masks(model):
    """Both have their effect."""
    from comfy.ldm.modules.attention import optimized_attention

    def other_pack(q, key, value, extra_options):
        return optimized_attention(q, key, value * 2, extra_options["n_heads"])

    patched = model.clone()
    patched.set_model_attn1_replace(other_pack, "middle", 0)
    own = run_pnp_mix(model, object_mask=mask_batch(1))
    assert_invariants(run_pnp_mix(patched, object_mask=mask_batch(1)), own)
    assert_invariants(run_pnp_mix(patched, object_mask=mask_batch(1)), run_pnp_mix(patched))


@pytest.mark.newest  # the same torch in both, and most of a minute
def test_torch_compile(model, plain):
    """The patches are part of the compiled graph."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    compiled = model.clone()
    compiled.model_options["transformer_options"]["optimized_attention_override"] = as_on_a_gpu
    set_torch_compile_wrapper(compiled, backend="eager", fullgraph=True)  # stops where the graph would break
    result = run_pnp_mix(compiled, object_mask=mask_batch(1))
    expected = run_pnp_mix(model, object_mask=mask_batch(1))
    assert relative_error(result["latent"], expected["latent"]) < 1e-4


def test_merged_tokens(model, plain):
    """Their cells cannot be told apart, which matters to object masks only."""
    graph = Graph()
    merging = graph.run(model=graph.add("TomePatchModel", model=model, ratio=0.5))["model"]
    assert_invariants(run_pnp_mix(merging), plain)
    with refused("Mask Noise Mixer", "'model'", "merges", "object_mask"):
        run_pnp_mix(merging, object_mask=mask_batch(1))


def test_tiles_in_one_batch_are_refused(model):
    """As packs for tiled diffusion lay them out: whose row is whose could not be told."""

    def in_tiles(apply_model, arguments):
        tiles = torch.cat(arguments["input"].chunk(2, dim=-1))
        twice = {"c_crossattn": torch.cat([arguments["c"]["c_crossattn"]] * 2)}
        result = apply_model(tiles, torch.cat([arguments["timestep"]] * 2), **(arguments["c"] | twice))
        return torch.cat(result.chunk(2), dim=-1)

    tiled = model.clone()
    tiled.set_model_unet_function_wrapper(in_tiles)
    with refused("Mask Noise Mixer", "'model'", "batch", "tiled diffusion"):
        run_pnp_mix(tiled)


def test_an_object_mask_beside_a_prompt_that_is_limited_to_an_area(model):
    """Targets read their object's cells inside the area, in the layer's own grid."""
    seen = []

    def watch(attention, query, *others, **options):
        seen.append(query.shape[1])
        return attention(query, *others, **options)

    graph = Graph()
    place = dict(width=0.5, height=0.5, x=0.25, y=0.25, strength=1.0)
    limited = graph.add("ConditioningSetAreaPercentage", conditioning=conditioning(4), **place)
    positive = graph.run(positive=graph.add("ConditioningCombine", conditioning_1=POSITIVE, conditioning_2=limited))
    watched = model.clone()
    watched.model_options["transformer_options"]["optimized_attention_override"] = watch
    run_pnp_mix(watched, concepts=1, object_mask=mask_batch(2), **positive)

    targets = set()
    for top, left, height, width in ((0, 0, HEIGHT, WIDTH), (24, 32, 48, 64)):
        picture = torch.from_numpy(ellipse(0))[top : top + height, left : left + width]
        for level in range(4):
            cells = [-(-side // (8 * 2**level)) for side in (height, width)]
            share = torch.nn.functional.adaptive_avg_pool2d(picture[None], cells)
            targets |= {cells[0] * cells[1], int((share >= min(0.5, float(share.max()))).sum())}
    assert set(seen) <= targets
    assert len(set(seen)) > 8, "whole layers and targets, in the picture and in the area"


@pytest.mark.oldest
@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_combined_prompts_of_the_mixer(model, plain, cfg):
    """They may be combined, and limited to an area or a time, also beside a concept's own plain one."""
    graph = Graph()
    area = graph.add(
        "ConditioningSetArea", conditioning=conditioning(4, tokens=9), width=64, height=96, x=0, y=0, strength=0.7
    )
    timed = graph.add("ConditioningSetTimestepRange", conditioning=conditioning(5), start=0.6, end=1.0)
    combined = graph.add("ConditioningCombine", conditioning_1=POSITIVE, conditioning_2=area)
    combined = graph.add("ConditioningCombine", conditioning_1=combined, conditioning_2=timed)
    positive = graph.run(positive=combined)["positive"]
    assert len(positive) == 3
    shared = run_pnp_mix(model, positive=positive, cfg=cfg)
    assert_invariants(shared, plain)
    own = run_pnp_mix(model, positive=positive, cfg=cfg, own_positive=conditioning(6, tokens=14))
    assert_invariants(own, shared)
