"""How well a blend came out, measured against what the generator knows of the scene."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .scenes import (
    COLORS,
    PLACES,
    UNNAMED_COLORS,
    UNNAMED_LOOKS,
    Blend,
    Scene,
    Thing,
    draw_concepts,
    draw_scene,
)

PALETTE = torch.tensor(list(COLORS.values()))
UNLIKE = 0.3  # RGB distance from every color of the palette above which a pixel has none of them
BAND = 2  # pixels on either side of a mask's border that make up its seam


class Measures(NamedTuple):
    fidelity: float  # 0..1, of the concepts' colors and textures
    leakage: float  # 0..1, share of an object's pixels that have a color of another concept
    background_error: float  # mean absolute difference outside the objects, in 1/255
    seam_error: float  # the same round the objects' borders
    shape_kept: float  # 0..1, intersection over union of the objects


def color_names(picture: Tensor) -> Tensor:
    """Returns the (H, W) index of each pixel's color in the palette; the last index means none of them."""
    distance = torch.cdist(picture.reshape(-1, 3), PALETTE)
    nearest = torch.where(distance.amin(1) < UNLIKE, distance.argmin(1), len(PALETTE))
    return nearest.view(picture.shape[:2])


def texture(picture: Tensor, mask: Tensor, radius: float) -> Tensor:
    """Returns which colors an object has, and which lie beside which.

    These are (2, 9, 9) joint histograms of the colors of two of its pixels that are a third of its radius apart,
    across and down.
    """
    names, inside, offset = color_names(picture), mask >= 0.5, max(round(radius / 3), 1)
    histograms = []
    for dimension in (1, 0):
        length = names.shape[dimension] - offset
        both = inside.narrow(dimension, 0, length) & inside.narrow(dimension, offset, length)
        first, second = (names.narrow(dimension, start, length)[both] for start in (0, offset))
        pairs = F.one_hot(first * 9 + second, 81).float().sum(0)
        histograms.append(pairs.view(9, 9) / pairs.sum().clamp(min=1))
    return torch.stack(histograms)


def fidelity(result: Tensor, mask: Tensor, thing: Thing, concept: Tensor, own_mask: Tensor, own: Thing) -> float:
    """Returns the overlap of two objects' texture histograms: 1 for the same colors in the same arrangement."""
    theirs, ours = texture(result, mask, thing.radius), texture(concept, own_mask, own.radius)
    return float(torch.minimum(theirs, ours).sum((1, 2)).mean())


def leakage(result: Tensor, mask: Tensor, others: list[Thing]) -> float:
    """Returns the share of the mask's pixels that have a color of the `others`, which no other object has."""
    foreign = torch.tensor([list(COLORS).index(color) for other in others for color in other.look.colors])
    return float(torch.isin(color_names(result)[mask >= 0.5], foreign).float().mean())


def _grown(mask: Tensor, pixels: int) -> Tensor:
    return F.max_pool2d(mask[None, None], 2 * pixels + 1, stride=1, padding=pixels)[0, 0]


def background_error(result: Tensor, scene: Tensor, masks: Tensor) -> float:
    """Returns the mean absolute difference from the scene, over BAND pixels away from every object, in 1/255."""
    outside = _grown((masks.amax(0) > 0).float(), BAND) == 0
    return float((result - scene)[outside].abs().mean() * 255)


def seam_error(result: Tensor, scene: Tensor, mask: Tensor, thing: Thing) -> float:
    """Returns the mean absolute difference within BAND pixels of the mask's border, in 1/255.

    Outside the mask it is taken from the scene, inside from the nearest of the colors that `thing` should have.
    Pixels on the border itself do not count.
    """
    outside = (_grown((mask > 0).float(), BAND) > 0) & (mask == 0)
    inside = (_grown((mask < 1).float(), BAND) > 0) & (mask == 1)
    colors = torch.tensor([COLORS[name] for name in thing.look.colors])
    distances = (result[inside][:, None] - colors).abs().mean(-1).amin(1)
    return float(torch.cat([(result - scene)[outside].abs().mean(-1), distances]).mean() * 255)


def shape_kept(result: Tensor, emptied: Tensor, mask: Tensor) -> float:
    """Returns the intersection over union of a mask and what differs from the empty place, within BAND pixels of it."""
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


