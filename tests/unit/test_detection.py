"""Words find boxes as the published models do, whatever version of transformers is installed."""

import subprocess
import sys
from pathlib import Path

import pytest
import skimage
import torch
import transformers
from pnpmix.vision.detection import (
    CONFIGS,
    GroundingDino,
    TextEncoder,
    build_grounding_dino,
    detect,
    found_objects,
    network_input,
    plain_names,
    split_phrases,
    tokenize,
)

from detection_models import ToldDetector, randomise, read_bert_folder, write_bert_folder


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    return write_bert_folder(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def swin_t(bert_folder):
    """The real Swin-T architecture with a small BERT, all weights random."""
    return randomise(GroundingDino(CONFIGS[96], *read_bert_folder(bert_folder)), 0)


@pytest.fixture(scope="module")
def tokenizer(bert_folder):
    return read_bert_folder(bert_folder)[1]


def text_input(tokenizer, caption: str) -> dict[str, torch.Tensor]:
    """What Grounding DINO shows its text encoder: phrases that do not see each other, each counted from 0."""
    from groundingdino.models.GroundingDINO.bertwarper import generate_masks_with_special_tokens_and_transfer_map

    tokens = tokenizer([caption], return_tensors="pt")
    special = tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]", ".", "?"])
    mask, positions, _ = generate_masks_with_special_tokens_and_transfer_map(tokens, special, tokenizer)
    ids = tokens["input_ids"]
    return dict(input_ids=ids, attention_mask=mask, token_type_ids=tokens["token_type_ids"], position_ids=positions)


def test_text_encoder_equals_berts_own_forward(bert_folder):
    """transformers' BertModel with the same mask; in version 4 the package's own wrapper too."""
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


def test_phrases_do_not_see_each_other(bert_folder):
    bert, tokenizer = read_bert_folder(bert_folder)
    encoder = TextEncoder(randomise(bert, 1))
    one, other = (encoder(**text_input(tokenizer, f"a dog . {x} .")) for x in ("red cup", "cat spoon"))
    one, other = one["last_hidden_state"], other["last_hidden_state"]
    assert torch.allclose(one[:, 1:4], other[:, 1:4], atol=1e-6)
    assert not torch.allclose(one[:, 4:6], other[:, 4:6], atol=1e-2)


def test_detection_equals_hugging_face(swin_t, bert_folder, monkeypatch):
    """transformers' own GroundingDinoForObjectDetection, with the same weights."""
    from hugging_face_dino import hugging_face_dino

    theirs = hugging_face_dino(swin_t.state_dict(), transformers.BertConfig.from_pretrained(bert_folder))
    caption, _, _ = tokenize(swin_t.tokenizer, ["a dog", "red cups"])
    # below 400 pixels: at the border of larger pictures the two clamp boxes by different amounts
    pixels = network_input(torch.from_numpy(skimage.data.coffee()).float() / 255)[..., :256, :320]
    chosen, choose = [], torch.topk

    def choose_the_same(scores, *args, **kwargs):
        """Which 900 places become queries; those that all but tie would come in another order by rounding."""
        chosen.append(choose(scores, *args, **kwargs))
        torch.testing.assert_close(chosen[-1].values, chosen[0].values, rtol=1e-4, atol=1e-4)
        return chosen[0]

    monkeypatch.setattr(torch, "topk", choose_the_same)
    with torch.inference_mode():
        ours = swin_t(pixels, captions=[caption])
        expected = theirs(pixels, **swin_t.tokenizer(caption, return_tensors="pt"))
    assert len(chosen) == 2
    logits, boxes = ours["pred_logits"], ours["pred_boxes"]
    finite = logits.isfinite()
    assert torch.equal(finite, expected.logits.isfinite()) and finite.sum() == 900 * 9
    assert (logits - expected.logits)[finite].norm() < 1e-4 * logits[finite].norm()
    assert (boxes - expected.pred_boxes).norm() < 1e-4 * boxes.norm()
    assert logits[finite].std() > 0.1 and boxes.std(1).min() > 1e-3, "nothing is compared idly"


LEFT, RIGHT = (0.1, 0.2, 0.4, 0.6), (0.5, 0.1, 0.9, 0.8)


