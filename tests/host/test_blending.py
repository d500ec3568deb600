"""Blend, Blend Concept and Blending Guidance: what they compute, and what they leave alone."""

from functools import cache

import pytest
import safetensors.torch
import torch

from blend_oracle import LaTexBlend, OracleSlot
from comfy_host import Graph, output, pack_module, refused
from learned_concepts import (
    CAR,
    DOG,
    TEXT,
    blend,
    blend_concept,
    diffusers_names,
    encode,
    guidance,
    ksampler,
    learned,
    samples,
)
from oracle import Prompt, relative_error
from pictures import HEIGHT, WIDTH
from small_models import LAYOUTS, comfy_model, diffusers_unet, save_lora, small_clip, small_control_net

TIMESTEPS = [501, 1]
NEGATIVE = "blurry"
MASK = torch.zeros(HEIGHT, WIDTH)
MASK[: HEIGHT // 2, WIDTH // 4 :] = 1


class Case:
    """A model, its CLIP and two concepts."""

    def __init__(self, layout: str):
        self.layout, self.unet, self.clip = layout, diffusers_unet(LAYOUTS[layout]), small_clip(layout)
        self.model = comfy_model(LAYOUTS[layout], self.unet)
        self.dog = learned(self.model, "dog", 1)
        self.car = learned(self.model, "sports car", 2, tokens=3)

    def graph(self, strength=1.0, mask=None, guided=None, batch=1, concepts=2, **settings) -> torch.Tensor:
        graph = Graph()
        chain = blend_concept(graph, self.dog, strength=strength, mask=None if mask is None else mask[None])
        if concepts == 2:
            chain = blend_concept(graph, self.car, chain)
        model, positive = blend(graph, self.model, self.clip, chain, **settings)
        if guided:
            model = guidance(graph, model, **guided)
        return samples(graph, ksampler(graph, model, positive, encode(graph, self.clip, NEGATIVE), batch=batch))[0]

    def prompt(self, text: str) -> Prompt:
        context, pooled = self.clip.encode_from_tokens(self.clip.tokenize(text), return_pooled=True)
        return Prompt(context, pooled if self.layout == "SDXL" else None, (HEIGHT, WIDTH))

    def oracle(self, strength=1.0, mask=None, guided=None, **settings) -> torch.Tensor:
        names = diffusers_names(self.model)

        def by_their_names(concept):
            return {names[k][: -len(".to_k.weight")] + ".processor": x for k, x in concept.features.items()}

        small = None if mask is None else torch.nn.functional.avg_pool2d(mask[None, None], 8)[0, 0]
        slots = [OracleSlot(by_their_names(self.dog), DOG, strength, small), OracleSlot(by_their_names(self.car), CAR)]
        before = self.unet.attn_processors
        if guided:
            guided = {"guided_until" if name == "end_percent" else name: x for name, x in guided.items()}
        prediction = "v_prediction" if LAYOUTS[self.layout].model_type == "V_PREDICTION" else "epsilon"
        prompts = (self.prompt(x) for x in (TEXT, NEGATIVE))
        try:
            oracle = LaTexBlend(self.unet, prediction, *prompts, slots, TIMESTEPS, **settings, **(guided or {}))
            noise = torch.randn(1, 4, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(3))
            scale = self.model.get_model_object("latent_format").scale_factor
            return oracle.run(noise) / scale
        finally:
            self.unet.set_attn_processor(before)


@pytest.fixture(scope="module")
def case(request):
    return Case(request.param)


GUIDED = dict(scale=3.0, end_percent=0.6)


@pytest.mark.parametrize("case", ["SD 2.x v"], indirect=True)
def test_two_concepts_come_out_as_the_method_says(case):
    assert relative_error(case.graph(), case.oracle()) < 2e-4
    assert relative_error(case.graph(guided=GUIDED), case.oracle(guided=GUIDED)) < 2e-4


@pytest.mark.oldest
@pytest.mark.parametrize("case", ["SD 1.x", "SDXL"], indirect=True)
@pytest.mark.parametrize(
    "settings",
    [
        dict(bind=False),
        dict(strength=0.5),
        dict(strength=0.2, start_percent=0.6, mask=MASK),
        dict(strength=0.5, guided=dict(scale=20.0, end_percent=0.6)),
        dict(start_percent=0.6),
        dict(mask=MASK),
        dict(mask=MASK, region=0.7),
        dict(guided=dict(scale=50.0, g1=0.5, g2=0.0, end_percent=0.6)),
        dict(guided=dict(scale=2.0, g1=0.0, g2=2.0, end_percent=0.6), bind=False),
    ],
    ids=str,
)
def test_every_setting_comes_out_as_the_method_says(case, settings):
    assert relative_error(case.graph(**settings), case.oracle(**settings)) < 2e-4
    plain = {"mask": "anywhere", "guided": "unguided"}
    if settings.keys() & plain.keys():
        assert relative_error(case.graph(), case.graph(**settings)) > 1e-3, "the setting does something"


@pytest.fixture(scope="module")
def small():
    return Case("SD 1.x")


def sample(small, *conds, text=TEXT, **settings) -> torch.Tensor:
    """Of Blend's MODEL, with other conditionings than its own."""
    graph = Graph()
    model, positive = blend(graph, small.model, small.clip, blend_concept(graph, small.dog), text=text)
    links = [positive if cond == "own" else encode(graph, small.clip, cond) for cond in conds]
    while len(links) > 2:
        links[:2] = [graph.add("ConditioningCombine", conditioning_1=links[0], conditioning_2=links[1])]
    return samples(graph, ksampler(graph, model, *links, **settings))[0]


def plain(small, positive=TEXT, **settings) -> torch.Tensor:
    graph = Graph()
    links = (encode(graph, small.clip, text) for text in (positive, NEGATIVE))
    return samples(graph, ksampler(graph, small.model, *links, **settings))[0]


@pytest.mark.oldest
@pytest.mark.parametrize("settings", [dict(strength=0.0, bind=True), dict(start_percent=1.0, bind=False)], ids=str)
def test_a_concept_that_does_not_act_leaves_every_bit(small, settings):
    assert torch.equal(small.graph(concepts=1, **settings), plain(small))


@pytest.mark.oldest
@pytest.mark.parametrize("settings", [{}, dict(mask=MASK), dict(start_percent=0.6), dict(guided=GUIDED)], ids=str)
def test_strength_leads_to_the_plain_prompt_without_a_jump(small, settings):
    """Binding, regions and guidance as well: at a hundredth of the strength they do nearly nothing."""
    before = plain(small)
    assert torch.equal(small.graph(concepts=1, strength=0.0, **settings), before)
    changes = [relative_error(small.graph(concepts=1, strength=x, **settings), before) for x in (0.01, 0.25, 0.5, 1.0)]
    assert changes == sorted(changes) and changes[0] < 0.02 * changes[-1], changes


def test_other_prompts_come_out_of_the_blended_model_as_before(small):
    assert torch.equal(sample(small, TEXT, NEGATIVE), plain(small))


@pytest.mark.oldest
def test_negative_prompts_are_not_blended(small):
    """What a negative prompt adds to the picture is the plain prompt's, whatever stands in the positive."""
    graph = Graph()
    chain = blend_concept(graph, small.dog)
    model, positive = blend(graph, small.model, small.clip, chain)
    negative = encode(graph, small.clip, TEXT)
    zero = graph.add("ConditioningZeroOut", conditioning=positive)
    emptied = graph.add("ConditioningZeroOut", conditioning=negative)
    links = [ksampler(graph, model, positive, x) for x in (zero, emptied)]
    ours, theirs = samples(graph, *links)
    assert torch.equal(ours, theirs), "an emptied positive as negative is empty"
    assert relative_error(samples(graph, ksampler(graph, model, positive, negative))[0], ours) > 1e-3


@pytest.mark.oldest
def test_rows_of_a_batch_come_out_as_alone(small):
    both = small.graph(batch=2)
    assert relative_error(both[:1], small.graph()) < 1e-5
    assert relative_error(both[1:], both[:1]) > 0.1


@pytest.mark.oldest
def test_a_longer_negative_does_not_move_the_words(small):
    """ComfyUI repeats the shorter of two prompts."""
    long = ", ".join(["very blurry"] * 45)
    short = sample(small, "own", NEGATIVE, cfg=1.0)
    assert relative_error(sample(small, "own", long, cfg=1.0), short) < 1e-5
    graph = Graph()
    model, positive = blend(graph, small.model, small.clip, blend_concept(graph, small.dog))
    link = ksampler(graph, model, positive, encode(graph, small.clip, long))
    (together,) = samples(graph, link)
    unet = small.model.model.diffusion_model
    calls = []
    hook = unet.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs["context"].shape), with_kwargs=True
    )
    try:
        samples(graph, link)
    finally:
        hook.remove()
    assert calls[0][0] == 2 and calls[0][1] == 154, "both prompts share a call"
    assert relative_error(together, sample(small, "own", NEGATIVE)) > 1e-3


