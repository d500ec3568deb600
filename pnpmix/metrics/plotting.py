"""Draws means that compare variants."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..vision.drawing import color
from .statistics import Measured, by_variant, interval

WIDTH, LINE, GAP = 800, 30, 12  # pixels: of the picture, of a row, round everything
NAMES, NUMBERS = 270, 160  # pixels: columns of the variants' names and of the numbers
PAPER, INK, LABEL, FAINT = "#ffffff", "#222222", "#666666", "#d8d8d8"


def draw_means(measures: Sequence[Measured], variants: Sequence[str]) -> Tensor:
    """Draws for each measure the mean of each variant, with its 95 % interval: (H, W, 3) in 0..1.

    Args:
        measures: of the same images, those of one variant after those of another.

    Raises:
        ValueError: a measure's values do not divide evenly among the variants.
    """
    for measured in measures:
        by_variant(measured.values, len(variants))  # raises before there is a picture of as many rows
    rows = len(variants) + 1
    picture = Image.new("RGB", (WIDTH, len(measures) * (rows * LINE + GAP) + GAP), PAPER)
    for k, measured in enumerate(measures):
        draw_measure(ImageDraw.Draw(picture), GAP + k * (rows * LINE + GAP), measured, variants)
    return torch.from_numpy(np.asarray(picture).astype(np.float32) / 255)


def draw_measure(draw: ImageDraw.ImageDraw, top: int, measured: Measured, variants: Sequence[str]) -> None:
    """Draws the name of one measure, the ends of its axis and its means, from the row `top` down."""
    plain, small = ImageFont.load_default(size=16), ImageFont.load_default(size=14)
    better = "more is better" if measured.more_is_better else "less is better"
    draw.text((GAP, top + 4), shortened(draw, measured.name, plain), INK, plain)
    draw.text((WIDTH - GAP, top + 6), better, LABEL, small, anchor="ra")
    means = [interval(values) for values in by_variant(measured.values, len(variants))]
    low, high = axis(means)
    left, right = GAP + NAMES, WIDTH - GAP - NUMBERS
    for column, value, anchor in ((left, low, "la"), (right, high, "ra")):
        draw.text((column, top + 6), f"{value:.{measured.digits}f}", LABEL, small, anchor=anchor)

    def place(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    for k, (variant, (mean, half)) in enumerate(zip(variants, means, strict=True)):
        middle, number = top + (k + 1) * LINE + LINE // 2, f"{mean:.{measured.digits}f}"
        draw.text((GAP, middle), shortened(draw, variant, plain), INK, plain, anchor="lm")
        draw.line((left, middle, right, middle), FAINT)
        if math.isfinite(half):  # a single value has none
            draw.line((place(mean - half), middle, place(mean + half), middle), INK, 2)
            for end in (place(mean - half), place(mean + half)):
                draw.line((end, middle - 5, end, middle + 5), INK, 2)
            number += f" ± {half:.{measured.digits}f}"
        draw.ellipse((place(mean) - 7, middle - 7, place(mean) + 7, middle + 7), color(k))
        draw.text((right + GAP, middle), number, INK, plain, anchor="lm")


def axis(means: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Returns the ends of an axis that shows how (mean, half an interval) differ: with all intervals, and a margin."""
    ends = [mean + side * (half if math.isfinite(half) else 0) for mean, half in means for side in (-1, 1)]
    margin = 0.08 * (max(ends) - min(ends)) or 0.05 * abs(ends[0]) or 1.0
    return min(ends) - margin, max(ends) + margin


def shortened(draw: ImageDraw.ImageDraw, name: str, font, room: int = NAMES) -> str:
    """Returns as much of a name as its column holds."""
    name = "".join(x if x.isprintable() else " " for x in name)
    kept = name[:room]  # no letter is narrower than a pixel
    while kept and draw.textlength(kept if kept == name else kept + "…", font=font) > room - GAP:
        kept = kept[:-1]
    return kept if kept == name else kept + "…"
