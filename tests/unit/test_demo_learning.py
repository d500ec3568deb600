"""The demo's learning without ComfyUI."""

import sys

import demo.__main__
import numpy as np
import pytest
import torch
from demo.concepts import load_concept
from demo.diffusers_host import Settings, empty, invert, load_model
from demo.learning import mix_learned, slots_of
from demo.model import parse
from demo.own_things import LOOKS, photographed
from demo.scenes import Look, Scene, Thing, draw_scene
from PIL import Image
from pnpmix.latexblend.bank import from_tensors


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


def test_in_pnp_mix_what_was_learned_of_one_thing_changes_nothing_of_another():
    """The real demo model runs a few steps."""
    things = [Thing("cup", Look("plain", ("white",)), 20, 44, 11), Thing("ball", Look("plain", ("black",)), 46, 20, 11)]
    scene = Scene("meadow", 40, (0, 0, 0), tuple(things))
    picture, masks = draw_scene(scene)
    taken = [photographed(np.random.default_rng(k), noun, LOOKS[noun]) for k, noun in enumerate(("cup", "ball"))]
    photos, own_masks = [x[1] for x in taken], torch.stack([x[2] for x in taken])
    settings, model = Settings(steps=4, skip_steps=1, inversion_cfg=1.0), load_model()
    inversion, emptied = invert(model, picture, scene.nouns(), settings), empty(picture, masks)
    cup, ball, fish = (from_tensors(load_concept(noun)) for noun in ("cup", "ball", "fish"))
    given = (model, inversion, emptied, masks, photos, own_masks, scene.nouns(), settings)
    one, other = (mix_learned(*given, {"cup": cup, "ball": x}) for x in (ball, fish))
    inside = masks > 0.99
    torch.testing.assert_close(one[inside[0]], other[inside[0]], rtol=0, atol=1e-5)
    assert (one[inside[1]] - other[inside[1]]).abs().max() > 1e-3, "what was learned of the ball does something"
