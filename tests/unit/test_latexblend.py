"""LaTexBlend's pieces against finite differences, autograd of the plain formula, and what they promise."""

import pytest
import torch
from pnpmix.attention import attention_probabilities
from pnpmix.latexblend import bank, training
from pnpmix.latexblend.blending import Slot, blend, region_bias
from pnpmix.latexblend.curve import draw_losses
from pnpmix.latexblend.guidance import blending_loss, guide

GRID, HEADS = (6, 5), 2


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_the_gradient_of_guidance_is_that_of_finite_differences():
    """Through queries that depend on the latent."""
    weight, key = random(3, 8, seed=1), random(1, 9, 8, seed=2)
    slots = [Slot({}, 1, 2), Slot({}, 4, 3)]

    def loss(x):
        query = x.flatten(2).mT @ weight
        return blending_loss(attention_probabilities(query, key, HEADS), GRID, slots, 0.7, 1.3).sum()

    x = random(1, 3, *GRID, seed=3).requires_grad_(True)
    assert loss(x).abs() > 1e-3
    assert torch.autograd.gradcheck(loss, x, eps=1e-6, atol=1e-7)


def test_guidance_moves_the_noise_prediction_in_the_latents_own_scale():
    x, denoised, gradient, sigma = (
        random(2, 3, 4, 4),
        random(2, 3, 4, 4, seed=1),
        random(2, 3, 4, 4, seed=2),
        torch.tensor([2.0, 5.0]),
    )
    guided, level = guide(denoised, gradient, sigma, 0.3), sigma.view(-1, 1, 1, 1)
    eps = (x - denoised) / level + 0.3 * gradient * (1 + level**2).sqrt()
    torch.testing.assert_close((x - guided) / level, eps, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rank", [0, 2])
def test_only_the_concept_learns(rank):
    """The gradient is that of the features with everything but h_c detached; class rows learn everywhere."""
    tokens, length, first = 6, 2, 3
    generator = torch.Generator().manual_seed(4)
    frozen, delta = random(5, 4, seed=5), [x.double() for x in training.new_delta(5, 4, rank, generator)]
    delta = tuple(x + 0.1 * random(*x.shape, seed=6) for x in delta)
    base, own, other = (random(1, n, 4, seed=7 + n).requires_grad_(True) for n in (tokens, length, tokens + length))
    out = random(2, tokens, 5, seed=20)

    parameters = [x.clone().requires_grad_(True) for x in delta]
    context = torch.cat([torch.cat([base, own], 1), other])
    features = training.training_features(context @ frozen.T, tuple(parameters), context, [first], length, 1)
    ours = torch.autograd.grad((features * out).sum(), [*parameters, own])

    theirs = [x.clone().requires_grad_(True) for x in delta]
    learned = frozen + (theirs[0] if rank == 0 else theirs[0] @ theirs[1])
    concept = torch.cat([base[:, :first] @ frozen.T, own @ learned.T, base[:, first + length :] @ frozen.T], 1)
    whole = torch.cat([concept, other[:, :tokens] @ learned.T])
    expected = torch.autograd.grad((whole * out).sum(), [*theirs, own])
    torch.testing.assert_close(features, whole)
    for x, y in zip(ours, expected, strict=True):
        torch.testing.assert_close(x, y)


def test_learning_again_from_the_moments_goes_on_as_if_never_stopped():
    def learned(*parts):
        x, state, target = torch.zeros(3), None, torch.tensor([1.0, -2.0, 3.0])
        for steps in parts:
            state = training.fit({"x": x}, lambda step, x=x: ((x - target) ** 2).sum() * (step + 1), steps, 0.1, state)
            x = x.detach()
        return x

    assert torch.equal(learned(range(6)), learned(range(2), range(2, 6)))


def test_a_bad_loss_is_named_by_its_step():
    with pytest.raises(training.Diverged) as error:
        training.fit({"x": torch.zeros(1)}, lambda step: torch.tensor(float("nan")), range(4, 9), 0.1)
    assert error.value.step == 5


def test_a_learning_rate_that_is_too_high_is_found_out():
    """Far beyond what Train Concept takes, whose highest, 1, leaves its losses finite."""
    x, seen = torch.ones(3), []
    with pytest.raises(training.Diverged) as error:
        training.fit({"x": x}, lambda step: (x**2).sum(), range(9), 1e25, callback=lambda *told: seen.append(told))
    assert error.value.step == 2 and seen == [(1, 3.0)]


def test_views_are_photo_where_the_mask_says_so():
    photo, generator = torch.rand(3, 48, 48) * 0.5 + 0.5, torch.Generator().manual_seed(0)
    kinds = set()
    for _ in range(40):
        view, mask = training.augment(photo, generator)
        assert view.shape == photo.shape and (view[:, mask == 0] == 0.5).all()
        kinds.add(bool((mask == 0).any()))
    assert kinds == {True, False}


@pytest.mark.parametrize("top, left, side", [(0, 0, 160), (8, 16, 160), (13, 21, 170), (342, 341, 170), (3, 100, 306)])
def test_what_the_vae_mixes_with_the_gray_is_not_learned(top, left, side):
    """The latent tokens that the authors' code counts as photo, by its expression."""
    mask = torch.zeros(512, 512)
    mask[top : top + side, left : left + side] = 1
    expected = torch.zeros(64, 64)
    expected[top // 8 + 1 : (top + side) // 8 - 1, left // 8 + 1 : (left + side) // 8 - 1] = 1
    assert torch.equal(training.mask_on_latent(mask, (64, 64)), expected)


def test_a_view_that_fills_the_frame_is_learned_to_its_border():
    assert training.mask_on_latent(torch.ones(64, 64), (32, 32)).all()


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_the_class_counts_as_much_as_in_the_authors_code(weight):
    """Whose sum over channels divides by the mask's positions: four channels count four times."""
    error, mask = random(2, 4, 6, 6, dtype=torch.float32).square(), torch.ones(2, 1, 6, 6)
    mask[0, :, :3] = 0
    own = (error[:1] * mask[:1]).sum() / mask[0].sum()
    losses = training.prediction_loss(error.sqrt(), torch.zeros(2, 4, 6, 6), torch.ones(2), mask, predicts_v=False)
    torch.testing.assert_close(training.total_loss(losses, weight), own + weight * error[1].mean())
    assert training.total_loss(losses[:1], weight) == losses[0]


def test_replacement_and_binding_touch_nothing_else():
    features = {"layer": (random(2, 4, seed=1, dtype=torch.float32), random(2, 4, seed=2, dtype=torch.float32))}
    key, value = random(2, 12, 4, seed=3, dtype=torch.float32), random(2, 12, 4, seed=4, dtype=torch.float32)
    before = key.clone()
    blend(key, value, "layer", [Slot(features, 2, 2, 0.25)], (0, 6))
    for start in (2, 8):
        torch.testing.assert_close(key[:, start], 0.75 * before[:, start] + 0.25 * features["layer"][0][0])
    rest = [i for i in range(12) if i not in (2, 3, 8, 9)]
    assert torch.equal(key[:, rest], before[:, rest])
    blend(key, value, "layer", [Slot(features, 2, 2)], (0, 6), bound=True)
    assert all(torch.equal(key[:, i], features["layer"][0][1].expand(2, 4)) for i in (2, 3, 8, 9))
    assert torch.equal(key[:, rest], before[:, rest])


@pytest.mark.parametrize("acts", [True, False])
def test_strength_leads_evenly_to_all_that_binding_does(acts):
    features = {"layer": (random(3, 4, seed=1), random(3, 4, seed=2))}
    plain = random(1, 6, 4, seed=3), random(1, 6, 4, seed=4)

    def blended(strength):
        pair = [x.clone() for x in plain]
        blend(*pair, "layer", [Slot(features, 1, 3, strength)], acts=acts, bound=True)
        return pair

    for share in (0.0, 0.25, 0.8):
        for x, whole, before in zip(blended(share), blended(1.0), plain, strict=True):
            torch.testing.assert_close(x, before + share * (whole - before))
    key = blended(1.0)[0]
    assert torch.equal(key[:, 1], key[:, 3]) and torch.equal(key[:, 3], plain[0][:, 3]) == (not acts)


def test_a_concept_of_no_strength_guides_nothing():
    """And half of one half as much."""
    maps = attention_probabilities(random(1, 30, 8), random(1, 9, 8, seed=2), HEADS)
    whole = [Slot({}, 1, 2), Slot({}, 4, 3)]

    def loss(*strengths):
        slots = [slot._replace(strength=x) for slot, x in zip(whole, strengths, strict=True)]
        return blending_loss(maps, GRID, slots, 0.7, 1.3)

    assert loss(0.0, 0.0) == 0 and loss(1.0, 0.0) == blending_loss(maps, GRID, whole[:1], 0.7, 1.3)
    torch.testing.assert_close(loss(0.5, 0.0), loss(1.0, 0.0) / 2)


def test_a_region_leaves_a_concept_faint_outside():
    mask = torch.zeros(4, 4)
    mask[:, :2] = 1
    bias = region_bias([Slot({}, 1, 2, mask=mask)], 1.0, (2, 2), 5)
    assert torch.equal(bias[[0, 2]], torch.zeros(2, 5))
    torch.testing.assert_close(bias[[1, 3]][:, 1:3].exp(), torch.full((2, 2), 1e-4))
    assert not bias[:, [0, 3, 4]].any()


def test_features_survive_a_file_and_faults_are_told():
    features = {"a": (random(2, 4), random(2, 4, seed=1)), "b": (random(2, 6), random(2, 6, seed=2))}
    again = bank.from_tensors(bank.to_tensors(features))
    for name, pair in features.items():
        for x, y in zip(again[name], pair, strict=True):
            torch.testing.assert_close(x, y.float(), rtol=1e-3, atol=1e-3)
    for bad, words in (
        ({"a.k": torch.zeros(2, 4)}, "no V"),
        ({"a.k": torch.zeros(2, 4), "a.v": torch.full((2, 4), float("inf"))}, "NaN or infinity"),
        ({"a.k": torch.zeros(2, 4), "a.v": torch.zeros(3, 4)}, "shape"),
        ({}, "no layer"),
    ):
        with pytest.raises(ValueError, match=words):
            bank.from_tensors(bad)


def test_the_loss_curve_is_a_picture():
    assert draw_losses([1.0, 0.5, 0.25]).shape == (320, 640, 3)
    assert draw_losses([]).isfinite().all()
