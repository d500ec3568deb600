"""The table of benchmarks/methods.md is what was measured."""

from benchmarks.methods import ROWS, read, table

from comfy_host import PACK


def test_the_page_shows_the_measured_table():
    assert table(read()) in (PACK / "benchmarks" / "methods.md").read_text(encoding="utf-8")


def test_every_row_was_measured_on_the_same_tasks():
    measured = read()
    assert measured and all(list(ROWS) == [row for row in ROWS if row in task] for task in measured.values())
