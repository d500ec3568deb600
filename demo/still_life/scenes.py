"""Scenes that look like photographs: objects on a table, each dressed with a look. The truth about them is known.

The objects were rendered once, by `render_sprites.py`. A seed gives the same scene on every machine.
"""

import functools
import itertools
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

SPRITES = Path(__file__).parent / "sprites.npz"
SIZE = 256  # pixels, width and height
MAX_OBJECTS = 3
POSES = 8  # of each kind; the last three are kept for the pictures of concepts, so that no scene of a task shares one
CONCEPT_POSES = range(5, POSES)

KINDS = {  # pattern cells around and from bottom to top, usual extent, width as a share of the extent
    "mug": (8, 3, 0.85, 0.9),
    "vase": (8, 4, 1.1, 0.75),
    "bowl": (12, 2, 0.85, 1.0),
    "bottle": (8, 4, 1.15, 0.45),
    "teapot": (10, 3, 1.05, 1.0),
    "ball": (6, 3, 0.8, 1.0),
    "box": (12, 3, 0.9, 1.0),
    "bear": (6, 3, 1.15, 0.65),
    "duck": (6, 3, 0.95, 1.0),
    "lamp": (10, 3, 1.1, 0.8),
}
COLORS = {
    "red": (0.78, 0.11, 0.12),
    "orange": (0.93, 0.50, 0.10),
    "yellow": (0.94, 0.80, 0.18),
    "green": (0.14, 0.53, 0.22),
    "teal": (0.10, 0.60, 0.60),
    "blue": (0.15, 0.28, 0.75),
    "purple": (0.48, 0.20, 0.62),
    "pink": (0.92, 0.50, 0.65),
    "brown": (0.42, 0.26, 0.14),
    "white": (0.92, 0.92, 0.90),
    "black": (0.09, 0.09, 0.10),
}
PATTERNS = ("plain", "striped", "checkered", "dotted", "zigzag")
FINISHES = ("matte", "glazed", "metal")
MOTIFS = ("heart", "leaf", "star", "moon", "flower", "bolt", "ring", "cross")  # no word of the demo model means them
TABLES = ("wooden", "cloth", "stone", "plain")


class Look(NamedTuple):
    """What makes an object one's own: the concept that is to be carried over."""

    pattern: str  # of PATTERNS, or "banded": a broad band of the second color, which has no word
    colors: tuple[str, ...]  # the first is the ground, the last that of handles, lids and insides, and of the motif
    motif: str = ""
    finish: str = "glazed"

    def words(self) -> str:
        pattern = "" if self.pattern in ("plain", "banded") else f"{self.pattern} "
        return f"{self.finish} {' and '.join(self.colors[:2])} {pattern}"


class Object(NamedTuple):
    kind: str
    pose: int
    look: Look
    x: float  # center, in pixels
    base: float  # where it stands, in pixels from the top
    extent: float  # the larger of height and width, in pixels

    def words(self) -> str:
        return f"{self.look.words()}{self.kind}"


class Scene(NamedTuple):
    table: str
    wall: str  # a color
    horizon: float  # where the table ends, in pixels from the top
    mirrored: bool  # the light comes from the right
    seed: int  # of the table's grain and of the light on the wall
    objects: tuple[Object, ...]  # the last one is in front

    def words(self) -> str:
        """Names all that is in the scene, for example "glazed red mug, matte blue duck, wooden table, green wall"."""
        return ", ".join([*(thing.words() for thing in self.objects), f"{self.table} table", f"{self.wall} wall"])

    def nouns(self) -> str:
        """Names the same without any look, for example "mug, duck, table, wall"."""
        return ", ".join([*(thing.kind for thing in self.objects), "table", "wall"])

    def without(self, *removed: int) -> "Scene":
        kept = tuple(thing for k, thing in enumerate(self.objects) if k not in removed)
        return self._replace(objects=kept)


# ---- what is drawn at random


def random_look(rng: np.random.Generator, colors: tuple[str, ...] = tuple(COLORS), own: bool = False) -> Look:
    """Returns a random look; with `own`, in two cases of three one that words cannot say, as a person's object has."""
    first, second = (str(color) for color in rng.choice(colors, 2, replace=False))
    finish = str(rng.choice(FINISHES, p=[0.3, 0.5, 0.2]))
    if rng.random() < (0.67 if own else 0.4):
        motif = str(rng.choice(MOTIFS))
        return Look(str(rng.choice(["plain", "banded"])), (first, second), motif, finish)
    pattern = str(rng.choice(PATTERNS))
    return Look(pattern, (first,) if pattern == "plain" else (first, second), "", finish)