def found(tokenizer, prompt: str, *objects, box_threshold=0.3, text_threshold=0.25):
    """What is found in a picture of 100 x 200 pixels by a network that gives these logits and boxes."""
    phrases = split_phrases(prompt)
    detector = ToldDetector(tokenizer, [list(objects)])
    scores, boxes = detect(detector, torch.rand(100, 200, 3), tokenize(tokenizer, phrases)[0])
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


def test_words_that_were_recognised_are_the_label(tokenizer):
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
    caption, ids, owners = tokenize(tokenizer, ["a dog", "red cups"])
    assert caption == "a dog . red cups ."
    assert owners == [-1, 0, 0, -1, 1, 1, 1, -1, -1]
    assert len(ids) == len(owners)


@pytest.mark.parametrize(
    "size, expected", [((512, 512), (800, 800)), ((400, 600), (800, 1200)), ((64, 640), (133, 1333))]
)
def test_shorter_side_is_800_and_longer_at_most_1333(size, expected):
    assert network_input(torch.rand(*size, 3)).shape == (1, 3, *expected)


def test_checkpoints_as_people_have_them(swin_t, bert_folder):
    """From training on several GPUs, with or without the tensors that layers share, with weights that are not used."""
    weights = swin_t.state_dict()
    once = {name: x for name, x in weights.items() if not name.startswith(("bbox_embed", "transformer.decoder.bbox"))}
    once |= {name: x for name, x in weights.items() if name.startswith("bbox_embed.0")}
    bert, tokenizer = read_bert_folder(bert_folder)
    extra = {"module.label_enc.weight": torch.zeros(1), "module.bert.pooler.dense.bias": torch.zeros(1)}
    for given in ({f"module.{name}": x for name, x in weights.items()} | extra, once):
        loaded = build_grounding_dino(plain_names(given), bert, tokenizer)
        assert all(torch.equal(x, weights[name]) for name, x in loaded.state_dict().items())
        assert not loaded.training


def test_text_encoder_of_the_folder_serves_where_the_checkpoint_has_none(swin_t, bert_folder):
    weights = {name: x for name, x in swin_t.state_dict().items() if not name.startswith("bert.")}
    bert, tokenizer = read_bert_folder(bert_folder)
    own = bert.embeddings.word_embeddings.weight.clone()
    assert torch.equal(build_grounding_dino(weights, bert, tokenizer).bert.embeddings.word_embeddings.weight, own)


def test_swin_b_is_known_by_its_weights(bert_folder):
    weights = GroundingDino(CONFIGS[128], *read_bert_folder(bert_folder)).state_dict()
    model = build_grounding_dino(weights, *read_bert_folder(bert_folder))
    assert [len(stage.blocks) for stage in model.backbone[0].layers] == [2, 2, 18, 2]


@pytest.mark.parametrize("size", [(20, 600), (600, 20)])
def test_narrowest_picture_in_lower_precision(swin_t, size):
    """Thirty times as long as high gives just enough places for the 900 queries."""
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        scores, boxes = detect(swin_t, torch.rand(*size, 3), "a dog .")
    assert scores.shape == (900, 256) and boxes.shape == (900, 4)
    assert scores.dtype == boxes.dtype == torch.float32
    assert scores.isfinite().all() and boxes.isfinite().all()
    assert (boxes >= 0).all() and (boxes <= torch.tensor([size[1], size[0]] * 2)).all()


def test_wrong_checkpoints_say_what_is_wrong(swin_t, bert_folder, tmp_path):
    bert, tokenizer = read_bert_folder(bert_folder)
    with pytest.raises(ValueError, match="no Grounding DINO"):
        build_grounding_dino({"conv.weight": torch.zeros(1)}, bert, tokenizer)
    weights = swin_t.state_dict()
    del weights["feat_map.weight"]
    with pytest.raises(ValueError, match="1 weights are missing, such as 'feat_map.weight'"):
        build_grounding_dino(weights, bert, tokenizer)
    wider, _ = read_bert_folder(write_bert_folder(tmp_path, hidden_size=32))
    with pytest.raises(ValueError, match="bert.embeddings.*shape .* 64.* instead of .* 32"):
        build_grounding_dino(swin_t.state_dict(), wider, tokenizer)


def test_supervision_is_not_used():
    """groundingdino-py asks for one old version of it, other packs for newer ones."""
    code = (
        "import sys; sys.modules['supervision'] = None; import packages, pnpmix.vision.detection, pnpmix.vision.drawing"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1] / "tools")
