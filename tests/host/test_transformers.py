"""Flow-matching transformers of every family: the node graph gives what the equations give."""

from functools import cache

import numpy as np
import pytest
import torch

from comfy_host import Graph, output, pack_module, refused
from diffusers_flux_oracle import DiffusersFluxPnPMix
from flow_oracle import FlowPnPMix
from mixer_graph import appearance, concept, custom_mixer, dilution, invert, mixer, sampled
from oracle import OracleConcept, relative_error
from small_models import as_on_a_gpu
from small_transformers import (
    FAMILIES,
    available,
    conditioning,
    known_arguments,
    picture_comes_first,
    small_transformer,
)

STEPS, SKIP, CELLS = 6, 2, (6, 8)


@cache
def model_of(family: str):
    return small_transformer(family)


@pytest.fixture(scope="module", autouse=True)
def forget_models():
    yield
    model_of.cache_clear()


def picture(family: str, seed: int, cells=CELLS) -> torch.Tensor:
    """(1, C, h, w)"""
    return torch.randn(1, FAMILIES[family].channels, *cells, generator=torch.Generator().manual_seed(seed))


def encoded(family: str, seed: int, cells=CELLS) -> dict:
    """As this family's VAE gives it."""
    samples = picture(family, seed, cells)
    return {"samples": samples.unsqueeze(2) if FAMILIES[family].frames else samples}


def blob(family: str, k: int, cells=CELLS) -> np.ndarray:
    """Mask in pixels; 0 and 1 are apart, 2 is elsewhere and larger."""
    ratio = FAMILIES[family].ratio
    top, left, height, width = [(0.4, 0.3, 2.3, 2.4), (2.6, 5.2, 3.3, 2.4), (1.2, 3.1, 3.4, 4.4)][k]
    mask = np.zeros((cells[0] * ratio, cells[1] * ratio), dtype=np.float32)
    mask[round(top * ratio) : round((top + height) * ratio), round(left * ratio) : round((left + width) * ratio)] = 1
    return mask


@cache
def prompts(family: str) -> dict:
    return {"positive": conditioning(family, 1), "negative": conditioning(family, 2, tokens=9)}


def graph_result(
    family,
    model,
    cells=CELLS,
    concepts=2,
    object_only=(),
    guidance=None,
    own=None,
    common=None,
    by=mixer,
    **settings,
) -> torch.Tensor:
    """Output and references of the nodes, (1 + concepts, C, H, W)."""
    graph, link = Graph(), None
    latents = [encoded(family, seed, cells) for seed in range(3 + concepts)]
    common = prompts(family) | (common or {})
    schedule = dict(steps=STEPS, skip_steps=SKIP, scheduler="simple")
    inversion = invert(graph, model, latent=latents[0], cfg=2.0, **schedule, **common)
    for k in range(concepts):
        more = {"object_mask": torch.from_numpy(blob(family, 2 - k % 2, cells))[None]} if k in object_only else {}
        if k in (own or {}):
            more["positive"] = own[k]
        mask = torch.from_numpy(blob(family, k, cells))[None]
        link = concept(graph, k, link, latent=latents[2 + k], mask=mask, **more)
    patched = dilution(graph, appearance(graph, model, **(guidance or {})), latent=latents[1])
    mixed = by(graph, patched, inversion, link, **common, **settings)
    result = graph.run(latent=mixed, references=output(mixed, 1))
    samples = torch.cat([result["latent"]["samples"], result["references"]["samples"]])
    return samples.squeeze(2) if FAMILIES[family].frames else samples


def oracle_result(
    family,
    model,
    cells=CELLS,
    concepts=2,
    object_only=(),
    guidance=None,
    own=None,
    common=None,
    oracle=FlowPnPMix,
    **settings,
) -> torch.Tensor:
    import comfy.samplers

    sampling, small = model.get_model_object("model_sampling"), FAMILIES[family]
    sigmas = [float(sigma) for sigma in comfy.samplers.calculate_sigmas(sampling, "simple", STEPS)][SKIP:]
    guidance = {"alpha": 0.15, "position": "target", "layers": "all"} | (guidance or {})
    layers = {"all": None, "decoder": {2, 3}}[guidance["layers"]]
    method = oracle(
        model,
        "velocity",
        *(prompts(family) | (common or {})).values(),
        STEPS,
        SKIP,
        inversion_cfg=2.0,
        seed=7,
        beta=0.8,
        alpha=guidance["alpha"],
        adain=guidance.get("adain", False),
        small=small,
        sigmas=sigmas,
        image_first=picture_comes_first(family),
        turned=guidance["position"] == "target",
        own_layers=layers,
        **settings,
    )

    def inner(seed: int) -> torch.Tensor:
        latent = picture(family, seed, cells)
        return (
            model.model.process_latent_in(latent.unsqueeze(2)).squeeze(2)
            if small.frames
            else (model.model.process_latent_in(latent))
        )

    given = [
        OracleConcept(
            inner(2 + k),
            blob(family, k, cells),
            blob(family, 2 - k % 2, cells),
            object_only=k in object_only,
            seed=1 + k,
            prompt=(own or {}).get(k),
        )
        for k in range(concepts)
    ]
    result, references = method.run(inner(0), given, inpainted=inner(1))
    together = torch.cat([result, *references])
    together = together.unsqueeze(2) if small.frames else together
    outer = model.model.process_latent_out(together)
    return outer.squeeze(2) if small.frames else outer


