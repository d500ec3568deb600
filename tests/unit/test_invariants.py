"""What holds for every picture, mask and number of concepts (disjoint hard masks)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pnpmix.masks import changed_pixels, expanded_box_mask, share_overlaps, token_weights
from pnpmix.mixer.dilution import Dilution
from pnpmix.mixer.inversion import ddpm_invert, edit_friendly_trajectory
from pnpmix.mixer.sampling import BatchRows, sample_pnp_mix

RATIO, CHANNELS, STEPS = 8, 3, 4
SIGMAS = torch.tensor([9.0, 4.0, 1.5, 0.3, 0.0])


def toy_denoise(x, sigma, rows: BatchRows | None = None):
    """A nonlinear model whose swap rows depend on the personal rows, as guided attention makes them."""
    sigma = sigma.view(-1, 1, 1, 1)
    mean = x.mean((1, 2, 3), keepdim=True)
    denoised = torch.tanh(x / (1 + sigma)) + 0.1 * x.roll(1, -1) / (1 + sigma) + 0.2 * torch.sin(mean)
    if rows is not None and "swap" in rows.roles:
        denoised = denoised.unflatten(0, (len(rows.roles), -1)).clone()
        personal, swap = rows.roles.index("personal"), rows.roles.index("swap")
        denoised[swap] = 0.5 * denoised[swap] + 0.5 * denoised[personal].mean((-1, -2), keepdim=True)
        denoised = denoised.flatten(0, 1)
    return denoised


def overflowing(x, sigma, rows: BatchRows):
    """Half precision: infinite in the left column, which no mask holds."""
    denoised = toy_denoise(x, sigma, rows).clone()
    denoised[..., 0] = torch.tensor([torch.inf, -torch.inf]).repeat(-(-x.shape[-2] // 2))[: x.shape[-2]]
    return denoised


@pytest.mark.parametrize("outside", ["scaled", "blended"])
def test_what_overflows_outside_the_masks_stays_outside(outside):
    masks, own = torch.zeros(2, 1, 4, 5), torch.zeros(2, 1, 4, 5)
    masks[0, :, :2, 1:3], masks[1, :, 2:, 3:], own[..., 1:3, 1:4] = 1, 1, 1
    back, inpaint, *concepts = (
        edit_friendly_trajectory(torch.randn(CHANNELS, 4, 5, generator=torch.Generator().manual_seed(k)), SIGMAS, k)
        for k in range(4)
    )
    inversion = ddpm_invert(toy_denoise, back[-1], SIGMAS, 0)
    given = (inversion, torch.stack(concepts, 1), masks, [True] * STEPS)
    more = dict(dilution=Dilution(inpaint, masks, 0.8, outside), object_masks=own)
    for ours, expected in zip(
        sample_pnp_mix(overflowing, *given, **more), sample_pnp_mix(toy_denoise, *given, **more), strict=True
    ):
        assert torch.equal(ours, expected)


@st.composite
def scenes(draw, min_concepts=0):
    """Sizes in cells of 8 pixels, and disjoint rectangles that cut through cells."""
    height, width = draw(st.integers(2, 6)), draw(st.integers(2, 6))
    n = draw(st.integers(min_concepts, 4))
    owner = torch.full((height * RATIO, width * RATIO), -1)
    for k in range(n):
        top, left = draw(st.integers(0, height * RATIO - 1)), draw(st.integers(0, width * RATIO - 1))
        bottom, right = draw(st.integers(top, height * RATIO)), draw(st.integers(left, width * RATIO))
        owner[top:bottom, left:right] = k
    pixels = [(owner == k).float() for k in range(n)]  # some are empty
    return draw(st.integers(0, 2**32)), (height, width), pixels


@st.composite
def options(draw):
    return (
        dict(
            guided=draw(st.lists(st.booleans(), min_size=STEPS, max_size=STEPS)),
            swap_guidance=draw(st.sampled_from([1.0, 2.0, 3.5])),
            mix_references=draw(st.booleans()),
            concepts_per_call=draw(st.integers(1, 4)),
        ),
        draw(st.sampled_from([None, "scaled", "blended"])),
        draw(st.booleans()),
    )


def stack(tensors, grid):
    return torch.stack(tensors)[:, None] if tensors else torch.zeros(0, 1, *grid)


def run(scene, chosen, order=None, feather=0):
    seed, grid, pixels = scene
    given_options, outside, normalized = chosen
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.randn(len(pixels) + 2, CHANNELS, *grid, generator=generator)
    background, inpainted, *own = pictures
    order = list(range(len(pixels))) if order is None else order
    inversion = ddpm_invert(toy_denoise, background, SIGMAS, seed=0, timesteps_per_call=3)

    # two that cover exactly half of a cell both claim it
    masks = share_overlaps(stack([token_weights(pixels[k], grid, feather) for k in order], grid))
    personal = [edit_friendly_trajectory(own[k], SIGMAS, seed=1 + k) for k in order]
    personal = torch.stack(personal, 1) if personal else torch.zeros(STEPS + 1, 0, CHANNELS, *grid)
    dilution = None
    if outside is not None:
        boxes = stack([expanded_box_mask(pixels[k], grid, expand=4) for k in order], grid)
        dilution = Dilution(edit_friendly_trajectory(inpainted, SIGMAS, seed=0), boxes, 0.8, outside)
    object_masks = torch.ones(len(order), 1, *grid) if normalized else None
    output, branches = sample_pnp_mix(
        toy_denoise, inversion, personal, masks, dilution=dilution, object_masks=object_masks, **given_options
    )
    return background, masks, output, branches


@settings(deadline=None)
@given(scenes(), options())
def test_outside_all_masks_the_background_is_untouched(scene, chosen):
    background, masks, output, _ = run(scene, chosen)
    outside = masks.sum(0)[0] == 0
    assert torch.equal(output[:, outside], background[:, outside])


@settings(deadline=None)
@given(scenes(min_concepts=1), options(), st.sampled_from([0, 3, 9]))
def test_pixels_that_are_not_told_as_changed_are_the_backgrounds(scene, chosen, feather):
    pixels = scene[2]
    background, masks, output, _ = run(scene, chosen, feather=feather)
    changed = changed_pixels(masks, *pixels[0].shape)
    differs = (output != background).any(0).repeat_interleave(RATIO, 0).repeat_interleave(RATIO, 1)
    assert changed.shape == pixels[0].shape and set(changed.unique().tolist()) <= {0, 1}
    assert (changed[differs] == 1).all()
    cells = masks.sum((0, 1)) > 0
    assert changed.sum() == RATIO**2 * cells.sum(), "and no cell more than that has a weight"


@settings(deadline=None)
@given(scenes(min_concepts=1), options())
def test_inside_its_mask_each_reference_is_the_output(scene, chosen):
    _, masks, output, branches = run(scene, chosen)
    for mask, reference in zip(masks, branches, strict=True):
        inside = mask[0] == 1
        assert torch.equal(output[:, inside], reference[:, inside])


@settings(deadline=None)
@given(scenes(min_concepts=2), options(), st.randoms())
def test_the_order_of_concepts_does_not_matter(scene, chosen, random):
    order = list(range(len(scene[2])))
    random.shuffle(order)
    _, _, output, branches = run(scene, chosen)
    _, _, shuffled, shuffled_branches = run(scene, chosen, order)
    # another order may group rows differently, which rounds differently
    torch.testing.assert_close(shuffled, output, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shuffled_branches, branches[order], rtol=1e-4, atol=1e-5)


@settings(deadline=None)
@given(scenes(), options(), st.integers(0, 4))
def test_without_concepts_or_with_empty_masks_nothing_changes(scene, chosen, n):
    seed, grid, _ = scene
    empty = [torch.zeros(grid[0] * RATIO, grid[1] * RATIO)] * n
    background, _, output, _ = run((seed, grid, empty), chosen)
    assert torch.equal(output, background)


@settings(deadline=None)
@given(scenes(min_concepts=1), options())
def test_how_many_concepts_share_a_call_changes_rounding_only(scene, chosen):
    given_options, *others = chosen
    results = [run(scene, (given_options | {"concepts_per_call": size}, *others))[2] for size in (1, 4)]
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
