"""The demo's learning without ComfyUI."""

import sys

import demo.__main__
import pytest
from benchmarks.latexblend import RESULTS, read, table
from demo.concepts import load_concept
from demo.learning import slots_of
from demo.model import parse
from PIL import Image

from comfy_host import PACK


def test_the_command_learns_and_draws(tmp_path, monkeypatch, capsys):
    """With a step of each: it takes seconds, because the real demo model runs."""
    picture = tmp_path / "result.png"
    options = ["--method", "latexblend", "--learning-steps", "1", "--steps", "1", "--output", str(picture)]
    monkeypatch.setattr(sys, "argv", ["python -m demo", *options])
    demo.__main__.main()
    assert "learned in" in capsys.readouterr().out
    assert Image.open(picture).width > 300


def test_what_was_learned_before_is_blended_without_learning(tmp_path, monkeypatch, capsys):
    """Each concept in its strip, with guidance: the real demo model runs a step of each."""
    picture = tmp_path / "result.png"
    options = ["--method", "latexblend", "--learned-before", "--prompt", "cup, fish, sea", "--region", "1"]
    monkeypatch.setattr(
        sys, "argv", ["python -m demo", *options, "--scale", "1", "--steps", "1", "--output", str(picture)]
    )
    demo.__main__.main()
    assert "learned in" not in capsys.readouterr().out
    assert Image.open(picture).width > 300


def test_a_missing_concept_is_told_with_a_remedy():
    with pytest.raises(ValueError, match="git checkout"):
        load_concept("star")


def test_an_empty_word_before_each_noun_makes_room_for_its_identifier():
    phrases, firsts = slots_of(parse("cup, fish, snow"), ["fish", "cup"])
    assert len(phrases) == 5 and firsts == [2, 0]
    assert phrases[0] == phrases[2] == [0]
    with pytest.raises(ValueError, match="no star"):
        slots_of(parse("cup"), ["star"])


@pytest.mark.parametrize("file", ["latexblend.json", "latexblend-4e-3.json"])
def test_the_page_shows_the_measured_table(file):
    page = PACK / "benchmarks" / "latexblend.md"
    assert table(read(RESULTS.with_name(file))) in page.read_text(encoding="utf-8")
