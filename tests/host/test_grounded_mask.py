"""Grounded Mask in a graph: words in, masks out, each picture encoded once, nothing silent."""

import gc
import sys

import pytest
import skimage
import torch
from pnpmix.masks import gaussian_blur

from comfy_host import Graph, output, refused
from detection_models import ToldDetector, read_bert_folder, small_sam, write_bert_folder

LEFT, RIGHT = (0.05, 0.2, 0.45, 0.9), (0.5, 0.1, 0.95, 0.8)
DOG_AND_CAT = [({"dog": 0.7}, RIGHT), ({"cat": 0.6}, LEFT), ({"dog": 0.4}, LEFT)]


def pack_module(node: str):
    import nodes

    return sys.modules[nodes.NODE_CLASS_MAPPINGS[node].__module__]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return read_bert_folder(write_bert_folder(tmp_path_factory.mktemp("bert")))[1]


@pytest.fixture
def detector_of(tokenizer):
    """A detector that sees what it is told: a list of boxes for each picture."""
    detector = pack_module("PnPMixGroundingDinoLoader").Detector
    return lambda *seen: detector(ToldDetector(tokenizer, list(seen)))


@pytest.fixture
def segmenter():
    """SAM's real decoder behind a small image encoder that counts its calls."""
    segmenter = pack_module("PnPMixSamLoader").Segmenter(small_sam())
    segmenter.encoded = 0

    def count(*_):
        segmenter.encoded += 1

    segmenter.model.image_encoder.register_forward_pre_hook(count)
    return segmenter


def photo(count: int = 1) -> torch.Tensor:
    """Real photos of one size, as a batch."""
    photos = [skimage.data.coffee()[:300, :300], skimage.data.chelsea()[:, :300], skimage.data.rocket()[:300, :300]]
    return torch.stack([torch.from_numpy(x).float() / 255 for x in photos[:count]])


def grounded_mask(graph: Graph, image, detector, segmenter, prompt: str, **changes) -> list:
    settings = dict(box_threshold=0.3, text_threshold=0.25, pick="best", expand=0, feather=0) | changes
    return graph.add(
        "PnPMixGroundedMask", image=image, detector=detector, segmenter=segmenter, prompt=prompt, **settings
    )


def run(*inputs, **changes) -> dict[str, torch.Tensor]:
    graph = Graph()
    link = grounded_mask(graph, *inputs, **changes)
    return graph.run(mask=link, background=output(link, 1), preview=output(link, 2))


def test_best_gives_the_mask_of_the_highest_score(detector_of, segmenter):
    result = run(photo(), detector_of(DOG_AND_CAT), segmenter, "dog . cat")
    alone = run(photo(), detector_of(DOG_AND_CAT[:1]), segmenter, "dog")
    assert result["mask"].shape == (1, 300, 300)
    assert result["mask"].dtype == torch.float32
    assert set(result["mask"].unique().tolist()) == {0, 1}
    assert torch.equal(result["mask"], alone["mask"])
    assert torch.equal(result["background"], 1 - result["mask"])


def test_all_joins_what_each_gives_from_left_to_right(detector_of, segmenter):
    seen = DOG_AND_CAT[:2]
    each = run(photo(), detector_of(seen), segmenter, "dog . cat", pick="each")["mask"]
    joined = run(photo(), detector_of(seen), segmenter, "dog . cat", pick="all")["mask"]
    cat, dog = (run(photo(), detector_of([x]), segmenter, "dog . cat")["mask"] for x in (seen[1], seen[0]))
    assert torch.equal(each, torch.cat([cat, dog]))
    assert torch.equal(joined, each.amax(0, keepdim=True))
    assert not torch.equal(cat, dog)


TWO_DOGS = [({"dog": 0.5}, LEFT), ({"dog": 0.9}, RIGHT), ({"dog": 0.7}, (0.55, 0.15, 0.8, 0.5)), ({"cat": 0.6}, LEFT)]


