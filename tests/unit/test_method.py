"""Each idea of the paper on its own, against numbers worked out here."""

import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from pnpmix.batching import in_groups
from pnpmix.masks import covered_tokens, expanded_box_mask, gaussian_blur, share_overlaps, to_image_size, token_weights
from pnpmix.mixer.attention import attend_to_objects, guided_appearance_attention
from pnpmix.mixer.dilution import Dilution, background_dilution
from pnpmix.mixer.inversion import Inversion, ddpm_invert, edit_friendly_trajectory
from pnpmix.mixer.mixing import mix_noise, mix_reference_noise
from pnpmix.mixer.sampling import roles_needed, sample_pnp_mix
from pnpmix.schedule import (
    added_noise,
    posterior_mean,
    posterior_std,
    rectified_flow,
    swap_guidance_scale,
    to_eps,
    without_noisiest,
)


def test_posterior_mean_is_ddim_with_eta_1():
    """In the variables of the papers, with abar = 1 / (1 + sigma²)."""
    x, eps = torch.randn(2, 3, 4, dtype=torch.float64)
    for sigma, sigma_next in ((14.6, 9.1), (2.0, 1.9), (0.03, 0.0)):
        now, then = 1 / (1 + sigma**2), 1 / (1 + sigma_next**2)
        vp = x * math.sqrt(now)
        x0 = (vp - math.sqrt(1 - now) * eps) / math.sqrt(now)
        variance = (1 - then) / (1 - now) * (1 - now / then)
        mean = math.sqrt(then) * x0 + math.sqrt(1 - then - variance) * eps
        ours = posterior_mean(x, eps, torch.tensor(sigma).double(), torch.tensor(sigma_next).double())
        torch.testing.assert_close(ours, mean / math.sqrt(then), rtol=1e-5, atol=1e-6)


def louder_flow(sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Some models scale the noise too."""
    return 1 - sigma, 1.3 * sigma


def as_papers_write_it(sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Variance preserving, with sigma = b."""
    return (1 - sigma**2).sqrt(), sigma


@pytest.mark.parametrize("path", [added_noise, rectified_flow, louder_flow, as_papers_write_it])
@pytest.mark.parametrize("sigma, sigma_next", [(1.0, 0.9), (0.9, 0.3), (0.4, 0.39), (0.2, 0.0)])
def test_the_step_is_the_posterior_of_the_noisier_latent_on_every_path(path, sigma, sigma_next):
    """By conditioning the normal distribution of (x', x) for a known x0 on x."""
    sigma, sigma_next = torch.tensor([sigma, sigma_next], dtype=torch.float64)
    (a, b), (a_next, b_next) = path(sigma), path(sigma_next)
    x0, x = torch.randn(2, 100, dtype=torch.float64)
    covariance = a / a_next * b_next**2
    mean = a_next * x0 + covariance / b**2 * (x - a * x0)
    variance = b_next**2 - covariance**2 / b**2
    torch.testing.assert_close(posterior_mean(x, to_eps(x, x0, sigma), sigma, sigma_next, path), mean)
    torch.testing.assert_close(posterior_std(sigma, sigma_next, path) ** 2, variance)


@pytest.mark.parametrize("path", [rectified_flow, louder_flow])
def test_an_inversion_replays_to_the_last_bit_on_every_path(path):
    """From pure noise too, with a model that is far from the truth."""
    x0, sigmas = torch.randn(4, 8, 8), torch.tensor([1.0, 0.8, 0.5, 0.1, 0.0])
    inversion = ddpm_invert(lambda x, sigma: (5 * x).sin() + sigma.view(-1, 1, 1, 1), x0, sigmas, 3, path=path)
    no_masks, no_trajectories = torch.zeros(0, 1, 8, 8), torch.zeros(5, 0, 4, 8, 8)
    output, _ = sample_pnp_mix(None, inversion, no_trajectories, no_masks, guided=[True] * 4, path=path)
    assert torch.equal(output, x0)


@pytest.mark.parametrize("first, last", [(3.5, 1.75), (1.0, 1.0), (1.5, 1.0)])
def test_swap_guidance_falls_linearly_to_half_but_not_below_1(first, last):
    weights = [swap_guidance_scale(first, i, 5) for i in range(5)]
    np.testing.assert_allclose(weights, np.linspace(first, last, 5))
    assert swap_guidance_scale(first, 0, 1) == first


def test_trajectory_has_independent_noise_and_ends_in_the_picture():
    x0, sigmas = torch.randn(4, 32, 32), torch.tensor([8.0, 4.0, 1.0, 0.0])
    path = edit_friendly_trajectory(x0, sigmas, seed=5)
    noise = torch.randn((3, 4, 32, 32), generator=torch.Generator("cpu").manual_seed(5))
    torch.testing.assert_close(path[:-1], x0 + sigmas[:-1].view(3, 1, 1, 1) * noise)
    assert torch.equal(path[-1], x0)
    sigmas = torch.tensor([1.0, 0.75, 0.5, 0.0])
    path = edit_friendly_trajectory(x0, sigmas, 5, rectified_flow)
    torch.testing.assert_close(path[:-1], torch.stack([noise[0], x0.lerp(noise[1], 0.75), x0.lerp(noise[2], 0.5)]))
    assert torch.equal(path[-1], x0)


def test_inversion_reports_every_timestep_once():
    seen, sigmas = [], torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0, 0.0])
    ddpm_invert(lambda x, sigma: x * 0, torch.zeros(1, 2, 2), sigmas, 0, 2, lambda done, _: seen.append(done))
    assert seen == [2, 4, 5]


