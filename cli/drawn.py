"""The demo's jobs: drawn scenes and concepts with their masks, and a table of them such as people write."""

import io
from pathlib import Path

from demo.scenes import draw_concepts, draw_scene, random_blend
from PIL import Image
from torch import Tensor

from .files import write_whole
from .jobs import BETWEEN
from .tasks import write_table

CONCEPTS = 2


def draw_jobs(folder: Path, count: int) -> Path:
    """Draws the demo's scenes of the seeds 0 to count - 1 and writes the table of their jobs; returns its path."""
    return write_table(folder / "jobs.csv", [draw_job(folder, seed) for seed in range(count)])


def draw_job(folder: Path, seed: int) -> dict[str, str]:
    """Draws a scene, its concepts and their masks; returns the row of the table."""
    task = random_blend(seed, CONCEPTS)
    scene, masks = draw_scene(task.scene)
    images, object_masks = draw_concepts(task)

    def save(name: str, image: Tensor) -> str:
        file = io.BytesIO()
        Image.fromarray((image * 255).round().byte().numpy()).save(file, "PNG")
        write_whole(folder / f"{name}.png", file.getvalue())
        return f"{name}.png"

    def save_all(name: str, drawn: list[Tensor] | Tensor) -> str:
        return BETWEEN.join(save(f"scene-{seed} {name} {k}", image) for k, image in enumerate(drawn, 1))

    return {
        "scene": save(f"scene-{seed}", scene),
        "concepts": save_all("concept", images),
        "objects": BETWEEN.join(thing.shape for thing in task.scene.things),
        "prompt": task.scene.nouns(),
        "seed": str(seed),
        "target masks": save_all("target mask", masks),
        "object masks": save_all("object mask", object_masks),
    }
