"""Train Concept, and what Save, Load and Import Concept keep of it."""

import copy
import json
import math
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch

from comfy_host import Graph, output, pack_module, refused
from learned_concepts import Vae, blend, blend_concept, closest, encode, ksampler, learn, learned, photos, samples
from oracle import alphas_cumprod, relative_error
from small_models import LAYOUTS, comfy_model, diffusers_unet, small_clip
from stand_ins import learned_with_demo_model
from workflow_files import LATEXBLEND, WITHOUT_DOWNLOADS, read, to_api

RARE_TOKEN = 42170  # "ktn" in the vocabulary of every CLIP


class Case:
    def __init__(self, layout: str):
        self.layout, self.model, self.clip = layout, comfy_model(LAYOUTS[layout]), small_clip(layout)

    def hashes(self) -> list[int]:
        networks = (self.model.model, self.clip.cond_stage_model)
        return [
            hash(x.detach().float().numpy().tobytes()) for network in networks for x in network.state_dict().values()
        ]


@pytest.fixture(scope="module")
def case():
    return Case("SD 1.x")


def learned_by(case, **settings):
    graph = Graph()
    return graph.run(learned=learn(graph, case.model, case.clip, **settings))["learned"]


def equal(one, other) -> bool:
    return all(torch.equal(x, y) for k in one.features for x, y in zip(one.features[k], other.features[k], strict=True))


@pytest.mark.parametrize("layout", ["SD 1.x", pytest.param("SDXL", marks=pytest.mark.oldest)])
def test_learning_leaves_model_and_clip_as_they_are(layout):
    case = Case(layout)
    before, options = case.hashes(), repr(case.model.model_options)
    graph = Graph()
    link = learn(graph, case.model, case.clip, class_images=photos(3, seed=1))
    results = graph.run(learned=link, losses=output(link, 1), loss_map=output(link, 2))
    concept = results["learned"]
    assert case.hashes() == before and repr(case.model.model_options) == options
    assert not any(x.requires_grad for x in case.model.model.parameters())
    assert len(results["loss_map"]["loss"]) == 3 and results["losses"].shape[-1] == 3
    widths = pack_module("latexblend.layers").layer_widths(case.model.model.diffusion_model)
    assert {name: key.shape for name, (key, _) in concept.features.items()} == {k: (2, w) for k, w in widths.items()}
    assert concept.settings["steps"] == "3" and concept.noun == "dog"


