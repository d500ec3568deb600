"""Pictures and words as embeddings: CLIP-I and DINO (arXiv 2208.12242, section 4.2), CLIP-T (arXiv 2103.00020).

All similarities are cosines, -1..1. An embedding is the encoder's own, before it is normalised.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..vision.framing import bounding_frame


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """(n, d), (m, d) → (n, m), in float32 whatever the encoder computed in."""
    return F.normalize(a.float(), dim=-1) @ F.normalize(b.float(), dim=-1).T


def image_similarity(images: Tensor, references: Tensor) -> Tensor:
    """(n, d) embeddings of pictures, (m, d) of references → (n,), the mean over the references."""
    return cosines(images, references).mean(1)


def text_similarity(images: Tensor, text: Tensor) -> Tensor:
    """(n, d) embeddings of pictures, (d,) of the words → (n,). CLIPScore (arXiv 2104.08718) is 2.5 times that, or 0."""
    return cosines(images, text[None])[:, 0]


def one_vector(embedding: Tensor) -> Tensor:
    """(n, d), or (n, tokens, d) of an encoder without a head of its own, whose mean is taken → (n, d)."""
    return embedding.float() if embedding.ndim == 2 else embedding.float().mean(1)


def regional_crop(picture: Tensor, mask: Tensor, colour: Sequence[float]) -> Tensor:
    """What lies under a mask, as an encoder of square pictures looks at it: the mask's box, padded to a square.

    Args:
        picture: (H, W, 3) in 0..1.
        mask: (H, W); at least 0.5 counts.
        colour: of everything else, 3 numbers in 0..1: the encoder's mean, which is 0 to it.

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
    around = picture.new_tensor(list(colour))
    height, width = frame.size
    side = max(height, width)
    square = around.expand(side, side, 3).clone()
    rows, columns = (slice((side - length) // 2, (side - length) // 2 + length) for length in (height, width))
    square[rows, columns] = torch.where(inside, picture[top:bottom, left:right], around)
    return square
