"""The numbers in benchmarks/README.md are those that were measured."""

from benchmarks.ablation import FULL, RESULTS, read, table, variants

from comfy_host import PACK


def test_the_readme_shows_the_measured_table():
    assert table(read(RESULTS)) in (PACK / "benchmarks" / "README.md").read_text(encoding="utf-8")


def test_the_table_marks_what_wins_and_what_loses():
    base = read(RESULTS)[0][FULL]
    other = next(row for row in variants() if row != FULL)
    better, worse = base._replace(fidelity=base.fidelity + 0.1), base._replace(seam_error=base.seam_error + 5)
    assert table([{FULL: base, other: better}] * 3).count("▲") == 1
    assert table([{FULL: base, other: worse}] * 3).count("▼") == 1
    assert "▲" not in table([{FULL: base, other: better}, {FULL: better, other: base}])
