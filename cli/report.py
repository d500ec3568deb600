"""The page of an evaluation: one file, with every result beside what went into it."""

import base64
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image, ImageOps
from pnpmix.files.texts import printable
from pnpmix.metrics.statistics import mean_with_interval

from .files import write_whole
from .scores import COLUMNS
from .tasks import CompleteTask, Evaluated, Made
from .variants import Variant

LARGEST = 320  # pixels of a side, above which an image is shown smaller
PAGES = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)


def write_report(folder: Path, rows: Sequence[Variant], results: Sequence[Evaluated], about: dict[str, str]) -> Path:
    """Writes report.html and scores.json; returns the page's path."""
    scores = {
        name: {row: made.scores | {"picture": str(made.path)} for row, made in x.made.items()}
        for name, x in zip(names_of(results), results, strict=True)
    }
    write_whole(folder / "scores.json", json.dumps({"about": about, "tasks": scores}, indent=1).encode())
    write_whole(folder / "report.html", printable(page(rows, results, about)).encode())
    return folder / "report.html"


def page(rows: Sequence[Variant], results: Sequence[Evaluated], about: dict[str, str]) -> str:
    """Returns the page of an evaluation, as HTML."""
    measures = [name for name in COLUMNS if any(name in made.scores for x in results for made in x.made.values())]
    columns = [COLUMNS[name] for name in measures]
    # rows compare only over the tasks that every row has
    whole = [x for x in results if all(row.name in x.made for row in rows)]
    left_out = len(results) - len(whole)
    return PAGES.get_template("report.html").render(
        about=about,
        count=len(results),
        caption=f"Mean over {len(whole)} tasks ± half of its 95 % interval. ▲: more is better, ▼: less is. The "
        "intervals hold the differences between tasks, which are the same for all rows."
        + f" {left_out} tasks are left out, since not every row came out."
        * bool(left_out),
        titles=["", "steps", *(f"{column.title} {'▲' if column.more_is_better else '▼'}" for column in columns)],
        scores=[[row.name, row.steps, *(mean(whole, row, name) for name in measures)] for row in rows],
        columns=columns,
        faults=[": ".join(filter(None, fault)) for x in results for fault in x.faults.items()],
        tasks=[
            (f"{name}: {x.task.prompt}", figures_of(rows, x.task, x.made))
            for name, x in zip(names_of(results), results, strict=True)
            if x.made and isinstance(x.task, CompleteTask)
        ],
    )


def mean(results: Sequence[Evaluated], row: Variant, measure: str) -> str:
    """Formats the mean of a measure over the tasks, with its interval."""
    found = [x.made[row.name].scores for x in results]
    values = [scores[measure] for scores in found if measure in scores]
    return mean_with_interval(values, COLUMNS[measure].digits) if values else "–"


def names_of(results: Sequence[Evaluated]) -> list[str]:
    """Returns what each task is called, with a number where an earlier one is called so too."""
    names: list[str] = []
    for task in (result.task for result in results):
        own = task and (task.name or (task.scene.stem if task.scene else task.where))
        name = own or "a row that is not right"
        numbered = (f"{name} ({number})" for number in itertools.count(2))
        names.append(next(x for x in itertools.chain([name], numbered) if x not in names))
    return names


def figures_of(rows: Sequence[Variant], task: CompleteTask, made: Mapping[str, Made]) -> list[dict[str, str]]:
    """Returns the figures of a task: its inputs, then each row's result."""
    given = [("scene", task.scene), *zip(task.objects, task.concepts, strict=True)]
    given += [(f"mask of {word}", path) for word, path in zip(task.objects, task.target_masks, strict=True)]
    figures = [figure(path, says, "given") for says, path in given]
    for row in rows:
        if row.name in made:
            path, scores = made[row.name]
            first = [f"{COLUMNS[x].title} {scores[x]:.{COLUMNS[x].digits}f}" for x in COLUMNS if x in scores][:2]
            figures.append(figure(path, f"{row.name}, {row.steps} steps: {', '.join(first)}"))
    return figures


def figure(path: Path, says: str, kind: str = "") -> dict[str, str]:
    """Returns an image in the page, at most LARGEST pixels a side."""
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    is_large, content = max(image.size) > LARGEST, io.BytesIO()
    image.thumbnail((LARGEST, LARGEST))
    image.save(content, "JPEG" if is_large else "PNG", quality=88)
    data = base64.b64encode(content.getvalue()).decode()
    source = f"data:image/{'jpeg' if is_large else 'png'};base64,{data}"
    return {"source": source, "says": says, "kind": f"{kind} {'large' * is_large}".strip()}
