"""The parts of Concept Conductor, each against something that is not the pack's."""

import numpy as np
import pytest
import scipy.cluster.vq
import torch
from diffusers import DDIMInverseScheduler
from pnpmix.attention import attention_probabilities
from pnpmix.conductor.injection import fuse, inside, on_grid
from pnpmix.conductor.layout import ddim_invert, inversion_levels, layout_gradient, layout_loss
from pnpmix.conductor.refinement import Refinement, first_state, k_means, refine, refined_steps

from conductor_oracle import resized
from oracle import alphas_cumprod, relative_error


def all_sigmas() -> torch.Tensor:
    abar = alphas_cumprod()
    return ((1 - abar) / abar).sqrt().float()


@pytest.mark.parametrize("steps", [999, 50, 7])
def test_inversion_is_that_of_diffusers(steps):
    scheduler = DDIMInverseScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", set_alpha_to_one=False, steps_offset=1,
        clip_sample=False,
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    x0, direction = torch.randn(2, 1, 4, 6, 6, generator=torch.Generator().manual_seed(0)).unbind()
    sigmas = all_sigmas()

    def eps(z: torch.Tensor, t: int) -> torch.Tensor:
        return (z * 0.3 + direction) * (0.5 + t / 2000)

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        t = int((sigmas - sigma).abs().argmin())
        return x - sigma * eps(x / (1 + sigma**2).sqrt(), t)

    z = x0
    for t in scheduler.timesteps[:steps]:
        z = scheduler.step(eps(z, int(t)), t, z).prev_sample
    layout = ddim_invert(denoise, x0, inversion_levels(sigmas, steps))
    assert len(layout.sigmas) == steps
    assert relative_error(layout.trajectory[-1:] / (1 + layout.sigmas[-1] ** 2).sqrt(), z) < 1e-4


def test_gradient_is_that_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(12, 8, generator=generator)
    x = torch.randn(2, 3, 2, 2, generator=generator)
    reference = torch.randn(1, 1, 8, generator=generator)

    def keys(x: torch.Tensor) -> torch.Tensor:
        return (x.flatten(1) @ weight.to(x)).tanh()[:, None]

    with torch.enable_grad():
        given = x.clone().requires_grad_()
        gradient = layout_gradient(keys(given), reference, given)
    for place in [(0, 0, 0, 0), (1, 2, 1, 0)]:
        step = torch.zeros_like(x, dtype=torch.float64)
        step[place] = 1e-5
        difference = sum(
            sign * ((keys(x.double() + sign * step) - reference) ** 2).mean((1, 2)).sum() for sign in (1, -1)
        )
        assert float(gradient[place]) == pytest.approx(float(difference) / 2e-5, rel=1e-3)
    assert float(layout_loss(keys(x), reference)) == pytest.approx(
        float(((keys(x) - reference) ** 2).mean((1, 2)).sum()), rel=1e-5
    )


def test_gradient_of_half_precision_is_that_of_float64():
    """Of as many keys as SD 1.5 has, where the loss's own gradient would be below what half precision holds."""
    generator = torch.Generator().manual_seed(0)
    x, weights = torch.randn(1, 4, 32, 32, generator=generator), torch.randn(80, generator=generator)

    def keys(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return (x.flatten().to(dtype)[:, None] * weights.to(dtype)).view(1, 256, 1280)

    reference = keys(x, torch.float64) * 0.99
    given = x.clone().requires_grad_()
    ours = layout_gradient(keys(given, torch.float16), reference, given)
    own = x.double().requires_grad_()
    (wanted,) = torch.autograd.grad((keys(own, torch.float64) - reference).square().mean(), own)
    assert (ours - wanted).norm() < 0.05 * wanted.norm()


def test_a_picture_that_has_the_layout_stays():
    with torch.enable_grad():
        x = torch.ones(1, 1, 2, 2).requires_grad_()
        assert not layout_gradient(x.flatten(1)[None], torch.ones(1, 1, 4), x).any()


@pytest.mark.parametrize("clusters", [2, 4])
def test_k_means_finds_what_scipy_finds(clusters):
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(3 * k, 0.5, (20, 5)) for k in range(4)]).astype(np.float32)
    _, inertia = k_means(torch.from_numpy(points), clusters, restarts=20)
    best = min(
        ((points - centers[labels]) ** 2).sum()
        for seed in range(20)
        for centers, labels in [scipy.cluster.vq.kmeans2(points, clusters, minit="++", seed=seed)]
    )
    assert float(inertia) == pytest.approx(best, rel=1e-4)


def test_masks_shrink_to_every_grid_by_area():
    mask = (torch.rand(1, 1, 24, 32, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    for grid in [(24, 32), (12, 16), (6, 8), (3, 4), (5, 7)]:
        wanted = torch.from_numpy(resized(mask[0, 0].numpy(), *grid) > 0.5)
        assert torch.equal(on_grid(mask, grid)[0, 0], wanted)


def test_the_last_concept_wins_and_the_rest_stays():
    base, masks = torch.zeros(1, 4, 2), torch.tensor([[[1, 1, 0, 0]], [[0, 1, 1, 0]]]).bool()
    features = [inside(torch.full((1, 4, 2), k + 1.0), mask) for k, mask in enumerate(masks)]
    assert fuse(base, features, masks)[0, :, 0].tolist() == [1, 2, 2, 0]
    assert not base.any()


def test_probabilities_are_the_mean_over_heads():
    query, key = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0)).unbind()
    heads = [(query[..., i : i + 4] @ key[..., i : i + 4].transpose(1, 2) / 2).softmax(-1) for i in (0, 4)]
    assert torch.allclose(attention_probabilities(query, key, 2), sum(heads) / 2, atol=1e-6)


def test_masks_are_refined_at_the_steps_of_the_paper():
    assert refined_steps(Refinement(0.25, 0.4, 7, 0.0, 100), 200) == {50, 55, 60, 65, 70, 75, 80}
    assert refined_steps(Refinement(0.3, 0.4, 5, 0.7, 25), 200) == {60, 65, 70, 75, 80}


def test_refined_masks_follow_the_segments_and_keep_what_they_dispute():
    """Attention that tells three blocks of tokens apart."""
    block = torch.tensor([0] * 6 + [1] * 6 + [2] * 4)
    attention = torch.nn.functional.one_hot(block)[:, block].float()[None] / 6
    soft = torch.zeros(2, 1, 4, 4)
    soft[0, 0, 0, :3], soft[1, 0, 2, :3] = 1, 1
    masks = first_state(soft, [(4, 4)], (4, 4))
    refined = refine(masks, attention, [attention, attention], Refinement(0, 1, 1, 0.0, 20))
    for k in range(2):
        assert torch.equal(refined.final[4, 4][k, 0].flatten(), block == (0, 1)[k])