LOOKS = {**COLORS, **UNNAMED_COLORS}


class ConductedMeasures(NamedTuple):
    """Of a new picture, against the layout that it was to have."""

    fidelity: float  # 0..1, in the places of the layout, of the concepts' colors and textures
    fidelity_anywhere: float  # 0..1, of the object anywhere that is most like the concept
    leakage: float  # 0..1, share of the pixels in a concept's place that have a color of another concept
    layout_kept: float  # 0..1, intersection over union of all objects with the layout's masks
    missing: float  # objects fewer than the layout has
    doubled: float  # objects more than the layout has


def look_names(picture: Tensor, scene: Scene) -> Tensor:
    """Returns the (H, W) index in LOOKS of each pixel's color; the last one means none of them, or the place's."""
    place = torch.tensor(PLACES[scene.place])
    steps = torch.linspace(0, 1, 5)[:, None]
    place = torch.cat([place[0] + (place[1] - place[0]) * steps, place[2:] * (1.05 - 0.2 * steps)])
    known = torch.cat([torch.tensor(list(LOOKS.values())), place])
    distance, nearest = torch.cdist(picture.reshape(-1, 3), known).min(1)
    named = (nearest < len(LOOKS)) & (distance < UNLIKE)
    return torch.where(named, nearest, len(LOOKS)).view(picture.shape[:2])


def pairs(names: Tensor, inside: Tensor, offset: int) -> Tensor:
    """Returns joint histograms of what lies `offset` pixels apart, across and down, as `texture` has them."""
    count, histograms = len(LOOKS) + 1, []
    for dimension in (1, 0):
        length = names.shape[dimension] - offset
        both = inside.narrow(dimension, 0, length) & inside.narrow(dimension, offset, length)
        first, second = (names.narrow(dimension, start, length)[both] for start in (0, offset))
        histogram = torch.bincount(first * count + second, minlength=count**2).float()
        histograms.append(histogram / histogram.sum().clamp(min=1))
    return torch.stack(histograms)


def objects(names: Tensor) -> list[Tensor]:
    """Returns (H, W) masks of connected pixels of the objects' colors, of at least 40 of them."""
    inside = (names < len(LOOKS)).float()
    labels = inside * torch.arange(1.0, inside.numel() + 1).view_as(inside)
    while True:
        spread = F.max_pool2d(labels[None, None], 3, stride=1, padding=1)[0, 0] * inside
        if torch.equal(spread, labels):
            break
        labels = spread
    return [mask for label in labels.unique() if label > 0 and (mask := labels == label).sum() >= 40]


def measure_conducted(scene: Scene, result: Tensor) -> ConductedMeasures:
    """Measures a result of Concept Conductor.

    Args:
        scene: the layout, whose objects are to have the look of their LoRAs.
        result: (64, 64, 3) in 0..1.
    """
    wanted = scene._replace(things=tuple(x._replace(look=UNNAMED_LOOKS[x.shape]) for x in scene.things))
    perfect, masks = draw_scene(wanted)
    names, drawn = look_names(result, scene), look_names(perfect, scene)
    found, inside = objects(names), masks >= 0.5
    fidelities, anywhere, leaks = [], [], []
    for k, thing in enumerate(wanted.things):
        offset = max(round(thing.radius / 3), 1)
        own = pairs(drawn, inside[k], offset)
        fidelities.append(float(torch.minimum(pairs(names, inside[k], offset), own).sum(1).mean()))
        each = [float(torch.minimum(pairs(names, mask, offset), own).sum(1).mean()) for mask in found]
        anywhere.append(max(each, default=0.0))
        others = [color for other in wanted.things if other is not thing for color in other.look.colors]
        foreign = torch.tensor([list(LOOKS).index(color) for color in others], dtype=torch.long)
        leaks.append(float(torch.isin(names[inside[k]], foreign).float().mean()))
    seen, layout, count = names < len(LOOKS), inside.any(0), len(wanted.things)
    return ConductedMeasures(
        sum(fidelities) / count,
        sum(anywhere) / count,
        sum(leaks) / count,
        float((seen & layout).sum() / (seen | layout).sum()),
        max(count - len(found), 0),
        max(len(found) - count, 0),
    )