@pytest.mark.oldest
def test_two_blended_prompts_share_a_model(small):
    """Each has its own concepts, in one call."""
    graph = Graph()
    first, dog = blend(graph, small.model, small.clip, blend_concept(graph, small.dog))
    second, car = blend(graph, first, small.clip, blend_concept(graph, small.car), text="the sports car and a dog")
    negative = encode(graph, small.clip, NEGATIVE)
    both = graph.add("ConditioningCombine", conditioning_1=dog, conditioning_2=car)
    combined, alone, other = samples(graph, *(ksampler(graph, second, x, negative, steps=1) for x in (both, dog, car)))
    assert relative_error(combined, (alone + other) / 2) < 1e-5


def test_blending_adds_no_row(small):
    """Nor a call: the guided steps alone take one more."""
    rows = []
    hook = small.model.model.diffusion_model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    try:
        plain(small)
        before, rows[:] = list(rows), []
        small.graph(mask=MASK)
        assert rows == before
        rows.clear()
        small.graph(guided=dict(end_percent=0.6))
        assert sorted(rows) == sorted([1, *before])
    finally:
        hook.remove()


@pytest.mark.oldest
def test_guidance_needs_no_memory_of_the_run_before(small):
    settings = dict(guided=dict(end_percent=0.6))
    assert torch.equal(small.graph(**settings), small.graph(**settings))
    assert torch.equal(small.graph(guided=dict(scale=0.0, end_percent=0.6)), small.graph())