def assert_same(result: torch.Tensor, expected: torch.Tensor) -> None:
    assert result.shape == expected.shape
    for ours, theirs in zip(result, expected, strict=True):
        assert relative_error(ours, theirs) < 2e-4


@pytest.mark.parametrize("family", available())
def test_families_agree_with_the_equations_and_are_left_as_they_were(family):
    """The negative prompt has another length than the positive one; one concept of two says where its object is."""
    model, settings = model_of(family), dict(cfg=3.0, object_only=(0,))
    before, options = ksampler(family, model), repr(model.model_options)
    result = graph_result(family, model, **settings)
    assert_same(result, oracle_result(family, model, **settings))
    assert_invariants(family, result)
    assert torch.equal(ksampler(family, model), before) and repr(model.model_options) == options


@pytest.mark.oldest
@pytest.mark.parametrize(
    "settings",
    [
        dict(concepts=1, object_only=(0,), guidance=dict(position="kept")),
        dict(cells=(5, 7), object_only=(0, 1), guidance=dict(layers="decoder")),
        dict(swap_guidance=1.0, guidance=dict(alpha=0.6)),
        dict(object_only=(0, 1), guidance=dict(adain=True)),
    ],
    ids=str,
)
def test_every_setting(settings):
    """Also pictures whose cells do not fill whole tokens."""
    model = model_of("Flux.1")
    assert_same(graph_result("Flux.1", model, **settings), oracle_result("Flux.1", model, **settings))


@pytest.mark.oldest
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_flux_agrees_with_the_flux_of_diffusers(cfg):
    model, settings = model_of("Flux.1"), dict(cfg=cfg, object_only=(0,))
    expected = oracle_result("Flux.1", model, oracle=DiffusersFluxPnPMix, **settings)
    assert_same(graph_result("Flux.1", model, **settings), expected)


@pytest.mark.oldest
def test_a_model_that_reads_one_noise_level_a_call_is_given_one():
    """Distilled HunyuanImage looks at the first row's level, and for the one after it."""
    model, rows = small_transformer("HunyuanImage", meanflow=True), []
    hook = model.model.diffusion_model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    result = graph_result("HunyuanImage", model)
    hook.remove()
    assert_same(result, oracle_result("HunyuanImage", model))
    assert rows == [1] * 2 * (STEPS - SKIP) + [6] * (STEPS - SKIP), "a positive and a negative prompt, then the mixer"


def ksampler(family: str, model) -> torch.Tensor:
    graph = Graph()
    settings = dict(seed=11, steps=2, cfg=2.0, sampler_name="euler", scheduler="simple", denoise=1.0)
    samples = graph.add("KSampler", model=model, latent_image=encoded(family, 3), **prompts(family), **settings)
    return graph.run(latent=samples)["latent"]["samples"]


@pytest.mark.newest
@pytest.mark.parametrize("family", [x for x in available() if FAMILIES[x].axes])
def test_scaled_positions_move_objects_as_this_family_scales_them(family):
    """Some ignore ComfyUI's ScaleROPE, which older hosts do not have."""
    import nodes

    if "ScaleROPE" not in nodes.NODE_CLASS_MAPPINGS:
        pytest.skip("no ScaleROPE")
    graph = Graph()
    scaled = dict(scale_x=0.4, shift_x=0.0, scale_y=1.7, shift_y=0.0, scale_t=1.0, shift_t=0.0)
    scaled = graph.run(model=graph.add("ScaleROPE", model=model_of(family), **scaled))["model"]
    settings = dict(concepts=1, object_only=(0,))
    result = graph_result(family, scaled, **settings)
    assert_same(result, oracle_result(family, scaled, **settings))
    has_effect = relative_error(ksampler(family, scaled), ksampler(family, model_of(family))) > 1e-4
    assert has_effect == FAMILIES[family].scales_positions


@pytest.mark.parametrize("family", ["Flux.1", "Qwen-Image"])
def test_custom_sampling_gives_the_same_bit_for_bit(family):
    """Qwen-Image's latents are videos of one frame."""
    model = model_of(family)
    ours, theirs = (graph_result(family, model, object_only=(0,), by=by) for by in (mixer, custom_mixer))
    assert torch.equal(ours, theirs)


def test_partly_denoised_latents_go_on_where_other_samplers_of_flows_do():
    """Between samplers ComfyUI keeps a flow's latents divided by 1 - sigma."""
    family, steps = "Flux.1", 2
    model = model_of(family)
    graph = Graph()
    schedule = dict(steps=STEPS, skip_steps=SKIP, scheduler="simple", cfg=1.0)
    inversion = graph.run(x=invert(graph, model, latent=encoded(family, 0), **schedule, **prompts(family)))["x"]
    mask = torch.from_numpy(blob(family, 0))[None]
    link = concept(graph, 0, latent=encoded(family, 2), mask=mask)
    custom = mixer(graph, model, inversion, link, node="PnPMixCustomSampler", **prompts(family))
    split = graph.add("SplitSigmas", sigmas=output(custom, 2), step=steps)
    result = graph.run(latent=sampled(graph, custom, sigmas=split))["latent"]["samples"][0]
    sigma, trajectory = inversion.inversion.sigmas[steps], inversion.inversion.trajectory[steps]
    ratio = FAMILIES[family].ratio
    outside = mask[0].unfold(0, ratio, ratio).unfold(1, ratio, ratio).amax((-1, -2)) == 0
    noisy = model.model.process_latent_in(result) * (1 - sigma)
    assert relative_error(noisy[:, outside], trajectory[:, outside]) < 1e-6


