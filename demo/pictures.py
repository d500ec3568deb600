"""Pictures for people: panels side by side with captions, and a film."""

import textwrap
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

MASK_COLORS = torch.tensor([(0.90, 0.30, 0.30), (0.25, 0.60, 0.95), (0.35, 0.80, 0.40)])
LINE, LETTER, GAP = 18, 7, 6  # pixels: height of a line of a caption, width of a letter, space round panels


def to_image(picture: Tensor, enlarge: int) -> Image.Image:
    """Returns the image of a tensor (H, W, 3) in 0..1; when enlarged, its pixels stay squares."""
    image = Image.fromarray((picture * 255).round().byte().numpy())
    return image.resize((image.width * enlarge, image.height * enlarge), Image.Resampling.NEAREST)


def side_by_side(pictures: Tensor) -> Tensor:
    """Joins pictures in a row: (B, H, W, 3) → (H, B * W, 3)."""
    return torch.cat(list(pictures), dim=1)


def draw_masks(masks: Tensor) -> Tensor:
    """Draws masks, each in its own color: (n, H, W) → (H, W, 3)."""
    return torch.einsum("nhw,nc->hwc", masks, MASK_COLORS[: len(masks)]).clamp(0, 1)


def panels(pictures: list[tuple[str, Tensor]], enlarge: int = 3) -> Image.Image:
    """Draws (H, W, 3) pictures of one height in a row, each under its caption."""
    images = [to_image(picture, enlarge) for _, picture in pictures]
    captions = [
        textwrap.wrap(caption, image.width // LETTER) for (caption, _), image in zip(pictures, images, strict=True)
    ]
    top = max(map(len, captions)) * LINE + GAP
    width = sum(image.width + GAP for image in images) + GAP
    sheet = Image.new("RGB", (width, top + images[0].height + GAP), "white")
    draw, font, left = ImageDraw.Draw(sheet), ImageFont.load_default(13), GAP
    for lines, image in zip(captions, images, strict=True):
        draw.text((left, GAP // 2), "\n".join(lines), "black", font)
        sheet.paste(image, (left, top))
        left += image.width + GAP
    return sheet


def stacked(rows: list[Image.Image]) -> Image.Image:
    """Joins pictures of one width under each other."""
    sheet = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet


def save_film(path: Path, frames: list[Image.Image]) -> None:
    """Writes a GIF that rests on its last frame."""
    times = [80] * (len(frames) - 1) + [2000]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=times, loop=0)