def random_setting(rng: np.random.Generator) -> dict:
    """Returns a random table, wall and light."""
    return {
        "table": str(rng.choice(TABLES)),
        "wall": str(rng.choice(list(COLORS))),
        "horizon": float(rng.uniform(0.3, 0.45) * SIZE),
        "mirrored": bool(rng.random() < 0.5),
        "seed": int(rng.integers(2**31)),
    }


def random_objects(
    rng: np.random.Generator,
    kinds: list[str],
    looks: list[Look],
    poses: range,
    gap: float,
    extents: tuple[float, float],
) -> tuple[Object, ...]:
    """Objects side by side, from the back to the front; neighbors are `gap` times their half widths apart."""
    for attempt in itertools.count():
        placed, halves = [], {}
        for kind, look in zip(kinds, looks, strict=True):
            usual, share = KINDS[kind][2:]
            extent = float(rng.uniform(*extents)) * usual * SIZE * 0.97 ** (attempt // 50)  # smaller where none fits
            half = share * extent / 2
            x, base = float(rng.uniform(half, SIZE - half)), float(rng.uniform(0.78, 0.95) * SIZE)
            placed.append(Object(kind, int(rng.choice(poses)), look, x, base, extent))
            halves[x] = half
        beside = itertools.pairwise(sorted(placed, key=lambda thing: thing.x))
        if all(b.x - a.x > gap * (halves[a.x] + halves[b.x]) for a, b in beside):
            break
    return tuple(sorted(placed, key=lambda thing: thing.base))


EXTENTS = {1: (0.5, 0.68), 2: (0.42, 0.55), 3: (0.33, 0.45)}  # of a usual object, as a share of the picture


def random_scene(rng: np.random.Generator) -> Scene:
    """Returns a scene of one to three objects; in every second scene of several, two are of one kind and look."""
    count = int(rng.choice([1, 2, 3], p=[0.3, 0.45, 0.25]))
    kinds = [str(kind) for kind in rng.permutation(list(KINDS))[:count]]
    looks = [random_look(rng) for _ in kinds]
    if count > 1 and rng.random() < 0.5:
        kinds[1], looks[1] = kinds[0], looks[0]
    objects = random_objects(rng, kinds, looks, range(POSES), 0.85, EXTENTS[count])
    return Scene(**random_setting(rng), objects=objects)


class Blend(NamedTuple):
    """What PnP-MIX is to do: each object of a scene is to take the look of a concept, which is of the same kind."""

    scene: Scene
    concepts: tuple[Scene, ...]  # one for each object, with one object

    def redrawn(self) -> Scene:
        """Returns the scene with the concepts really in it: what a perfect result shows."""
        pairs = zip(self.scene.objects, self.concepts, strict=True)
        return self.scene._replace(objects=tuple(thing._replace(look=own.objects[0].look) for thing, own in pairs))

    def clean_plate(self) -> Scene:
        return self.scene._replace(objects=())


def random_blend(seed: int, concepts: int, gap: float = 1.1) -> Blend:
    """Objects of different kinds; no color of a concept occurs in another one or in the scene's objects.

    With a gap (see `random_objects`) well below 1 the objects may overlap.

    Raises:
        ValueError: a scene holds one to three objects.
    """
    if not 1 <= concepts <= MAX_OBJECTS:
        raise ValueError(f"Demo scene: {concepts} concepts do not fit. Choose 1 to {MAX_OBJECTS}.")
    rng = np.random.default_rng([seed, concepts])
    colors = [str(color) for color in rng.permutation(list(COLORS))]
    kinds = [str(kind) for kind in rng.permutation(list(KINDS))[:concepts]]
    rest = tuple(colors[2 * concepts :])
    looks = [random_look(rng, rest) for _ in kinds]
    objects = random_objects(rng, kinds, looks, range(CONCEPT_POSES.start), gap, EXTENTS[concepts])
    scene = Scene(**random_setting(rng), objects=objects)
    own = []
    for k, thing in enumerate(objects):
        look = random_look(rng, tuple(colors[2 * k : 2 * k + 2]), own=True)
        alone = random_objects(rng, [thing.kind], [look], CONCEPT_POSES, gap, EXTENTS[1])
        own.append(Scene(**random_setting(rng), objects=alone))
    return Blend(scene, tuple(own))


# ---- how it is drawn; light is linear until `exposed`


def linear(color: str | tuple[float, float, float]) -> np.ndarray:
    return np.power(COLORS[color] if isinstance(color, str) else color, 2.2).astype(np.float32)


@functools.cache
def sprites() -> dict[str, np.ndarray]:
    return dict(np.load(SPRITES))


class Sprite(NamedTuple):
    """(H, W) layers of one object in one pose, as float32."""

    u: np.ndarray  # around, 0 to 1
    v: np.ndarray  # upwards, 0 to 1
    part: np.ndarray  # 0: has the pattern; 1: has one color; 2: is always dark; -1: beside the object
    coverage: np.ndarray  # 0 to 1
    shade: np.ndarray  # brightness of a matte white object
    glazed: np.ndarray  # what a glaze reflects
    metal: np.ndarray  # what white metal reflects
    shadow: np.ndarray  # how bright the table is beside the object, as a share


@functools.lru_cache(maxsize=len(KINDS) * POSES)
def load_sprite(kind: str, pose: int) -> Sprite:
    coded, flat = (sprites()[f"{kind}-{pose}-{name}"] for name in ("uv", "layers"))
    u, v = np.cumsum(coded, -1, dtype=np.uint16).astype(np.float32) / 65535  # stored as differences, which pack well
    part, coverage, shade, glazed, metal, shadow = flat
    light = [np.square(layer.astype(np.float32) / 255) * 3 for layer in (shade, glazed, metal)]
    return Sprite(
        u, v, part.astype(np.int8) - 1, coverage.astype(np.float32) / 255, *light, shadow.astype(np.float32) / 200
    )


@functools.cache
def motif_picture(name: str, side: int = 96) -> np.ndarray:
    """Draws a motif (side, side) in 0..1, row 0 at the bottom."""
    image = Image.new("L", (4 * side, 4 * side))
    draw, unit = ImageDraw.Draw(image), 2 * side
    angle = np.linspace(0, 2 * math.pi, 61)[:-1]

    def polygon(x: np.ndarray, y: np.ndarray) -> None:
        draw.polygon([(unit * (1 + a), unit * (1 - b)) for a, b in zip(x, y, strict=True)], fill=255)

    def disc(x: float, y: float, radius: float, fill: int = 255) -> None:
        draw.ellipse(
            [unit * (1 + x - radius), unit * (1 - y - radius), unit * (1 + x + radius), unit * (1 - y + radius)],
            fill=fill,
        )

    if name == "heart":
        polygon(
            np.sin(angle) ** 3 * 0.85,
            (13 * np.cos(angle) - 5 * np.cos(2 * angle) - 2 * np.cos(3 * angle) - np.cos(4 * angle)) / 19,
        )
    elif name == "leaf":
        width = 0.5 * np.sin(np.linspace(0, math.pi, 30)) ** 0.8
        rise = np.linspace(-0.85, 0.85, 30)
        polygon(np.concatenate([width, -width[::-1]]), np.concatenate([rise, rise[::-1]]))
        draw.line([(unit, 0.3 * unit), (unit, 1.7 * unit)], fill=0, width=side // 6)
    elif name == "star":
        radius = np.where(np.arange(10) % 2 == 0, 0.9, 0.4)
        polygon(radius * np.sin(np.arange(10) * math.pi / 5), radius * np.cos(np.arange(10) * math.pi / 5))
    elif name == "moon":
        disc(0, 0, 0.8)
        disc(0.38, 0.15, 0.62, 0)
    elif name == "flower":
        for turn in range(5):
            disc(0.48 * math.sin(turn * 0.4 * math.pi), 0.48 * math.cos(turn * 0.4 * math.pi), 0.36)
        disc(0, 0, 0.2, 0)
    elif name == "bolt":
        polygon(np.array([0.15, -0.5, -0.05, -0.3, 0.5, 0.05, 0.4]), np.array([0.9, -0.1, -0.1, -0.9, 0.2, 0.2, 0.9]))
    elif name == "ring":
        disc(0, 0, 0.8)
        disc(0, 0, 0.42, 0)
    else:
        polygon(
            np.array([-0.28, 0.28, 0.28, 0.8, 0.8, 0.28, 0.28, -0.28, -0.28, -0.8, -0.8, -0.28]),
            np.array([0.8, 0.8, 0.28, 0.28, -0.28, -0.28, -0.8, -0.8, -0.28, -0.28, 0.28, 0.28]),
        )
    return np.asarray(image.reduce(4), np.float32)[::-1] / 255


def pattern_weight(kind: str, look: Look, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Returns how much of the look's last color is where, 0 to 1; the rest is its first."""
    around, up, *_ = KINDS[kind]
    x, y = u * around, v * up
    if look.motif:
        turns = around / 2 if kind != "box" else 4  # a motif is about two cells wide
        side = around / turns / up  # of the motif, as a share of the height
        across, rise = (u * turns) % 1, (v - 0.5) / min(side, 0.62) + 0.5
        picture = motif_picture(look.motif)
        place = [(part.clip(0, 0.999) * len(picture)).astype(int) for part in (rise, across)]
        shown = np.where((rise >= 0) & (rise < 1), picture[place[0], place[1]], 0)
        return shown if look.pattern == "plain" else np.where(abs(v - 0.5) < 0.4, 1 - shown, 0)
    if look.pattern == "striped":
        return np.floor(2 * y) % 2
    if look.pattern == "checkered":
        return (np.floor(x) + np.floor(y)) % 2
    if look.pattern == "dotted":
        row = np.floor(y)
        return (np.hypot((x + 0.5 * row) % 1 - 0.5, y % 1 - 0.5) < 0.34).astype(np.float32)
    if look.pattern == "zigzag":
        return np.floor(1.6 * y + 0.7 * abs(x % 1 - 0.5) * 2) % 2
    return np.zeros_like(u)


def dressed(thing: Object, mirrored: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns light (H, W, 3), coverage and shadow (H, W), of the sprite's size."""
    sprite = load_sprite(thing.kind, thing.pose)
    if mirrored:  # the light, not what is on the object
        sprite = Sprite(*(layer[:, ::-1] for layer in sprite))
        sprite = sprite._replace(u=1 - sprite.u)
    first, last = linear(thing.look.colors[0]), linear(thing.look.colors[-1])
    weight = np.where(sprite.part == 0, pattern_weight(thing.kind, thing.look, sprite.u, sprite.v), 1)[..., None]
    color = first + (last - first) * weight
    color = np.where(sprite.part[..., None] == 2, linear("black"), color)
    if thing.look.finish == "metal":
        light = (0.25 + 0.75 * color) * (sprite.metal * 0.8)[..., None] * (0.35 + 0.65 * color)
    else:
        light = color * sprite.shade[..., None]
        if thing.look.finish == "glazed":
            light = 0.94 * light + 1.7 * sprite.glazed[..., None]
    return light * sprite.coverage[..., None], sprite.coverage, sprite.shadow


def resized(layers: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes layers: (C, H, W) → (C, *size), area-averaged."""
    height, width = size
    return np.stack(
        [
            np.asarray(
                Image.fromarray(layer).resize(
                    (width, height), Image.Resampling.BOX if max(layer.shape) > max(size) else Image.Resampling.BILINEAR
                )
            )
            for layer in np.ascontiguousarray(layers)
        ]
    )


def noise(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, octaves: int = 3) -> np.ndarray:
    """Returns smooth noise at (H, W) coordinates, around 0; lattice points are 1 apart in the first octave."""
    total = np.zeros_like(x)
    for octave in range(octaves):
        lattice = rng.standard_normal((64, 64)).astype(np.float32)
        a, b = x * 2**octave, y * 2**octave
        i, j = np.floor(a).astype(int), np.floor(b).astype(int)
        s, t = (w * w * (3 - 2 * w) for w in (a - i, b - j))
        top = lattice[j % 64, i % 64] * (1 - s) + lattice[j % 64, (i + 1) % 64] * s
        bottom = lattice[(j + 1) % 64, i % 64] * (1 - s) + lattice[(j + 1) % 64, (i + 1) % 64] * s
        total += (top * (1 - t) + bottom * t) / 2**octave
    return total


WOODS = ((0.55, 0.36, 0.22), (0.68, 0.50, 0.33), (0.40, 0.26, 0.18))
STONES = ((0.55, 0.55, 0.56), (0.70, 0.68, 0.64), (0.42, 0.44, 0.47))
PLAINS = ((0.80, 0.78, 0.74), (0.62, 0.66, 0.68), (0.74, 0.66, 0.58))


def draw_setting(scene: Scene) -> np.ndarray:
    """Draws the (SIZE, SIZE, 3) light of the wall and of the table in perspective, without objects."""
    rng = np.random.default_rng(scene.seed)
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) + 0.5
    right = 1 - x / SIZE if scene.mirrored else x / SIZE  # away from the light

    soft = 0.5 * linear(scene.wall) + 0.28  # paint, which is less colorful than glaze
    left, top = rng.uniform(0.05, 0.5), rng.uniform(0.02, 0.2)
    edges = [
        1 / (1 + np.exp(-12 * side))
        for side in (right - left, left + 0.32 - right, y / SIZE - top, top + 0.3 - y / SIZE)
    ]
    pane = np.prod(edges, axis=0) * (rng.random() < 0.4)
    wall = soft * (0.62 - 0.22 * right + 0.1 * y / SIZE + 0.22 * pane)[..., None]

    nearness = ((y - scene.horizon) / (SIZE - scene.horizon)).clip(1e-3)
    depth = 1 / (nearness + 0.35)
    across, along = (x - SIZE / 2) / SIZE * depth * 4 + rng.uniform(0, 50), depth * 5 + rng.uniform(0, 50)
    if scene.table == "wooden":
        plank = np.floor(across * 0.8)
        tone = 1 + 0.1 * np.sin(plank * 12.9) + 0.1 * noise(rng, across * 7, along * 0.5 + plank * 7)
        gap = 1 - 0.5 * np.exp(-((((across * 0.8) % 1) / 0.02 / depth.clip(0.8)) ** 2))
        table = linear(WOODS[rng.integers(3)]) * (tone * gap)[..., None]
    elif scene.table == "cloth":
        folds = noise(rng, across * 0.7, along * 0.7, 2)
        table = (0.7 * linear(list(COLORS)[rng.integers(11)]) + 0.12) * (1 + 0.13 * folds)[..., None]
    elif scene.table == "stone":
        table = linear(STONES[rng.integers(3)]) * (1 + 0.16 * noise(rng, across * 1.5, along * 1.5, 4))[..., None]
    else:
        table = linear(PLAINS[rng.integers(3)]) * np.ones_like(y)[..., None]
    table = table * (0.78 - 0.2 * right + 0.12 * nearness)[..., None]
    edge = ((y - scene.horizon) / 1.5 + 0.5).clip(0, 1)[..., None]
    return wall * (1 - edge) + table * edge


def exposed(light: np.ndarray) -> Tensor:
    """Converts linear light to a (SIZE, SIZE, 3) picture in 0..1, with a soft shoulder."""
    return torch.from_numpy(np.power(1 - np.exp(-1.9 * light.clip(0)), 1 / 2.2).astype(np.float32))


def paste(scene: Scene, thing: Object, light: np.ndarray) -> np.ndarray:
    """Draws one object and its shadow into (SIZE, SIZE, 3) light, in place.

    Returns:
        its coverage (SIZE, SIZE).
    """
    color, coverage, shadow = dressed(thing, scene.mirrored)
    rows, columns = (np.flatnonzero(coverage.any(axis)) for axis in (1, 0))
    scale = thing.extent / max(rows[-1] - rows[0], columns[-1] - columns[0])
    size = tuple(round(side * scale) for side in coverage.shape)
    layers = resized(np.concatenate([color.transpose(2, 0, 1), coverage[None], shadow[None]]).astype(np.float32), size)
    top = round(thing.base - (rows[-1] + 1) * scale)
    left = round(thing.x - (columns[0] + columns[-1] + 1) / 2 * scale)
    ys, xs = (slice(max(at, 0), min(at + side, SIZE)) for at, side in ((top, size[0]), (left, size[1])))
    inside = layers[:, ys.start - top : ys.stop - top, xs.start - left : xs.stop - left]
    whole = np.zeros((SIZE, SIZE), np.float32)
    whole[ys, xs] = inside[3]
    light[ys, xs] = light[ys, xs] * inside[4][..., None] * (1 - inside[3])[..., None] + inside[:3].transpose(1, 2, 0)
    return whole


def draw_scene(scene: Scene) -> tuple[Tensor, Tensor]:
    """Returns the picture (SIZE, SIZE, 3) and the mask of what is seen of each object (n, SIZE, SIZE), in 0..1."""
    light, masks = draw_setting(scene), []
    for thing in scene.objects:
        coverage = paste(scene, thing, light)
        masks = [mask * (1 - coverage) for mask in masks] + [coverage]
    return exposed(light), torch.from_numpy(np.stack(masks)) if masks else torch.zeros(0, SIZE, SIZE)


def draw_concepts(task: Blend) -> tuple[list[Tensor], Tensor]:
    """Returns n pictures (SIZE, SIZE, 3) and the mask (n, SIZE, SIZE) of the object in each."""
    pictures, masks = zip(*(draw_scene(concept) for concept in task.concepts), strict=True)
    return list(pictures), torch.cat(masks)