@pytest.mark.oldest
def test_nothing_learned_is_the_plain_word(case):
    """With learning rate 0, h_c is the frozen projection of a rare token and the noun."""
    concept = learned_by(case, learning_rate=0.0)
    tokens = case.clip.tokenize("photo of a dog")
    tokens["l"][0][3] = (RARE_TOKEN, 1.0)
    context = case.clip.encode_from_tokens(tokens)[0, 3:5]
    layer = "middle_block.1.transformer_blocks.0.attn2"
    weight = case.model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn2.to_k.weight
    torch.testing.assert_close(concept.features[layer][0], context @ weight.T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", ["SD 1.x", "SD 2.x v", "SDXL"])
def test_the_identifier_begins_with_the_rare_token_of_each_encoder(layout):
    """By the file of the vocabulary. As a word, "ktn" is cut in two, and its first token is the letter k."""
    import comfy.sd1_clip

    vocabulary = Path(comfy.sd1_clip.__file__).with_name("sd1_tokenizer") / "vocab.json"
    assert json.loads(vocabulary.read_text(encoding="utf-8"))["ktn"] == RARE_TOKEN
    clip, rare_vector = small_clip(layout), pack_module("latexblend.samplers").rare_vector
    for encoder in clip.tokenize("dog"):
        table = getattr(clip.cond_stage_model, f"clip_{encoder}").transformer.get_input_embeddings().weight
        assert torch.equal(rare_vector(clip, encoder), table[RARE_TOKEN])


@pytest.mark.oldest
def test_the_same_seed_gives_the_same_concept(case):
    files = pack_module("latexblend.concept_files")
    one, again, other = learned_by(case), learned_by(case), learned_by(case, seed=6)
    assert files.file_bytes(one) == files.file_bytes(again)
    assert closest(one, other) > 1e-4


@pytest.mark.oldest
@pytest.mark.parametrize("rank", [0, 4])
def test_checkpointing_changes_nothing(case, rank):
    settings = dict(class_images=photos(1, seed=1), rank=rank)
    assert (
        closest(learned_by(case, checkpointing=True, **settings), learned_by(case, checkpointing=False, **settings))
        < 1e-5
    )


@pytest.mark.oldest
def test_learning_goes_on_where_a_file_ends(case):
    graph = Graph()
    first = graph.run(learned=learn(graph, case.model, case.clip, steps=2, resumable=True))["learned"]
    files = pack_module("latexblend.concept_files")
    tensors = safetensors.torch.load(files.file_bytes(first))
    assert any(name.startswith("training.") for name in tensors)
    whole = learned_by(case, steps=4)
    resumed = learned_by(case, steps=4, learned=first)
    assert equal(resumed, whole)
    assert resumed.settings["steps"] == "4"
    with refused("learned", "resumable off"):
        learned_by(case, steps=4, learned=whole)
    with refused("steps", "2 of 2"):
        learned_by(case, steps=2, learned=first)
    with refused("rank"):
        learned_by(case, steps=4, rank=2, learned=first)


@pytest.mark.oldest
@pytest.mark.parametrize("has_class, prior_weight", [(False, 1.0), (True, 1.0), (True, 3.0)])
def test_the_first_gradient_is_that_of_a_slow_reference(case, has_class, prior_weight):
    """diffusers' UNet, softmax spelled out, and of the prompt's keys and values all but h_c detached. With a picture of
    its class, the two losses are those of the authors' code."""
    settings = dict(steps=1, augment=False, resumable=True, images=photos(1))
    class_images = photos(1, seed=1) if has_class else None
    state = learned_by(case, class_images=class_images, prior_weight=prior_weight, **settings).state
    expected = reference_gradient(case, photos(1), class_images, prior_weight, seed=5)
    norm = math.sqrt(sum(float(x.square().sum()) for x in expected.values()))
    for name, x in expected.items():
        clipped = x * min(1, 1 / norm)
        torch.testing.assert_close(state[f"{name}.mean"], 0.1 * clipped, rtol=2e-3, atol=2e-4 * float(clipped.norm()))


def reference_gradient(case, pictures, class_images, prior_weight: float, seed: int) -> dict[str, torch.Tensor]:
    """By the names of learning's state, of the loss of the first step."""
    import comfy.utils
    from pnpmix.latexblend.training import TEMPLATES, draw

    unet = diffusers_unet(LAYOUTS[case.layout])
    every = [pictures] if class_images is None else [pictures, class_images]
    latent = torch.cat([Vae().encode(x[:, :, 4:-4]) for x in every])
    latent = latent * case.model.get_model_object("latent_format").scale_factor
    drawn = draw(seed, 0, 1, len(every) - 1, latent.shape[1:])
    t, noise = drawn.timesteps, drawn.noise
    base_text, own_text = (TEMPLATES[k].format("a dog") for k in (drawn.base_template, drawn.concept_template))
    dog, article = (case.clip.tokenize(word)["l"][0][1][0] for word in ("dog", "a"))

    def first(tokens: dict) -> int:
        """The article before the noun."""
        ids = [token[0] for token in tokens["l"][0]]
        assert ids[ids.index(dog) - 1] == article
        return ids.index(dog) - 1

    base_tokens, own_tokens = case.clip.tokenize(base_text), case.clip.tokenize(own_text)
    base, at = case.clip.encode_from_tokens(base_tokens), first(base_tokens)
    contexts = torch.cat([base, case.clip.encode_from_tokens(case.clip.tokenize("dog"))])[: len(every)]
    table = case.clip.cond_stage_model.clip_l.transformer.get_input_embeddings().weight
    identifier = table[RARE_TOKEN].clone().requires_grad_(True)
    start = first(own_tokens)
    own_tokens["l"][0][start] = (identifier, 1.0)
    gradients = pack_module("common.gradients")
    with gradients.unchanged_norms(case.clip.cond_stage_model):
        own = case.clip.cond_stage_model.encode_token_weights(own_tokens)[0][:, start : start + 2]
    names = comfy.utils.unet_to_diffusers(LAYOUTS[case.layout].comfy)
    ours = {theirs.removesuffix(".weight"): name.removesuffix(".weight") for theirs, name in names.items()}
    deltas: dict[str, torch.Tensor] = {}

    def process(name: str):
        def attend(attn, hidden_states, encoder_hidden_states=None, **_):
            features = []
            for side in "kv":
                layer = getattr(attn, f"to_{side}")
                delta = torch.zeros_like(layer.weight, requires_grad=True)
                deltas[f"delta.{ours[f'{name}.to_{side}'].replace(f'.to_{side}', '')}.{side}.0"] = delta
                plain, learning = layer(base).detach(), own @ (layer.weight + delta).T
                concept = torch.cat([plain[:, :at], learning, plain[:, at + 2 :]], 1)
                features.append(torch.cat([concept, contexts[1:] @ (layer.weight + delta).T]))
            query, key, value = (
                x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (attn.to_q(hidden_states), *features)
            )
            weights = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1)
            return attn.to_out[0]((weights @ value).transpose(1, 2).flatten(2))

        return attend

    before = unet.attn_processors
    own_processors = {name: process(name.removesuffix(".processor")) for name in before if "attn2" in name}
    unet.set_attn_processor({**before, **own_processors})
    abar = alphas_cumprod()[t].float().view(-1, 1, 1, 1)
    with torch.enable_grad():
        predicted = unet(abar.sqrt() * latent + (1 - abar).sqrt() * noise, t, contexts).sample
        error = (predicted - noise).square()
        loss = error[0].mean()
        if class_images is not None:
            loss = error[0].sum() / error[0, 0].numel() + prior_weight * error[1].mean()
        parameters = {"identifier.l": identifier, **deltas}
        return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


