"""Score nodes give the numbers of transformers' networks and of the papers' equations, or say what is wrong."""

import numpy as np
import pytest
import skimage
import torch
import transformers
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch.nn.functional import cosine_similarity

from comfy_host import Graph, output, pack_module, refused
from detection_models import ToldDetector, read_bert_folder, small_sam, write_bert_folder
from small_encoders import (
    CLIP_MEAN,
    CLIP_STD,
    DINO_MEAN,
    DINO_SIDE,
    DINO_STD,
    SIDE,
    SIGLIP_MEAN,
    SIGLIP_STD,
    clip_model,
    clip_text,
    clip_vision,
    dino_model,
    seen,
    siglip_model,
)
from workflow_files import SCORES, read, to_api

TEXT = "A photo of a (red:1.4) cup on a table."


@pytest.fixture(scope="module")
def clip() -> transformers.CLIPModel:
    return clip_model()


@pytest.fixture(scope="module")
def words(clip, tmp_path_factory):
    """Its text encoder as ComfyUI's CLIP."""
    return clip_text(clip, tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def encoder(clip, tmp_path_factory):
    return clip_vision(clip, tmp_path_factory.mktemp("clip"))


def photos(count: int, side: int = SIDE) -> torch.Tensor:
    """(count, side, side, 3) in whole 255ths."""
    pictures = [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea(), skimage.data.rocket()]
    return torch.stack([torch.from_numpy(x[60 : 60 + side, 100 : 100 + side].copy()) for x in pictures[:count]]) / 255


def vectors(output) -> torch.Tensor:
    """What transformers' get_*_features gives in any version of it."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def clip_embeddings(clip, pictures: torch.Tensor) -> torch.Tensor:
    return vectors(clip.get_image_features(pixel_values=seen(pictures, CLIP_MEAN, CLIP_STD)))


def pairs(images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """(n,) mean cosines."""
    return cosine_similarity(images[:, None], references[None], dim=-1).mean(1)


def run(kind: str, **inputs) -> dict:
    """Score, report and the first measure's values, or all of them where there are several."""
    graph = Graph()
    link = graph.add(kind, **inputs)
    results = graph.run(score=link, report=output(link, 1), scores=output(link, 2))
    return results | {"values": torch.tensor(results["scores"][0].values)}


# --- Image Similarity


def test_clip_i_is_the_mean_cosine_of_transformers_embeddings(clip, encoder):
    expected = pairs(clip_embeddings(clip, photos(3)), clip_embeddings(clip, photos(4)[2:]))
    assert expected.max() - expected.min() > 0.01, "the pictures differ to this encoder"
    result = run("PnPMixImageSimilarity", images=photos(3), references=photos(4)[2:], encoder=encoder)
    torch.testing.assert_close(result["values"], expected, rtol=0, atol=1e-4)
    assert result["score"] == pytest.approx(float(expected.mean()), abs=1e-4)
    for value in result["values"].tolist():
        assert f"{value:.3f}" in result["report"]


def test_dino_is_the_cosine_of_the_class_token(tmp_path):
    model = dino_model()
    pictures = photos(2, 150)
    large = torch.nn.functional.interpolate(pictures.movedim(-1, 1), (DINO_SIDE,) * 2).movedim(1, -1)
    embeddings = model(seen(large, DINO_MEAN, DINO_STD)).pooler_output
    result = run("PnPMixImageSimilarity", images=large[:1], references=large[1:], encoder=clip_vision(model, tmp_path))
    torch.testing.assert_close(result["values"], pairs(embeddings[:1], embeddings[1:]), rtol=0, atol=1e-4)


def test_siglip_is_the_cosine_of_its_mean_tokens(tmp_path):
    model = siglip_model()
    tokens = model(seen(photos(3), SIGLIP_MEAN, SIGLIP_STD)).last_hidden_state.mean(1)
    result = run("PnPMixImageSimilarity", images=photos(3), references=photos(1), encoder=clip_vision(model, tmp_path))
    torch.testing.assert_close(result["values"], pairs(tokens, tokens[:1]), rtol=0, atol=1e-4)


def test_half_precision_changes_little(clip, encoder, tmp_path, monkeypatch):
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management, "text_encoder_dtype", lambda *_: torch.float16)
    half = clip_vision(clip, tmp_path)
    assert next(half.model.parameters()).dtype == torch.float16
    inputs = dict(images=photos(3).half(), references=photos(4)[2:])
    full = run("PnPMixImageSimilarity", **inputs, encoder=encoder)["values"]
    torch.testing.assert_close(run("PnPMixImageSimilarity", **inputs, encoder=half)["values"], full, rtol=0, atol=1e-2)