# Where the words are


@pytest.mark.oldest
@pytest.mark.parametrize("layout", ["SD 1.x", "SD 2.x v", "SDXL"])
@pytest.mark.parametrize(
    "text, noun, occurrence, slot, found",
    [
        ("a dog", "dog", 1, "auto", ["a</w>", "dog</w>"]),
        ("dogs, a hotdog and the (dog:1.2)", "dog", 1, "auto", ["the</w>", "dog</w>"]),
        ("big dog", "dog", 1, "auto", ["a</w>", "dog</w>"]),
        ("big dog", "dog", 1, "replace", ["big</w>", "dog</w>"]),
        ("a dog", "dog", 1, "insert", ["a</w>", "dog</w>"]),
        ("dog", "dog", 1, "auto", ["a</w>", "dog</w>"]),
        ("a dog and a dog", "dog", 2, "auto", ["a</w>", "dog</w>"]),
        ("my teddy bear", "teddy bear", 1, "auto", ["my</w>", "teddy</w>", "bear</w>"]),
        ("word " * 74 + "a dog", "dog", 1, "auto", ["a</w>", "dog</w>"]),
        ("word " * 75 + "dog", "dog", 1, "auto", ["a</w>", "dog</w>"]),
    ],
)
def test_words_are_found_as_the_tokenizer_cuts_them(layout, text, noun, occurrence, slot, found):
    words, types = pack_module("latexblend.words"), pack_module("common.types")
    clip = tokenizers(layout)
    concept = types.TrainedConcept(of_tokens(len(found)), "x", noun, "", "", "", {})
    wanted = [types.BlendedConcept(concept, occurrence, 1.0, None)]
    chunks, (first,) = words.place("Blend", clip, text, wanted, slot)
    for encoder, own in chunks.items():
        assert all(len(chunk) == 77 for chunk in own)
        flat = [token for chunk in own for token in chunk]
        vocabulary = words.tokenizer_of(clip, encoder).inv_vocab
        assert [vocabulary[token[0]] for token in flat[first : first + len(found)]] == found
    if occurrence == 2:
        assert first == 4


