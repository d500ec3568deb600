"""Scores of pictures are those of scikit-image, scipy and the papers' equations."""

import math

import numpy as np
import pytest
import skimage
import torch
from pnpmix.metrics.background import lpips_network, psnr, ssim
from pnpmix.metrics.segsim import count_subjects, omission, redundancy, segsim
from pnpmix.metrics.similarity import color_similarity, image_similarity, one_vector, regional_crop, text_similarity
from pnpmix.metrics.statistics import (
    Measured,
    by_variant,
    distinct,
    interval,
    mean_with_interval,
    report,
    students_t,
    table,
)
from scipy import stats
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

NOTHING = torch.zeros(60, 80)


def photo() -> torch.Tensor:
    return torch.from_numpy(skimage.data.astronaut()[:60, 180:260]).float() / 255


def changed(strength: float = 0.1) -> torch.Tensor:
    noise = torch.randn(60, 80, 3, generator=torch.Generator().manual_seed(0))
    return (photo() + strength * noise).clamp(0, 1)


def ellipse() -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(60), torch.arange(80), indexing="ij")
    return ((((y - 30) / 14) ** 2 + ((x - 30) / 18) ** 2) < 1).float()


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- Background


def test_psnr_and_ssim_of_whole_pictures_are_those_of_scikit_image():
    ours, theirs = changed().numpy(), photo().numpy()
    expected = peak_signal_noise_ratio(theirs, ours, data_range=1)
    assert psnr(changed(), photo(), NOTHING) == pytest.approx(expected, abs=1e-4)
    settings = dict(data_range=1, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    assert ssim(changed(), photo(), NOTHING) == pytest.approx(structural_similarity(theirs, ours, **settings), abs=1e-4)


def test_psnr_and_ssim_outside_a_mask_are_those_of_scikit_images_pixels_and_windows_there():
    ours, theirs, mask = changed().numpy(), photo().numpy(), ellipse().numpy() > 0.5
    expected = peak_signal_noise_ratio(theirs[~mask], ours[~mask], data_range=1)
    assert psnr(changed(), photo(), ellipse()) == pytest.approx(expected, abs=1e-4)
    settings = dict(data_range=1, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    _, of_pixels = structural_similarity(theirs, ours, full=True, **settings)
    seen = skimage.morphology.dilation(mask, np.ones((11, 11)))
    inside = np.zeros_like(mask)
    inside[5:-5, 5:-5] = True
    assert ssim(changed(), photo(), ellipse()) == pytest.approx(of_pixels[inside & ~seen].mean(), abs=1e-4)


def test_what_changes_under_the_mask_does_not_count():
    painted = torch.where(ellipse()[..., None] > 0.5, torch.rand(60, 80, 3), photo())
    assert psnr(painted, photo(), ellipse()) == 100
    assert ssim(painted, photo(), ellipse()) == pytest.approx(1, abs=1e-9)
    assert psnr(painted, photo(), NOTHING) < 20 and ssim(painted, photo(), NOTHING) < 0.9


def test_a_mask_that_leaves_no_background_is_refused():
    with pytest.raises(ValueError, match="whole image"):
        psnr(photo(), photo(), torch.ones(60, 80))
    with pytest.raises(ValueError, match="11 pixels"):
        ssim(photo(), photo(), torch.nn.functional.pad(torch.ones(50, 70), (5, 5, 5, 5)))
    with pytest.raises(ValueError, match="11 pixels a side"):
        ssim(photo()[:10], photo()[:10], NOTHING[:10])


# --- Similarity


def test_similarities_are_mean_cosines_at_any_scale_of_the_embeddings():
    images, references = random(3, 16), random(4, 16, seed=1)
    expected = [
        np.mean([1 - scipy_cosine(image, reference) for reference in references.numpy()]) for image in images.numpy()
    ]
    assert image_similarity(images, references).tolist() == pytest.approx(expected, abs=1e-6)
    assert image_similarity(5 * images, 0.1 * references).tolist() == pytest.approx(expected, abs=1e-6)
    assert text_similarity(images, references[0]).tolist() == pytest.approx(
        [1 - scipy_cosine(image, references[0].numpy()) for image in images.numpy()], abs=1e-6
    )


def scipy_cosine(a, b) -> float:
    from scipy.spatial.distance import cosine

    return cosine(a.astype(np.float64), b.astype(np.float64))


def test_an_encoder_that_gives_tokens_is_read_by_their_mean():
    tokens = random(2, 9, 16)
    assert torch.equal(one_vector(tokens), tokens.mean(1))
    assert torch.equal(one_vector(tokens[:, 0]), tokens[:, 0])


def test_a_region_is_the_masks_box_in_a_square_and_the_encoders_mean_everywhere_else():
    color = (0.1, 0.5, 0.9)
    square = regional_crop(photo(), ellipse(), color)
    assert square.shape == (35, 35, 3), "the ellipse is 35 pixels wide and 27 high"
    expected = np.tile(np.float32(color), (35, 35, 1))
    object_only = np.where(ellipse().numpy()[..., None] > 0, photo().numpy(), np.float32(color))
    expected[4:31] = object_only[17:44, 13:48]
    assert np.array_equal(square.numpy(), expected)


def test_an_empty_region_is_refused():
    with pytest.raises(ValueError, match="empty"):
        regional_crop(photo(), NOTHING, (0, 0, 0))


# --- SegSim


def test_segsim_is_the_papers_algorithm():
    """Algorithm 2 in plain loops: for each concept and reference the best pair, floored at 0, then two means."""
    segments = random(3, 8)
    references = [[random(1, 8, seed=2), random(2, 8, seed=3)], [random(1, 8, seed=4)], [random(0, 8)]]
    expected = []
    for pictures in references:
        of_pictures = []
        for own in pictures:
            pairs = [float(torch.dot(r, g) / r.norm() / g.norm()) for r in own for g in segments]
            of_pictures.append(max([0.0, *pairs]))
        expected.append(sum(of_pictures) / len(of_pictures))
    assert segsim(segments, references) == pytest.approx(expected, abs=1e-6)
    assert expected[2] == 0, "nothing found in its reference"
    assert segsim(segments[:0], references) == [0, 0, 0], "nothing found in the picture"


def test_too_few_and_too_many_subjects_are_told_apart():
    prompts = ["dog", "cat", "dog"]
    assert [(x.prompt, x.wanted, x.found) for x in count_subjects(prompts, {"dog": 1, "cat": 2})] == [
        ("dog", 2, 1),
        ("cat", 1, 2),
    ]
    for found, few, many in (({"dog": 2, "cat": 1}, False, False), ({"dog": 1, "cat": 2}, True, True)):
        subjects = count_subjects(prompts, found)
        assert (omission(subjects), redundancy(subjects)) == (few, many)


# --- Several values


@pytest.mark.parametrize("count", [2, 3, 4, 5, 10, 30, 50, 1000])
def test_interval_is_students(count):
    values = random(count).tolist()
    mean, half = interval(values)
    low, high = stats.t.interval(0.95, count - 1, loc=np.mean(values), scale=stats.sem(values))
    assert mean == pytest.approx(np.mean(values), abs=1e-6)
    assert (mean - half, mean + half) == pytest.approx((low, high), abs=2e-3 * (high - low))


def test_students_t_is_within_a_five_hundredth_for_any_number_of_values():
    for freedom in range(1, 200):
        assert students_t(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=2e-3), freedom


def test_one_value_has_no_interval_and_none_is_refused():
    mean, half = interval([0.5])
    assert mean == 0.5 and math.isnan(half)
    assert mean_with_interval([0.5]) == "0.500"
    with pytest.raises(ValueError):
        interval([])


def test_report_says_mean_interval_and_each_value():
    assert report(Measured("SSIM", (0.25,))) == "SSIM 0.250"
    values = (0.8, 0.9, 1.0)
    half = stats.t.ppf(0.975, 2) * np.std(values, ddof=1) / 3**0.5
    words = f"SSIM 0.900 ± {half:.3f} (3 images, 95 % interval): 0.800, 0.900, 1.000"
    assert report(Measured("SSIM", values)) == words


def test_table_has_a_row_for_each_variant_with_its_pictures_means():
    measures = [Measured("CLIP-I", (0.1, 0.2, 0.5, 0.7)), Measured("LPIPS", (1.0, 2.0, 3.0, 4.0), False, 1)]
    rows = table(measures, ["a", "b"]).splitlines()
    assert rows[0] == "|  | CLIP-I ▲ | LPIPS ▼ |"
    assert rows[2].startswith("| a | 0.150 ± ") and rows[3].startswith("| b | 0.600 ± ")
    assert by_variant((1.0, 2.0, 3.0, 4.0), 2) == [(1.0, 2.0), (3.0, 4.0)]
    with pytest.raises(ValueError, match="evenly"):
        table(measures, ["a", "b", "c"])


def test_measures_of_one_name_are_numbered():
    same, other = Measured("Colors", (0.5,)), Measured("SSIM", (1.0,))
    assert [x.name for x in distinct([same, other, same])] == ["Colors 1", "SSIM", "Colors 2"]


def test_colors_are_compared_by_the_intersection_of_their_histograms():
    a, b = random(500, 3).sigmoid(), random(400, 3, seed=1).sigmoid()
    histograms = [np.histogramdd(x.numpy(), bins=8, range=[(0, 1)] * 3)[0] / len(x) for x in (a, b)]
    assert color_similarity(a, b) == pytest.approx(np.minimum(*histograms).sum(), abs=1e-6)
    assert color_similarity(a, a) == pytest.approx(1)


def test_lpips_without_its_files_says_what_is_missing_and_downloads_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match="lpips is not installed|alexnet-owt"):
        lpips_network()
    assert not list(tmp_path.iterdir())
