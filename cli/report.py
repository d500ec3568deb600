"""The page of an evaluation: one file, with every picture beside what went into it."""

import base64
import io
import itertools
import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageOps
from pnpmix.files.texts import printable
from pnpmix.metrics.statistics import mean_with_interval

from . import papers
from .files import write_whole
from .scores import COLUMNS
from .variants import Variant

if TYPE_CHECKING:
    from .evaluate import Evaluated

LARGEST = 320  # pixels of a side, above which a picture is shown smaller
STYLE = """
:root { color-scheme: light dark; font: 14px/1.5 system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 84rem; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; } h3 { font-size: 1rem; margin-top: 1.6rem; }
div.table { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .5rem; border-bottom: 1px solid #8886; text-align: right; white-space: nowrap; }
th { white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.task { display: flex; flex-wrap: wrap; gap: .8rem; align-items: flex-start; }
figure { margin: 0; width: 8.6rem; } figure img { width: 100%; image-rendering: pixelated; border-radius: 3px; }
figure.large img { image-rendering: auto; }
figcaption { font-size: .75rem; line-height: 1.3; overflow-wrap: anywhere; }
.given figcaption { font-style: italic; } .given { opacity: .95; }
.fault { color: #c33; } dt { font-weight: 600; } dd { margin: 0 0 .4rem 1rem; }
"""


def write_report(folder: Path, rows: Sequence[Variant], results: Sequence["Evaluated"], about: dict[str, str]) -> Path:
    """Writes report.html and scores.json; the page's path."""
    scores = {
        name: {row: made.scores | {"picture": str(made.path)} for row, made in x.made.items()}
        for name, x in zip(names_of(results), results, strict=True)
    }
    write_whole(folder / "scores.json", json.dumps({"about": about, "tasks": scores}, indent=1).encode())
    path = folder / "report.html"
    write_whole(path, printable(page(rows, results, about)).encode())
    return path


def page(rows: Sequence[Variant], results: Sequence["Evaluated"], about: dict[str, str]) -> str:
    measures = [name for name in COLUMNS if any(name in made.scores for x in results for made in x.made.values())]
    said = " · ".join(f"{escape(name)}: {escape(value)}" for name, value in about.items())
    notes = "".join(f"<dt>{escape(COLUMNS[x].title)}</dt><dd>{escape(COLUMNS[x].says)}.</dd>" for x in measures)
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>PnP-MIX, evaluated</title><style>{STYLE}</style>",
        f"<h1>PnP-MIX, evaluated on {len(results)} tasks</h1><p>{said}</p>",
        "<h2>Scores</h2>",
        own_table(rows, results, measures),
        f"<dl>{notes}</dl>",
        faults(results),
        f"<h2>What the papers report</h2><p>{escape(papers.REMARK)}</p>",
        *(table(x.source, ["", *x.columns], x.rows) for x in papers.TABLES),
        "<h2>Pictures</h2>",
        *(task(rows, name, x) for name, x in zip(names_of(results), results, strict=True) if x.made),
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def own_table(rows: Sequence[Variant], results: Sequence["Evaluated"], measures: Sequence[str]) -> str:
    """Means with half of their 95 % intervals, over the tasks that every row has, so that rows compare."""
    whole = [x for x in results if all(row.name in x.made for row in rows)]
    caption = (
        f"Mean over {len(whole)} tasks ± half of its 95 % interval. ▲: more is better, ▼: less is. "
        "The intervals hold the differences between tasks, which are the same for all rows."
    )
    if len(whole) < len(results):
        caption += f" {len(results) - len(whole)} tasks are left out, since not every row came out."
    titles = [f"{COLUMNS[x].title} {'▲' if COLUMNS[x].more_is_better else '▼'}" for x in measures]
    lines = []
    for row in rows:
        cells = [row.name, str(row.steps)]
        for name in measures:
            values = [x.made[row.name].scores[name] for x in whole if name in x.made[row.name].scores]
            cells.append(mean_with_interval(values, COLUMNS[name].digits) if values else "–")
        lines.append(cells)
    return table(caption, ["", "steps", *titles], lines)


def table(caption: str, titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{escape(x)}</th>" for x in titles)
    body = "".join("<tr>" + "".join(f"<td>{escape(x)}</td>" for x in row) + "</tr>" for row in rows)
    return f"<p>{escape(caption)}</p><div class=table><table><tr>{head}</tr>{body}</table></div>"


def faults(results: Sequence["Evaluated"]) -> str:
    lines = [
        f"<li class=fault>{escape(': '.join(x for x in (row, fault) if x))}</li>"
        for result in results
        for row, fault in result.faults.items()
    ]
    return f"<h2>What failed</h2><ul>{''.join(lines)}</ul>" if lines else ""


def names_of(results: Sequence["Evaluated"]) -> list[str]:
    """What each task is called, with a number where an earlier one is called so too."""
    names: list[str] = []
    for job in (result.job for result in results):
        name = job.name or (job.scene.stem if job.scene else job.where or "a row that is not right")
        numbered = (f"{name} ({number})" for number in itertools.count(2))
        names.append(next(x for x in itertools.chain([name], numbered) if x not in names))
    return names


def task(rows: Sequence[Variant], name: str, result: "Evaluated") -> str:
    job = result.job
    given = [("scene", job.scene), *zip(job.words, job.things, strict=True)]
    given += [(f"mask of {word}", path) for word, path in zip(job.words, job.masks, strict=True)]
    figures = [figure(path, words, "given") for words, path in given]
    for row in rows:
        if row.name in result.made:
            path, scores = result.made[row.name]
            best = [f"{COLUMNS[x].title} {scores[x]:.{COLUMNS[x].digits}f}" for x in COLUMNS if x in scores][:2]
            figures.append(figure(path, f"{row.name}, {row.steps} steps: {', '.join(best)}"))
    return f"<h3>{escape(name)}: {escape(job.prompt)}</h3><div class=task>{''.join(figures)}</div>"


def figure(path: Path, words: str, kind: str = "") -> str:
    """With the picture in it, at most LARGEST pixels a side."""
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    content, is_large = io.BytesIO(), max(image.size) > LARGEST
    image.thumbnail((LARGEST, LARGEST))
    image.save(content, "JPEG" if is_large else "PNG", **({"quality": 88} if is_large else {}))
    data = base64.b64encode(content.getvalue()).decode()
    source = f"data:image/{'jpeg' if is_large else 'png'};base64,{data}"
    kinds = " ".join(x for x in (kind, "large" * is_large) if x)
    alt = escape(words, quote=True)
    return f'<figure class="{kinds}"><img src="{source}" alt="{alt}"><figcaption>{escape(words)}</figcaption></figure>'
