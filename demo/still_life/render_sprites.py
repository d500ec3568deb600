"""Renders the objects of the scenes: python demo/still_life/render_sprites.py --folder sprites

Needs `render-requirements.txt` beside this file and, for speed, LLVM 19 (DRJIT_LIBLLVM_PATH); nothing else needs
either. Each object is rendered once in each pose, not as a picture but as what a picture is made of: where a pattern
lies on it, how bright a white one is, what a glossy one reflects, and how it darkens the table. `scenes.py` dresses it
with any look.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import mitsuba as mi
import numpy as np
from scipy import ndimage

mi.set_variant(next(name for name in ("llvm_ad_rgb", "scalar_rgb") if name in mi.variants()))
from mitsuba import ScalarTransform4f as Transform  # noqa: E402, there is none before a variant is chosen

PART_STRIDE = 4
BODY, TRIM, DARK = 0, 1, 2  # parts of an object: has the pattern, has one of its colours, is always dark
CAMERA_PITCH, FIELD_OF_VIEW = 17.0, 23.0  # degrees
ALBEDO, TABLE_ALBEDO = 0.8, 0.5
DIRECTIONS = 10  # that a kind's range of turns is divided into, one for each pose

Surface = tuple[int, np.ndarray, np.ndarray]  # part, (rows, columns, 3) points, (rows, columns, 2) texture coordinates


def grid(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (rows, columns) texture coordinates u (around) and v (upwards), 0 to 1."""
    v, u = np.meshgrid(np.linspace(0, 1, rows), np.linspace(0, 1, columns), indexing="ij")
    return u, v


def lathe(part: int, profile: list[tuple[float, float]], v_range: tuple[float, float] = (0, 1)) -> Surface:
    """Returns a surface of revolution around z; the profile (radius, height) is smoothed."""
    points = np.array(profile, dtype=float)
    for _ in range(3):  # Chaikin: corners become curves, the ends stay
        quarter, three = points[:-1] * 0.75 + points[1:] * 0.25, points[:-1] * 0.25 + points[1:] * 0.75
        points = np.concatenate([points[:1], np.stack([quarter, three], 1).reshape(-1, 2)[1:-1], points[-1:]])
    length = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    u, _ = grid(len(points), 97)
    v = v_range[0] + (v_range[1] - v_range[0]) * np.broadcast_to(length[:, None] / length[-1], u.shape)
    angle = 2 * math.pi * u
    radius, height = points[:, :1], points[:, 1:]
    place = np.stack([radius * np.cos(angle), radius * np.sin(angle), np.broadcast_to(height, u.shape)], -1)
    return part, place, np.stack([u, v], -1)


def ellipsoid(part: int, centre: tuple, radii: tuple, pattern: float = 1.0) -> Surface:
    """Returns an ellipsoid; `pattern` says how much of the pattern it shows, which is less on small parts."""
    u, v = grid(49, 97)
    angle, rise = 2 * math.pi * u, math.pi * (v - 0.5)
    unit = np.stack([np.cos(angle) * np.cos(rise), np.sin(angle) * np.cos(rise), np.sin(rise)], -1)
    return part, np.array(centre) + unit * np.array(radii), np.stack([u, v], -1) * pattern


