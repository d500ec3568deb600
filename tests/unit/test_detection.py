"""Words find boxes as the published models do, whatever version of transformers is installed."""

from pathlib import Path

import pytest
import skimage
import torch
import transformers
from pnpmix.vision.detection import detect, found_objects, look, network_input, split_phrases, tokenize
from pnpmix.vision.dino_weights import (
    build_grounding_dino,
    has_text_encoder,
    hub_layout,
    read_text_encoder,
    text_encoder_weights,
)

from detection_models import Made, ToldDetector, randomise, read_bert_folder, write_bert_folder
from published_dino import CONFIGS, PublishedDino, TextEncoder


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    return write_bert_folder(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def published(bert_folder):
    """What a Swin-T checkpoint was made for: the real architecture with a small BERT, all weights random."""
    return randomise(PublishedDino(CONFIGS[96], *read_bert_folder(bert_folder)), 0)


@pytest.fixture(scope="module")
def swin_t(published, bert_folder):
    return load(published.state_dict(), bert_folder)


@pytest.fixture(scope="module")
def tokenizer(bert_folder):
    return read_text_encoder(bert_folder)[1]


def load(state_dict: dict[str, torch.Tensor], folder: Path):
    """As Load Grounding DINO does it."""
    weights = hub_layout(state_dict)
    if not has_text_encoder(weights):
        weights |= text_encoder_weights(folder)
    return build_grounding_dino(weights, *read_text_encoder(folder))


def photo(height: int, width: int) -> torch.Tensor:
    """What the network is shown of a real photo."""
    return network_input(torch.from_numpy(skimage.data.coffee()).float() / 255)[..., :height, :width]


def same_weights(model: torch.nn.Module, other: torch.nn.Module) -> bool:
    weights = other.state_dict()
    return all(torch.equal(x, weights[name]) for name, x in model.state_dict().items())


def text_input(tokenizer, caption: str) -> dict[str, torch.Tensor]:
    """What Grounding DINO shows its text encoder: phrases that do not see each other, each counted from 0."""
    from groundingdino.models.GroundingDINO.bertwarper import generate_masks_with_special_tokens_and_transfer_map

    tokens = tokenizer([caption], return_tensors="pt")
    special = tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]", ".", "?"])
    mask, positions, _ = generate_masks_with_special_tokens_and_transfer_map(tokens, special, tokenizer)
    ids = tokens["input_ids"]
    return dict(input_ids=ids, attention_mask=mask, token_type_ids=tokens["token_type_ids"], position_ids=positions)


def test_the_oracles_text_encoder_equals_berts_own_forward(bert_folder):
    """transformers' BertModel with the same mask; in version 4 the oracle's package's own wrapper too."""
    bert, tokenizer = read_bert_folder(bert_folder)
    randomise(bert, 1)
    given = text_input(tokenizer, "a dog . red cups .")
    ours = TextEncoder(bert)(**given)["last_hidden_state"]
    is_version_4 = transformers.__version__.startswith("4.")
    # version 5 takes a ready mask for all heads, version 4 one for each pair of tokens
    mask = given["attention_mask"] if is_version_4 else given["attention_mask"][:, None]
    theirs = bert(**given | {"attention_mask": mask}).last_hidden_state
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    if is_version_4:
        from groundingdino.models.GroundingDINO.bertwarper import BertModelWarper

        bert.pooler = None
        torch.testing.assert_close(ours, BertModelWarper(bert)(**given)["last_hidden_state"], rtol=1e-5, atol=1e-5)


def test_phrases_do_not_see_each_other(swin_t, tokenizer):
    class Enough(Exception):
        """The picture's part of the network need not run."""

    texts = []

    def keep(module, inputs, output):
        texts.append(output)
        raise Enough

    hook = swin_t.network.model.text_projection.register_forward_hook(keep)
    for phrase in ("red cup", "cat spoon"):
        with pytest.raises(Enough):
            swin_t([torch.zeros(1, 192, 1, 1)], torch.tensor([tokenize(tokenizer, ["a dog", phrase])[0]]))
    hook.remove()
    one, other = texts
    assert torch.allclose(one[:, 1:4], other[:, 1:4], atol=1e-6)
    assert not torch.allclose(one[:, 4:6], other[:, 4:6], atol=1e-2)


