"""Background dilution++ (eq. 3.5)."""

from typing import Literal, NamedTuple

from torch import Tensor

from ..masks import weighted


class Dilution(NamedTuple):
    """The settings of background dilution++, and the trajectory of the clean plate."""

    trajectory: Tensor  # (N + 1, C, H, W) of the inpainted background
    boxes: Tensor  # (n, 1, H, W) M_E of each concept
    beta: float  # weight of the inpainted background outside the boxes
    outside: Literal["scaled", "blended"]


def background_dilution(references: Tensor, inpaint: Tensor, dilution: Dilution) -> Tensor:
    """Puts the clean plate around the box of each concept.

    Outside the box "scaled" is the equation, beta * inpaint; "blended" is the reading of the
    paper's prose, beta * inpaint + (1 - beta) * reference.

    Args:
        references: (n, C, H, W) latents.
        inpaint: (C, H, W) inpainted background at the same noise level.
    """
    outside = dilution.beta * inpaint
    if dilution.outside == "blended":
        outside = outside + (1 - dilution.beta) * references
    return weighted(outside, 1 - dilution.boxes) + weighted(references, dilution.boxes)
