"""Objects are painted out, and every pixel outside the grown mask stays what it was."""

import numpy as np
import pytest
import skimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pnpmix.inpainting import fill_by_model, fill_by_opencv, fill_weights, inpaint
from pnpmix.masks import grow

PHOTOS = ["astronaut", "coffee", "chelsea"]


def photo(name: str) -> torch.Tensor:
    return torch.from_numpy(getattr(skimage.data, name)()).float() / 255


def disc(height: int, width: int, row: int, column: int, radius: int) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (((y - row) ** 2 + (x - column) ** 2) < radius**2).float()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 9), st.integers(0, 12), st.integers(0, 2**16))
def test_weights_cover_the_mask_and_end_at_the_grown_mask(expand, feather, seed):
    generator = np.random.default_rng(seed)
    mask = torch.from_numpy((generator.random((17, 23)) < 0.03).astype(np.float32))
    weights, grown = fill_weights(mask, expand, feather), grow(mask[None], expand)[0]
    assert (weights[mask == 1] == 1).all()
    assert torch.equal(weights > 0, grown == 1)
    steps = min(feather, expand)
    assert set((weights * (steps + 1)).round(decimals=4).tolist()[0]) <= set(range(steps + 2))


def test_weights_fall_in_equal_steps():
    mask = torch.zeros(1, 21)
    mask[0, 10] = 1
    weights = fill_weights(mask, 5, 3)[0]
    assert weights[10:17].tolist() == pytest.approx([1, 1, 1, 0.75, 0.5, 0.25, 0])


@pytest.mark.parametrize("name", PHOTOS)
def test_a_removed_patch_is_filled_and_the_rest_is_untouched(name):
    """Better inside the hole than its mean surroundings, on discs of three sizes at twelve places."""
    image, generator, ours, flat = photo(name), np.random.default_rng(0), [], []
    height, width = image.shape[:2]
    for radius in (8, 20, 40):
        for _ in range(4):
            row, column = (
                generator.integers(radius + 20, height - radius - 20),
                generator.integers(radius + 20, width - radius - 20),
            )
            mask = disc(height, width, int(row), int(column), radius)
            spoilt = torch.where(mask[..., None] > 0, 0.0, image)
            weights = fill_weights(mask, 4, 2)
            filled = inpaint(spoilt, weights, fill_by_opencv)
            assert torch.equal(filled[weights == 0], spoilt[weights == 0])
            assert filled.min() >= 0 and filled.max() <= 1
            ring = grow(mask[None], 8)[0] - grow(mask[None], 4)[0] > 0
            ours.append((filled - image)[mask > 0].square().mean())
            flat.append((image[ring].mean(0) - image)[mask > 0].square().mean())
    psnr, flat_psnr = (-10 * torch.stack(x).mean().log10() for x in (ours, flat))
    print(f"{name}: PSNR inside the holes {psnr:.2f} dB, of their surroundings' mean colour {flat_psnr:.2f} dB")
    assert psnr > flat_psnr + 0.5


def test_alpha_is_kept():
    image = torch.rand(40, 50, 4)
    weights = fill_weights(disc(40, 50, 20, 20, 6), 2, 1)
    filled = inpaint(image, weights, fill_by_opencv)
    assert torch.equal(filled[..., 3], image[..., 3])
    assert not torch.equal(filled[..., :3], image[..., :3])


def test_image_given_is_not_altered():
    image = torch.rand(40, 50, 3)
    before = image.clone()
    inpaint(image, fill_weights(disc(40, 50, 20, 20, 6), 2, 1), fill_by_opencv)
    assert torch.equal(image, before)


class Recorder(torch.nn.Module):
    """An inpainting model that fills with grey and remembers the sizes it saw."""

    def __init__(self):
        super().__init__()
        self.weight, self.sizes = torch.nn.Parameter(torch.zeros(1)), []

    dtype = torch.float32

    def forward(self, image, mask):
        assert image.shape[:2] == (1, 3) and mask.shape == (1, 1, *image.shape[2:])
        assert set(mask.unique().tolist()) <= {0, 1}
        self.sizes.append(tuple(image.shape[2:]))
        return torch.where(mask > 0, 0.5, image)


def test_a_small_hole_in_a_large_photo_is_filled_at_full_resolution():
    image, model = torch.rand(2448, 3264, 3), Recorder()
    weights = fill_weights(disc(2448, 3264, 1200, 3200, 100), 8, 4)
    filled = inpaint(image, weights, fill_by_model(model, torch.device("cpu")))
    assert model.sizes == [(207 + 2 * 103 + 8, 272 + 8)] or max(model.sizes[0]) < 450
    assert torch.equal(filled[weights == 0], image[weights == 0])
    assert (filled[weights == 1] == 0.5).all()


def test_a_huge_hole_is_filled_at_a_size_that_memory_allows():
    image, model = torch.rand(2448, 3264, 3), Recorder()
    weights = fill_weights(disc(2448, 3264, 1200, 1600, 1100), 8, 4)
    filled = inpaint(image, weights, fill_by_model(model, torch.device("cpu")))
    assert max(model.sizes[0]) == 2048
    assert torch.equal(filled[weights == 0], image[weights == 0])
    assert (filled[weights == 1] - 0.5).abs().max() < 1e-5