@pytest.mark.oldest
def test_a_run_can_be_repeated_and_a_patched_model_samples_as_before():
    family = "Qwen-Image"
    model = model_of(family)
    first = graph_result(family, model, concepts=1, object_only=(0,))
    assert torch.equal(first, graph_result(family, model, concepts=1, object_only=(0,)))
    graph = Graph()
    patched = graph.run(model=dilution(graph, appearance(graph, model), latent=encoded(family, 1)))["model"]
    assert torch.equal(ksampler(family, patched), ksampler(family, model))


def test_another_packs_attention_is_called_in_its_turn():
    """Which sees every call, and whose result counts."""
    model, calls = model_of("Flux.1").clone(), []

    def theirs(func, *args, **kwargs):
        calls.append(args[0].shape[0])
        return func(*args, **kwargs)

    model.model_options["transformer_options"]["optimized_attention_override"] = theirs
    assert_same(graph_result("Flux.1", model, concepts=1), graph_result("Flux.1", model_of("Flux.1"), concepts=1))
    assert {1, 3} <= set(calls) and calls.count(3) == 4 * (STEPS - SKIP), "four blocks in each step's three rows"


def test_a_model_whose_attention_goes_elsewhere_is_refused(monkeypatch):
    import comfy.ldm.flux.math

    def elsewhere(query, key, value, heads, **_):
        return torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)

    monkeypatch.setattr(comfy.ldm.flux.math, "optimized_attention", elsewhere)
    with refused("Mask Noise Mixer", "'model'", "does not go through ComfyUI's"):
        graph_result("Flux.1", model_of("Flux.1"), concepts=1)


# one family for each way in which a prompt's length matters: not at all, padded, moving the picture, with own masks
@pytest.mark.parametrize(
    "family", [x for x in ("Flux.1", "Qwen-Image", "Lumina 2", "Z-Image", "SD 3.5") if x in available()]
)
def test_a_concepts_own_prompt_may_have_another_length(family):
    """Its picture is then read in a call of its own."""
    model, own = model_of(family), {0: conditioning(family, 3, tokens=40), 1: conditioning(family, 4)}
    settings = dict(own=own, cfg=3.0, object_only=(0,))
    assert_same(graph_result(family, model, **settings), oracle_result(family, model, **settings))


def glyphs(seed: int) -> torch.Tensor:
    """As HunyuanImage's second text encoder gives them of what is to be written."""
    return torch.randn(1, 5, 1472, generator=torch.Generator().manual_seed(seed))


def with_glyphs():
    return small_transformer("HunyuanImage", byt5=True)


OWN_ENTRIES = [
    ("Flux.1", "guidance", None),
    ("Flux.1", "pooled_output", None),
    ("Flux.1", "guidance", 1.0),
    ("Qwen-Image", "attention_mask", torch.tensor([[1] * 5 + [0] * 2])),
    ("HunyuanImage", "conditioning_byt5small", glyphs(0)),
]


@pytest.mark.parametrize("whose", ["concept's", "mixer's"])
@pytest.mark.parametrize("family, entry, value", OWN_ENTRIES, ids=lambda x: x if isinstance(x, str) else "")
def test_what_one_prompt_carries_is_not_the_others(family, entry, value, whose):
    """Of two prompts of the same length."""
    model = with_glyphs() if entry == "conditioning_byt5small" else model_of(family)
    carries, plain = conditioning(family, 3, **{entry: value}), conditioning(family, 1)
    settings = dict(own={0: carries}, concepts=1)
    if whose == "mixer's":
        settings = dict(common={"positive": conditioning(family, 1, **{entry: value})}, own={0: plain}, concepts=1)
    result = graph_result(family, model, **settings)
    assert_same(result, oracle_result(family, model, **settings))


@pytest.mark.oldest
@pytest.mark.parametrize("part", [0, 1], ids=["as long as the first part", "as long as the second part"])
def test_a_concepts_prompt_beside_a_combined_one_of_two_lengths_is_refused_by_name(part):
    common = {"positive": conditioning("Flux.1", 1, tokens=7) + conditioning("Flux.1", 5, tokens=9)}
    own = {1: conditioning("Flux.1", 3, tokens=(7, 9)[part])}
    with refused("Mask Noise Mixer", "'concepts'", "'concept 1'", "combined"):
        graph_result("Flux.1", model_of("Flux.1"), own=own, common=common)


GUIDERS = [
    ("APG", dict(eta=0.5, norm_threshold=5.0, momentum=-0.5)),
    ("Mahiro", {}),
    ("RescaleCFG", dict(multiplier=0.7)),
    ("TCFG", {}),
    ("CFGZeroStar", {}),
]


