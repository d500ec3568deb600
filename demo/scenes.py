"""Drawn scenes: things with a shape and a look in a place, the true mask of each, and the words for them."""

import math
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

SIZE = 64  # pixels, width and height
SUPERSAMPLING = 4
MAX_THINGS = 3

COLORS = {
    "red": (0.87, 0.10, 0.13),
    "orange": (0.98, 0.55, 0.08),
    "yellow": (0.98, 0.90, 0.16),
    "green": (0.10, 0.62, 0.20),
    "blue": (0.10, 0.27, 0.85),
    "purple": (0.55, 0.15, 0.65),
    "white": (0.97, 0.97, 0.97),
    "black": (0.07, 0.07, 0.09),
}
TEXTURES = ("plain", "striped", "checkered", "dotted")
UNNAMED_COLORS = {  # no word of the demo model means them
    "magenta": (0.95, 0.10, 0.65),
    "teal": (0.00, 0.70, 0.65),
    "brown": (0.42, 0.22, 0.08),
    "lime": (0.70, 0.95, 0.15),
    "navy": (0.05, 0.08, 0.40),
    "mint": (0.45, 0.95, 0.70),
}
SHAPES = ("ball", "box", "cup", "fish", "heart", "star")
PLACES = {  # top and bottom of the sky (or wall), ground
    "meadow": ((0.62, 0.78, 0.90), (0.80, 0.88, 0.90), (0.62, 0.75, 0.55)),
    "desert": ((0.90, 0.82, 0.68), (0.93, 0.88, 0.78), (0.80, 0.66, 0.50)),
    "sea": ((0.72, 0.80, 0.84), (0.86, 0.87, 0.84), (0.42, 0.56, 0.66)),
    "dusk": ((0.52, 0.46, 0.60), (0.83, 0.66, 0.66), (0.38, 0.36, 0.45)),
    "snow": ((0.66, 0.71, 0.78), (0.80, 0.83, 0.87), (0.90, 0.92, 0.95)),
    "room": ((0.78, 0.74, 0.68), (0.78, 0.74, 0.68), (0.58, 0.46, 0.38)),
}


class Look(NamedTuple):
    """What makes a thing one's own: the concept that is to be carried over."""

    texture: str
    colors: tuple[str, ...]  # one for "plain", else two

    def words(self) -> str:
        return " and ".join(self.colors) + ("" if self.texture == "plain" else f" {self.texture}")


UNNAMED_LOOKS = {  # of the LoRAs, by the shape that each of them gives it to
    "star": Look("ringed", ("magenta", "teal")),
    "cup": Look("halved", ("brown", "lime")),
    "heart": Look("quartered", ("navy", "mint")),
}


class Thing(NamedTuple):
    shape: str
    look: Look
    x: float  # center, in pixels
    y: float
    radius: float  # in pixels

    def words(self) -> str:
        return f"{self.look.words()} {self.shape}"


class Scene(NamedTuple):
    place: str
    horizon: float  # height of the ground's upper edge, in pixels from the top
    tint: tuple[float, float, float]  # added to every color of the place
    things: tuple[Thing, ...]  # the last one is in front

    def words(self) -> str:
        """Names all that is in the scene, for example "red and white striped cup, blue fish, meadow"."""
        return ", ".join([*(thing.words() for thing in self.things), self.place])

    def nouns(self) -> str:
        """Names the same without any look, for example "cup, fish, meadow"."""
        return ", ".join([*(thing.shape for thing in self.things), self.place])


def random_look(rng: np.random.Generator, colors: tuple[str, ...] = tuple(COLORS)) -> Look:
    texture = str(rng.choice(TEXTURES))
    chosen = rng.choice(colors, 1 if texture == "plain" else 2, replace=False)
    return Look(texture, tuple(map(str, chosen)))


def random_places(
    rng: np.random.Generator, count: int, radii: tuple[float, float], gap: float = 0.9
) -> list[tuple[float, float, float]]:
    """Returns (x, y, radius) of objects whose centers are at least `gap` times the sum of their radii apart."""
    while True:
        places: list[tuple[float, float, float]] = []
        for _ in range(40):
            radius = rng.uniform(*radii)
            x, y = rng.uniform(radius + 1, SIZE - radius - 1, 2)
            if all(math.hypot(x - x2, y - y2) > gap * (radius + radius2) for x2, y2, radius2 in places):
                places.append((float(x), float(y), float(radius)))
            if len(places) == count:
                return places


def random_setting(rng: np.random.Generator) -> dict:
    """Returns a random place, horizon and tint of a scene."""
    tint = tuple(float(x) for x in rng.uniform(-0.05, 0.05, 3))
    return {"place": str(rng.choice(list(PLACES))), "horizon": float(rng.uniform(0.45, 0.8) * SIZE), "tint": tint}


