"""Draws the loss curve of a training."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

WIDTH, HEIGHT, MARGIN = 640, 320, 48  # pixels
SMOOTH = 50  # steps of which the thick line is the mean


def draw_losses(losses: Sequence[float]) -> Tensor:
    """Draws each step's loss, thin, and the mean of the last SMOOTH, thick: (HEIGHT, WIDTH, 3) in 0..1."""
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    values = np.asarray(losses if losses else [0.0], dtype=np.float64)
    means = np.array([values[max(0, i - SMOOTH + 1) : i + 1].mean() for i in range(len(values))])
    top = max(float(np.quantile(values, 0.98)), 1e-6)
    x = MARGIN + (WIDTH - 2 * MARGIN) * np.arange(len(values)) / max(len(values) - 1, 1)

    def line(y: np.ndarray, color: str, width: int) -> None:
        height = HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (y / top).clip(0, 1)
        draw.line(list(zip(x.tolist(), height.tolist(), strict=True)), color, width)

    draw.rectangle((MARGIN, MARGIN, WIDTH - MARGIN, HEIGHT - MARGIN), outline="#b0b0b0")
    line(values, "#b8cde8", 1)
    line(means, "#1f4f9c", 3)
    draw.text((4, MARGIN - 8), f"{top:.3g}", "black", font)
    draw.text((4, HEIGHT - MARGIN - 8), "0", "black", font)
    draw.text((MARGIN, HEIGHT - MARGIN + 8), "1", "black", font)
    draw.text((WIDTH - MARGIN, HEIGHT - MARGIN + 8), f"step {len(values)}", "black", font, anchor="ra")
    draw.text((MARGIN, 14), f"loss, mean of the last {SMOOTH} steps: {means[-1]:.4g}", "black", font)
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)
