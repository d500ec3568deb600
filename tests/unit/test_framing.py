"""A part of a photo for the model, and the way back: objects are never cut, other pixels never altered."""

import pytest
import skimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pnpmix.vision.framing import (
    Frame,
    bounding_frame,
    crop_frame,
    cut_masks,
    cut_pictures,
    mask_in_place,
    object_frame,
    overlap,
    pad_frame,
    paste,
    picture_in_place,
    same_shape,
    sizes_of_shape,
    to_multiple,
    whole,
)

SIDES = st.one_of(st.integers(1, 60), st.integers(1, 5000))
SIZES = st.tuples(SIDES, SIDES)


@st.composite
def targets(draw, photo):
    """A rectangle on the photo."""
    starts = [draw(st.integers(0, limit - 1)) for limit in photo]
    return Frame(*((start, draw(st.integers(start + 1, limit))) for start, limit in zip(starts, photo, strict=True)))


def holds(outer: Frame, inner: Frame) -> bool:
    return all(a[0] <= b[0] and b[1] <= a[1] for a, b in zip(outer, inner, strict=True))


@given(SIZES, SIZES)
def test_sizes_of_a_shape_touch_what_they_are_in_or_round(size, shape):
    inside, around = sizes_of_shape(size, shape)
    assert all(1 <= a <= b for a, b in zip(inside, size, strict=True)), "the largest inside"
    assert all(a >= b for a, b in zip(around, size, strict=True)), "the smallest round it"
    for height, width in (inside, around):
        assert height == size[0] or width == size[1]
        off = min(abs(height - width * shape[0] / shape[1]), abs(width - height * shape[1] / shape[0]))
        assert off <= 0.5 or 1 in (height, width), "its shape, to the nearest pixel"


@given(SIZES, st.integers(1, 64))
def test_sizes_are_rounded_to_the_nearest_multiple_that_is_not_0(size, multiple):
    for side, rounded in zip(size, to_multiple(size, multiple), strict=True):
        assert rounded % multiple == 0 and rounded > 0
        assert abs(rounded - side) <= multiple / 2 or rounded == multiple


@given(SIZES, SIZES, st.data())
def test_crop_lies_in_the_photo_and_as_near_to_the_object_as_it_can(photo, shape, data):
    target = data.draw(targets(photo))
    for frame in (crop_frame(photo, shape, None), crop_frame(photo, shape, target)):
        assert holds(whole(photo), frame)
        assert frame.size == sizes_of_shape(photo, shape)[0]
    if all(a <= b for a, b in zip(target.size, frame.size, strict=True)):
        assert holds(frame, target)


@given(SIZES, SIZES)
def test_pad_keeps_all_of_the_photo_in_the_middle(photo, shape):
    frame = pad_frame(photo, shape)
    assert holds(frame, whole(photo))
    assert all(abs(-start - (stop - limit)) <= 1 for (start, stop), limit in zip(frame, photo, strict=True))


@given(SIZES, SIZES, st.integers(0, 300), st.data())
def test_object_is_never_cut_and_fills_the_frame(photo, shape, margin, data):
    target = data.draw(targets(photo))
    frame = object_frame(photo, shape, target, margin)
    assert holds(frame, target)
    largest, _ = sizes_of_shape(photo, shape)
    if all(a <= b for a, b in zip(target.size, largest, strict=True)):
        assert holds(whole(photo), frame), "padded only where it must be"
    room = Frame(
        *((max(a - margin, 0), min(b + margin, limit)) for (a, b), limit in zip(target, photo, strict=True)),
    )
    if frame.size != largest:
        assert holds(frame, room), "the margin gives way only where the photo ends it"
        assert frame.size[0] == room.size[0] or frame.size[1] == room.size[1], "as tight as the shape allows"


@pytest.mark.parametrize(
    "target, frame",
    [
        (Frame((100, 140), (200, 220)), Frame((90, 150), (180, 240))),
        (Frame((0, 40), (0, 20)), Frame((0, 50), (0, 50))),  # at the border the frame moves inside
        (Frame((0, 40), (100, 390)), Frame((0, 300), (95, 395))),  # the margin gives way
        (Frame((20, 300), (100, 440)), Frame((-20, 340), (90, 450))),  # longer than any square inside: padded
    ],
)
def test_square_round_an_object_with_a_margin_of_10(target, frame):
    """Worked out by hand, in a photo of 300 x 600 pixels."""
    assert object_frame((300, 600), (512, 512), target, 10) == frame


def test_object_is_what_is_white_in_the_mask():
    mask = torch.zeros(30, 40)
    assert bounding_frame(mask) is None
    mask[3:9, 20] = 0.5
    mask[0, 0] = 0.4
    assert bounding_frame(mask) == Frame((3, 9), (20, 21))


def test_shapes_that_differ_by_rounding_are_the_same():
    assert same_shape((3000, 4000), (384, 512)) and same_shape((512, 512), (64, 64))
    assert same_shape((683, 1024), (256, 384))
    assert not same_shape((3000, 4000), (512, 512))
    assert not same_shape((750, 1000), (744, 1000)), "a VAE has cut rows off"


@st.composite
def cuts(draw):
    """A photo's size, a frame that has some of it, and the size that it is scaled to."""
    photo, size = (draw(st.tuples(*[st.integers(1, 40)] * 2)) for _ in range(2))
    spans = []
    for limit in photo:
        start = draw(st.integers(-10, limit - 1))
        spans.append((start, draw(st.integers(max(start, 0) + 1, limit + 10))))
    return photo, Frame(*spans), size


