"""The demo's jobs: drawn scenes and things with their masks, and a table of them such as people write."""

import csv
import io
from pathlib import Path

from demo.scenes import draw_concepts, draw_scene, random_blend
from PIL import Image
from torch import Tensor

from .files import write_whole
from .jobs import BETWEEN, COLUMNS

THINGS = 2


def draw_jobs(folder: Path, count: int) -> Path:
    """Draws the demo's scenes of the seeds 0 to count - 1; the table's path."""
    rows = [draw_job(folder, seed) for seed in range(count)]
    text = io.StringIO()
    table = csv.DictWriter(text, [name for name in COLUMNS if name in rows[0]])
    table.writeheader()
    table.writerows(rows)
    path = folder / "jobs.csv"
    write_whole(path, text.getvalue().encode())
    return path


def draw_job(folder: Path, seed: int) -> dict[str, str]:
    """Draws one; its row."""
    task = random_blend(seed, THINGS)
    scene, masks = draw_scene(task.scene)
    pictures, own_masks = draw_concepts(task)

    def save(name: str, picture: Tensor) -> str:
        file = io.BytesIO()
        Image.fromarray((picture * 255).round().byte().numpy()).save(file, "PNG")
        write_whole(folder / f"{name}.png", file.getvalue())
        return f"{name}.png"

    def save_all(name: str, drawn: list[Tensor] | Tensor) -> str:
        return BETWEEN.join(save(f"scene-{seed} {name} {k}", picture) for k, picture in enumerate(drawn, 1))

    return {
        "scene": save(f"scene-{seed}", scene),
        "things": save_all("thing", pictures),
        "words": BETWEEN.join(thing.shape for thing in task.scene.things),
        "prompt": task.scene.nouns(),
        "seed": str(seed),
        "masks": save_all("mask", masks),
        "object masks": save_all("object mask", own_masks),
    }