def box(side: int, top: int, left: int, height: int, width: int) -> torch.Tensor:
    mask = torch.zeros(1, side, side)
    mask[:, top : top + height, left : left + width] = 1
    return mask


def by_hand(picture: torch.Tensor, top: int, left: int, height: int, width: int, color) -> torch.Tensor:
    """The box in the middle of a square of the color, whose side is the box's longer one."""
    side = max(height, width)
    square = Image.new("RGB", (side, side))
    square = torch.from_numpy(np.asarray(square).astype(np.float32)) + torch.tensor(color)
    y, x = (side - height) // 2, (side - width) // 2
    square[y : y + height, x : x + width] = picture[top : top + height, left : left + width]
    return square


def test_under_masks_only_the_object_in_its_square_is_looked_at(clip, encoder):
    """With one mask for each picture, and one for the reference."""
    images, reference = photos(2, 150), photos(3, 150)[2:]
    places = [(10, 20, SIDE, 40), (60, 5, 30, SIDE)]
    masks = torch.cat([box(150, *place) for place in places])
    crops = [by_hand(picture, *place, CLIP_MEAN) for picture, place in zip(images, places, strict=True)]
    own = by_hand(reference[0], 50, 50, SIDE, SIDE, CLIP_MEAN)[None]
    expected = pairs(clip_embeddings(clip, rounded(torch.stack(crops))), clip_embeddings(clip, own))
    result = run(
        "PnPMixImageSimilarity",
        images=images,
        references=reference,
        encoder=encoder,
        mask=masks,
        reference_mask=box(150, 50, 50, SIDE, SIDE),
    )
    torch.testing.assert_close(result["values"], expected, rtol=0, atol=1e-4)


def rounded(pictures: torch.Tensor) -> torch.Tensor:
    """To whole 255ths, as ComfyUI does before it encodes."""
    return (pictures * 255).round() / 255


def test_one_mask_is_for_all_pictures_and_a_smaller_one_is_scaled(encoder):
    images, mask = photos(2, 150), box(150, 30, 30, 60, 60)
    inputs = dict(references=photos(1, 150), encoder=encoder)
    each = run("PnPMixImageSimilarity", images=images, mask=mask.expand(2, -1, -1), **inputs)
    for same in (mask, box(50, 10, 10, 20, 20)):
        result = run("PnPMixImageSimilarity", images=images, mask=same, **inputs)
        torch.testing.assert_close(result["values"], each["values"], rtol=0, atol=0.02)
    assert "resized from 50 x 50 to 150 x 150" in result["report"]


def test_without_an_encoder_colors_are_compared():
    red, blue = torch.zeros(1, 40, 40, 3), torch.zeros(1, 40, 40, 3)
    red[..., 0], blue[..., 2] = 1, 1
    half = torch.cat([red[:, :20], blue[:, :20]], 1)
    values = run("PnPMixImageSimilarity", images=torch.cat([red, half, blue]), references=red)["values"]
    assert values.tolist() == pytest.approx([1, 0.5, 0])
    upper = torch.zeros(1, 40, 40)
    upper[:, :20] = 1
    result = run("PnPMixImageSimilarity", images=half, references=red, mask=upper)
    assert result["score"] == pytest.approx(1), "what is not under the mask has no color"
    assert result["report"].startswith("Colors 1.000")


def test_a_picture_alone_has_the_value_that_it_has_in_a_batch(encoder):
    together = run("PnPMixImageSimilarity", images=photos(3), references=photos(1), encoder=encoder)["values"]
    for k in range(3):
        alone = run("PnPMixImageSimilarity", images=photos(3)[k : k + 1], references=photos(1), encoder=encoder)
        assert alone["score"] == pytest.approx(float(together[k]), abs=1e-6)


@pytest.mark.parametrize("name, at_fault", [("mask", "image 2"), ("reference_mask", "image 1")])
def test_a_mask_that_misses_its_picture_is_refused(encoder, name, at_fault):
    masks = torch.cat([box(SIDE, 5, 5, 20, 20), torch.zeros(1, SIDE, SIDE)])
    inputs = dict(images=photos(2), references=photos(1), encoder=encoder)
    with refused("Image Similarity", f"'{name}'", at_fault, "Paint"):
        run("PnPMixImageSimilarity", **inputs, **{name: masks if name == "mask" else masks[1:]})