@pytest.mark.parametrize("width, stages", [(96, [2, 2, 6, 2]), (128, [2, 2, 18, 2])])
def test_detection_equals_the_published_network(width, stages, published, bert_folder, tokenizer, monkeypatch):
    """For both published checkpoints, known by their weights: the package that they were made with."""
    if width != 96:
        published = randomise(PublishedDino(CONFIGS[width], *read_bert_folder(bert_folder)), 0)
    assert [len(stage.blocks) for stage in published.backbone[0].layers] == stages
    ours = load(published.state_dict(), bert_folder)
    ids, _ = tokenize(tokenizer, ["a dog", "red cups"])
    # below 400 pixels: at the border of larger pictures the two clamp boxes by different amounts
    pixels, chosen, choose = photo(192, 256), [], torch.topk

    def choose_the_same(scores, *args, **kwargs):
        """Which 900 places become queries; those that all but tie would come in another order by rounding."""
        chosen.append(choose(scores, *args, **kwargs))
        torch.testing.assert_close(chosen[-1].values, chosen[0].values, rtol=1e-4, atol=1e-4)
        return chosen[0]

    monkeypatch.setattr(torch, "topk", choose_the_same)
    with torch.inference_mode():
        logits, boxes = ours(ours.features(pixels), torch.tensor([ids]))
        expected = published(pixels, captions=["a dog . red cups ."])
    assert len(chosen) == 2
    finite = logits.isfinite()
    assert torch.equal(finite, expected["pred_logits"].isfinite()) and finite.sum() == 900 * 9
    assert (logits - expected["pred_logits"])[finite].norm() < 1e-4 * logits[finite].norm()
    assert (boxes - expected["pred_boxes"]).norm() < 1e-4 * boxes.norm()
    assert logits[finite].std() > 0.1 and boxes.std(1).min() > 1e-3, "nothing is compared idly"


LEFT, RIGHT = (0.1, 0.2, 0.4, 0.6), (0.5, 0.1, 0.9, 0.8)


def found(tokenizer, prompt: str, *objects, box_threshold=0.3, text_threshold=0.25):
    """What is found in a picture of 100 x 200 pixels by a network that gives these logits and boxes."""
    phrases = split_phrases(prompt)
    detector = ToldDetector(tokenizer, [list(objects)])
    ids, _ = tokenize(tokenizer, phrases)
    scores, boxes = detect(detector, look(detector, torch.rand(100, 200, 3)), ids, (100, 200))
    return found_objects(scores, boxes, tokenizer, phrases, box_threshold, text_threshold)


def test_box_comes_in_image_pixels_with_phrase_and_score(tokenizer):
    (dog,), best = found(tokenizer, "a dog", ({"dog": 0.7}, LEFT))
    assert dog.phrase == "dog"
    assert dog.score == pytest.approx(0.7, abs=1e-5)
    assert dog.box.tolist() == pytest.approx([20, 20, 80, 60], abs=1e-3)
    assert best == pytest.approx([0.7], abs=1e-5)


def test_objects_come_from_left_to_right_whatever_their_score(tokenizer):
    for order in (1, -1):
        boxes = [({"dog": 0.5}, LEFT), ({"dog": 0.9}, RIGHT)][::order]
        objects, _ = found(tokenizer, "dog", *boxes)
        assert [x.score for x in objects] == pytest.approx([0.5, 0.9], abs=1e-5)


def test_words_that_were_recognized_are_the_label(tokenizer):
    (cup,), _ = found(tokenizer, "red cup", ({"red": 0.4, "cup": 0.6}, LEFT))
    assert cup.phrase == "red cup"
    (cup,), _ = found(tokenizer, "red cup", ({"red": 0.2, "cup": 0.6}, LEFT))
    assert cup.phrase == "cup"
    (dogs,), _ = found(tokenizer, "dogs", ({"dog": 0.6, "##s": 0.5}, LEFT))
    assert dogs.phrase == "dogs"


def test_each_box_goes_to_its_best_phrase_and_each_phrase_has_its_best_score(tokenizer):
    boxes = ({"cat": 0.8, "dog": 0.35}, RIGHT), ({"dog": 0.6}, LEFT)
    objects, best = found(tokenizer, "dog . cat . red cup", *boxes)
    assert [x.phrase for x in objects] == ["dog", "cat"]
    assert best == pytest.approx([0.6, 0.8, 0.0], abs=2e-4)