@pytest.mark.oldest
@pytest.mark.parametrize("node, inputs", GUIDERS, ids=[x[0] for x in GUIDERS])
def test_guidance_that_looks_at_more_than_one_row_or_call_is_the_same_where_pictures_are_read_apart(
    monkeypatch, node, inputs
):
    """APG remembers the call before, Mahiro compares whole batches."""
    family, graph = "SD 3.5", Graph()
    settings = dict(own={0: conditioning(family, 3)}, cfg=3.0)

    def guided():  # anew: what it remembers is its node's
        return graph.run(model=graph.add(node, model=model_of(family), **inputs))["model"]

    together = graph_result(family, guided(), **settings)
    assert relative_error(together, graph_result(family, model_of(family), **settings)) > 1e-3
    monkeypatch.setattr(pack_module("mixer.hooks.own_prompts"), "cannot_share", lambda own, common: True)
    assert relative_error(graph_result(family, guided(), **settings), together) < 1e-5


class Renormed(FlowPnPMix):
    """RenormCFG: what is guided is no longer than what the positive prompt predicts."""

    def guided_eps(self, x, i, cfg, *prompts, **reading):
        guided, sigma = super().guided_eps(x, i, cfg, *prompts, **reading), self.sigmas[i]
        positive = super().guided_eps(x, i, 1, *prompts, **reading)
        ours, longest = x - sigma * guided, (x - sigma * positive).norm()
        return (x - ours * min(1, longest / ours.norm())) / sigma


@pytest.mark.oldest
def test_guidance_that_knows_a_single_picture_guides_each():
    family, graph = "Lumina 2", Graph()
    patched = graph.add("RenormCFG", model=model_of(family), cfg_trunc=100.0, renorm_cfg=1.0)
    patched, settings = graph.run(model=patched)["model"], dict(cfg=3.0)
    result = graph_result(family, patched, **settings)
    assert_same(result, oracle_result(family, patched, oracle=Renormed, **settings))
    assert relative_error(result, graph_result(family, model_of(family), **settings)) > 1e-3


SKIPPING = [
    ("SkipLayerGuidanceDiT", dict(scale=3.0, rescaling_scale=0.0, start_percent=0.0, end_percent=1.0)),
    ("SkipLayerGuidanceDiT", dict(scale=3.0, rescaling_scale=0.0, start_percent=0.6, end_percent=1.0)),
    ("SkipLayerGuidanceDiTSimple", dict(start_percent=0.0, end_percent=1.0)),
]


@pytest.mark.oldest
@pytest.mark.parametrize("layers", ["all", "decoder"])
@pytest.mark.parametrize("node, inputs", SKIPPING, ids=["from the start", "later", "simple"])
def test_guidance_that_skips_layers_is_refused_for_what_it_is(node, inputs, layers):
    family, graph = "Flux.1", Graph()
    patched = graph.add(node, model=model_of(family), double_layers="1", single_layers="0", **inputs)
    patched = graph.run(model=patched)["model"]
    with refused("Mask Noise Mixer", "'model'", "Skip Layer Guidance", "Bypass"):
        graph_result(family, patched, cfg=3.0, guidance=dict(layers=layers))


@pytest.mark.oldest
def test_guidance_with_a_further_call_is_refused_where_pictures_are_read_apart():
    """The call would read the mixer's prompt in the personal rows."""
    import comfy.samplers

    def further(args):
        (again,) = comfy.samplers.calc_cond_batch(
            args["model"], [args["cond"]], args["input"], args["sigma"], args["model_options"]
        )
        return args["denoised"] + 0.1 * (again - args["denoised"])

    patched = model_of("Flux.1").clone()
    patched.set_model_sampler_post_cfg_function(further)
    settings = dict(own={0: conditioning("Flux.1", 3, tokens=40)})
    with refused("Mask Noise Mixer", "'model'", "further call", "call of its own"):
        graph_result("Flux.1", patched, **settings)
    graph_result("Flux.1", patched, concepts=1)


@pytest.mark.parametrize("axis", [2, 3])
def test_context_windows_over_pictures_are_refused(axis):
    graph, family = Graph(), "Flux.1"
    windows = dict(context_length=4, context_overlap=1, context_schedule="standard_static", context_stride=1)
    more = dict(closed_loop=False, fuse_method="pyramid", dim=axis, freenoise=False)
    lists = dict.fromkeys(("cond_retain_index_list", "latent_retain_index_list"), "")  # and these, on newer hosts
    more |= lists | dict(split_conds_to_windows=False, causal_window_fix=True)
    windowed = graph.run(model=graph.add("ContextWindowsManual", model=model_of(family), **windows, **more))["model"]
    with refused("DDPM Invert", "'model'", "context windows", "Bypass"):
        graph_result(family, windowed)


@pytest.mark.newest
def test_several_gpus_at_once_are_refused():
    """As MultiGPU Work Units leave them in a MODEL."""
    shared = model_of("Flux.1").clone()
    shared.set_additional_models("multigpu", [model_of("Flux.1").clone()])
    with refused("Mask Noise Mixer", "'model'", "several GPUs", "Bypass"):
        graph_result("Flux.1", shared)