def test_a_mask_of_another_shape_and_no_references_are_refused(encoder):
    inputs = dict(images=photos(1), encoder=encoder)
    with refused("'mask'", "another shape"):
        run("PnPMixImageSimilarity", **inputs, references=photos(1), mask=box(SIDE, 5, 5, 9, 9)[:, :20])
    with refused("'references'", "Wire a picture"):
        run("PnPMixImageSimilarity", **inputs, references=photos(1)[:0])


def test_an_encoder_that_gives_no_numbers_is_refused(clip, tmp_path):
    broken = clip_vision(clip, tmp_path)
    with torch.inference_mode():
        broken.model.visual_projection.weight.fill_(torch.inf)
    with refused("Image Similarity", "'encoder'", "NaN or infinity"):
        run("PnPMixImageSimilarity", images=photos(1), references=photos(1), encoder=broken)


# --- Text Similarity


def test_clip_t_is_that_of_transformers(clip, words, encoder):
    """Projections included, and the text as it is: brackets are no weights."""
    tokens = words.tokenizer.clip_l.tokenizer([TEXT], return_tensors="pt")
    expected = cosine_similarity(clip_embeddings(clip, photos(3)), vectors(clip.get_text_features(**tokens)))
    result = run("PnPMixTextSimilarity", images=photos(3), text=TEXT, clip=words, encoder=encoder)
    torch.testing.assert_close(result["values"], expected, rtol=0, atol=1e-4)
    assert result["score"] == pytest.approx(float(expected.mean()), abs=1e-4)


def test_clip_skip_does_not_change_it(words, encoder):
    inputs = dict(images=photos(2), text=TEXT, encoder=encoder)
    skipped = words.clone()
    skipped.clip_layer(-2)
    values = [run("PnPMixTextSimilarity", **inputs, clip=x)["values"] for x in (words, skipped)]
    assert torch.equal(*values)


def test_a_long_text_counts_as_far_as_clip_reads_and_says_so(words, encoder):
    inputs = dict(images=photos(1), clip=words, encoder=encoder)
    long, cut = (run("PnPMixTextSimilarity", text="cup " * n, **inputs) for n in (100, 75))
    assert long["score"] == pytest.approx(cut["score"], abs=1e-6)
    assert "first 75 tokens" in long["report"] and "first 75" not in cut["report"]


def test_a_text_encoder_without_projection_is_refused(clip, encoder, tmp_path):
    """As ComfyUI reads it of an SD 1.x checkpoint: it leaves the layer as it finds the memory."""
    without = clip_text(clip, tmp_path, projection=False)
    layer = without.cond_stage_model.clip_l.transformer.text_projection
    for left_behind in (torch.zeros(64, 64), torch.eye(64), torch.full((64, 64), torch.nan)):
        layer.weight = torch.nn.Parameter(left_behind, requires_grad=False)
        with refused("Text Similarity", "'clip'", "no text projection", "Load CLIP"):
            run("PnPMixTextSimilarity", images=photos(1), text=TEXT, clip=without, encoder=encoder)


def test_the_demos_table_of_words_is_no_clip(encoder):
    graph = Graph()
    words = output(graph.add("PnPMixDemoModel"), 1)
    link = graph.add("PnPMixTextSimilarity", images=photos(1), text="cup", clip=words, encoder=encoder)
    with refused("Text Similarity", "'clip'", "no text projection"):
        graph.run(score=link)


def test_encoders_of_two_clips_and_no_words_are_refused(words, encoder, tmp_path):
    with refused("Text Similarity", "'text'", "no words"):
        run("PnPMixTextSimilarity", images=photos(1), text=" ", clip=words, encoder=encoder)
    wider = clip_vision(clip_model(projection=32), tmp_path, projection_dim=32)
    with refused("Text Similarity", "'encoder'", "32", "64", "same CLIP"):
        run("PnPMixTextSimilarity", images=photos(1), text=TEXT, clip=words, encoder=wider)


# --- SegSim

LEFT, RIGHT, WIDE = (0.05, 0.2, 0.45, 0.9), (0.5, 0.1, 0.95, 0.8), (0.05, 0.1, 0.95, 0.9)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return read_bert_folder(write_bert_folder(tmp_path_factory.mktemp("bert")))[1]


@pytest.fixture(scope="module")
def segmenter():
    return pack_module("vision.segmentation").Segmenter(small_sam())