def test_thresholds(tokenizer):
    boxes = ({"dog": 0.29}, LEFT), ({"dog": 0.31}, RIGHT)
    assert len(found(tokenizer, "dog", *boxes)[0]) == 1
    assert len(found(tokenizer, "dog", *boxes, box_threshold=0.2)[0]) == 2
    assert len(found(tokenizer, "dog", *boxes, box_threshold=0.2, text_threshold=0.3)[0]) == 1
    objects, best = found(tokenizer, "dog", *boxes, box_threshold=0.5)
    assert objects == []
    assert best == pytest.approx([0.31], abs=1e-5)


def test_two_boxes_round_one_object_count_once(tokenizer):
    nearly_left = (0.1, 0.21, 0.4, 0.6)
    objects, _ = found(tokenizer, "dog . cat", ({"dog": 0.5}, LEFT), ({"cat": 0.6}, nearly_left))
    assert [x.phrase for x in objects] == ["cat"]


@pytest.mark.parametrize(
    "prompt, phrases",
    [
        ("A dog", ["a dog"]),
        (" a  dog.Red cup . ", ["a dog", "red cup"]),
        ("dog? cat", ["dog", "cat"]),
        (" . ..", []),
        ("", []),
    ],
)
def test_phrases_of_a_prompt(prompt, phrases):
    assert split_phrases(prompt) == phrases


def test_tokens_know_their_phrase(tokenizer):
    ids, owners = tokenize(tokenizer, ["a dog", "red cups"])
    assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", "a", "dog", ".", "red", "cup", "##s", ".", "[SEP]"]
    assert owners == [-1, 0, 0, -1, 1, 1, 1, -1, -1]


@pytest.mark.parametrize(
    "size, expected", [((512, 512), (800, 800)), ((400, 600), (800, 1200)), ((64, 640), (133, 1333))]
)
def test_shorter_side_is_800_and_longer_at_most_1333(size, expected):
    assert network_input(torch.rand(*size, 3)).shape == (1, 3, *expected)


def without(weights: dict[str, torch.Tensor], *beginnings: str) -> dict[str, torch.Tensor]:
    return {name: x for name, x in weights.items() if not name.startswith(beginnings)}


BOX_HEADS = "bbox_embed.", "transformer.decoder.bbox_embed."
FIRST, LAST = "bbox_embed.0.", "transformer.decoder.bbox_embed.5."


def test_checkpoints_as_people_have_them(published, swin_t, bert_folder):
    """From training on several GPUs, with the tensors that layers share once or for each, in half precision, with
    weights that are not used, as the Hub lays them out."""
    weights = published.state_dict()
    extra = {"module.label_enc.weight": torch.zeros(1), "module.bert.pooler.dense.bias": torch.zeros(1)}
    once = without(weights, *BOX_HEADS)
    first, last = ({name: x for name, x in weights.items() if name.startswith(head)} for head in (FIRST, LAST))
    for given in ({f"module.{name}": x for name, x in weights.items()} | extra, once | first, once | last):
        loaded = load(given, bert_folder)
        assert same_weights(loaded, swin_t)
        assert not loaded.training
    hub = without(hub_layout(weights), *(f"bbox_embed.{k}" for k in range(1, 6)), "model.decoder.bbox_embed")
    assert same_weights(load(hub, bert_folder), swin_t)
    half = load({name: x.half() if x.is_floating_point() else x for name, x in weights.items()}, bert_folder)
    assert {x.dtype for x in half.parameters()} == {torch.float32}


def test_the_list_of_words_alone_is_enough(bert_folder, tmp_path):
    """Then the settings are those of bert-base-uncased, which the published checkpoints were made with."""
    words = (bert_folder / "vocab.txt").read_text()
    (tmp_path / "vocab.txt").write_text(words)
    config, tokenizer = read_text_encoder(tmp_path)
    published = dict(
        hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072, hidden_act="gelu",
        max_position_embeddings=512, type_vocab_size=2, vocab_size=30522, layer_norm_eps=1e-12, pad_token_id=0,
    )  # fmt: skip
    assert {name: getattr(config, name) for name in published} == published
    caption = "A Dog . red CUPS ."
    assert tokenizer(caption) == read_text_encoder(bert_folder)[1](caption)
    assert tokenizer.decode(tokenizer(caption)["input_ids"]) == "[CLS] a dog. red cups. [SEP]"