def test_a_word_that_is_there_twice_takes_two_objects_from_left_to_right(detector_of, segmenter):
    """Also where the one on the right has the better score, or a part of it has."""
    ordered = run(photo(), detector_of(TWO_DOGS[:3]), segmenter, "dog . dog", pick="in order")["mask"]
    left, right = (run(photo(), detector_of([x]), segmenter, "dog")["mask"] for x in TWO_DOGS[:2])
    assert torch.equal(ordered, torch.cat([left, right]))
    with refused("'dog' occurs 3 times, and 2 of it were found"):
        run(photo(), detector_of(TWO_DOGS[:3]), segmenter, "dog . dog . dog", pick="in order")


def test_in_order_follows_the_prompt_and_number_takes_one_of_them(detector_of, segmenter):
    seen = detector_of(DOG_AND_CAT[:2])
    dog, cat = run(photo(), seen, segmenter, "dog . cat", pick="in order")["mask"]
    assert torch.equal(torch.stack([cat, dog]), run(photo(), seen, segmenter, "cat . dog", pick="in order")["mask"])
    assert torch.equal(cat, run(photo(), seen, segmenter, "dog . cat", pick="in order", number=2)["mask"][0])
    assert torch.equal(cat, run(photo(), seen, segmenter, "dog . cat", pick="each", number=1)["mask"][0])
    with refused("input 'number': it is 3, and there are 2 objects"):
        run(photo(), seen, segmenter, "dog . cat", pick="each", number=3)


def test_preview_shows_box_words_score_and_mask(detector_of, segmenter):
    image = photo()
    result = run(image, detector_of(DOG_AND_CAT), segmenter, "dog")
    preview, mask = result["preview"], result["mask"][0] > 0
    assert preview.shape == image.shape
    assert preview.min() >= 0 and preview.max() <= 1
    changed = (preview - image).abs().amax(-1)[0] > 0.02
    assert changed[mask].float().mean() > 0.9
    assert changed[60:230, 150].all(), "the left edge of the box"
    away = ~mask.clone()
    away[:245, 140:290] = False  # box and label
    assert not changed[away].any()


def test_batch_of_pictures_gives_batch_of_masks(detector_of, segmenter):
    images, seen = photo(3), ([({"dog": 0.9}, LEFT)], [({"dog": 0.8}, RIGHT)], [({"dog": 0.7}, LEFT)])
    result = run(images, detector_of(*seen), segmenter, "dog")
    assert result["mask"].shape == (3, 300, 300)
    assert result["preview"].shape == images.shape
    for k, boxes in enumerate(seen):
        alone = run(images[k : k + 1], detector_of(boxes), segmenter, "dog")
        assert torch.equal(result["mask"][k], alone["mask"][0])


def test_each_object_of_each_picture_in_a_batch(detector_of, segmenter):
    result = run(photo(2), detector_of(DOG_AND_CAT[:2], DOG_AND_CAT[:1]), segmenter, "dog", pick="each")
    assert result["mask"].shape == (2, 300, 300), "one dog in each"
    several = [({"dog": 0.9}, LEFT), ({"dog": 0.8}, RIGHT)]
    result = run(photo(2), detector_of(several, DOG_AND_CAT[:1]), segmenter, "dog", pick="each")
    assert result["mask"].shape == result["background"].shape == (3, 300, 300)
    assert result["preview"].shape == (2, 300, 300, 3)


def test_one_picture_is_encoded_once_for_all_nodes_that_look_at_it(detector_of, segmenter):
    graph = Graph()
    image = graph.given(photo(2))
    links = [grounded_mask(graph, image, detector_of(DOG_AND_CAT), segmenter, word) for word in ("dog", "cat", "dog .")]
    graph.run(**{f"mask {k}": link for k, link in enumerate(links)})
    assert segmenter.encoded == 2, "two pictures in the batch"
    run(photo(), detector_of(DOG_AND_CAT), segmenter, "dog")
    assert segmenter.encoded == 3, "another picture"


