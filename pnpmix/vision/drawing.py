"""Draws masks over an image: detections, or the target of each concept."""

import itertools
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

# of Okabe and Ito: people with any color vision can tell them apart
COLORS = ["#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7"]


class Found(NamedTuple):
    """A detection."""

    phrase: str  # the words of the prompt that were recognised
    score: float  # 0..1
    box: Tensor  # (4,) left, top, right, bottom in image pixels
    named: int = 0  # which phrase of the prompt it belongs to


def color(k: int) -> str:
    """Returns the color of the k-th concept or detection, as #rrggbb."""
    return COLORS[k % len(COLORS)]


def tint(image: Tensor, masks: Tensor, strength: float = 0.5) -> Tensor:
    """Tints an image (H, W, 3) under each of the masks (n, H, W) in a color of its own."""
    pixels = image.clone()
    for k, mask in enumerate(masks):
        rgb = image.new_tensor([int(color(k)[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        pixels += strength * mask[..., None] * (rgb - pixels)
    return pixels


def draw_masks(image: Tensor, masks: Tensor) -> Tensor:
    """Tints and outlines each of the masks (n, H, W) on an image (H, W, 3)."""
    masks = masks.to(image)
    inner = 1 - F.max_pool2d(1 - masks, 3, stride=1, padding=1)
    return tint(tint(image, masks), masks - inner, strength=1)


def overlaps(masks: Tensor) -> list[tuple[int, int, float]]:
    """Returns the pairs of binary masks (n, H, W) that overlap, and the share of the smaller one that does."""
    areas, pairs = masks.sum((1, 2)), itertools.combinations(range(len(masks)), 2)
    shares = [(j, k, float((masks[j] & masks[k]).sum() / min(areas[j], areas[k]))) for j, k in pairs]
    return [pair for pair in shares if pair[2] > 0]


def draw_objects(image: Tensor, objects: list[Found], masks: Tensor) -> Tensor:
    """Draws mask, box, phrase and score of each detection on an image (H, W, 3); masks are (n, H, W)."""
    height, width = image.shape[:2]
    pixels = tint(image, masks)
    picture = Image.fromarray((pixels * 255).round().clamp(0, 255).byte().numpy())
    draw = ImageDraw.Draw(picture)
    stroke = max(1, round(max(height, width) / 300))
    font = ImageFont.load_default(size=max(10, round(max(height, width) / 40)))
    for k, found in enumerate(objects):
        left, top, right, bottom = found.box.tolist()
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=color(k), width=stroke)
        label = f"{found.phrase} {found.score:.2f}"
        _, _, label_width, label_height = draw.textbbox((0, 0), label, font=font)
        place = (max(0, min(left, width - label_width)), max(0, top - label_height - 2 * stroke))
        draw.rectangle(draw.textbbox(place, label, font=font), fill=color(k))
        draw.text(place, label, fill="black", font=font)
    return torch.from_numpy(np.asarray(picture).astype(np.float32) / 255)