@settings(deadline=None)
@given(cuts(), st.integers(0, 2**16))
def test_pixels_outside_the_weights_come_back_bit_by_bit(cut, seed):
    photo_size, frame, size = cut
    generator = torch.Generator().manual_seed(seed)
    photo = torch.rand(*photo_size, 3, generator=generator)
    part = cut_pictures(photo[None], frame, size)[0]
    assert part.shape == (*size, 3) and part.min() >= 0 and part.max() <= 1
    rows, columns = overlap(frame, photo_size)
    back = picture_in_place(torch.rand(*size, 3, generator=generator), frame, photo_size)
    weights = torch.rand(back.shape[:2], generator=generator) * (torch.rand(back.shape[:2], generator=generator) < 0.5)
    result = paste(photo, back, weights, rows, columns)
    same = torch.ones(photo_size, dtype=torch.bool)
    same[rows, columns] = weights == 0
    assert torch.equal(result[same], photo[same])


@settings(deadline=None)
@given(cuts(), st.integers(0, 2**16))
def test_part_that_was_not_scaled_comes_back_bit_by_bit(cut, seed):
    photo_size, frame, _ = cut
    photo = torch.rand(*photo_size, 4, generator=torch.Generator().manual_seed(seed))
    rows, columns = overlap(frame, photo_size)
    part = cut_pictures(photo[None], frame, frame.size)[0]
    assert torch.equal(picture_in_place(part, frame, photo_size), photo[rows, columns])
    mask = cut_masks(photo[None, ..., 0], frame, frame.size)[0]
    assert torch.equal(mask_in_place(mask, frame, photo_size), photo[rows, columns, 0])
    assert mask.sum() == pytest.approx(float(photo[rows, columns, 0].sum()), rel=1e-4), "nothing outside the photo"


@pytest.mark.parametrize("size", [(64, 64), (96, 144), (300, 450)])
@pytest.mark.parametrize(
    "frame", [Frame((20, 190), (60, 230)), Frame((-40, 210), (300, 550)), Frame((0, 300), (0, 451))]
)
def test_part_lies_where_it_was(frame, size):
    """A smooth photo returns almost as it was; half a pixel to one side and it would not."""
    y, x = torch.meshgrid(torch.arange(300.0), torch.arange(451.0), indexing="ij")
    photo = 0.5 + 0.4 * torch.stack([torch.sin(x / 15), torch.sin(y / 17), torch.sin((x + y) / 25)], -1)
    frame = Frame(*frame)
    rows, columns = overlap(frame, (300, 451))
    back = picture_in_place(cut_pictures(photo[None], frame, size)[0], frame, (300, 451))
    moved = photo.roll((1, 1), (0, 1))[rows, columns]
    inner = slice(8, -8)  # a padded border has an edge of its own
    error, shifted = ((back - x)[inner, inner].abs().mean() for x in (photo[rows, columns], moved))
    assert error < 0.3 * shifted


def test_picture_and_mask_move_together():
    mask = torch.from_numpy(skimage.data.horse() == 0).float()
    part_size, frame = (120, 160), Frame((-20, 280), (-30, 370))
    picture = cut_pictures(mask[None, ..., None].expand(-1, -1, -1, 3), frame, part_size)[0, ..., 0]
    moved = cut_masks(mask[None], frame, part_size)[0]
    assert ((picture >= 0.5) != (moved >= 0.5)).float().mean() < 0.002


def test_fine_pattern_is_averaged_when_it_shrinks():
    checks = (torch.arange(512)[:, None] + torch.arange(512)) % 2
    part = cut_pictures(checks[None, ..., None].float().expand(-1, -1, -1, 3), whole((512, 512)), (60, 60))
    assert (part - 0.5).abs().max() < 0.02


def test_border_goes_on_outside_the_photo_and_the_mask_does_not():
    photo = torch.rand(1, 10, 8, 3)
    frame = pad_frame((10, 8), (64, 64))
    part, mask = cut_pictures(photo, frame, (10, 10)), cut_masks(torch.ones(1, 10, 8), frame, (10, 10))
    assert torch.equal(part[:, :, 0], photo[:, :, 0]) and torch.equal(part[:, :, -1], photo[:, :, -1])
    assert (mask[:, :, [0, -1]] == 0).all() and (mask[:, :, 1:-1] == 1).all()


@pytest.mark.parametrize("photo", [(100_000, 1), (1, 100_000)])
def test_long_and_narrow_photo_is_never_a_large_square(photo):
    """As one it would take 120 GB."""
    frame = pad_frame(photo, (64, 64))
    part = cut_pictures(torch.ones(1, *photo, 3), frame, (64, 64))
    assert cut_masks(torch.ones(1, *photo), frame, (64, 64)).shape == (1, 64, 64)
    assert torch.allclose(picture_in_place(part[0], frame, photo), torch.ones(*photo, 3), atol=1e-5)


@pytest.mark.parametrize("channels", [3, 4])
def test_paste_takes_the_part_where_the_weight_is_1_and_nothing_from_where_it_is_0(channels):
    photo, part = torch.rand(20, 30, channels), torch.rand(10, 10, 3)
    before, weights = photo.clone(), torch.zeros(10, 10)
    weights[2:5, 2:5], weights[5, 2:5] = 1, 0.25
    part[weights == 0] = float("nan")
    result = paste(photo, part, weights, slice(5, 15), slice(20, 30))
    assert torch.equal(result[7:10, 22:25, :3], part[2:5, 2:5])
    assert torch.allclose(result[10, 22:25, :3], 0.75 * photo[10, 22:25, :3] + 0.25 * part[5, 2:5])
    result[7:11, 22:25, :3] = photo[7:11, 22:25, :3]
    assert torch.equal(result, photo) and torch.equal(photo, before), "alpha too, and the photo given is not altered"
