"""Ideas beyond the paper, and readings of it that the nodes do not offer, as changes of one run of the demo."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from demo import diffusers_host
from demo.scenes import SIZE, Blend
from pnpmix.inversion import Inversion, edit_friendly_trajectory
from pnpmix.masks import grow, object_mask, to_latent_grid
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class Case(NamedTuple):
    """One scene and its concepts."""

    task: Blend
    scene: Tensor  # (H, W, 3)
    masks: Tensor  # (n, H, W) of the scene's things
    pictures: list[Tensor]  # n concepts (H, W, 3)
    own_masks: Tensor  # (n, H, W) of the concepts' things in their pictures
    inpainted: Tensor  # (H, W, 3)


@dataclass(frozen=True)
class Candidate:
    inputs: dict = field(default_factory=dict)  # of the nodes
    applied: Callable = lambda case, inversion: nullcontext(case)  # context manager that gives the case to run
    overlapping: bool = False  # run on scenes whose things overlap, with a mask of all of each thing


def dilution_without_inpainting(**inputs) -> Candidate:
    """The author's earlier dilution has no equation in the paper; taken as eq. 3.5 with the scene's own latent."""

    @contextmanager
    def applied(case: Case, inversion: Inversion) -> Iterator[Case]:
        yield case._replace(inpainted=case.scene)

    return Candidate(inputs, applied)


def same_noise() -> Candidate:
    @contextmanager
    def applied(case: Case, inversion: Inversion) -> Iterator[Case]:
        def with_the_scenes_noise(x0: Tensor, sigmas: Tensor, seed: int) -> Tensor:
            return edit_friendly_trajectory(x0, sigmas, inversion.seed)

        with patch.object(diffusers_host, "edit_friendly_trajectory", with_the_scenes_noise):
            yield case

    return Candidate({}, applied)


@contextmanager
def swap_attention(attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Iterator[None]:
    """Self-attention of the swap rows by attend(query, key, value) of (chunks, concepts, heads, tokens, channels)."""
    guided, current = diffusers_host.appearance_guided, []

    @contextmanager
    def guided_and_watched(*arguments):
        with guided(*arguments) as tell_rows:

            def tell_both(rows):
                current.append(rows)
                tell_rows(rows)

            yield tell_both

    def attention(query, key, value, **options):
        output = scaled_dot_product_attention(query, key, value, **options)
        if not current or "swap" not in current[-1].roles or query.shape[2] != key.shape[2]:
            return output  # the background's inversion, or attention to words
        roles, concepts = current[-1].roles, current[-1].concepts
        shape = (-1, len(roles), concepts.stop - concepts.start, *query.shape[1:])
        query, key, value = (x.view(shape)[:, roles.index("swap")] for x in (query, key, value))
        output.view(shape)[:, roles.index("swap")] = attend(query, key, value).to(output.dtype)
        return output

    with (
        patch.object(diffusers_host, "appearance_guided", guided_and_watched),
        patch.object(F, "scaled_dot_product_attention", attention),
    ):
        yield


def attention_contrast(scale: float) -> Candidate:
    """Attention weights of the swap rows spread by `scale` round their mean and clamped (Cross-Image Attention,
    section 4.2)."""

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).float().softmax(-1)
        mean = 1 / weights.shape[-1]
        return ((weights - mean) * scale + mean).clamp(0, 1).to(value.dtype) @ value

    @contextmanager
    def applied(case: Case, inversion: Inversion) -> Iterator[Case]:
        with swap_attention(attend):
            yield case

    return Candidate({}, applied)


def only_the_object() -> Candidate:
    """Swap rows read nothing but the concept's object, also round the target."""

    @contextmanager
    def applied(case: Case, inversion: Inversion) -> Iterator[Case]:
        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            side = round(query.shape[-2] ** 0.5)
            own = torch.stack([object_mask(mask, (side, side)) for mask in case.own_masks]).flatten(1) > 0
            readable = own | ~own.any(1)[:, None]
            return scaled_dot_product_attention(query, key, value, attn_mask=readable[:, None, None])

        with swap_attention(attend):
            yield case

    return Candidate({}, applied)


def bounding_box(mask: Tensor) -> tuple[float, float, float, float]:
    """Centre x, centre y, width and height of an (H, W) mask, in pixels."""
    rows, columns = (mask >= 0.5).any(1).nonzero(), (mask >= 0.5).any(0).nonzero()
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top


def fit(picture: Tensor, own_mask: Tensor, mask: Tensor) -> Tensor:
    """The picture moved and scaled so that the box of its object becomes the box of the mask, as far as one scale
    allows; edges are repeated."""
    x, y, width, height = bounding_box(own_mask)
    x2, y2, width2, height2 = bounding_box(mask)
    scale = ((width * height) / (width2 * height2)) ** 0.5
    position = torch.arange(SIZE) + 0.5
    columns, rows = (position - x2) * scale + x, (position - y2) * scale + y
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).flip(-1) / SIZE * 2 - 1
    moved = F.grid_sample(picture.movedim(-1, 0)[None], grid[None], padding_mode="border", align_corners=False)
    return moved[0].movedim(0, -1)


def fitted(**inputs) -> Candidate:
    @contextmanager
    def applied(case: Case, inversion: Inversion) -> Iterator[Case]:
        together = list(zip(case.pictures, case.own_masks, case.masks, strict=True))
        own_masks = [fit(own[..., None], own, mask)[..., 0] for _, own, mask in together]
        yield case._replace(pictures=[fit(*three) for three in together], own_masks=torch.stack(own_masks))

    return Candidate(inputs, applied)


def grown_masks(pixels: int) -> Candidate:
    """As Grow Mask before Concept does."""

    @contextmanager
    def applied(case: Case, inversion: Inversion) -> Iterator[Case]:
        yield case._replace(masks=grow(case.masks, pixels))

    return Candidate({}, applied)


def soft_masks() -> Candidate:
    """A cell that a mask covers in part counts in part."""

    @contextmanager
    def applied(case: Case, inversion: Inversion) -> Iterator[Case]:
        with patch.object(diffusers_host, "object_mask", lambda mask, grid, feather: to_latent_grid(mask, *grid)):
            yield case

    return Candidate({}, applied)