def test_swap_rows_read_their_own_concept_only():
    """Two chunks (conditional, unconditional) × three roles × two concepts; each value names its row."""
    roles = ("personal", "swap", "plain")
    rows = torch.arange(12.0).view(12, 1, 1).expand(12, 5, 3)
    key, value = guided_appearance_attention(rows, rows, alpha=0.5, roles=roles, chunks=2)
    # chunk 0: rows 0 1 personal, 2 3 swap, 4 5 plain
    assert key[:, 0, 0].tolist() == [0, 1, 0, 1, 4, 5, 6, 7, 6, 7, 10, 11]
    assert value[:, 0, 0].tolist() == [0, 1, -1, 0, 4, 5, 6, 7, 5, 6, 10, 11]
    assert rows[2, 0, 0] == 2, "the layer's own input must stay as it is"


def test_targets_read_nothing_but_their_concepts_object():
    """Two concepts, of which only the second says where its object is."""
    roles, heads = ("personal", "swap", "plain"), torch.nn.functional.scaled_dot_product_attention
    query, key, value = torch.randn(3, 6, 4, 8)
    target, own = torch.tensor([1, 2]), torch.tensor([0, 3])
    before = heads(query, key, value)

    def result(key, value):
        def attend(query, key, value, _):
            return heads(query, key, value)

        return attend_to_objects(attend, heads(query, key, value), query, key, value, [None, (target, own)], roles)

    after = result(key, value)
    changed = (after != before).any(-1)
    assert changed.nonzero().tolist() == [[3, 1], [3, 2]]  # row 3: the second concept's swap row
    scores = query[3, 1] @ key[3, own].T / math.sqrt(8)
    torch.testing.assert_close(after[3, 1], scores.softmax(-1) @ value[3, own])
    elsewhere = [x.clone() for x in (key, value)]
    for x in elsewhere:
        x[3, 1:3] = 9
    assert torch.equal(result(*elsewhere)[3, target], after[3, target])


def test_an_object_always_has_a_cell():
    mask = torch.zeros(16, 16)
    mask[:8, :8], mask[8:11, 8:10] = 1, 1
    assert covered_tokens(mask, (2, 2)).tolist() == [0]
    mask[:8, :8] = 0
    assert covered_tokens(mask, (2, 2)).tolist() == [3], "the most covered one"


def test_linear_projections_make_inputs_as_good_as_keys_and_values():
    """Eq. 3.3 is about V; the code works on the input of V's projection."""
    personal, swap = torch.randn(2, 1, 6, 8)
    to_v = torch.nn.Linear(8, 8, bias=False)
    _, value = guided_appearance_attention(
        torch.cat([personal, swap]), torch.cat([personal, swap]), 0.15, ("personal", "swap")
    )
    expected = to_v(personal) + 0.15 * (to_v(personal) - to_v(swap))
    torch.testing.assert_close(to_v(value[1:]), expected)


@pytest.mark.parametrize(
    "guided, weight, roles",
    [
        (False, 3.5, ("plain",)),
        (True, 1.0, ("personal", "swap")),
        (True, 3.5, ("personal", "swap", "plain")),
    ],
)
def test_rows_that_nothing_reads_are_not_computed(guided, weight, roles):
    assert roles_needed(guided, weight) == roles


def test_noise_of_each_region_comes_from_its_own_branch():
    back, refs = torch.full((1, 1, 3), 9.0), torch.tensor([1.0, 2.0]).view(2, 1, 1, 1).expand(2, 1, 1, 3)
    masks = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.25, 0.0]]).view(2, 1, 1, 3)
    assert mix_noise(back, refs, masks).flatten().tolist() == [1, 0.25 * 2 + 0.75 * 9, 9]
    assert mix_reference_noise(back, refs, masks)[0].flatten().tolist() == [1, 9, 9]