def test_text_encoder_of_the_folder_serves_where_the_checkpoint_has_none(published, swin_t, tmp_path):
    bert, _ = read_bert_folder(write_bert_folder(tmp_path))
    bert.save_pretrained(tmp_path)
    loaded = load(without(published.state_dict(), "bert."), tmp_path)
    text_encoder = loaded.network.model.text_backbone.state_dict()
    assert all(torch.equal(x, text_encoder[name]) for name, x in bert.state_dict().items())
    assert same_weights(loaded.backbone, swin_t.backbone)


def test_indices_of_the_file_are_not_trusted(published, swin_t, bert_folder):
    """On a GPU an index outside its table would end the whole server."""
    weights = published.state_dict()
    odd = {name: x + 10**6 for name, x in weights.items() if name.endswith("relative_position_index")}
    assert len(odd) == 12
    loaded = load(weights | odd, bert_folder)
    indices = [{name: x for name, x in model.named_buffers()} for model in (loaded, swin_t)]
    assert all(torch.equal(x, indices[1][name]) for name, x in indices[0].items())


def test_building_downloads_nothing_and_makes_no_weights_up(published, bert_folder, monkeypatch):
    def refuse(*_):
        raise AssertionError("a request to the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    with Made() as made:
        load(published.state_dict(), bert_folder)
    assert made.numbers == 0


@pytest.mark.parametrize("size", [(20, 600), (600, 20)])
def test_narrowest_picture_in_lower_precision(swin_t, tokenizer, size):
    """Thirty times as long as high gives just enough places for the 900 queries. In the precision that CUDA runs in."""
    ids, _ = tokenize(tokenizer, ["a dog"])
    picture = torch.rand(*size, 3, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.float16):
        scores, boxes = detect(swin_t, look(swin_t, picture), ids, size)
    assert scores.shape == (900, 256) and boxes.shape == (900, 4)
    assert scores.dtype == boxes.dtype == torch.float32
    assert scores.isfinite().all() and boxes.isfinite().all()
    assert (boxes >= 0).all() and (boxes <= torch.tensor([size[1], size[0]] * 2)).all()


def test_wrong_checkpoints_say_what_is_wrong(published, bert_folder, tmp_path):
    weights = published.state_dict()
    stem = "backbone.0.patch_embed.proj.weight"
    for given in ({"conv.weight": torch.zeros(1)}, {stem: torch.tensor(96.0)}, {stem: torch.zeros(97, 3, 4, 4)}):
        with pytest.raises(ValueError, match="not a Grounding DINO"):
            load(given, bert_folder)
    with pytest.raises(ValueError, match="1 weights are missing, such as '.*text_projection.weight'"):
        load(without(weights, "feat_map.weight"), bert_folder)
    with pytest.raises(ValueError, match="weights are missing, such as '.*bbox_embed"):
        load(without(weights, *BOX_HEADS), bert_folder)
    for shape in ((), (7,), (3, 5)):
        name = "transformer.encoder.text_layers.0.self_attn.in_proj_weight"
        with pytest.raises(ValueError, match="text_enhancer_layer.*shape|in_proj_weight.*shape"):
            load(weights | {name: torch.zeros(shape)}, bert_folder)
    with pytest.raises(ValueError, match="text_backbone.* has another shape"):
        load(weights, write_bert_folder(tmp_path, hidden_size=32))


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda lines: [*lines[:1012], ",", *lines[1013:]], "numbers for"),
        (lambda lines: [lines[0], *lines[2:102], "filler", *lines[102:]], "numbers for"),
        (lambda lines: [*lines, "more", "words"], "1041 words, its settings say 1039"),
    ],
)
def test_words_that_the_network_would_misread_are_refused(published, tmp_path, change, words):
    """transformers' network has some token ids built in."""
    folder = write_bert_folder(tmp_path)
    lines = (folder / "vocab.txt").read_text().splitlines()
    (folder / "vocab.txt").write_text("\n".join(change(lines)) + "\n")
    with pytest.raises(ValueError, match=words):
        load(published.state_dict(), folder)


def test_text_encoder_for_short_texts_is_refused(published, tmp_path):
    folder = write_bert_folder(tmp_path, max_position_embeddings=128)
    with pytest.raises(ValueError, match="reads 128 tokens instead of 256"):
        load(published.state_dict(), folder)
