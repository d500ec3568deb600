"""Three objects that no one else has, and photos of them: what concepts are trained on.

No color occurs in two of them.
"""

import numpy as np
import torch
from torch import Tensor

from .scenes import Look, Scene, Thing, draw_scene, random_places, random_setting

LOOKS = {
    "ball": Look("striped", ("red", "yellow")),
    "cup": Look("checkered", ("blue", "orange")),
    "fish": Look("dotted", ("green", "purple")),
}
PHOTOS = 5


def photographed(rng: np.random.Generator, shape: str, look: Look) -> tuple[Scene, Tensor, Tensor]:
    """Returns a random scene with one object, its picture (64, 64, 3) and its mask (64, 64)."""
    (place,) = random_places(rng, 1, (11, 15))
    scene = Scene(**random_setting(rng), things=(Thing(shape, look, *place),))
    picture, masks = draw_scene(scene)
    return scene, picture, masks[0]


def more_photos(thing: Thing, count: int, seed: list[int]) -> tuple[Tensor, Tensor]:
    """Returns photos (count, 64, 64, 3) of the same object elsewhere, and its mask (count, 64, 64) in each."""
    rng = np.random.default_rng(seed)
    pictures, masks = zip(*(photographed(rng, thing.shape, thing.look)[1:] for _ in range(count)), strict=True)
    return torch.stack(pictures), torch.stack(masks)


def photos(noun: str) -> Tensor:
    """Returns the photos (5, 64, 64, 3) of one's own object."""
    return more_photos(Thing(noun, LOOKS[noun], 0, 0, 0), PHOTOS, [1, list(LOOKS).index(noun)])[0]