def random_scene(rng: np.random.Generator) -> Scene:
    """Returns a scene of up to three objects; those of the same shape share their look."""
    count = int(rng.choice([1, 2, 3], p=[0.25, 0.4, 0.35]))
    shapes = [str(shape) for shape in rng.permutation(SHAPES)[:count]]
    if count > 1 and rng.random() < 0.5:
        shapes[1] = shapes[0]
    looks = {shape: random_look(rng) for shape in shapes}
    places = random_places(rng, count, (10, 16) if count == 1 else (9.5, 13))
    things = [Thing(shape, looks[shape], *place) for shape, place in zip(shapes, places, strict=True)]
    return Scene(**random_setting(rng), things=tuple(things))


class Blend(NamedTuple):
    """What PnP-MIX is to do: each thing of a scene is to take the look of a concept, which is of the same shape."""

    scene: Scene
    concepts: tuple[Scene, ...]  # one for each thing, with one thing

    def redrawn(self) -> Scene:
        """Returns the scene with its objects in the look of their concepts: what a perfect result shows."""
        things = zip(self.scene.things, self.concepts, strict=True)
        return self.scene._replace(things=tuple(thing._replace(look=own.things[0].look) for thing, own in things))

    def emptied(self) -> Scene:
        return self.scene._replace(things=())


def random_blend(seed: int, concepts: int, gap: float = 1.1) -> Blend:
    """Returns objects of different shapes; no color of a concept occurs in another one or in the scene's objects.

    With a gap (see `random_places`) well below 1 the things may overlap.

    Raises:
        ValueError: a scene holds one to three things.
    """
    if not 1 <= concepts <= MAX_THINGS:
        raise ValueError(f"Demo scene: {concepts} concepts do not fit. Choose 1 to {MAX_THINGS}.")
    rng = np.random.default_rng(seed)
    colors = [str(color) for color in rng.permutation(list(COLORS))]
    shapes = [str(shape) for shape in rng.permutation(SHAPES)]
    places = random_places(rng, concepts, (10, 13), gap)
    rest = tuple(colors[2 * concepts :])
    things = tuple(Thing(shapes[k], random_look(rng, rest), *places[k]) for k in range(concepts))
    scene = Scene(**random_setting(rng), things=things)
    own = []
    for k in range(concepts):
        look = random_look(rng, tuple(colors[2 * k : 2 * k + 2]))
        place = random_places(rng, 1, (11, 15))[0]
        own.append(Scene(**random_setting(rng), things=(Thing(shapes[k], look, *place),)))
    return Blend(scene, tuple(own))


def _outline(shape: str) -> list[tuple[float, float]]:
    """Returns a polygon roughly within the unit circle; y points down."""
    angles = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    if shape == "ball":
        points = np.stack([np.cos(angles), np.sin(angles)], 1) * 0.95
    elif shape == "box":
        points = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.82
    elif shape == "cup":  # without its handle
        points = np.array([(-0.9, -0.85), (0.5, -0.85), (0.3, 0.9), (-0.7, 0.9)])
    elif shape == "fish":  # without its tail
        points = np.stack([np.cos(angles) * 0.72 - 0.25, np.sin(angles) * 0.62], 1)
    elif shape == "heart":
        curve = 13 * np.cos(angles) - 5 * np.cos(2 * angles) - 2 * np.cos(3 * angles) - np.cos(4 * angles)
        points = np.stack([16 * np.sin(angles) ** 3, -curve - 2.5], 1) / 16.5
    else:  # star
        turns = np.arange(10) * math.pi / 5
        points = np.stack([np.sin(turns), -np.cos(turns)], 1) * np.where(np.arange(10) % 2 == 0, 1.08, 0.5)[:, None]
    return [(float(x), float(y)) for x, y in points]


OUTLINES = {shape: _outline(shape) for shape in SHAPES}


def _stencil(thing: Thing) -> Image.Image:
    """Draws the supersampled silhouette, 0 or 255."""
    image = Image.new("L", (SIZE * SUPERSAMPLING,) * 2)
    draw, unit = ImageDraw.Draw(image), thing.radius * SUPERSAMPLING
    x0, y0 = thing.x * SUPERSAMPLING, thing.y * SUPERSAMPLING

    def at(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(x0 + x * unit, y0 + y * unit) for x, y in points]

    draw.polygon(at(OUTLINES[thing.shape]), fill=255)
    if thing.shape == "cup":
        draw.ellipse(at([(0.02, -0.55), (0.98, 0.45)]), outline=255, width=round(0.24 * unit))
    elif thing.shape == "fish":
        draw.polygon(at([(0.25, 0.0), (1.0, -0.6), (0.85, 0.0), (1.0, 0.6)]), fill=255)
    return image


