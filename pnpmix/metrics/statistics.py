"""Mean and confidence interval of a measure, as numbers and as text."""

import math
from collections.abc import Sequence
from typing import NamedTuple

CONFIDENCE = 0.95
NORMAL = 1.959963984540054  # 95 % of a normal distribution lie within so many standard deviations


class Measured(NamedTuple):
    """One measure of several images."""

    name: str  # as a table shows it, with the unit if there is one
    values: tuple[float, ...]  # of each image, in their order
    more_is_better: bool = True
    digits: int = 3


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean, and half the width of its 95 % confidence interval (Student's t); NaN for a single value.

    Raises:
        ValueError: there are no values.
    """
    count = len(values)
    if count == 0:
        raise ValueError("there are no values.")
    mean = math.fsum(values) / count
    if count == 1:
        return mean, math.nan
    variance = math.fsum((x - mean) ** 2 for x in values) / (count - 1)
    return mean, students_t(count - 1) * math.sqrt(variance / count)


def students_t(freedom: int) -> float:
    """Returns the bound within which 95 % of Student's distribution lie, to 0.2 %.

    In closed form for 1 and 2, else by the expansion in 1 / freedom round the normal distribution (Abramowitz and
    Stegun, Handbook of Mathematical Functions, 26.7.5).
    """
    if freedom == 1:
        return math.tan(math.pi / 2 * CONFIDENCE)
    if freedom == 2:
        return CONFIDENCE * math.sqrt(2 / (1 - CONFIDENCE**2))
    z = NORMAL
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**k for k, term in enumerate(terms, 1))


def mean_with_interval(values: Sequence[float], digits: int = 3) -> str:
    """Formats the mean with its interval: '0.812 ± 0.034', or '0.812' of a single value."""
    mean, half = interval(values)
    return f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if math.isfinite(half) else "")


def report(measured: Measured) -> str:
    """Formats a measure: 'SSIM 0.812 ± 0.034 (4 images, 95 % interval): 0.81, 0.79, …'."""
    name, values, _, digits = measured
    if len(values) == 1:
        return f"{name} {values[0]:.{digits}f}"
    each = ", ".join(f"{x:.{digits}f}" for x in values)
    return f"{name} {mean_with_interval(values, digits)} ({len(values)} images, 95 % interval): {each}"


def distinct(measures: Sequence[Measured]) -> list[Measured]:
    """Numbers the measures that share a name, such as the similarity of each of two concepts."""
    names = [x.name for x in measures]
    return [
        x._replace(name=f"{x.name} {names[: k + 1].count(x.name)}") if names.count(x.name) > 1 else x
        for k, x in enumerate(measures)
    ]


def by_variant(values: Sequence[float], variants: int) -> list[tuple[float, ...]]:
    """Splits the values among the variants, whose images follow one another, equally many of each.

    Raises:
        ValueError: they do not divide evenly.
    """
    each, rest = divmod(len(values), variants)
    if each == 0 or rest:
        raise ValueError(f"{len(values)} values do not divide evenly among {variants} variants.")
    return [tuple(values[k * each : (k + 1) * each]) for k in range(variants)]


def table(measures: Sequence[Measured], variants: Sequence[str]) -> str:
    """Returns a Markdown table: a row for each variant, a column for each measure; ▲: more is better, ▼: less is.

    Args:
        measures: of the same images, those of one variant after those of another.

    Raises:
        ValueError: a measure's values do not divide evenly among the variants.
    """
    names = [f"{x.name} {'▲' if x.more_is_better else '▼'}" for x in measures]
    columns = [[mean_with_interval(x, m.digits) for x in by_variant(m.values, len(variants))] for m in measures]
    rows = [["", *names], ["---"] * (len(measures) + 1)]
    rows += [[variant, *cells] for variant, *cells in zip(variants, *columns, strict=True)]
    rows = [[cell.replace("|", r"\|") for cell in row] for row in rows]  # else it would end the cell
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