def of_tokens(count: int) -> dict:
    """Features of some layer."""
    return {"layer": (torch.zeros(count, 4), torch.zeros(count, 4))}


@cache
def tokenizers(layout: str):
    return small_clip(layout)


@pytest.mark.oldest
def test_an_embedding_before_the_noun_is_no_article(tmp_path):
    words, types = pack_module("latexblend.words"), pack_module("common.types")
    clip = tokenizers("SD 1.x")
    concept = types.TrainedConcept(of_tokens(2), "x", "dog", "", "", "", {})
    read = words.read
    vector = torch.zeros(48)

    def with_embedding(node, clip, text):
        chunks = read(node, clip, text)
        if text == "style dog":
            chunks["l"][0][1] = (vector, 1.0)
        return chunks

    words.read = with_embedding
    try:
        chunks, (first,) = words.place(
            "Blend", clip, "style dog", [types.BlendedConcept(concept, 1, 1.0, None)], "auto"
        )
    finally:
        words.read = read
    assert first == 2 and chunks["l"][0][1][0] is vector


@pytest.fixture
def embeddings(tmp_path):
    """A folder that the tokenizers of a CLIP look into, with embeddings of three tokens."""

    def given(clip, **widths):
        for name, width in widths.items():
            safetensors.torch.save_file({"emb_params": torch.ones(3, width)}, tmp_path / f"{name}.safetensors")
        for name in clip.tokenize(""):
            monkeypatch.setattr(getattr(clip.tokenizer, f"clip_{name}"), "embedding_directory", [str(tmp_path)])

    with pytest.MonkeyPatch.context() as monkeypatch:
        yield given


@pytest.mark.parametrize(
    "text", ["embedding:wide {}", "(embedding:wide:1.3) {}", "{} (embedding:wide:0.5)", "a sea, {}"]
)
def test_an_embedding_of_another_width_moves_no_word(small, embeddings, messages, text):
    """The host leaves it out, so that what comes after it moves up; weights in brackets stay with their places."""
    embeddings(small.clip, wide=64, fits=48)
    own = text.format(TEXT)
    assert torch.equal(small.graph(strength=0.0, concepts=1, text=own), plain(small, own))
    assert ("embedding in the text is left out" in messages()) == ("wide" in text)
    if text == "embedding:wide {}":
        assert "64 numbers a token, and this CLIP's encoder l 48" in messages()
        assert torch.equal(small.graph(text=own), small.graph())
        words = pack_module("latexblend.words")
        wanted = [pack_module("common.types").BlendedConcept(c, 1, 1.0, None) for c in (small.dog, small.car)]
        for name, moved in (("wide", 0), ("fits", 3)):
            _, firsts = words.place("Blend", small.clip, f"embedding:{name} {TEXT}", wanted, "auto")
            assert firsts == [DOG[0] + moved, CAR[0] + moved]


@pytest.mark.oldest
def test_an_embedding_for_one_of_two_encoders_may_stand_behind_the_concepts(embeddings):
    words, types, clip = pack_module("latexblend.words"), pack_module("common.types"), small_clip("SDXL")
    embeddings(clip, old=embedding_width(clip, "l"))
    wanted = [types.BlendedConcept(types.TrainedConcept(of_tokens(2), "x", "dog", "", "", "", {}), 1, 1.0, None)]
    assert words.place("Blend", clip, "a dog, embedding:old", wanted, "auto")[1] == [1]
    with pytest.raises(Exception, match="only one of the two encoders takes an embedding.*behind the concepts. words"):
        words.place("Blend", clip, "embedding:old a dog", wanted, "auto")


def embedding_width(clip, encoder: str) -> int:
    return getattr(clip.cond_stage_model, f"clip_{encoder}").transformer.get_input_embeddings().weight.shape[-1]


# What a person can get wrong


