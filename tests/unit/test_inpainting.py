"""Objects are painted out, and every pixel outside the grown mask stays what it was."""

import time

import cv2
import numpy as np
import pytest
import skimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pnpmix.masks import grow
from pnpmix.vision.inpainting import fill_by_model, fill_smoothly, fill_weights, inpaint

PHOTOS = ["astronaut", "coffee", "chelsea"]


def photo(name: str) -> torch.Tensor:
    return torch.from_numpy(getattr(skimage.data, name)()).float() / 255


def disc(height: int, width: int, row: int, column: int, radius: int) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (((y - row) ** 2 + (x - column) ** 2) < radius**2).float()


def test_weights_fall_in_equal_steps():
    mask = torch.zeros(1, 21)
    mask[0, 10] = 1
    weights = fill_weights(mask, 5, 3)[0]
    assert weights[10:17].tolist() == pytest.approx([1, 1, 1, 0.75, 0.5, 0.25, 0])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 24), st.integers(1, 24), st.integers(0, 30), st.integers(0, 30), st.integers(0, 2**16))
def test_weights_are_the_mean_of_masks_grown_by_one_more_pixel_each(height, width, expand, feather, seed):
    """Bit by bit: the definition, which takes a pass over the picture for each pixel of feather."""
    mask = torch.from_numpy((np.random.default_rng(seed).random((height, width)) < 0.02).astype(np.float32))
    steps = min(feather, expand)
    masks = [grow(mask[None], expand - k)[0] for k in range(steps + 1)]
    assert torch.equal(fill_weights(mask, expand, feather), torch.stack(masks).sum(0) / (steps + 1))


def fill_by_opencv(method: int):
    def fill(pixels, hole):
        picture, mask = (pixels.numpy() * 255).round().astype(np.uint8), hole.numpy().astype(np.uint8)
        return torch.from_numpy(cv2.inpaint(picture, mask, 5, method).astype(np.float32) / 255)

    return fill


@pytest.mark.parametrize("name", PHOTOS)
def test_a_removed_patch_is_filled_better_than_by_opencv_and_the_rest_is_untouched(name):
    """Discs of three sizes, each at eight places: error inside the hole against what was there."""
    image, generator = photo(name), np.random.default_rng(0)
    methods = {"ours": fill_smoothly, "Navier-Stokes": fill_by_opencv(cv2.INPAINT_NS)}
    methods["Telea"] = fill_by_opencv(cv2.INPAINT_TELEA)
    errors = {method: [] for method in methods}
    for radius in (8, 20, 40):
        for _ in range(8):
            row, column = (int(generator.integers(radius + 20, side - radius - 20)) for side in image.shape[:2])
            mask = disc(*image.shape[:2], row, column, radius)
            spoilt, weights = torch.where(mask[..., None] > 0, 0.0, image), fill_weights(mask, 4, 2)
            for method, fill in methods.items():
                filled = inpaint(spoilt, weights, fill)
                assert torch.equal(filled[weights == 0], spoilt[weights == 0])
                assert filled.min() >= 0 and filled.max() <= 1
                errors[method].append((filled - image)[mask > 0].square().mean())
    psnr = {method: -10 * torch.stack(x).mean().log10().item() for method, x in errors.items()}
    print(f"{name}: PSNR inside the holes", {method: round(x, 2) for method, x in psnr.items()})
    assert psnr["ours"] > max(psnr["Navier-Stokes"], psnr["Telea"])