def test_one_picture_is_looked_at_once_whatever_the_words(detector_of, segmenter):
    graph, detector = Graph(), detector_of(DOG_AND_CAT)
    image = graph.given(photo(2))
    links = [grounded_mask(graph, image, detector, segmenter, word) for word in ("dog", "cat", "dog . cat")]
    masks = graph.run(**{word: link for word, link in zip(("dog", "cat", "both"), links, strict=True)})
    assert detector.model.looks == 2, "two pictures in the batch"
    assert not torch.equal(masks["dog"], masks["cat"])


def test_what_was_seen_goes_when_its_picture_goes(detector_of, segmenter):
    detector = detector_of(DOG_AND_CAT)
    run(photo(), detector, segmenter, "dog")
    assert len(segmenter.encodings) == len(detector.encodings) == 1
    Graph()  # forgets what was given and captured
    gc.collect()
    assert len(segmenter.encodings) == len(detector.encodings) == 0


def test_a_long_video_does_not_fill_the_memory(detector_of, segmenter, monkeypatch):
    detector = detector_of(DOG_AND_CAT)
    monkeypatch.setattr(sys.modules[type(detector).__base__.__module__], "MAX_KEPT", 2)
    images = photo(3)
    result = run(images, detector, segmenter, "dog")
    assert [len(model.encodings[images]) for model in (detector, segmenter)] == [2, 2]
    assert torch.equal(result["mask"], run(photo(3), detector_of(DOG_AND_CAT), segmenter, "dog")["mask"])


def test_expand_and_feather(detector_of, segmenter):
    plain, grown, soft = (
        run(photo(), detector_of(DOG_AND_CAT), segmenter, "dog", **changes)["mask"]
        for changes in ({}, {"expand": 5}, {"feather": 6})
    )
    shifted = torch.nn.functional.pad(plain, (0, 5))[..., 5:]
    assert (grown >= plain).all() and (grown >= shifted).all() and grown.sum() > plain.sum()
    assert torch.equal(soft[0], gaussian_blur(plain[0], 3))
    assert ((soft > 0.05) & (soft < 0.95)).any()


def test_alpha_channel_is_ignored(detector_of, segmenter):
    rgba = torch.cat([photo(), torch.zeros(1, 300, 300, 1)], -1)
    with_alpha = run(rgba, detector_of(DOG_AND_CAT), segmenter, "dog")
    assert torch.equal(with_alpha["mask"], run(photo(), detector_of(DOG_AND_CAT), segmenter, "dog")["mask"])
    assert with_alpha["preview"].shape == (1, 300, 300, 3)


def test_pictures_in_half_precision(detector_of, segmenter):
    """As newer hosts keep them with --fp16-intermediates."""
    half = run(photo().half(), detector_of(DOG_AND_CAT), segmenter, "dog")
    full = run(photo().half().float(), detector_of(DOG_AND_CAT), segmenter, "dog")
    for name, x in half.items():
        assert torch.equal(x, full[name]) and x.dtype == torch.float32


@pytest.fixture
def management(monkeypatch):
    """The host's, for which the device meta is a GPU with much memory."""
    import comfy.model_management as management

    def free_memory(device=None, torch_free_too=False):
        return (1e12, 1e12) if torch_free_too else 1e12

    monkeypatch.setattr(management, "get_free_memory", free_memory)
    yield management
    books = management.current_loaded_models  # in which other tests are not to find what is on that GPU
    books[:] = [x for x in books if x.device.type != "meta"]


def test_models_run_where_the_host_leaves_their_weights(detector_of, segmenter, management, monkeypatch):
    """With --novram it leaves all of them on the CPU, though the GPU is their device."""
    detector, expected = detector_of(DOG_AND_CAT), run(photo(), detector_of(DOG_AND_CAT), segmenter, "dog")
    monkeypatch.setattr(management, "vram_state", management.VRAMState.NO_VRAM)
    for model in (detector, segmenter):
        model.patcher.load_device = torch.device("meta")
    result = run(photo(), detector, segmenter, "dog")
    assert all(torch.equal(x, expected[name]) for name, x in result.items())


