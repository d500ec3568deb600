"""Similarity of embeddings: CLIP-I and DINO (arXiv 2208.12242, section 4.2), CLIP-T (arXiv 2103.00020).

All similarities are cosines, -1..1. An embedding is the encoder's own, before it is normalized.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..vision.framing import bounding_frame


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Returns the cosines (n, m) of (n, d) and (m, d), in float32 whatever the encoder computed in."""
    return F.normalize(a.float(), dim=-1) @ F.normalize(b.float(), dim=-1).T


def image_similarity(images: Tensor, references: Tensor) -> Tensor:
    """Returns the mean cosine (n,) of embeddings of images (n, d) over those of references (m, d)."""
    return cosines(images, references).mean(1)


def text_similarity(images: Tensor, text: Tensor) -> Tensor:
    """Returns the cosines (n,) of embeddings of images (n, d) with that of a text (d,).

    CLIPScore (arXiv 2104.08718) is 2.5 times that, or 0.
    """
    return cosines(images, text[None])[:, 0]


def one_vector(embedding: Tensor) -> Tensor:
    """Returns (n, d) of an embedding (n, d), or of (n, tokens, d) of an encoder without a head, whose mean is taken."""
    return embedding.float() if embedding.ndim == 2 else embedding.float().mean(1)


def regional_crop(picture: Tensor, mask: Tensor, color: Sequence[float]) -> Tensor:
    """Crops the mask's bounding box, padded to a square, for an encoder of square images.

    Args:
        picture: (H, W, 3) in 0..1.
        mask: (H, W); at least 0.5 counts.
        color: of everything else, 3 numbers in 0..1: the encoder's mean, which is 0 to it.

    Returns:
        (side, side, 3).

    Raises:
        ValueError: the mask is empty.
    """
    frame = bounding_frame(mask)
    if frame is None:
        raise ValueError("the mask is empty.")
    (top, bottom), (left, right) = frame
    inside = (mask[top:bottom, left:right] >= 0.5).to(picture.device)[..., None]
    around = picture.new_tensor(list(color))
    height, width = frame.size
    side = max(height, width)
    square = around.expand(side, side, 3).clone()
    rows, columns = (slice((side - length) // 2, (side - length) // 2 + length) for length in (height, width))
    square[rows, columns] = torch.where(inside, picture[top:bottom, left:right], around)
    return square


def color_similarity(a: Tensor, b: Tensor) -> float:
    """Returns the intersection of two color histograms (Swain and Ballard 1991): 1 for equal histograms.

    Args:
        a, b: (n, 3) and (m, 3) pixels in 0..1.
    """
    return float(torch.minimum(color_histogram(a), color_histogram(b)).sum())


def color_histogram(pixels: Tensor) -> Tensor:
    """Returns the share of the pixels (n, 3) in 0..1 that is in each of 8 × 8 × 8 boxes of colors, (512,)."""
    levels = (pixels.float() * 8).long().clamp(0, 7)
    counts = torch.bincount(levels @ torch.tensor([64, 8, 1]), minlength=512)
    return counts / len(pixels)