def _fabric(thing: Thing) -> Image.Image:
    """Returns the object's texture, supersampled, over the whole picture.

    Its pattern is centered on the object and scales with it.
    """
    colors = COLORS | UNNAMED_COLORS
    first, *second = (tuple(round(255 * x) for x in colors[name]) for name in thing.look.colors)
    image = Image.new("RGB", (SIZE * SUPERSAMPLING,) * 2, first)
    draw, unit = ImageDraw.Draw(image), thing.radius * SUPERSAMPLING
    x0, y0, cell = thing.x * SUPERSAMPLING, thing.y * SUPERSAMPLING, 0.5 * unit
    for row in range(-3, 3):
        top, bottom = y0 + row * cell, y0 + (row + 1) * cell
        if thing.look.texture == "striped" and row % 2 == 0:
            draw.rectangle([(x0 - 2 * unit, top), (x0 + 2 * unit, bottom)], fill=second[0])
        for column in range(-3, 3):
            left, right = x0 + column * cell, x0 + (column + 1) * cell
            if thing.look.texture == "checkered" and (row + column) % 2 == 0:
                draw.rectangle([(left, top), (right, bottom)], fill=second[0])
            if thing.look.texture == "dotted" and (row + column) % 2 == 0:
                margin = 0.04 * cell
                draw.ellipse([(left + margin, top + margin), (right - margin, bottom - margin)], fill=second[0])
    if thing.look.texture == "ringed":
        draw.ellipse([(x0 - cell, y0 - cell), (x0 + cell, y0 + cell)], fill=second[0])
    if thing.look.texture == "halved":
        draw.rectangle([(x0 - 2 * unit, y0), (x0 + 2 * unit, y0 + 2 * unit)], fill=second[0])
    if thing.look.texture == "quartered":
        draw.rectangle([(x0 - 2 * unit, y0 - 2 * unit), (x0, y0)], fill=second[0])
        draw.rectangle([(x0, y0), (x0 + 2 * unit, y0 + 2 * unit)], fill=second[0])
    return image


def draw_place(scene: Scene) -> Image.Image:
    top, bottom, ground = (np.array(color) + np.array(scene.tint) for color in PLACES[scene.place])
    size = SIZE * SUPERSAMPLING
    y = (np.arange(size) + 0.5) / SUPERSAMPLING
    sky = top + (bottom - top) * (y / scene.horizon).clip(0, 1)[:, None]
    nearness = ((y - scene.horizon) / (SIZE - scene.horizon))[:, None]
    rows = np.where(nearness < 0, sky, ground * (1.05 - 0.2 * nearness))
    rows = (rows.clip(0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(rows[:, None], (size, size, 3))))


def to_tensor(image: Image.Image) -> Tensor:
    """Converts a supersampled picture to (SIZE, SIZE) or (SIZE, SIZE, 3) in 0..1."""
    return torch.from_numpy(np.asarray(image.reduce(SUPERSAMPLING), dtype=np.float32) / 255)


def draw_scene(scene: Scene) -> tuple[Tensor, Tensor]:
    """Returns the picture (SIZE, SIZE, 3) and the mask of what is seen of each object (n, SIZE, SIZE), in 0..1."""
    picture, stencils = draw_place(scene), list[Image.Image]()
    for thing in scene.things:
        stencil = _stencil(thing)
        picture.paste(_fabric(thing), mask=stencil)
        for behind in stencils:
            behind.paste(0, mask=stencil)
        stencils.append(stencil)
    masks = [to_tensor(stencil) for stencil in stencils]
    return to_tensor(picture), torch.stack(masks) if masks else torch.zeros(0, SIZE, SIZE)


def draw_concepts(task: Blend) -> tuple[list[Tensor], Tensor]:
    """Returns n pictures (SIZE, SIZE, 3) and the mask (n, SIZE, SIZE) of the object in each."""
    pictures, masks = zip(*(draw_scene(concept) for concept in task.concepts), strict=True)
    return list(pictures), torch.cat(masks)


def random_layout(seed: int, concepts: int) -> Scene:
    """Returns a scene with objects of the shapes that have a LoRA, in looks that have words.

    White and snow are left out, of which one is hard to tell from the other.

    Raises:
        ValueError: there are LoRAs for three shapes.
    """
    if not 1 <= concepts <= len(UNNAMED_LOOKS):
        raise ValueError(f"Demo scene: {concepts} concepts do not fit. Choose 1 to {len(UNNAMED_LOOKS)}.")
    rng = np.random.default_rng([seed, concepts])
    shapes = [str(shape) for shape in rng.permutation(list(UNNAMED_LOOKS))[:concepts]]
    places = random_places(rng, concepts, (10, 13), 1.1)
    setting = random_setting(rng)
    while setting["place"] == "snow":
        setting = random_setting(rng)
    colors = tuple(color for color in COLORS if color != "white")
    things = [Thing(shape, random_look(rng, colors), *place) for shape, place in zip(shapes, places, strict=True)]
    return Scene(**setting, things=tuple(things))


def conducted(scene: Scene) -> Scene:
    """Returns the scene with its objects in their LoRAs' looks: what a perfect result shows in these places."""
    return scene._replace(things=tuple(thing._replace(look=UNNAMED_LOOKS[thing.shape]) for thing in scene.things))


def prompts_of(scene: Scene) -> tuple[str, list[str]]:
    """Returns prompts for the picture and for each object's own model: there every object has that one's shape."""
    return scene.nouns(), [", ".join([thing.shape] * len(scene.things) + [scene.place]) for thing in scene.things]