def tube(part: int, path: np.ndarray, radii: np.ndarray | float) -> Surface:
    """Returns a tube along (n, 3) points in the plane y = 0."""
    radii = np.broadcast_to(radii, len(path))[:, None, None]
    along = np.gradient(path, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    side = np.cross(along, [0.0, 1.0, 0.0])[:, None]
    u, v = grid(len(path), 25)
    angle = 2 * math.pi * u[..., None]
    place = path[:, None] + radii * (side * np.cos(angle) + np.array([0.0, 1.0, 0.0]) * np.sin(angle))
    return part, place, np.stack([v * 0.5, u * 0.2], -1)


def arc(centre: tuple[float, float], radii: tuple[float, float], first: float, last: float) -> np.ndarray:
    """Returns (33, 3) points of an ellipse in the plane y = 0, from one angle in degrees to another."""
    angle = np.radians(np.linspace(first, last, 33))
    x, z = centre[0] + radii[0] * np.cos(angle), centre[1] + radii[1] * np.sin(angle)
    return np.stack([x, 0 * x, z], -1)


def mug() -> list[Surface]:
    outside = lathe(BODY, [(0.0, 0.0), (0.72, 0.0), (0.76, 0.06), (0.78, 0.3), (0.78, 1.55), (0.78, 1.7)])
    inside = lathe(TRIM, [(0.78, 1.7), (0.75, 1.74), (0.7, 1.7), (0.7, 1.4), (0.68, 0.15), (0.0, 0.1)])
    return [outside, inside, tube(TRIM, arc((0.74, 0.88), (0.52, 0.5), -95, 95), 0.1)]


def vase() -> list[Surface]:
    profile = [(0, 0), (0.5, 0), (0.58, 0.1), (0.95, 0.75), (0.9, 1.3), (0.42, 1.8), (0.4, 2.1), (0.58, 2.3)]
    return [lathe(BODY, profile), lathe(TRIM, [(0.58, 2.3), (0.54, 2.32), (0.36, 2.1), (0.4, 1.7), (0, 1.5)])]


def bowl() -> list[Surface]:
    outside = lathe(BODY, [(0, 0), (0.45, 0), (0.48, 0.1), (0.62, 0.14), (1.1, 0.5), (1.25, 1.05)])
    return [outside, lathe(TRIM, [(1.25, 1.05), (1.21, 1.09), (1.17, 1.05), (1.03, 0.55), (0.5, 0.22), (0, 0.2)])]


def bottle() -> list[Surface]:
    body = lathe(BODY, [(0, 0), (0.58, 0), (0.62, 0.08), (0.62, 1.35), (0.56, 1.65), (0.24, 1.95), (0.22, 2.3)])
    return [body, lathe(TRIM, [(0.22, 2.3), (0.27, 2.3), (0.28, 2.36), (0.28, 2.6), (0.26, 2.62), (0, 2.62)])]


def teapot() -> list[Surface]:
    body = lathe(BODY, [(0, 0), (0.6, 0), (0.7, 0.06), (1.1, 0.5), (1.08, 0.95), (0.75, 1.3), (0.5, 1.36)])
    lid = lathe(TRIM, [(0.52, 1.36), (0.54, 1.4), (0.4, 1.5), (0.1, 1.56), (0.08, 1.6)])
    knob = ellipsoid(TRIM, (0, 0, 1.68), (0.16, 0.16, 0.13))
    spout = np.stack([np.linspace(-0.85, -1.75, 33), np.zeros(33), 0.55 + 0.75 * np.linspace(0, 1, 33) ** 1.6], -1)
    handle = tube(TRIM, arc((0.95, 0.75), (0.62, 0.48), -80, 100), 0.1)
    return [body, lid, knob, tube(BODY, spout, np.linspace(0.26, 0.12, 33)), handle]


def ball() -> list[Surface]:
    return [ellipsoid(BODY, (0, 0, 1.05), (1.05, 1.05, 1.05))]


def box() -> list[Surface]:
    width, height, faces = 0.95, 1.7, []
    corners = [(-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1)]
    for k in range(4):
        (x0, y0), (x1, y1) = corners[k], corners[k + 1]
        u, v = grid(2, 2)
        place = np.stack([width * (x0 + (x1 - x0) * u), width * (y0 + (y1 - y0) * u), height * v], -1)
        faces.append((BODY, place, np.stack([(k + u) / 4, v], -1)))
    u, v = grid(2, 2)
    top = np.stack([width * (2 * u - 1), width * (2 * v - 1), np.full_like(u, height)], -1)
    return [*faces, (BODY, top, np.stack([u / 4, v], -1))]


def bear() -> list[Surface]:
    surfaces = [ellipsoid(BODY, (0, 0, 0.85), (0.72, 0.62, 0.85)), ellipsoid(BODY, (0, 0.0, 1.95), (0.58, 0.54, 0.52))]
    for side in (-1, 1):
        surfaces += [
            ellipsoid(BODY, (0.42 * side, 0.05, 2.38), (0.2, 0.13, 0.2), 0.3),
            ellipsoid(TRIM, (0.42 * side, -0.03, 2.38), (0.12, 0.1, 0.12)),
            ellipsoid(BODY, (0.72 * side, -0.2, 1.15), (0.2, 0.24, 0.48), 0.5),
            ellipsoid(BODY, (0.45 * side, -0.62, 0.24), (0.26, 0.48, 0.25), 0.4),
            ellipsoid(TRIM, (0.45 * side, -1.03, 0.27), (0.18, 0.1, 0.18)),
            ellipsoid(DARK, (0.2 * side, -0.48, 2.08), (0.065, 0.05, 0.075)),
        ]
    return [
        *surfaces,
        ellipsoid(TRIM, (0, -0.48, 1.82), (0.25, 0.2, 0.19)),
        ellipsoid(DARK, (0, -0.67, 1.89), (0.09, 0.05, 0.06)),
    ]


def duck() -> list[Surface]:
    surfaces = [
        ellipsoid(BODY, (0.1, 0, 0.68), (1.1, 0.8, 0.68)),
        ellipsoid(BODY, (1.05, 0, 1.05), (0.34, 0.34, 0.3), 0.3),
        ellipsoid(BODY, (-0.62, 0, 1.62), (0.56, 0.52, 0.54), 0.7),
        ellipsoid(TRIM, (-1.17, 0, 1.55), (0.34, 0.25, 0.1)),
    ]
    for side in (-1, 1):
        surfaces += [
            ellipsoid(DARK, (-0.98, 0.3 * side, 1.75), (0.1, 0.09, 0.11)),
            ellipsoid(BODY, (0.25, 0.68 * side, 0.8), (0.6, 0.2, 0.38), 0.5),
        ]
    return surfaces


def lamp() -> list[Surface]:
    foot = lathe(TRIM, [(0, 0), (0.6, 0), (0.62, 0.1), (0.2, 0.22), (0.1, 0.4), (0.22, 0.75), (0.1, 1.1), (0.08, 1.5)])
    shade = lathe(BODY, [(1.05, 1.15), (1.04, 1.18), (0.62, 2.4), (0.6, 2.42)])
    return [foot, shade, lathe(TRIM, [(0.6, 2.42), (0.55, 2.4), (0, 2.38)])]


# every direction that one can tell apart; the faces of the bear and the duck, and the handles, are to be seen
OBJECTS: dict[str, tuple[Callable[[], list[Surface]], tuple[float, float]]] = {
    "mug": (mug, (-150, 150)),
    "vase": (vase, (-180, 180)),
    "bowl": (bowl, (-180, 180)),
    "bottle": (bottle, (-180, 180)),
    "teapot": (teapot, (-50, 50)),
    "ball": (ball, (-180, 180)),
    "box": (box, (-80, -10)),
    "bear": (bear, (-55, 55)),
    "duck": (duck, (-60, 60)),
    "lamp": (lamp, (-180, 180)),
}


def mesh(part: int, place: np.ndarray, uv: np.ndarray, smooth: bool, bsdf: dict) -> mi.Mesh:
    """Returns Mitsuba's mesh of a surface; PART_STRIDE times the part is added to u, which is between 0 and 1."""
    rows, columns = place.shape[:2]
    number = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = (x.ravel() for x in (number[:-1, :-1], number[:-1, 1:], number[1:, 1:], number[1:, :-1]))
    faces = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
    properties = mi.Properties()
    properties["bsdf"] = mi.load_dict({"type": "twosided", "nested": bsdf})
    properties["face_normals"] = not smooth
    made = mi.Mesh(
        "surface", rows * columns, len(faces), has_vertex_normals=smooth, has_vertex_texcoords=True, props=properties
    )
    parameters = mi.traverse(made)
    parameters["vertex_positions"] = place.astype(np.float32).ravel()
    parameters["vertex_texcoords"] = (uv + np.array([PART_STRIDE * part, 0])).astype(np.float32).ravel()
    parameters["faces"] = faces.astype(np.uint32).ravel()
    parameters.update()
    if smooth:
        made.recompute_vertex_normals()
    return made


def room() -> dict:
    """Returns a table in the soft light of a window with four panes, left in front, and of the room."""
    window = {
        f"pane_{i}{j}": {
            "type": "rectangle",
            "to_world": Transform().look_at((-5.5, -4.5, 6.5), (0, 0, 0.8), (0, 0, 1))
            @ Transform().translate((i, j, 0))
            @ Transform().scale(0.88),
            "emitter": {"type": "area", "radiance": 9.0},
        }
        for i in (-1, 1)
        for j in (-1, 1)
    }
    table = {
        "type": "rectangle",
        "to_world": Transform().scale(40),
        "bsdf": {"type": "diffuse", "reflectance": TABLE_ALBEDO},
    }
    return {"room": {"type": "constant", "radiance": 0.42}, "table": table, **window}


def sensor(size: int, surfaces: list[Surface]) -> mi.Sensor:
    """Frames any turn of the object, with room for its shadow."""
    points = np.concatenate([place.reshape(-1, 3) for _, place, _ in surfaces])
    height, reach = points[:, 2].max(), np.hypot(points[:, 0], points[:, 1]).max()
    distance = max(1.22 * reach, 0.72 * height) / math.tan(math.radians(FIELD_OF_VIEW / 2))
    pitch, middle = math.radians(CAMERA_PITCH), (0, 0, 0.46 * height)
    eye = (0, -distance * math.cos(pitch), middle[2] + distance * math.sin(pitch))
    film = {"type": "hdrfilm", "width": size, "height": size, "rfilter": {"type": "box"}, "pixel_format": "rgb"}
    looks = Transform().look_at(eye, middle, (0, 0, 1))
    return mi.load_dict({"type": "perspective", "fov": FIELD_OF_VIEW, "to_world": looks, "film": film})


def turned(surfaces: list[Surface], yaw: float, tilt: float) -> list[Surface]:
    """Turns an object around the vertical, in degrees, and tilts it, which is for balls."""
    c, s = math.cos(math.radians(yaw)), math.sin(math.radians(yaw))
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    if tilt:
        c, s = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
        centre = np.array([0, 0, 1.05])
        roll = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
        return [(part, (place - centre) @ (turn @ roll).T + centre, uv) for part, place, uv in surfaces]
    return [(part, place @ turn.T, uv) for part, place, uv in surfaces]


def scene_of(surfaces: list[Surface], smooth: bool, bsdf: dict, surroundings: dict) -> mi.Scene:
    meshes = {f"part_{i}": mesh(*surface, smooth, bsdf) for i, surface in enumerate(surfaces)}
    return mi.load_dict({"type": "scene"} | surroundings | meshes)


def radiance(scene: mi.Scene, view: mi.Sensor, samples: int, depth: int = 4) -> np.ndarray:
    """Renders the (size, size) brightness of a scene."""
    integrator = mi.load_dict({"type": "path", "max_depth": depth, "hide_emitters": True})
    return np.asarray(mi.render(scene, sensor=view, spp=samples, integrator=integrator)).mean(-1)


def coordinates(scene: mi.Scene, view: mi.Sensor, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (size, size) u, v and part at the centers of the pixels; the part is -1 beside the object."""
    x, y = np.meshgrid(*[(np.arange(size, dtype=np.float32) + 0.5) / size] * 2)
    rays, _ = view.sample_ray(0.0, 0.5, mi.Point2f(x.ravel(), y.ravel()), mi.Point2f(0.5, 0.5))
    hit = scene.ray_intersect(rays)
    u, v = np.asarray(hit.uv).reshape(2, size, size)
    part = (u / PART_STRIDE).astype(int)
    return u - PART_STRIDE * part, v, np.where(np.asarray(hit.is_valid()).reshape(size, size), part, -1)


def sprite(name: str, yaw: float, tilt: float, size: int, samples: int) -> dict[str, np.ndarray]:
    shape, _ = OBJECTS[name]
    surfaces = turned(shape(), yaw, tilt)
    smooth = name != "box"
    view = sensor(size, surfaces)
    white = {"type": "diffuse", "reflectance": ALBEDO}
    bare = scene_of(surfaces, smooth, white, {})
    u, v, part = coordinates(bare, view, size)
    coverage = (coordinates(bare, view, 2 * size)[2] >= 0).reshape(size, 2, size, 2).mean((1, 3))

    def lit(bsdf: dict, samples: int) -> np.ndarray:
        return radiance(scene_of(surfaces, smooth, bsdf, room()), view, samples)

    empty = radiance(mi.load_dict({"type": "scene"} | room()), view, 2 * samples)
    matte = lit(white, samples)
    glazed = lit({"type": "roughplastic", "diffuse_reflectance": 0.0, "alpha": 0.06}, samples // 2)
    metal = lit({"type": "roughconductor", "material": "none", "alpha": 0.22}, samples)
    return dict(
        u=u, v=v, part=part, coverage=coverage, shade=matte / ALBEDO, shadow=matte / empty, glazed=glazed, metal=metal
    )


def filled(layer: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Fills the rest of a layer with what is nearest in the known part."""
    nearest = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    return layer[tuple(nearest)]


def smoothed(layer: np.ndarray, inside: np.ndarray, sigma: float) -> np.ndarray:
    """Returns a layer without the renderer's noise, as far as the object goes."""
    light, there = (ndimage.gaussian_filter(x, sigma) for x in (layer * inside, inside.astype(float)))
    return light / there.clip(1e-4)


def packed(layers: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the layers as `scenes.load_sprite` reads them.

    These are u and v (2, H, W) as differences along the rows, of 13 bits, and part, coverage, shade, glazed, metal and
    shadow (6, H, W) in 8 bits.
    """
    inside = layers["part"] >= 0
    rim = ndimage.binary_dilation(inside, iterations=2)  # pixels that it covers in part have no center on it

    def on_rim(layer: np.ndarray) -> np.ndarray:
        return np.where(rim, filled(layer, inside), 0)

    def light(name: str, sigma: float) -> np.ndarray:
        return np.round(np.sqrt(on_rim(smoothed(layers[name], inside, sigma)).clip(0, 3) / 3) * 255)

    uv = np.round(np.stack([on_rim(layers[name]) for name in "uv"]).clip(0, 1) * 65535).astype(np.uint16)
    uv = uv >> 3 << 3
    rows, columns = np.mgrid[[slice(0, size) for size in inside.shape]]
    from_edge = np.minimum.reduce([rows, columns, rows[::-1], columns[:, ::-1]]) / (0.12 * len(inside))
    shadow = ndimage.gaussian_filter(filled(layers["shadow"], ~rim), 1.5)
    shadow = (1 + (shadow - 1) * from_edge.clip(0, 1)).clip(0, 1.2)
    part = np.where(rim, filled(layers["part"], inside), -1) + 1
    flat = [part, np.round(layers["coverage"] * 255), light("shade", 0.7), light("glazed", 0.6), light("metal", 0.9)]
    return np.diff(uv, axis=-1, prepend=np.uint16(0)), np.stack([*flat, np.round(shadow * 200)]).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--poses", type=int, default=8)
    parser.add_argument("--samples", type=int, default=96)
    parser.add_argument("--only", nargs="*", default=list(OBJECTS))
    parser.add_argument("--folder", type=Path, required=True, help="for a file of each pose; what is there stays")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    entries = {}
    for pose in range(options.poses):
        for name in options.only:
            rng = np.random.default_rng([pose, *map(ord, name)])
            first, last = OBJECTS[name][1]
            yaw = first + (last - first) * (pose + rng.uniform(0.15, 0.85)) / DIRECTIONS
            tilt = rng.uniform(-50, 50) if name == "ball" else 0.0
            file = options.folder / f"{name}-{pose}.npz"
            if not file.exists():
                np.savez(file, **sprite(name, yaw, tilt, options.size, options.samples))
                print(file.name, flush=True)
            uv, layers = packed({key: x.astype(float) for key, x in np.load(file).items()})
            entries |= {f"{name}-{pose}-uv": uv, f"{name}-{pose}-layers": layers}
    np.savez_compressed(Path(__file__).parent / "sprites.npz", **entries)


if __name__ == "__main__":
    main()