@pytest.mark.parametrize("family", [x for x in ("Qwen-Image", "Z-Image") if x in available()])
def test_a_control_net_that_is_a_patch_of_the_model_steers_all_but_the_persons_pictures(family):
    def hint(arguments):
        generator = torch.Generator().manual_seed(arguments["block_index"])
        image = arguments["img"]
        image += torch.randn(image.shape[1:], generator=generator)
        return arguments

    steered = model_of(family).clone()
    steered.set_model_patch(hint, "double_block")
    if hasattr(steered, "set_model_noise_refiner_patch"):
        steered.set_model_noise_refiner_patch(hint)
    personal = []
    hook = steered.model.diffusion_model.register_forward_hook(
        lambda _, args, result: personal.append(result[:2].clone()) if len(result) == 6 else None
    )
    try:
        plain, result = graph_result(family, model_of(family)), graph_result(family, steered)
    finally:
        hook.remove()
    assert_invariants(family, result)
    assert relative_error(result, plain) > 1e-3
    half = len(personal) // 2
    assert half == STEPS - SKIP
    assert all(relative_error(a, b) < 1e-5 for a, b in zip(personal[:half], personal[half:], strict=True))


def test_a_patch_that_adds_words_is_refused_for_what_it_is():
    """As a style reference does."""

    def with_style(arguments):
        text, ids = arguments["txt"], arguments["txt_ids"]
        return {**arguments, "txt": torch.cat([text[:, :3], text], 1), "txt_ids": torch.cat([ids[:, :3], ids], 1)}

    styled = model_of("Flux.1").clone()
    styled.set_model_patch(with_style, "post_input")
    with refused("Mask Noise Mixer", "'model'", "adds tokens", "style reference"):
        graph_result("Flux.1", styled)


@pytest.fixture
def calls():
    """Rows of each call of Flux.1."""
    rows = []
    hook = model_of("Flux.1").model.diffusion_model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    yield rows
    hook.remove()


@pytest.mark.oldest
@pytest.mark.parametrize(
    "settings, of_step",
    [
        (dict(), [6]),
        (dict(cfg=3.0), [6, 6]),  # the negative prompt has another length, and ComfyUI gives it a call of its own
        (dict(swap_guidance=1.0), [4]),
        (dict(own={0: conditioning("Flux.1", 3)}), [6]),
        (dict(own={0: conditioning("Flux.1", 3, tokens=40)}), [1, 1, 4]),
        (dict(own={0: conditioning("Flux.1", 3, tokens=40)}, cfg=3.0), [1, 1, 1, 1, 4, 4]),
    ],
    ids=["plain", "cfg 3", "swap_guidance 1", "own prompt", "own longer prompt", "own longer prompt, cfg 3"],
)
def test_rows_are_those_of_a_unet_and_own_prompts_of_another_length_cost_calls(calls, settings, of_step):
    """One for each concept and step, with a row that would be computed anyway."""
    graph_result("Flux.1", model_of("Flux.1"), **settings)
    assert calls == [4, 4] + of_step * (STEPS - SKIP), "the inversion first"


@pytest.mark.oldest
def test_one_row_outside_start_and_end(calls):
    """The steps are 33, 50, 67 and 83 % of the schedule."""
    graph_result("Flux.1", model_of("Flux.1"), guidance=dict(start_percent=0.4, end_percent=0.7))
    assert calls == [4, 4, 2, 6, 6, 2], "the inversion first"


@pytest.mark.oldest
@pytest.mark.parametrize("family, cfg", [("Flux.1", 1.0), ("SD 3.5", 3.0)])
def test_what_is_kept_of_pictures_read_apart_is_known_before(monkeypatch, family, cfg):
    module, kept, estimates = pack_module("mixer.hooks.joint_attention"), [], []
    joint_attention = module.JointAttention
    read, estimate = joint_attention.read_pictures, joint_attention.bytes_of_a_picture

    def watch(self, call, options, like):
        found = options[module.PICTURES].found.values()
        kept.append(sum(x.key.nbytes + x.value.nbytes for pictures in found for x in pictures))
        return read(self, call, options, like)

    monkeypatch.setattr(joint_attention, "read_pictures", watch)
    monkeypatch.setattr(
        joint_attention,
        "bytes_of_a_picture",
        lambda self, chunks: estimates.append(estimate(self, chunks)) or estimates[0],
    )
    graph_result(family, model_of(family), own={0: conditioning(family, 3, tokens=40)}, cfg=cfg)
    blocks = 8 / 6 if family == "SD 3.5" else 1  # of which two have a second attention here, and all could
    assert set(kept) == {2 * estimates[0] / blocks}, "of two concepts"


@pytest.mark.oldest
def test_pictures_read_apart_take_turns_where_there_is_room_for_one(monkeypatch, calls):
    prompts, own = pack_module("mixer.hooks.own_prompts"), {1: conditioning("Flux.1", 3, tokens=40)}
    together = graph_result("Flux.1", model_of("Flux.1"), own=own)
    calls.clear()
    monkeypatch.setattr(prompts, "place_for_some", lambda size, guider, device: (device, 1))
    in_turn = graph_result("Flux.1", model_of("Flux.1"), own=own)
    assert calls == [4, 4] + [1, 2, 1, 2] * (STEPS - SKIP)
    assert relative_error(in_turn, together) < 1e-4


