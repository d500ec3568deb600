"""What was found, drawn over the picture."""

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .grounding import Found

COLOURS = ["#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#46c8f0", "#f032e6", "#bfef45"]


def draw_objects(image: Tensor, objects: list[Found], masks: Tensor) -> Tensor:
    """Mask, box, phrase and score of each object over the (H, W, 3) image; masks are (n, H, W)."""
    height, width = image.shape[:2]
    pixels = image.clone()
    colours = [COLOURS[k % len(COLOURS)] for k in range(len(objects))]
    for colour, mask in zip(colours, masks, strict=True):
        rgb = image.new_tensor([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        pixels += 0.5 * mask[..., None] * (rgb - pixels)
    picture = Image.fromarray((pixels * 255).round().clamp(0, 255).byte().numpy())
    draw = ImageDraw.Draw(picture)
    stroke = max(1, round(max(height, width) / 300))
    font = ImageFont.load_default(size=max(10, round(max(height, width) / 40)))
    for colour, found in zip(colours, objects, strict=True):
        left, top, right, bottom = found.box.tolist()
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=stroke)
        label = f"{found.phrase} {found.score:.2f}"
        _, _, label_width, label_height = draw.textbbox((0, 0), label, font=font)
        place = (max(0, min(left, width - label_width)), max(0, top - label_height - 2 * stroke))
        draw.rectangle(draw.textbbox(place, label, font=font), fill=colour)
        draw.text(place, label, fill="white", font=font)
    return torch.from_numpy(np.asarray(picture).astype(np.float32) / 255)
