"""Draws bars that compare variants."""

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
PAPER, INK, FAINT = "#ffffff", "#222222", "#d8d8d8"


def draw_bars(measures: Sequence[Measured], variants: Sequence[str]) -> Tensor:
    """Draws for each measure a bar of each variant, with its 95 % interval: (H, W, 3) in 0..1.

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
    """Draws the name of one measure and its bars, from the row `top` down."""
    plain, small = ImageFont.load_default(size=16), ImageFont.load_default(size=14)
    draw.text((GAP, top + 4), shortened(draw, measured.name, plain, WIDTH - GAP - NUMBERS), INK, plain)
    better = "more is better" if measured.more_is_better else "less is better"
    draw.text((WIDTH - GAP, top + 6), better, "#666666", small, anchor="ra")
    bars = [interval(values) for values in by_variant(measured.values, len(variants))]
    means = [mean for mean, _ in bars]
    low, high = (1.15 * x for x in (min(0.0, *means), max(0.0, *means)))  # intervals may reach beyond
    left, right = GAP + NAMES, WIDTH - GAP - NUMBERS

    def place(value: float) -> float:
        return left + (value - low) / ((high - low) or 1) * (right - left)

    for k, (variant, (mean, half)) in enumerate(zip(variants, bars, strict=True)):
        y = top + (k + 1) * LINE
        middle = y + LINE // 2
        draw.text((GAP, middle), shortened(draw, variant, plain), INK, plain, anchor="lm")
        draw.rectangle((left, y + 4, right, y + LINE - 5), FAINT)
        ends = sorted((place(0), place(mean)))
        draw.rectangle((ends[0], y + 4, ends[1], y + LINE - 5), color(k))
        number = f"{mean:.{measured.digits}f}"
        if math.isfinite(half):  # a single value has none
            span = [place(mean - half), place(mean + half)]
            draw.line((max(left, span[0]), middle, min(right, span[1]), middle), INK, 2)
            for end in span:
                if left <= end <= right:
                    draw.line((end, middle - 5, end, middle + 5), INK, 2)
            number += f" ± {half:.{measured.digits}f}"
        draw.text((right + GAP, middle), number, INK, plain, anchor="lm")


def shortened(draw: ImageDraw.ImageDraw, name: str, font, room: int = NAMES) -> str:
    """Returns as much of a name as its column holds."""
    name = "".join(x if x.isprintable() else " " for x in name)
    kept = name[:room]  # no letter is narrower than a pixel
    while kept and draw.textlength(kept if kept == name else kept + "…", font=font) > room - GAP:
        kept = kept[:-1]
    return kept if kept == name else kept + "…"