@pytest.mark.oldest
@pytest.mark.parametrize("node", ["EasyCache", "LazyCache"])
def test_no_cache_skips_pictures_read_apart(monkeypatch, node):
    """All that its call is made for is what it leaves behind. Caches skip nothing in the first few steps."""
    monkeypatch.setitem(globals(), "STEPS", 14)
    family, graph = "Flux.1", Graph()
    settings = dict(reuse_threshold=3.0, start_percent=0.0, end_percent=1.0, verbose=False)
    cached = graph.run(model=graph.add(node, model=model_of(family), **settings))["model"]
    own = {0: conditioning(family, 3, tokens=40)}
    assert_invariants(family, graph_result(family, cached, own=own))


@pytest.mark.oldest
def test_where_there_is_no_room_for_a_picture_read_apart_the_run_does_not_begin(monkeypatch, calls):
    monkeypatch.setattr(pack_module("common.memory"), "KEPT_SHARE", 1e-12)
    with refused("Mask Noise Mixer", "'concepts'", "another length", "GB", "same number of tokens"):
        graph_result("Flux.1", model_of("Flux.1"), own={0: conditioning("Flux.1", 3, tokens=40)})
    assert calls == [4, 4], "of the inversion alone"


@pytest.mark.oldest
@pytest.mark.parametrize(
    "free, expected",
    [
        ({"meta": 4e9, "cpu": 0}, ("meta", 2)),
        ({"meta": 1e9, "cpu": 9e9}, ("cpu", 5)),
        ({"meta": 1e9, "cpu": 1e9}, None),
    ],
    ids=["the device has room", "the CPU has", "none has"],
)
def test_pictures_read_apart_are_kept_on_the_device_or_else_on_the_cpu(monkeypatch, free, expected):
    import comfy.model_management

    memory = pack_module("common.memory")
    monkeypatch.setattr(memory, "free_memory", lambda guider: free["meta"])
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda device: free[device.type])
    found = memory.place_for_some(int(4e8), None, torch.device("meta"))
    assert found == (expected and (torch.device(expected[0]), expected[1]))


@pytest.mark.oldest
@pytest.mark.parametrize("fault", ["combined", "compiled"])
def test_where_pictures_read_apart_could_not_be_told_apart_they_are_refused(monkeypatch, fault):
    family, common = "Flux.1", {}
    if fault == "combined":
        common["positive"] = prompts(family)["positive"] + conditioning(family, 5)
    else:
        monkeypatch.setattr(pack_module("mixer.hooks.own_prompts"), "is_compiled", lambda model: True)
    with refused("Mask Noise Mixer", "'concepts'", fault, "same number of tokens"):
        graph_result(family, model_of(family), own={0: conditioning(family, 3, tokens=40)}, common=common)


def assert_invariants(family: str, result: torch.Tensor) -> None:
    """Outside the masks the background comes back, inside them is the branch."""
    background, side = picture(family, 0), FAMILIES[family].ratio
    cells = [torch.from_numpy(blob(family, k)).reshape(CELLS[0], side, CELLS[1], side).mean((1, 3)) for k in range(2)]
    inside = [x >= 0.5 for x in cells]
    outside = ~(inside[0] | inside[1])
    assert relative_error(result[0][:, outside], background[0][:, outside]) < 1e-6
    for mask, branch in zip(inside, result[1:], strict=True):
        assert mask.any() and torch.equal(result[0][:, mask], branch[:, mask])


@pytest.mark.oldest
def test_prompts_limited_to_an_area_or_a_mask():
    family, graph = "Flux.1", Graph()
    model, plain, further = model_of(family), prompts(family)["positive"], conditioning(family, 5, tokens=9)
    area, whole = (
        graph.add("ConditioningSetAreaPercentage", conditioning=prompt, width=1.0, x=0.0, strength=1.0, **place)
        for prompt, place in ((further, dict(height=0.7, y=0.3)), (plain, dict(height=1.0, y=0.0)))
    )
    mask = torch.from_numpy(blob(family, 2))[None]
    masked = dict(conditioning=further, mask=mask, strength=1.0, set_cond_area="mask bounds")
    masked = graph.add("ConditioningSetMask", **masked)
    given = graph.run(area=area, whole=whole, mask=masked)
    settings = dict(object_only=(0,), cfg=3.0)
    without = graph_result(family, model, **settings)
    for name in ("area", "mask"):
        result = graph_result(family, model, common={"positive": plain + given[name]}, **settings)
        assert_invariants(family, result)
        assert relative_error(result, without) > 1e-3
    whole = graph_result(family, model, common={"positive": given["whole"]}, **settings)
    assert relative_error(whole, without) < 1e-5


@pytest.mark.parametrize("family", ["Qwen-Image", "Lumina 2"])
def test_prompts_whose_padding_is_masked(family):
    mask = torch.tensor([[1] * 7 + [0] * 4])
    common = {"positive": conditioning(family, 1, tokens=11, attention_mask=mask)}
    settings = dict(common=common, object_only=(0,), cfg=3.0)
    assert_same(graph_result(family, model_of(family), **settings), oracle_result(family, model_of(family), **settings))


