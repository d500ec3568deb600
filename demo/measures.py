"""How well a blend came out, measured against what the generator knows of the scene."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .scenes import COLOURS, Blend, Thing, draw_concepts, draw_scene

PALETTE = torch.tensor(list(COLOURS.values()))
UNLIKE = 0.3  # RGB distance from every colour of the palette above which a pixel has none of them
BAND = 2  # pixels on either side of a mask's border that make up its seam


class Measures(NamedTuple):
    fidelity: float  # 0..1, of the concepts' colours and textures
    leakage: float  # 0..1, share of an object's pixels that have a colour of another concept
    background_error: float  # mean absolute difference outside the objects, in 1/255
    seam_error: float  # the same round the objects' borders
    shape_kept: float  # 0..1, intersection over union of the objects


def colour_names(picture: Tensor) -> Tensor:
    """(H, W, 3) → (H, W) index of each pixel's colour in the palette; the last index means none of them."""
    distance = torch.cdist(picture.reshape(-1, 3), PALETTE)
    nearest = torch.where(distance.amin(1) < UNLIKE, distance.argmin(1), len(PALETTE))
    return nearest.view(picture.shape[:2])


def texture(picture: Tensor, mask: Tensor, radius: float) -> Tensor:
    """Which colours an object has, and which lie beside which: (2, 9, 9) joint histograms of the colours of two of
    its pixels that are a third of its radius apart, across and down."""
    names, inside, offset = colour_names(picture), mask >= 0.5, max(round(radius / 3), 1)
    histograms = []
    for dimension in (1, 0):
        length = names.shape[dimension] - offset
        both = inside.narrow(dimension, 0, length) & inside.narrow(dimension, offset, length)
        first, second = (names.narrow(dimension, start, length)[both] for start in (0, offset))
        pairs = F.one_hot(first * 9 + second, 81).float().sum(0)
        histograms.append(pairs.view(9, 9) / pairs.sum().clamp(min=1))
    return torch.stack(histograms)


def fidelity(result: Tensor, mask: Tensor, thing: Thing, concept: Tensor, own_mask: Tensor, own: Thing) -> float:
    """Overlap of the two objects' texture histograms: 1 for the same colours in the same arrangement, 0 for none."""
    theirs, ours = texture(result, mask, thing.radius), texture(concept, own_mask, own.radius)
    return float(torch.minimum(theirs, ours).sum((1, 2)).mean())


def leakage(result: Tensor, mask: Tensor, others: list[Thing]) -> float:
    """Share of the mask's pixels that have a colour of the `others`, which no other thing has."""
    foreign = torch.tensor([list(COLOURS).index(colour) for other in others for colour in other.look.colours])
    return float(torch.isin(colour_names(result)[mask >= 0.5], foreign).float().mean())


def _grown(mask: Tensor, pixels: int) -> Tensor:
    return F.max_pool2d(mask[None, None], 2 * pixels + 1, stride=1, padding=pixels)[0, 0]


def background_error(result: Tensor, scene: Tensor, masks: Tensor) -> float:
    """Mean absolute difference from the scene, more than BAND pixels away from every object, in 1/255."""
    outside = _grown((masks.amax(0) > 0).float(), BAND) == 0
    return float((result - scene)[outside].abs().mean() * 255)


def seam_error(result: Tensor, scene: Tensor, mask: Tensor, thing: Thing) -> float:
    """Mean absolute difference within BAND pixels of the mask's border, in 1/255: outside it from the scene, inside it
    from the nearest of the colours that `thing` should have. Pixels on the border itself do not count."""
    outside = (_grown((mask > 0).float(), BAND) > 0) & (mask == 0)
    inside = (_grown((mask < 1).float(), BAND) > 0) & (mask == 1)
    colours = torch.tensor([COLOURS[name] for name in thing.look.colours])
    distances = (result[inside][:, None] - colours).abs().mean(-1).amin(1)
    return float(torch.cat([(result - scene)[outside].abs().mean(-1), distances]).mean() * 255)


def shape_kept(result: Tensor, emptied: Tensor, mask: Tensor) -> float:
    """Intersection over union of the mask with what differs from the empty place, within BAND pixels of the mask."""
    near = _grown(mask, BAND) > 0
    seen, wanted = ((result - emptied).norm(dim=-1) > 0.15) & near, mask >= 0.5
    return float((seen & wanted).sum() / (seen | wanted).sum())


def measure(task: Blend, result: Tensor) -> Measures:
    """Means over the objects of a blend. `result` is (64, 64, 3) in 0..1."""
    scene, masks = draw_scene(task.scene)
    emptied, _ = draw_scene(task.emptied())
    wanted, own = task.redrawn().things, [concept.things[0] for concept in task.concepts]
    pictures, own_masks = draw_concepts(task)
    values = [
        (
            fidelity(result, masks[k], wanted[k], pictures[k], own_masks[k], own[k]),
            leakage(result, masks[k], own[:k] + own[k + 1 :]),
            seam_error(result, scene, masks[k], wanted[k]),
            shape_kept(result, emptied, masks[k]),
        )
        for k in range(len(wanted))
    ]
    alike, leaked, seam, shape = (sum(column) / len(values) for column in zip(*values, strict=True))
    return Measures(alike, leaked, background_error(result, scene, masks), seam, shape)