@pytest.mark.oldest
def test_small_views_stand_on_gray_and_are_learned_inside_their_border(case):
    """In pixels of -1 to 1, as the VAE has them, nothing. The mask leaves out what it mixes with the photo."""
    training, samplers = pack_module("latexblend.training"), pack_module("latexblend.samplers")
    settings = samplers.Settings("dog", 1, 1e-3, 128, 0, 5, True, 1.0, "fp32")
    latents, masks = training.encode_views(Vae(), [torch.ones(128, 128, 3)], settings)
    small = [k for k in range(len(masks)) if not masks[k].all()]
    assert 0 < len(small) < len(masks) and latents.shape[-2:] == masks.shape[-2:] == (16, 16)
    for k in small:
        photo, learned_from = latents[k] > 0.999, masks[k][0] == 1  # of a white photo, the tokens that are it alone
        assert 0 < learned_from.sum() < photo[0].sum() and photo[:, learned_from].all()
        assert abs(latents[k].min() - 0.5) < 1e-5


@pytest.mark.oldest
def test_photos_may_come_as_a_list_of_different_sizes(case):
    sampler = pack_module("latexblend.training")
    squares = [sampler.square(x, 64) for x in sampler.photos_of("images", [photos(2), photos(1, 80)])]
    assert [x.shape for x in squares] == [(3, 64, 64)] * 3


def cancel_at(case, step: int):
    """A hook that presses Cancel in a step."""
    import comfy.model_management

    calls = []

    def press(*_):
        calls.append(None)
        if len(calls) == step:
            comfy.model_management.interrupt_current_processing(True)

    return case.model.model.diffusion_model.register_forward_pre_hook(press)


@pytest.mark.parametrize("keep", [False, True])
def test_cancel_ends_learning_and_can_keep_what_was_learned(case, keep, messages):
    import comfy.model_management

    before, hook = case.hashes(), cancel_at(case, 2)
    try:
        if keep:
            concept = learned_by(case, steps=50, keep_on_cancel=True)
            assert concept.settings["steps"] in ("1", "2"), "hosts look for it in a step or after it"
            assert "cancelled" in messages()
        else:
            with refused("interrupt"):
                learned_by(case, steps=50)
    finally:
        hook.remove()
        comfy.model_management.interrupt_current_processing(False)
    assert case.hashes() == before
    assert "forward" not in case.model.model.diffusion_model.input_blocks[1][0].__dict__