def test_a_linear_shading_is_continued_exactly():
    """The solution of Laplace's equation."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 60), torch.linspace(0, 1, 80), indexing="ij")
    image, mask = torch.stack([x, y, (x + y) / 2], -1), disc(60, 80, 30, 40, 9)
    filled = inpaint(torch.where(mask[..., None] > 0, 0.0, image), fill_weights(mask, 2, 0), fill_smoothly)
    assert (filled - image).abs().max() < 0.02


@pytest.mark.parametrize("size", [(1, 2), (2, 1), (3, 3), (5, 64), (37, 51)])
def test_holes_up_to_the_border_of_any_size(size):
    image, mask = torch.rand(*size, 3), torch.ones(size)
    mask[0, 0] = 0
    filled = inpaint(image, fill_weights(mask, 0, 0), fill_smoothly)
    assert torch.allclose(filled, image[0, 0].expand_as(image), atol=1e-5), "one pixel is all that is known"


def test_alpha_is_kept():
    image = torch.rand(40, 50, 4)
    weights = fill_weights(disc(40, 50, 20, 20, 6), 2, 1)
    filled = inpaint(image, weights, fill_smoothly)
    assert torch.equal(filled[..., 3], image[..., 3])
    assert not torch.equal(filled[..., :3], image[..., :3])


def test_image_given_is_not_altered():
    image = torch.rand(40, 50, 3)
    before = image.clone()
    inpaint(image, fill_weights(disc(40, 50, 20, 20, 6), 2, 1), fill_smoothly)
    assert torch.equal(image, before)


class Recorder(torch.nn.Module):
    """An inpainting model, its own descriptor, that fills with gray and remembers the sizes it saw."""

    def __init__(self):
        super().__init__()
        self.weight, self.sizes = torch.nn.Parameter(torch.zeros(1)), []

    dtype = torch.float32
    model = property(lambda self: self)

    def forward(self, image, mask):
        assert image.shape[:2] == (1, 3) and mask.shape == (1, 1, *image.shape[2:])
        assert set(mask.unique().tolist()) <= {0, 1}
        self.sizes.append(tuple(image.shape[2:]))
        return torch.where(mask > 0, 0.5, image)


def test_a_small_hole_in_a_large_photo_is_filled_at_full_resolution():
    image, model = torch.rand(2448, 3264, 3), Recorder()
    weights = fill_weights(disc(2448, 3264, 1200, 3200, 100), 8, 4)
    filled = inpaint(image, weights, fill_by_model(model, torch.device("cpu")))
    assert max(model.sizes[0]) < 450
    assert torch.equal(filled[weights == 0], image[weights == 0])
    assert (filled[weights == 1] == 0.5).all()


def test_a_huge_hole_is_filled_at_a_size_that_memory_allows():
    image, model = torch.rand(2448, 3264, 3), Recorder()
    weights = fill_weights(disc(2448, 3264, 1200, 1600, 1100), 8, 4)
    filled = inpaint(image, weights, fill_by_model(model, torch.device("cpu")))
    assert max(model.sizes[0]) == 2048
    assert torch.equal(filled[weights == 0], image[weights == 0])
    assert (filled[weights == 1] - 0.5).abs().max() < 1e-5


class Cancelled(Exception):
    """What a check raises."""


def cancel_at(count: int):
    """A check that ends the work when it is called for the count-th time."""
    left = iter(range(1, count))

    def check() -> None:
        if next(left, None) is None:
            raise Cancelled

    return check


class Layered(Recorder):
    """With layers before it fills."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(*(torch.nn.Identity() for _ in range(4)))

    def forward(self, image, mask):
        return super().forward(self.layers(image), mask)


@pytest.mark.parametrize("call", [1, 5])
def test_the_work_on_one_picture_can_be_ended(call):
    pixels, mask, model = torch.rand(64, 64, 3), disc(64, 64, 32, 32, 20), Layered()
    with pytest.raises(Cancelled):
        fill_smoothly(pixels, mask, cancel_at(call))
    with pytest.raises(Cancelled):
        fill_by_model(model, torch.device("cpu"), cancel_at(call))(pixels, mask)
    assert not model.sizes, "ended between its layers"
    fill_by_model(model, torch.device("cpu"))(pixels, mask)
    assert len(model.sizes) == 1, "no check has stayed in the model"


def test_a_wide_feather_on_a_large_photo_takes_no_time():
    """12 megapixels: 0.3 s, where each pixel of feather was once a pass over the photo."""
    start = time.process_time()
    fill_weights(disc(3000, 4000, 1500, 2000, 1100), 512, 512)
    assert time.process_time() - start < 3


def test_a_half_precision_picture_keeps_its_bits_outside():
    image, weights = torch.rand(40, 50, 4).half(), fill_weights(disc(40, 50, 20, 20, 6), 2, 1)
    filled = inpaint(image, weights, fill_smoothly)
    assert filled.dtype == torch.float16
    assert torch.equal(filled[weights == 0], image[weights == 0])
    exact = inpaint(image.float(), weights, fill_smoothly)
    assert torch.equal(filled, exact.half())