@pytest.mark.oldest
def test_a_mask_from_token_to_token_is_kept_and_refused_beside_object_masks():
    """As style references set it."""
    family, tokens = "Flux.1", 7 + 3 * 4
    strength = torch.randn(1, tokens, tokens, generator=torch.Generator().manual_seed(0))
    options = dict(attention_mask=strength, attention_mask_img_shape=(3, 4))
    common = {name: conditioning(family, 1, **options) for name in ("positive", "negative")}
    assert_same(*(f(family, model_of(family), common=common) for f in (graph_result, oracle_result)))
    with refused("Mask Noise Mixer", "'model'", "token to token", "object_mask"):
        graph_result(family, model_of(family), common=common, object_only=(0,))


def small_control_net():
    import comfy.controlnet
    import comfy.ldm.flux.controlnet
    import comfy.ops

    operations = comfy.ops.disable_weight_init
    net = comfy.ldm.flux.controlnet.ControlNetFlux(operations=operations, **known_arguments(FAMILIES["Flux.1"]))
    generator = torch.Generator().manual_seed(3)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    device = torch.device("cpu")
    net = net.eval().requires_grad_(False)
    return comfy.controlnet.ControlNet(net, load_device=device, extra_conds=["y", "guidance"])


@pytest.mark.oldest
def test_a_control_net_steers_all_but_the_persons_pictures():
    family, graph = "Flux.1", Graph()
    model, image = model_of(family), torch.rand(1, 48, 64, 3, generator=torch.Generator().manual_seed(0))
    hint = dict(control_net=small_control_net(), image=image, strength=1.0, start_percent=0.0, end_percent=1.0)
    controlled = graph.add("ControlNetApplyAdvanced", **prompts(family), **hint)
    common = graph.run(positive=controlled, negative=output(controlled, 1))
    personal = []
    hook = model.model.diffusion_model.register_forward_hook(
        lambda _, args, result: personal.append(result[:2].clone()) if len(result) == 6 else None
    )
    try:
        plain, steered = graph_result(family, model), graph_result(family, model, common=common)
    finally:
        hook.remove()
    assert_invariants(family, steered)
    assert relative_error(steered, plain) > 1e-3
    half = len(personal) // 2
    assert half == STEPS - SKIP
    assert all(relative_error(a, b) < 1e-5 for a, b in zip(personal[:half], personal[half:], strict=True))


@pytest.mark.newest
def test_a_compiled_model():
    """The patches are part of the compiled graph. Tracing it takes a few seconds."""
    family = "Flux.1"
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from comfy_extras.nodes_torch_compile import skip_torch_compile_dict

    compiled = model_of(family).clone()
    compiled.model_options["transformer_options"]["optimized_attention_override"] = as_on_a_gpu
    settings = dict(fullgraph=True, options={"guard_filter_fn": skip_torch_compile_dict})
    set_torch_compile_wrapper(compiled, backend="eager", **settings)  # stops where the graph would break
    for alpha in (0.15, 1.0):
        settings = dict(concepts=1, object_only=(0,), guidance=dict(alpha=alpha))
        expected = graph_result(family, model_of(family), **settings)
        assert relative_error(graph_result(family, compiled, **settings), expected) < 1e-4


@pytest.mark.oldest
def test_the_order_of_disjoint_concepts_does_not_matter():
    family = "Flux.1"
    model, results, inverted = model_of(family), [], Graph()
    inversion = invert(
        inverted, model, latent=encoded(family, 0), steps=STEPS, skip_steps=SKIP, scheduler="simple", **prompts(family)
    )
    inversion = inverted.run(inversion=inversion)["inversion"]
    for order in ((0, 1), (1, 0)):
        graph, link = Graph(), None
        for k in order:
            mask, own = (torch.from_numpy(blob(family, i))[None] for i in (k, 2 - k))
            link = concept(graph, k, link, latent=encoded(family, 2 + k), mask=mask, object_mask=own)
        mixed = mixer(graph, appearance(graph, model), inversion, link, **prompts(family))
        results.append(graph.run(latent=mixed)["latent"]["samples"])
    assert relative_error(*results) < 1e-5


@pytest.mark.parametrize(
    "make, inputs, words",
    [
        (lambda: small_transformer("Flux.1", in_channels=96), {}, ("'model'", "96 channels", "base model")),
        (lambda: model_of("Flux.1"), dict(positive="reference"), ("'positive'", "Reference Latent")),
        (lambda: model_of("Flux.1"), dict(latent="film"), ("'latent'", "shape")),
        (lambda: model_of("Flux.1"), dict(positive="narrow"), ("'positive'", "48", "CLIP")),
        (lambda: model_of("Flux.1"), dict(positive="pooled"), ("'positive'", "pooled", "24", "CLIP")),
        (lambda: model_of("SD 3.5"), dict(positive="narrow"), ("'positive'", "48", "CLIP")),
        (lambda: model_of("SD 3.5"), dict(positive="plain"), ("'positive'", "pooled", "CLIP")),
        (lambda: model_of("SD 3.5"), dict(negative="pooled"), ("'negative'", "pooled", "24", "CLIP")),
        (lambda: model_of("SD 3.5"), dict(latent="wide"), ("'latent'", "272 × 8 pixels", "end at 256 pixels")),
    ],
    ids=[
        "inpainting",
        "reference latent",
        "several frames",
        "another encoder",
        "another pooled output",
        "SD 3, another encoder",
        "SD 3, no pooled output",
        "SD 3, another pooled output",
        "larger than it knows",
    ],
)
def test_what_cannot_work_is_refused(make, inputs, words):
    other = {
        "reference": conditioning("Flux.1", 1, reference_latents=[picture("Flux.1", 1)]),
        "film": {"samples": torch.zeros(1, 16, 2, *CELLS)},
        "wide": {"samples": torch.zeros(1, 16, 1, 34)},
        "pooled": [[torch.zeros(1, 7, 48), {"pooled_output": torch.zeros(1, 30)}]],
        "plain": [[torch.zeros(1, 7, 48), {}]],
        "narrow": [[torch.zeros(1, 7, 40), {"pooled_output": None}]],
    }
    graph = Graph()
    given = {"latent": encoded("Flux.1", 0), **prompts("Flux.1")} | {name: other[key] for name, key in inputs.items()}
    with refused("DDPM Invert", *words):
        graph.run(inversion=invert(graph, make(), **given))