def test_nan_stops_with_the_step_and_keeps_what_was_learned_before(case, messages, monkeypatch):
    before = case.hashes()
    samplers = pack_module("latexblend.samplers")
    with monkeypatch.context() as at_once:
        at_once.setattr(samplers.TrainSampler, "loss_of", lambda self, step: torch.tensor(float("nan")))
        with refused("learning_rate", "at step 1", "NaN"):
            learned_by(case)
    monkeypatch.setattr(samplers, "KEPT_EVERY", 1)
    sound, losses = samplers.TrainSampler.loss_of, []

    def loss_of(self, step):
        losses.append(step)
        return sound(self, step) * (float("nan") if step == 2 else 1)

    monkeypatch.setattr(samplers.TrainSampler, "loss_of", loss_of)
    concept = learned_by(case, steps=10)
    assert losses == [0, 1, 2] and concept.settings["steps"] == "2"
    assert "at step 3" in messages() and "2 steps is kept" in messages()
    monkeypatch.undo()
    assert equal(concept, learned_by(case, steps=2))
    assert case.hashes() == before


def test_an_error_while_learning_leaves_all_as_it_was(case):
    before, options, calls = case.hashes(), repr(case.model.model_options), []

    def fails(*_):
        calls.append(None)
        if len(calls) == 2:
            raise RuntimeError("out of memory, for example")

    unet = case.model.model.diffusion_model
    hook = unet.middle_block[1].register_forward_pre_hook(fails)
    try:
        with refused("out of memory"):
            learned_by(case)
    finally:
        hook.remove()
    assert case.hashes() == before and repr(case.model.model_options) == options
    assert not any(x.requires_grad for network in (unet, case.clip.cond_stage_model) for x in network.parameters())
    assert not any("forward" in module.__dict__ for module in unet.modules())
    assert not any(module._forward_pre_hooks for module in case.clip.cond_stage_model.modules())


@pytest.mark.oldest
def test_a_model_in_half_precision_learns_the_same(case):
    """As ComfyUI loads UNets on a GPU. bf16 has 8 bits, so that some percent are left."""
    half = copy.copy(case)
    half.model = comfy_model(LAYOUTS[case.layout])
    unet = half.model.model.diffusion_model.to(torch.bfloat16)
    unet.dtype = torch.bfloat16
    before = half.hashes()
    whole = learned_by(case)
    for dtype in ("bf16", "fp32"):
        learned = learned_by(half, dtype=dtype)
        for layer, pair in whole.features.items():
            for x, y in zip(learned.features[layer], pair, strict=True):
                assert relative_error(x, y) < 6e-2
    assert half.hashes() == before


@pytest.mark.oldest
def test_while_it_learns_the_editor_shows_a_sample_now_and_then(case, monkeypatch):
    """And how far it is, every step."""
    import comfy.utils
    import latent_preview
    from comfy.cli_args import LatentPreviewMethod

    reports = []
    monkeypatch.setattr(latent_preview.args, "preview_method", LatentPreviewMethod.Latent2RGB)
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, preview, **_: reports.append((value, total, preview))
    )
    monkeypatch.setattr(pack_module("latexblend.samplers"), "PREVIEW_EVERY", 2)
    watched = learned_by(case)
    assert [report[:2] for report in reports] == [(1, 3), (2, 3), (3, 3)]
    assert [report[2] is not None for report in reports] == [False, True, False]
    assert reports[1][2][1].size == (8, 8), "cells of the latent"
    monkeypatch.setattr(latent_preview.args, "preview_method", LatentPreviewMethod.NoPreviews)
    assert equal(learned_by(case), watched), "looking changes nothing"