@pytest.fixture
def detector_of(tokenizer):
    """A detector that sees what it is told: a list of boxes for each picture, in the order in which it looks."""
    return lambda *seen: pack_module("vision.detection").Detector(ToldDetector(tokenizer, list(seen)))


def segsim(images, concepts: list[tuple[torch.Tensor, str]], detector, segmenter, encoder) -> dict:
    graph, references = Graph(), None
    for pictures, prompt in concepts:
        references = graph.add("PnPMixSegSimConcept", images=pictures, prompt=prompt, concepts=references)
    models = dict(detector=detector, segmenter=segmenter, encoder=encoder)
    link = graph.add("PnPMixSegSim", images=images, references=references, **models)
    return graph.run(score=link, report=output(link, 1), scores=output(link, 2))


def values_of(result: dict, name: str) -> list[float]:
    (measured,) = [x for x in result["scores"] if x.name == name]
    return list(measured.values)


def subjects(encoder, segmenter, picture: torch.Tensor, *boxes) -> torch.Tensor:
    """(n, d) of what is in the boxes, cut out and embedded without pnpmix/metrics."""
    height, width = picture.shape[1:3]
    masks = segmenter.masks(picture, 0, torch.tensor(boxes) * torch.tensor([width, height] * 2))
    embeddings = []
    for mask in masks.numpy() > 0:
        rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
        alone = np.where(mask[..., None], picture[0].numpy(), np.float32(CLIP_MEAN))
        alone = alone[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        side = max(alone.shape[:2])
        square = np.tile(np.float32(CLIP_MEAN), (side, side, 1))
        y, x = (side - alone.shape[0]) // 2, (side - alone.shape[1]) // 2
        square[y : y + alone.shape[0], x : x + alone.shape[1]] = alone
        with torch.inference_mode():
            embeddings.append(encoder.encode_image(torch.from_numpy(square)[None])["image_embeds"][0])
    return torch.stack(embeddings)


def best(own: torch.Tensor, found: torch.Tensor) -> float:
    return max(0.0, float(cosine_similarity(own[:, None], found[None], dim=-1).max()))


def test_segsim_is_the_papers_algorithm_for_each_picture_of_a_batch(detector_of, segmenter, encoder):
    """The subjects of all prompts are pooled; a concept's pictures are averaged."""
    pictures = photos(4, 200)
    dog, cat, results = pictures[:2], pictures[2:3], pictures[2:4]
    seen = [
        [({"dog": 0.7}, LEFT)],  # the dog's pictures
        [({"dog": 0.6}, RIGHT), ({"dog": 0.5}, LEFT)],
        [({"cat": 0.8}, WIDE)],  # the cat's
        [({"dog": 0.7}, LEFT), ({"cat": 0.7}, RIGHT)],  # the results
        [({"dog": 0.7}, WIDE)],
    ]
    result = segsim(results, [(dog, "Dog"), (cat, "cat")], detector_of(*seen), segmenter, encoder)

    def own(k: int, *boxes) -> torch.Tensor:
        return subjects(encoder, segmenter, pictures[k : k + 1], *boxes)

    references = [[own(0, LEFT), own(1, LEFT, RIGHT)], [own(2, WIDE)]]
    for k, found in enumerate((own(2, LEFT, RIGHT), own(3, WIDE))):
        concepts = [sum(best(x, found) for x in of_concept) / len(of_concept) for of_concept in references]
        assert values_of(result, "SegSim")[k] == pytest.approx(sum(concepts) / 2, abs=1e-4)
        assert f"Image {k + 1}: dog {concepts[0]:.3f}, cat {concepts[1]:.3f}" in result["report"]
    assert result["score"] == pytest.approx(sum(values_of(result, "SegSim")) / 2)
    assert values_of(result, "Omission") == [0, 1], "no cat in the second"
    assert "found 1 of 1 dog, 0 of 1 cat" in result["report"]


def test_two_dogs_want_two_subjects_and_a_third_is_too_many(detector_of, segmenter, encoder):
    pictures, thirds = photos(3, 200), [(0.02, 0.1, 0.3, 0.9), (0.35, 0.1, 0.6, 0.9), (0.65, 0.1, 0.95, 0.9)]
    three = [({"dog": 0.7}, box) for box in thirds]
    concepts = [(pictures[:1], "dog"), (pictures[1:2], "dog")]
    detector = detector_of(three[:1], three[:1], three[:1], three[:2], three)
    result = segsim(pictures, concepts, detector, segmenter, encoder)
    assert values_of(result, "Omission") == [1, 0, 0]
    assert values_of(result, "Redundancy") == [0, 0, 1]


def test_nothing_found_counts_zero_and_says_where(detector_of, segmenter, encoder):
    pictures = photos(3, 200)
    concepts = [(pictures[:2], "dog")]
    nowhere = detector_of([], [({"dog": 0.7}, LEFT)], [])
    result = segsim(pictures[2:], concepts, nowhere, segmenter, encoder)
    assert result["score"] == 0 and values_of(result, "Omission") == [1]
    assert "Warning: no 'dog' found in image 1 of concept 1" in result["report"]


def test_segsim_without_words_concepts_or_pictures_is_refused(detector_of, segmenter, encoder):
    models = (detector_of([]), segmenter, encoder)
    with refused("SegSim Concept", "'prompt'", "no words"):
        segsim(photos(1, 200), [(photos(1, 200), " ")], *models)
    with refused("SegSim Concept", "'images'", "Wire a picture"):
        segsim(photos(1, 200), [(photos(1, 200)[:0], "dog")], *models)
    graph = Graph()
    given = dict(detector=models[0], segmenter=segmenter, encoder=encoder, references=Graph.given(graph, ()))
    with refused("SegSim", "'references'", "Wire SegSim Concept"):
        graph.run(score=graph.add("PnPMixSegSim", images=photos(1, 200), **given))


# --- Background Kept


def kept(**inputs) -> dict:
    graph = Graph()
    link = graph.add("PnPMixBackgroundKept", **inputs)
    names = ("psnr", "ssim", "report", "scores")
    return graph.run(**{name: output(link, k) for k, name in enumerate(names)})


def noisy(pictures: torch.Tensor) -> torch.Tensor:
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    return (pictures + 0.1 * noise).clamp(0, 1)


def test_background_is_measured_outside_each_pictures_mask_as_scikit_image_does():
    originals, masks = photos(2, 96), torch.cat([box(96, 20, 30, 30, 40), box(96, 50, 0, 30, 30)])
    images = noisy(originals)
    result = kept(images=images, original=originals, mask=masks)
    for k in range(2):
        theirs, ours, mask = originals[k].numpy(), images[k].numpy(), masks[k].numpy() > 0
        expected = peak_signal_noise_ratio(theirs[~mask], ours[~mask], data_range=1)
        assert values_of(result, "PSNR, dB")[k] == pytest.approx(expected, abs=1e-4)
        settings = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
        _, similar = structural_similarity(theirs, ours, data_range=1, channel_axis=-1, full=True, **settings)
        away = ~skimage.morphology.dilation(np.pad(mask, 5), np.ones((11, 11)))[5:-5, 5:-5]
        assert values_of(result, "SSIM")[k] == pytest.approx(similar[5:-5, 5:-5][away[5:-5, 5:-5]].mean(), abs=1e-4)
    assert result["psnr"] == pytest.approx(sum(values_of(result, "PSNR, dB")) / 2)
    assert result["ssim"] == pytest.approx(sum(values_of(result, "SSIM")) / 2)


def test_an_untouched_background_is_100_decibels_whatever_is_under_the_mask():
    original, mask = photos(1, 96), box(96, 20, 30, 30, 40)
    painted = torch.where(mask[..., None] > 0, torch.rand(1, 96, 96, 3), original)
    result = kept(images=torch.cat([painted, noisy(original)]), original=original, mask=mask)
    assert values_of(result, "PSNR, dB")[0] == 100 and values_of(result, "PSNR, dB")[1] < 30
    assert values_of(result, "SSIM")[0] == pytest.approx(1)
    assert "± " in result["report"]


def test_half_precision_pictures_measure_the_same():
    original = photos(1, 96)
    full = kept(images=noisy(original), original=original)
    half = kept(images=noisy(original).half(), original=original.half())
    assert half["psnr"] == pytest.approx(full["psnr"], abs=1e-2)
    assert half["ssim"] == pytest.approx(full["ssim"], abs=1e-2)


def test_backgrounds_that_cannot_be_compared_are_refused():
    original = photos(2, 96)
    with refused("Background Kept", "'original'", "96 x 96", "90 x 96", "Paste Back"):
        kept(images=original[:, :, :90], original=original)
    with refused("Background Kept", "'original'", "batch of 2", "3 images"):
        kept(images=photos(3, 96), original=original)
    with refused("Background Kept", "'mask'", "whole image"):
        kept(images=original, original=original, mask=torch.ones(1, 96, 96))


def test_where_lpips_is_not_installed_the_report_says_so(monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *x: None if name == "lpips" else find(name, *x))
    result = kept(images=photos(1, 96), original=photos(1, 96))
    assert "LPIPS is left out: the package lpips is not installed." in result["report"]
    assert [x.name for x in result["scores"]] == ["PSNR, dB", "SSIM"]


# --- Score Plot


def plot(graph: Graph, scores, names: str, **more) -> dict:
    link = graph.add("PnPMixScorePlot", scores=scores, names=names, **more)
    return graph.run(image=link, table=output(link, 1))


def measured(name: str, *values: float, better: bool = True):
    return [pack_module("metrics.scores").Measured(name, values, better)]


def place(picture: torch.Tensor, color: str) -> float:
    """The column of the point of a color."""
    rgb = torch.tensor([int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)])
    return float(((picture - rgb).abs().amax(-1) < 0.01).any(0).nonzero().float().mean())