@pytest.mark.oldest
def test_a_model_that_the_mixer_does_not_know_is_told_so():
    """Of one that is a flow-matching transformer, as those are that the message advises."""
    other, graph = small_transformer("Flux.1"), Graph()
    other.model.__class__ = type("WAN21", (type(other.model),), {})
    with refused("DDPM Invert", "'model'", "WAN21 (FLUX)", "none that this node knows", "Load"):
        graph.run(inversion=invert(graph, other, latent=encoded("Flux.1", 0), **prompts("Flux.1")))


@pytest.mark.oldest
def test_guidance_that_remembers_is_refused_where_rows_change():
    """What it remembers of the rows of guided steps would be spread over those of the last ones."""
    family, graph = "SD 3.5", Graph()
    momentum = dict(eta=0.5, norm_threshold=5.0, momentum=-0.5)
    patched = graph.run(model=graph.add("APG", model=model_of(family), **momentum))["model"]
    settings = dict(cfg=3.0, concepts=1, guidance=dict(end_percent=0.7))
    with refused("Mask Noise Mixer", "'model'", "rows", "Bypass that patch"):
        graph_result(family, patched, **settings)


@pytest.mark.oldest
def test_shifted_noise_levels():
    """As the templates for Qwen-Image and Z-Image have them."""
    graph = Graph()
    shifted = graph.run(model=graph.add("ModelSamplingAuraFlow", model=model_of("Lumina 2"), shift=1.7))["model"]
    result = graph_result("Lumina 2", shifted, concepts=1)
    assert_same(result, oracle_result("Lumina 2", shifted, concepts=1))
    assert relative_error(result, graph_result("Lumina 2", model_of("Lumina 2"), concepts=1)) > 1e-3


@pytest.mark.oldest
def test_another_way_of_sampling_is_refused():
    graph, settings = Graph(), dict(sampling="eps", sigma_max=120.0, sigma_min=0.002)
    patched = graph.add("ModelSamplingContinuousEDM", model=model_of("Flux.1"), **settings)
    with refused("DDPM Invert", "'model'", "not its own", "Remove"):
        graph.run(inversion=invert(graph, patched, latent=encoded("Flux.1", 0), **prompts("Flux.1")))


@pytest.mark.oldest
def test_rows_that_cannot_be_told_are_refused():
    """As packs for tiled diffusion lay them out."""

    def in_tiles(apply_model, arguments):
        twice = {name: torch.cat([x] * 2) if torch.is_tensor(x) else x for name, x in arguments["c"].items()}
        tiles = torch.cat(arguments["input"].chunk(2, dim=-1))
        return torch.cat(apply_model(tiles, torch.cat([arguments["timestep"]] * 2), **twice).chunk(2), dim=-1)

    tiled = model_of("Flux.1").clone()
    tiled.set_model_unet_function_wrapper(in_tiles)
    with refused("Mask Noise Mixer", "'model'", "batch", "tiled diffusion"):
        graph_result("Flux.1", tiled)


@pytest.mark.oldest
def test_personal_rows_are_not_kept_for_the_next_run():
    with refused("Mask Noise Mixer", "'keep_personal'", "transformer", "Switch it off"):
        graph_result("Flux.1", model_of("Flux.1"), keep_personal=True)


@pytest.mark.parametrize("family", ["Qwen-Image"])
def test_vital_layers_are_flux_1s_alone(family):
    graph, whole = Graph(), small_transformer("Flux.1", depth=19, depth_single_blocks=38)
    with refused("Guided Appearance Attention", "'layers'", "Flux.1 alone"):
        graph.run(model=appearance(graph, model_of(family), layers="vital"))
    graph.run(model=appearance(graph, whole, layers="vital"))


@pytest.mark.parametrize("depths", [(8, 38), (19, 37), (2, 2)], ids=str)
def test_vital_layers_are_those_of_all_of_flux_1s_blocks(depths):
    """Variants that were cut down have other blocks under the same numbers."""
    variant, graph = small_transformer("Flux.1", depth=depths[0], depth_single_blocks=depths[1]), Graph()
    with refused("Guided Appearance Attention", "'layers'", "19 + 38", f"{depths[0]} + {depths[1]}"):
        graph.run(model=appearance(graph, variant, layers="vital"))