@pytest.mark.newest
def test_photos_come_from_the_hosts_own_dataset_and_losses_go_into_its_plot(case):
    import folder_paths
    from PIL import Image

    folder = Path(folder_paths.get_input_directory()) / "my dog"
    folder.mkdir()
    for k, size in enumerate([(64, 80), (96, 72)]):
        Image.new("RGB", size, (60 * k, 90, 120)).save(folder / f"{k}.png")
    graph = Graph()
    images = graph.add("LoadImageDataSetFromFolder", folder="my dog")
    link = learn(graph, case.model, case.clip, images=images)
    plot = graph.add("LossGraphNode", loss=output(link, 2), filename_prefix="loss")
    assert graph.run(learned=link)["learned"].settings["steps"] == "3"
    assert plot[0] in graph.prompt, "it ran, as every node with a result of its own"


@pytest.mark.oldest
def test_what_cannot_be_learned_from_is_refused(case):
    with refused("Train Concept", "images", "only 72 × 63 pixels"):
        learned_by(case, images=torch.zeros(1, 63, 72, 3))
    with refused("noun", "empty"):
        learned_by(case, noun=" ")
    with refused("images", "shape"):
        learned_by(case, images=torch.zeros(0, 64, 64, 3))
    with refused("images", "NaN"):
        learned_by(case, images=photos() * float("nan"))
    with refused("class_images", "only 40 × 32 pixels"):
        learned_by(case, class_images=photos(1, 32))
    with refused("noun", "is no word"):
        learned_by(case, noun="a " * 80)
    with refused("noun", "is too long", "75 tokens"):
        learned_by(case, noun="a " * 72)
    with refused("Train Concept", "'model'", "flow-matching"):
        graph, flow = Graph(), copy.copy(case)
        flow.model = graph.run(model=graph.add("ModelSamplingSD3", model=case.model, shift=3.0))["model"]
        learned_by(flow)


@pytest.mark.oldest
def test_without_class_images_the_node_says_so(case, messages):
    learned_by(case, steps=1)
    assert "Warning: no class_images" in messages()


def test_photos_to_picture(case):
    """Learn, save, load, blend two, sample."""
    import folder_paths

    graph = Graph()
    saved = graph.add(
        "PnPMixSaveConcept", learned=learn(graph, case.model, case.clip, name="Rex"), filename_prefix="test/rex"
    )
    concept = graph.run(learned=saved)["learned"]
    folder_paths.filename_list_cache.clear()
    graph = Graph()
    loaded = graph.add("PnPMixLoadConcept", file="test/rex_00001_.safetensors")
    results = graph.run(learned=loaded, noun=output(loaded, 1))
    assert results["noun"] == "dog" and results["learned"].name == "Rex"
    assert closest(results["learned"], concept) < 2e-2, "half precision"
    chain = blend_concept(graph, learned(case.model, "cat", 3), blend_concept(graph, loaded))
    model, positive = blend(graph, case.model, case.clip, chain, text="a dog and a cat")
    (picture,) = samples(graph, ksampler(graph, model, positive, encode(graph, case.clip, "")))
    assert torch.isfinite(picture).all()


@pytest.mark.oldest
@pytest.mark.parametrize("name", LATEXBLEND)
def test_template_gives_a_picture_with_the_demo_model_in_the_place_of_its_files(name):
    """In few steps of learning and of sampling."""
    prompt, graph = to_api(read(name)), Graph()
    graph.prompt = prompt if name in WITHOUT_DOWNLOADS else learned_with_demo_model(prompt)
    for node in graph.prompt.values():
        if node["class_type"] in ("PnPMixTrainConcept", "KSampler"):
            node["inputs"]["steps"] = 2
    nodes = {node["class_type"]: node["inputs"] for node in graph.prompt.values()}
    picture = graph.run(finished=nodes["SaveImage"]["images"])["finished"]
    assert picture.shape[1:] in ((512, 512, 3), (64, 64, 3)) and picture.std() > 0.05


# Files


