"""Crops of a photo at the size that a model works at, and pasting them back.

Sizes and shapes are (height, width), spans [start, stop) along one side, all in whole pixels.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..masks import bounding_box

Size = tuple[int, int]


class Frame(NamedTuple):
    """A crop box on a photo, as (start, stop) along each side; it may reach outside."""

    rows: tuple[int, int]
    columns: tuple[int, int]

    @property
    def size(self) -> Size:
        """Returns height and width."""
        return self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]


def same_shape(a: Size, b: Size) -> bool:
    """Tells whether two sizes have the same aspect ratio, up to a pixel of the smaller one."""
    return abs(a[0] * b[1] - b[0] * a[1]) <= max(*a, *b)


def to_multiple(size: Size, multiple: int) -> Size:
    """Rounds each side to the nearest multiple, at least one."""
    height, width = (max(1, (side + multiple // 2) // multiple) * multiple for side in size)
    return height, width


def sizes_of_shape(size: Size, shape: Size) -> list[Size]:
    """Returns the largest size of an aspect ratio inside `size`, and the smallest around it."""
    by_height = size[0], max(1, round(size[0] * shape[1] / shape[0]))
    by_width = max(1, round(size[1] * shape[0] / shape[1])), size[1]
    return sorted([by_height, by_width])


def whole(photo: Size) -> Frame:
    """Returns the crop box of a whole photo."""
    return Frame((0, photo[0]), (0, photo[1]))


def bounding_frame(mask: Tensor) -> Frame | None:
    """Returns the smallest crop box around a mask's (H, W) pixels of at least 0.5; None if it has none."""
    box = bounding_box(mask >= 0.5)
    return box and Frame(*((side.start, side.stop) for side in box))


def frame_round(target: Frame, size: Size, photo: Size) -> Frame:
    """Returns the crop box of a size around `target`, as close to its center as the photo allows.

    Where the frame is longer than the photo, it has all of the photo's side.
    """
    spans = []
    for (start, stop), length, limit in zip(target, size, photo, strict=True):
        first, last = sorted((0, limit - length))
        begin = min(max((start + stop - length) // 2, first), last)
        spans.append((begin, begin + length))
    return Frame(*spans)


def crop_frame(photo: Size, shape: Size, target: Frame | None) -> Frame:
    """Returns the largest crop of an aspect ratio, around the center or, with a target, around that."""
    inside, _ = sizes_of_shape(photo, shape)
    return frame_round(target or whole(photo), inside, photo)


def pad_frame(photo: Size, shape: Size) -> Frame:
    """Returns the smallest crop box of an aspect ratio around the whole photo."""
    _, around = sizes_of_shape(photo, shape)
    return frame_round(whole(photo), around, photo)


def object_frame(photo: Size, shape: Size, target: Frame, margin: int) -> Frame:
    """Returns the smallest crop box of an aspect ratio around the target and its margin in the photo.

    Where that does not fit into the photo, the margin gives way; only for a target that still does not fit the frame
    reaches outside.
    """
    height, width = (
        min(stop + margin, limit) - max(start - margin, 0) for (start, stop), limit in zip(target, photo, strict=True)
    )
    _, size = sizes_of_shape((height, width), shape)
    inside, _ = sizes_of_shape(photo, shape)
    if fits(target.size, inside) and not fits(size, photo):
        size = inside
    return frame_round(target, size, photo)


def fits(size: Size, into: Size) -> bool:
    """Tells whether a size fits into another."""
    return size[0] <= into[0] and size[1] <= into[1]


def overlap(frame: Frame, photo: Size) -> tuple[slice, slice]:
    """Returns the photo's rows and columns inside the crop box."""
    rows, columns = (slice(max(start, 0), min(stop, limit)) for (start, stop), limit in zip(frame, photo, strict=True))
    return rows, columns


def cut_pictures(pictures: Tensor, frame: Frame, size: Size) -> Tensor:
    """Crops photos (n, H, W, C) in 0..1 to (n, *size, C).

    Outside a photo its border goes on: a bar of one color would be a thing of its own to a model.
    """
    x = pictures.movedim(-1, 1)
    for side in longest_first(x.shape[2:]):
        places = torch.arange(*frame[side]).clamp(0, x.shape[2 + side] - 1)
        x = resized(x.index_select(2 + side, places), side, size[side], "bicubic")
    return x.movedim(1, -1)


def cut_masks(masks: Tensor, frame: Frame, size: Size) -> Tensor:
    """Crops masks (n, H, W) to (n, *size); 0 outside the photo."""
    x = masks[:, None]
    for side in longest_first(x.shape[2:]):
        places = torch.arange(*frame[side])
        known = places.clamp(0, x.shape[2 + side] - 1)
        there = (places == known).to(x).view(-1, *[1] * (1 - side))
        x = resized(x.index_select(2 + side, known) * there, side, size[side], "bilinear")
    return x[:, 0]


def picture_in_place(part: Tensor, frame: Frame, photo: Size) -> Tensor:
    """Scales an image (h, w, C) that fills the crop box back to the photo's scale, cut to the photo."""
    return in_place(part.movedim(-1, 0)[None], frame, photo, "bicubic")[0].movedim(0, -1)


def mask_in_place(mask: Tensor, frame: Frame, photo: Size) -> Tensor:
    """Does the same for a mask (h, w)."""
    return in_place(mask[None, None], frame, photo, "bilinear")[0, 0]


def in_place(x: Tensor, frame: Frame, photo: Size, kind: str) -> Tensor:
    """Scales (n, C, h, w) to the crop box, and cuts it to the photo."""
    seen = overlap(frame, photo)
    for side in reversed(longest_first(photo)):
        start, stop = frame[side]
        x = resized(x, side, stop - start, kind)
        x = x.narrow(2 + side, seen[side].start - start, seen[side].stop - seen[side].start)
    return x


def longest_first(size: Size | torch.Size) -> list[int]:
    """Returns the order of sides in which a long and narrow photo is never a large square in between."""
    return [0, 1] if size[0] >= size[1] else [1, 0]


def resized(x: Tensor, side: int, length: int, kind: str) -> Tensor:
    """Resizes (n, C, H, W) along one side, with antialiasing; unchanged where it has that length."""
    if x.shape[2 + side] == length:
        return x
    size = [length if k == side else x.shape[2 + k] for k in (0, 1)]
    return F.interpolate(x, size=size, mode=kind, antialias=True).clamp(0, 1)


def paste(photo: Tensor, part: Tensor, weights: Tensor, rows: slice, columns: slice) -> Tensor:
    """Returns the photo (H, W, 3 or 4) with `part` where `weights` are above 0, and unchanged elsewhere.

    Args:
        part, weights: (h, w, 3) and (h, w) in 0..1, of these rows and columns of the photo.
    """
    result, weights = photo.clone(), weights[..., None]
    pixels = photo[rows, columns, :3]
    result[rows, columns, :3] = torch.where(weights > 0, torch.lerp(pixels, part, weights), pixels)
    return result