def test_dilution_scales_or_blends_outside_the_box():
    branches, inpaint = torch.full((1, 1, 1, 2), 10.0), torch.full((1, 1, 2), 5.0)
    box = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    for outside, expected in (("scaled", 4.0), ("blended", 4.0 + 0.2 * 10)):
        result = background_dilution(branches, inpaint, Dilution(inpaint, box, 0.8, outside))
        torch.testing.assert_close(result.flatten(), torch.tensor([10.0, expected]))


def test_a_cell_belongs_to_the_object_that_covers_half_of_it():
    mask = torch.zeros(16, 16)
    mask[:8, :4] = 1  # half of the first cell
    mask[8:, :3] = 1  # less
    assert token_weights(mask, (2, 2)).tolist() == [[1, 0], [0, 0]]


def test_box_is_grown_and_clipped_in_pixels():
    mask = torch.zeros(32, 32)
    mask[10, 2] = 1
    box = expanded_box_mask(mask, (32, 32), expand=4)
    assert box.sum() == 9 * 7  # rows 6..14, columns 0..6
    assert box[6:15, 0:7].all()
    assert expanded_box_mask(torch.zeros(32, 32), (4, 4), 4).sum() == 0


def test_feather_is_a_gaussian_of_half_the_width():
    mask = torch.zeros(64, 64)
    mask[20:40, 0:30] = 1
    expected = scipy.ndimage.gaussian_filter(mask.double().numpy(), 6.0, mode="nearest")
    np.testing.assert_allclose(gaussian_blur(mask, 6.0).numpy(), expected, atol=1e-5)
    cells = expected.reshape(8, 8, 8, 8).mean((1, 3))
    np.testing.assert_allclose(token_weights(mask, (8, 8), feather=12).numpy(), cells, atol=1e-5)


def test_overlapping_masks_share_and_others_stay():
    masks = torch.tensor([[1.0, 1.0, 0.3], [1.0, 0.0, 0.3]]).view(2, 1, 1, 3)
    torch.testing.assert_close(share_overlaps(masks).view(2, 3), torch.tensor([[0.5, 1.0, 0.3], [0.5, 0.0, 0.3]]))


def test_masks_of_another_size_are_resized():
    assert to_image_size(torch.ones(5, 9), 32, 64).shape == (32, 64)
    mask = torch.rand(32, 64)
    assert to_image_size(mask, 32, 64) is mask


def test_groups_that_do_not_fit_are_halved():
    sizes = []

    def call(group: slice):
        sizes.append(group.stop - group.start)
        if sizes[-1] > 2:
            raise torch.cuda.OutOfMemoryError
        return torch.arange(group.start, group.stop)

    result, size = in_groups(call, 7, 7)
    assert result.tolist() == list(range(7))
    assert size == 1
    assert sizes == [7, 3, *[1] * 7]

    def never(group):
        raise torch.cuda.OutOfMemoryError

    with pytest.raises(torch.cuda.OutOfMemoryError):
        in_groups(never, 2, 2)


def test_the_method_does_not_know_comfyui():
    import pathlib
    import subprocess
    import sys

    package = pathlib.Path(sys.modules["pnpmix"].__file__).parent
    modules = ", ".join(f"pnpmix.{path.stem}" for path in package.glob("[a-z]*.py"))
    code = f"import sys, {modules}; assert not any(m.split('.')[0] in ('comfy', 'nodes') for m in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=package.parent, check=True)


@pytest.mark.parametrize("adain", [False, True])
def test_the_loop_never_waits_for_the_device(adain):
    """Numbers of the meta device cannot be read, so a step that asks for one would stop here. Trajectories that stay
    on the CPU are fetched level by level."""
    sigmas, n, device = torch.tensor([5.0, 3.0, 1.0, 0.0]), 2, torch.device("meta")
    inversion = Inversion(sigmas.to(device), torch.zeros(4, 4, 8, 8), torch.zeros(3, 4, 8, 8), 0)
    masks = torch.zeros(n, 1, 8, 8, device=device)
    output, branches = sample_pnp_mix(
        lambda x, sigma, rows: x * 0.5,
        inversion,
        torch.zeros(4, n, 4, 8, 8),
        masks,
        guided=[True] * 3,
        dilution=Dilution(torch.zeros(4, 4, 8, 8), masks, 0.8, "blended"),
        object_masks=masks if adain else None,
        callback=lambda step, latents, denoised: None,
    )
    assert output.device == branches.device == device
    assert branches.shape == (n, *output.shape) == (n, 4, 8, 8)


@pytest.mark.parametrize("steps, skip, left", [(10, 4, 6), (15, 5, 7), (5, 4, 2), (5, 0, 10)])
def test_the_share_that_is_skipped_is_that_of_the_steps_asked_for(steps, skip, left):
    """A scheduler that gives ten steps, whatever it is asked for."""
    sigmas = torch.arange(10.0, -1, -1)
    assert without_noisiest(sigmas, steps, skip).tolist() == list(range(left, -1, -1))