@pytest.mark.oldest
def test_the_packs_own_concepts_are_offered_and_fit_the_demo_model():
    """Learned without ComfyUI; nothing warns of another checkpoint."""
    graph, chain = Graph(), None
    demo = graph.add("PnPMixDemoModel")
    for noun in ("ball", "cup", "fish"):
        chain = blend_concept(graph, graph.add("PnPMixLoadConcept", file=f"demo model: {noun}.safetensors"), chain)
    model, positive = blend(graph, demo, output(demo, 1), chain, text="ball, cup, fish, sea")
    graph.run(model=model, positive=positive)
    blending = pack_module("latexblend.blending")
    graph = Graph()
    model = graph.run(model=graph.add("PnPMixDemoModel"))["model"]
    concept = load("demo model: cup.safetensors")
    assert concept.noun == "cup" and blending.fingerprint(model) == concept.fingerprint
    with refused("not in models/concepts"):
        load("demo model: ../weights.safetensors")


def concepts_folder():
    import folder_paths

    folder_paths.filename_list_cache.clear()
    return folder_paths.get_folder_paths("concepts")[0]


def load(name: str):
    concepts_folder()
    graph = Graph()
    return graph.run(learned=graph.add("PnPMixLoadConcept", file=name))["learned"]


@pytest.mark.oldest
def test_files_that_are_no_concepts_are_refused(case):
    files, folder = pack_module("latexblend.concept_files"), Path(concepts_folder())
    data = files.file_bytes(learned(case.model, "dog", 1))
    (folder / "cut.safetensors").write_bytes(data[:-100])
    with refused("Load Concept", "cut.safetensors is damaged, cut short"):
        load("cut.safetensors")
    (folder / "other.safetensors").write_bytes(safetensors.torch.save({"x": torch.zeros(1)}))
    with refused("is not a trained concept"):
        load("other.safetensors")
    concept = learned(case.model, "dog", 1)
    layer = next(iter(concept.features))
    bad = {**concept.features, layer: (concept.features[layer][0] * float("nan"), concept.features[layer][1])}
    bank = files.bank
    about = json.dumps(concept._asdict() | {"version": "1", "features": None, "state": None})
    (folder / "nan.safetensors").write_bytes(safetensors.torch.save(bank.to_tensors(bad), {bank.FORMAT: about}))
    with refused("NaN or infinity"):
        load("nan.safetensors")
    with refused("not in models/concepts"):
        Graph().add  # noqa: B018
        graph = Graph()
        graph.run(learned=graph.add("PnPMixLoadConcept", file="../nan.safetensors"))


@pytest.mark.oldest
def test_a_concept_bank_of_the_methods_own_code_is_imported(case):
    files, folder = pack_module("latexblend.concept_files"), Path(concepts_folder())
    concept = learned(case.model, "dog", 1)
    theirs = {ours: name for name, ours in files.diffusers_names(case.model).items()}
    whole = {name: torch.randn(77, key.shape[1]) for name, (key, _) in concept.features.items()}
    bank = {}
    for name, pair in concept.features.items():
        views = []
        for x in pair:
            full = whole[name].clone()
            full[4:6] = x
            views.append(full[4:6])  # as the code saves them: views of all tokens
        bank[theirs[name] + ".processor"] = dict(zip("kv", views, strict=True))
    torch.save(bank, folder / "bank.pt")
    graph = Graph()
    link = graph.add("PnPMixImportConcept", file="bank.pt", noun="dog", name="", clip=case.clip, model=case.model)
    concepts_folder()
    imported = graph.run(learned=link)["learned"]
    assert equal(imported, concept) and imported.name == "bank"
    assert all(x.untyped_storage().nbytes() == x.numel() * 4 for pair in imported.features.values() for x in pair)
    graph = Graph()
    link = graph.add(
        "PnPMixImportConcept", file="bank.pt", noun="teddy bear", name="", clip=case.clip, model=case.model
    )
    with refused("expected: 3 ×"):
        graph.run(learned=link)