def test_plot_has_a_point_for_each_variant_at_its_mean_on_an_axis_that_shows_differences():
    for scale in (1, 0.01):
        values = [0.9 + scale * x for x in (0.06, 0.06, 0.03, 0.03, 0.0, 0.0)]
        result = plot(Graph(), measured("SSIM", *values), "all parts\nwithout appearance\nneither")
        picture = result["image"][0]
        assert picture.shape[2] == 3 and picture.min() >= 0 and picture.max() <= 1
        right, middle, left = (place(picture, color) for color in ("#e69f00", "#56b4e9", "#009e73"))
        assert right - left > 250 and middle == pytest.approx((left + right) / 2, abs=2)
    result = plot(Graph(), measured("SSIM", 0.8, 0.8, 0.3, 0.5), "all parts\nwithout appearance\n")
    assert "| all parts | 0.800 ± 0.000 |" in result["table"] and "| without appearance | 0.400 ± " in result["table"]


def test_plot_shows_several_measures_and_numbers_pictures_without_names():
    more = dict(scores_2=measured("LPIPS", 0.1, 0.2, better=False), scores_4=measured("PSNR", 30.0, 40.0))
    one, three = (plot(Graph(), measured("SSIM", 0.5, 1.0), "", **x) for x in ({}, more))
    assert three["image"].shape[1] > 2.5 * one["image"].shape[1]
    assert three["table"].splitlines()[0] == "|  | SSIM ▲ | LPIPS ▼ | PSNR ▲ |"
    assert "| image 2 | 1.000 | 0.200 | 40.000 |" in three["table"]


