"""The table of benchmarks/methods.md is what was measured."""

from benchmarks.methods import read, table

from comfy_host import PACK


def test_the_page_shows_the_measured_table():
    assert table(read()) in (PACK / "benchmarks" / "methods.md").read_text(encoding="utf-8")