@pytest.mark.oldest
def test_learned_weights_of_the_methods_own_code_are_imported(case):
    files, layers, folder = (
        pack_module("latexblend.concept_files"),
        pack_module("latexblend.layers"),
        Path(concepts_folder()),
    )
    unet = case.model.model.diffusion_model
    names = {ours: theirs for theirs, ours in files.diffusers_names(case.model).items()}
    weights, expected = {}, {}
    vector = torch.randn(48, generator=torch.Generator().manual_seed(2))
    tokens = case.clip.tokenize("photo of a dog")
    tokens["l"][0][3] = (vector, 1.0)
    context = case.clip.encode_from_tokens(tokens)[0, 3:5]
    for name, (_, module) in layers.cross_attentions(unet).items():
        for side in "kv":
            weight = getattr(module, f"to_{side}").weight.detach() + 0.1
            weights[f"{names[name]}.to_{side}.weight"] = weight
            expected[name, side] = context @ weight.T
    torch.save({"unet": weights, "modifier_token": {"<new1>": [vector]}}, folder / "delta.bin")
    concepts_folder()
    graph = Graph()
    link = graph.add("PnPMixImportConcept", file="delta.bin", noun="dog", name="Rex", clip=case.clip, model=case.model)
    features = graph.run(learned=link)["learned"].features
    for (name, side), x in expected.items():
        torch.testing.assert_close(features[name]["kv".index(side)], x, rtol=1e-4, atol=1e-5)


class Hostile:
    def __reduce__(self):
        return (open, ("hostile ran", "w"))


@pytest.mark.oldest
def test_code_in_a_file_does_not_run(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path(concepts_folder())
    (folder / "hostile.pt").write_bytes(pickle.dumps({"unet": Hostile()}))
    torch.save({"layer": Hostile()}, folder / "hostile2.pt")
    for name in ("hostile.pt", "hostile2.pt"):
        concepts_folder()
        graph = Graph()
        link = graph.add("PnPMixImportConcept", file=name, noun="dog", name="", clip=case.clip, model=case.model)
        with refused("Import Concept", "it holds io.open"):
            graph.run(learned=link)
    assert not (tmp_path / "hostile ran").exists()


def import_concept(case, file: str, **inputs):
    concepts_folder()
    graph = Graph()
    given = dict(noun="dog", name="", clip=case.clip, model=case.model) | inputs
    return graph.run(learned=graph.add("PnPMixImportConcept", file=file, **given))["learned"]


@pytest.mark.oldest
def test_what_diffusers_custom_diffusion_saves_is_imported(case):
    """The weights as its training script saves them, and the word that lies beside them."""
    from diffusers.models.attention_processor import CustomDiffusionAttnProcessor

    files, layers = pack_module("latexblend.concept_files"), pack_module("latexblend.layers")
    unet = diffusers_unet(LAYOUTS["SD 1.x"])
    processors, weights = {}, unet.state_dict()
    for name in unet.attn_processors:
        layer = name.removesuffix(".processor")
        hidden, width = (weights[f"{layer}.to_k.weight"].shape[k] for k in (0, 1))
        is_cross = "attn2" in name
        own = CustomDiffusionAttnProcessor(
            train_kv=is_cross, train_q_out=False, hidden_size=hidden, cross_attention_dim=width if is_cross else None
        )
        if is_cross:
            for side in "kv":
                getattr(own, f"to_{side}_custom_diffusion").weight.data = weights[f"{layer}.to_{side}.weight"] + 0.1
        processors[name] = own
    unet.set_attn_processor(processors)
    folder = Path(concepts_folder()) / "mine"
    unet.save_attn_procs(folder, weight_name="pytorch_custom_diffusion_weights.bin", safe_serialization=False)
    file = "mine/pytorch_custom_diffusion_weights.bin"
    with refused("Import Concept, input 'file'", "not one file with its word, but none", "<new1>.bin"):
        import_concept(case, file)
    vector = torch.randn(48, generator=torch.Generator().manual_seed(2))
    torch.save({"<new1>": vector}, folder / "<new1>.bin")
    features = import_concept(case, file, name="Rex").features
    tokens = case.clip.tokenize("photo of a dog")
    tokens["l"][0][3] = (vector, 1.0)
    context = case.clip.encode_from_tokens(tokens)[0, 3:5]
    theirs = {ours: name for name, ours in files.diffusers_names(case.model).items()}
    assert features.keys() == layers.cross_attentions(case.model.model.diffusion_model).keys()
    for name, pair in features.items():
        for side, x in zip("kv", pair, strict=True):
            expected = context @ (weights[f"{theirs[name]}.to_{side}.weight"] + 0.1).T
            torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-5)
    torch.save({"<new2>": vector}, folder / "<new2>.bin")
    with refused("but <new1>.bin, <new2>.bin"):
        import_concept(case, file)