def test_plot_of_more_names_than_pictures_or_an_uneven_number_is_refused():
    for values, names in (((0.5, 0.6), "a\nb\nc"), ((0.5, 0.6, 0.7), "a\nb")):
        with refused("Score Plot", "'names'", "evenly", "one line"):
            plot(Graph(), measured("SSIM", *values), names)
    with refused("Score Plot", "'scores'", "no values"):
        graph = Graph()
        plot(graph, graph.given(()), "a")


def test_a_score_node_goes_straight_into_the_plot():
    graph = Graph()
    link = graph.add("PnPMixBackgroundKept", images=photos(2, 96), original=photos(1, 96))
    result = plot(graph, output(link, 3), "one\ntwo")
    assert "| one | 100.0 | 1.000 |" in result["table"]


@pytest.mark.newest
def test_the_template_compares_its_variants():
    """One scene blended three times, and each measured."""
    graph, prompt = Graph(), to_api(read(SCORES))
    nodes = {node["class_type"]: (node_id, node["inputs"]) for node_id, node in prompt.items()}
    nodes["PnPMixDDPMInvert"][1].update(steps=6, skip_steps=2)
    graph.prompt = prompt
    plot, pictures = nodes["PnPMixScorePlot"][0], nodes["PreviewImage"][1]["images"]
    results = graph.run(plot=[plot, 0], table=[plot, 1], pictures=pictures)
    header, _, *rows = results["table"].splitlines()
    assert [row.split("|")[1].strip() for row in rows] == prompt[plot]["inputs"]["names"].splitlines()
    assert all(name in header for name in ("Colors 1", "Colors 2", "PSNR", "SSIM"))
    assert all("| 100.0 |" in row for row in rows), "every variant keeps the background"
    assert not torch.equal(results["pictures"][0], results["pictures"][1]) and results["plot"].shape[-1] == 3