@pytest.mark.oldest
@pytest.mark.parametrize(
    "text", ["word " * 74 + "sports car", "word " * 149 + "sports car", "word " * 74 + "(sports:1.2) (car and dog:1.1)"]
)
def test_a_noun_that_the_limit_of_75_tokens_cuts_is_told_so(small, text):
    with refused(
        "Blend Concept 'sports car'", "stands where the text of Blend is cut", "75 tokens", "Shorten the text"
    ):
        run_blend(small, text, chain=[(small.car, {})])
    run_blend(small, f"{text}, a sports car", chain=[(small.car, {})])
    with refused("stands where the text of Blend is cut"):
        run_blend(small, f"{text}, a sports car", chain=[(small.car, dict(occurrence=2))])


def run_blend(small, text=TEXT, chain=None, model=None, **settings):
    graph = Graph()
    links = None
    for concept, own in chain or [(small.dog, {})]:
        links = blend_concept(graph, concept, links, **own)
    model, positive = blend(graph, model or small.model, small.clip, links, text=text, **settings)
    return graph.run(model=model, positive=positive)


@pytest.mark.oldest
def test_faults_in_the_words_are_named(small):
    with refused("Blend Concept 'dog'", "no word 'dog'", "a cat"):
        run_blend(small, "a cat")
    with refused("occurrence", "it is 2", "occurs 1 times"):
        run_blend(small, chain=[(small.dog, dict(occurrence=2))])
    with refused("same word"):
        run_blend(small, chain=[(small.dog, {}), (small.dog, {})])
    with refused("slot", "no word stands before 'dog'"):
        run_blend(small, "dog", slot="replace")
    with refused("no room", "77 tokens"):
        run_blend(small, "word " * 74 + "dog")


@pytest.mark.oldest
def test_faults_of_concepts_are_named(small, messages):
    with refused("'dog'", "another family", "SDXL EPS"):
        run_blend(small, chain=[(small.dog._replace(family="SDXL EPS"), {})])
    some = dict(list(small.dog.features.items())[1:])
    with refused("'dog' does not fit", "layers"):
        run_blend(small, chain=[(small.dog._replace(features=some), {})])
    run_blend(small, chain=[(small.dog._replace(fingerprint="other"), {})])
    assert "Warning: 'dog' was trained with a.safetensors" in messages()
    with refused("mask", "empty"):
        run_blend(small, chain=[(small.dog, dict(mask=torch.zeros(1, 8, 8)))])


@pytest.mark.oldest
def test_what_later_nodes_do_to_a_blend_is_noticed(small):
    graph = Graph()
    model, positive = blend(graph, small.model, small.clip, blend_concept(graph, small.dog))
    other = encode(graph, small.clip, "a cat")
    mixed = graph.add(
        "ConditioningAverage", conditioning_to=positive, conditioning_from=other, conditioning_to_strength=0.5
    )
    with refused("positive was changed by another node"):
        samples(graph, ksampler(graph, model, mixed, other))
    joined = graph.add("ConditioningConcat", conditioning_to=positive, conditioning_from=other)
    (sampled,) = samples(graph, ksampler(graph, model, joined, other))
    assert torch.isfinite(sampled).all()
    patched = graph.run(model=model)["model"].clone()
    patched.set_model_attn2_replace(lambda q, k, v, options: q, "input", 1, 0)
    graph = Graph()
    with refused("a later node"):
        positive = blend(graph, small.model, small.clip, blend_concept(graph, small.dog))[1]
        samples(graph, ksampler(graph, patched, positive, encode(graph, small.clip, "a cat")))


@pytest.mark.oldest
def test_another_packs_cross_attention_comes_before(small):
    """As IP-Adapter's: it gets the blended keys and values."""
    seen = []

    def other(query, key, value, options):
        seen.append(key.clone())
        return torch.zeros_like(query)

    model = small.model.clone()
    model.set_model_attn2_replace(other, "input", 1)
    graph = Graph()
    patched, positive = blend(graph, model, small.clip, blend_concept(graph, small.dog))
    samples(graph, ksampler(graph, patched, positive, encode(graph, small.clip, NEGATIVE), cfg=1.0))
    key = small.dog.features["input_blocks.1.1.transformer_blocks.0.attn2"][0]
    torch.testing.assert_close(seen[0][0, DOG[1]], key[1], rtol=0, atol=0)
    masked = blend_concept(graph, small.dog, mask=MASK[None])
    with refused("replaces cross-attention"):
        patched, positive = blend(graph, model, small.clip, masked)
        samples(graph, ksampler(graph, patched, positive, encode(graph, small.clip, NEGATIVE)))