@pytest.mark.oldest
def test_an_embedding_is_told_where_it_belongs(case):
    """Of diffusers, of AUTOMATIC1111's web UI, and of trainers for SDXL."""
    folder, vector = Path(concepts_folder()), torch.ones(768)
    torch.save({"<cat-toy>": vector}, folder / "learned_embeds.bin")
    torch.save(
        {"string_to_token": {"*": 265}, "string_to_param": {"*": vector[None]}, "name": "toy"}, folder / "toy.pt"
    )
    safetensors.torch.save_file({"emb_params": vector[None]}, folder / "one.safetensors")
    safetensors.torch.save_file({"clip_l": vector[None], "clip_g": torch.ones(1, 1280)}, folder / "both.safetensors")
    for name in ("learned_embeds.bin", "toy.pt"):
        with refused(
            "Import Concept, input 'file'", "is an embedding", "models/embeddings", f"embedding:{name[:-4]}"[:16]
        ):
            import_concept(case, name)
    for name in ("one", "both"):
        with refused("Load Concept, input 'file'", "is an embedding", f"embedding:{name} in a prompt"):
            load(f"{name}.safetensors")


@pytest.mark.oldest
def test_no_concept_is_saved_that_cannot_be_loaded(case):
    concept, folder = learned(case.model, "dog", 1), Path(concepts_folder())
    layer, pair = next(iter(concept.features.items()))
    bad = {
        "contains NaN or infinity": dict(features={**concept.features, layer: (pair[0] * 1e6, pair[1])}),
        "entry 'name'": dict(name="a\ud800"),
        "entry 'noun'": dict(noun=" "),
        "'steps' should be a whole number": dict(settings={"steps": "many"}),
    }
    before = sorted(folder.rglob("*"))
    for fault, fields in bad.items():
        graph = Graph()
        own = graph.given(concept._replace(**fields))
        with refused("Save Concept, input 'learned'", fault):
            graph.run(x=graph.add("PnPMixSaveConcept", learned=own, filename_prefix="bad"))
    assert sorted(folder.rglob("*")) == before


@pytest.mark.oldest
def test_a_concept_of_more_tokens_than_its_noun_is_refused(case):
    """Else what comes after it would land in wrong places."""
    graph = Graph()
    chain = blend_concept(graph, learned(case.model, "dog", 1, tokens=4))
    with refused("Blend Concept 'dog', input 'learned'", "4 tokens, with 'dog' it should be 2"):
        graph.run(x=blend(graph, case.model, case.clip, chain, text="a dog")[0])


@pytest.mark.oldest
def test_what_learning_goes_on_from_is_held_against_the_model(case):
    settings = dict(rank=1, steps=2)
    graph = Graph()
    first = graph.run(learned=learn(graph, case.model, case.clip, resumable=True, **settings))["learned"]
    name = next(x for x in first.state if x.endswith(".mean"))
    odd = {
        "a single number": {name: torch.zeros(())},
        "another side": {name: torch.zeros(1, 1, 1)},
        "complex": {name: first.state[name] * 1j},
        "one more": {"other": torch.zeros(1)},
    }
    states = [first.state | change for change in odd.values()]
    states.append({key: x for key, x in first.state.items() if key != name})
    for state in states:
        graph = Graph()
        own = graph.given(first._replace(state=state))
        with refused("Train Concept, input 'learned'", "does not fit this model"):
            graph.run(x=learn(graph, case.model, case.clip, learned=own, rank=1, steps=3))


@pytest.mark.oldest
def test_a_concept_may_be_written_anew_in_place(case):
    files, folder = pack_module("latexblend.concept_files"), Path(concepts_folder())
    concept = learned(case.model, "dog", 1)
    (folder / "mapped.safetensors").write_bytes(files.file_bytes(concept))
    loaded = load("mapped.safetensors")
    with (folder / "mapped.safetensors").open("r+b") as file:
        file.truncate(0)
    assert closest(loaded, concept) < 1e-2