def test_a_model_of_which_the_host_loaded_a_part_comes_back_as_a_whole(segmenter, management, monkeypatch):
    patcher, part = segmenter.patcher, segmenter.model.mask_decoder
    monkeypatch.setattr(management, "load_models_gpu", lambda *_, **__: part.to("meta"))
    monkeypatch.setattr(patcher, "detach", lambda: part.to_empty(device="cpu"))
    assert segmenter.load(0) == torch.device("cpu")
    assert not any(x.is_meta for x in segmenter.model.parameters())


def test_a_model_that_the_host_loaded_runs_there(segmenter, management):
    segmenter.patcher.load_device = torch.device("meta")
    assert segmenter.load(0) == torch.device("meta")


def stops(*inputs, words: tuple[str, ...], **changes) -> None:
    with refused("Grounded Mask", *words):
        run(*inputs, **changes)


def test_choice_that_does_not_exist(detector_of, segmenter):
    """Newer hosts refuse it themselves."""
    with refused("pick", "'first'", "best"):
        run(photo(), detector_of(DOG_AND_CAT), segmenter, "dog", pick="first")


def test_nothing_found_says_how_close_it_was(detector_of, segmenter):
    weak = [({"dog": 0.21}, LEFT)]
    words = ("'prompt'", "'dog' (best score 0.21)", "box_threshold is 0.3", "text_threshold 0.25", "Lower")
    for pick in ("best", "all", "each"):
        stops(photo(), detector_of(weak), segmenter, "dog", pick=pick, words=words)
    assert segmenter.encoded == 0
    stops(photo(2), detector_of(DOG_AND_CAT, weak), segmenter, "dog", words=("in image 2 of 2", "0.21"))


def test_one_of_several_phrases_is_missing(detector_of, segmenter):
    seen = detector_of(DOG_AND_CAT[:1])
    for pick in ("all", "each"):
        stops(photo(), seen, segmenter, "dog . red cup", pick=pick, words=("'red cup' (best score 0.00)",))
    assert run(photo(), seen, segmenter, "dog . red cup", pick="best")["mask"].any(), "any phrase will do"


@pytest.mark.parametrize("prompt", ["", "   ", " . .. ", "dog . \u200b\u200d"])
def test_prompt_without_words(detector_of, segmenter, prompt):
    stops(photo(), detector_of(DOG_AND_CAT), segmenter, prompt, words=("'prompt'", "no words", "such as: dog"))


@pytest.mark.parametrize("prompt", [None, [], {"dog": 1}])
def test_prompt_of_another_node_that_is_no_text(detector_of, segmenter, prompt):
    graph = Graph()
    link = grounded_mask(graph, photo(), detector_of(DOG_AND_CAT), segmenter, graph.given(prompt))
    with refused("Grounded Mask", "'prompt'", "no words"):
        graph.run(mask=link)


def test_prompt_that_is_too_long(detector_of, segmenter):
    stops(photo(), detector_of(DOG_AND_CAT), segmenter, "dog cat " * 150, words=("'prompt'", "303 tokens", "256"))


def test_gray_picture(detector_of, segmenter):
    stops(photo()[..., :1], detector_of(DOG_AND_CAT), segmenter, "dog", words=("'image'", "1 channels"))


@pytest.mark.parametrize("shape", [(0, 300, 300, 3), (1, 0, 300, 3), (300, 300, 3)])
def test_no_picture(detector_of, segmenter, shape):
    stops(torch.zeros(shape), detector_of(DOG_AND_CAT), segmenter, "dog", words=("'image'", "shape", "Wire a picture"))


def test_picture_that_is_a_line(detector_of, segmenter):
    line = torch.rand(1, 4, 200, 3)
    stops(line, detector_of(DOG_AND_CAT), segmenter, "dog", words=("'image'", "200 x 4", "Crop"))