@pytest.mark.oldest
def test_a_lora_beside_it_changes_all_but_the_concept(small):
    """Its own keys, which the concept was learned without, give way too."""
    save_lora("keys.safetensors", "input_blocks_1_1_transformer_blocks_0_attn2_to_k", columns=48)
    keys = []

    def sampled(lora: bool) -> torch.Tensor:
        def watch(query, key, value, options):
            keys.append(key[0].clone())
            return plain_attention(query, key, value, options)

        graph = Graph()
        model = small.model.clone()
        model.set_model_attn2_replace(watch, "input", 1)
        if lora:
            model = graph.add("LoraLoaderModelOnly", model=model, lora_name="keys.safetensors", strength_model=1.0)
        model, positive = blend(graph, model, small.clip, blend_concept(graph, small.dog), bind=False)
        negative = encode(graph, small.clip, NEGATIVE)
        return samples(graph, ksampler(graph, model, positive, negative, steps=1, cfg=1.0))[0]

    plain_attention = pack_module("common.attention").plain_attention
    assert relative_error(sampled(lora=True), sampled(lora=False)) > 1e-3
    with_lora, without = keys
    assert torch.equal(with_lora[DOG], without[DOG])
    others = [token for token in range(77) if token not in DOG]
    assert (with_lora[others] - without[others]).abs().amin(0).max() > 0.01


@pytest.mark.oldest
def test_a_control_net_beside_it_reads_the_plain_words(small):
    """Its hint is the same for the blended prompt as for the plain one, and both act."""
    image = torch.rand(1, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(0))
    hints, results = [], {}
    net = small_control_net()
    hook = net.control_model.register_forward_hook(lambda module, args, output: hints.append(output["output"][0]))
    try:
        for blended in (True, False):
            graph = Graph()
            strength = 1.0 if blended else 0.0
            chain = blend_concept(graph, small.dog, strength=strength)
            model, positive = blend(graph, small.model, small.clip, chain)
            negative = encode(graph, small.clip, NEGATIVE)
            controlled = graph.add(
                "ControlNetApplyAdvanced", positive=positive, negative=negative, control_net=net, image=image,
                strength=1.0, start_percent=0.0, end_percent=1.0,
            )  # fmt: skip
            links = [ksampler(graph, model, positive, negative, steps=1)]
            links.append(ksampler(graph, model, controlled, output(controlled, 1), steps=1))
            results[blended] = samples(graph, *links)
    finally:
        hook.remove()
    assert len(hints) == 2 and torch.equal(*hints)
    assert relative_error(results[True][1], results[True][0]) > 1e-3, "the ControlNet acts"
    assert relative_error(results[True][1], results[False][1]) > 1e-3, "the concept acts"


@pytest.mark.oldest
def test_half_precision_blends_the_same(small):
    """bf16 has 8 bits, so that a percent is left."""
    model = comfy_model(LAYOUTS["SD 1.x"], small.unet)
    unet = model.model.diffusion_model.to(torch.bfloat16)
    unet.dtype = torch.bfloat16  # as ComfyUI loads UNets on a GPU
    graph = Graph()
    patched, positive = blend(graph, model, small.clip, blend_concept(graph, small.dog, mask=MASK[None]))
    patched = guidance(graph, patched, scale=3.0, end_percent=0.6)
    negative = encode(graph, small.clip, NEGATIVE)
    (half,) = samples(graph, ksampler(graph, patched, positive, negative))
    whole = small.graph(concepts=1, mask=MASK, guided=dict(scale=3.0, end_percent=0.6))
    assert 1e-6 < relative_error(half, whole) < 3e-2


@pytest.mark.oldest
def test_models_that_have_no_cross_attention_of_words_are_refused(small):
    graph = Graph()
    flow = graph.run(model=graph.add("ModelSamplingSD3", model=small.model, shift=3.0))["model"]
    with refused("Blend, input 'model'", "flow-matching"):
        run_blend(small, model=flow)
    graph = Graph()
    with refused("Blending Guidance, input 'model'", "flow-matching"):
        graph.run(model=guidance(graph, flow))
