"""Three things that no one else has, photos of them, and pictures of others of their kind: what concepts are learned
from. No colour occurs in two of them."""

import numpy as np
import torch
from torch import Tensor

from .scenes import Look, Scene, Thing, draw_scene, random_look, random_places, random_setting

LOOKS = {
    "ball": Look("striped", ("red", "yellow")),
    "cup": Look("checkered", ("blue", "orange")),
    "fish": Look("dotted", ("green", "purple")),
}
PHOTOS, CLASS_PICTURES = 5, 40


def photographed(rng: np.random.Generator, shape: str, look: Look) -> tuple[Scene, Tensor, Tensor]:
    """A scene with one thing, its picture (64, 64, 3) and its mask (64, 64)."""
    (place,) = random_places(rng, 1, (11, 15))
    scene = Scene(**random_setting(rng), things=(Thing(shape, look, *place),))
    picture, masks = draw_scene(scene)
    return scene, picture, masks[0]


def photos(noun: str) -> Tensor:
    """(5, 64, 64, 3) of one's own."""
    rng = np.random.default_rng([1, list(LOOKS).index(noun)])
    return torch.stack([photographed(rng, noun, LOOKS[noun])[1] for _ in range(PHOTOS)])


def class_pictures(noun: str) -> Tensor:
    """(40, 64, 64, 3) of any."""
    rng = np.random.default_rng([2, list(LOOKS).index(noun)])
    return torch.stack([photographed(rng, noun, random_look(rng))[1] for _ in range(CLASS_PICTURES)])
