"""run.py evaluate in ComfyUI's own server: pictures, scores, a stop, faults, and scenes that the model draws."""

import json
from pathlib import Path

import numpy as np
import pytest
from cli import evaluate, graphs
from cli.server import Server as Client
from cli.tasks import Task
from cli.work import scene_work
from PIL import Image

# with the tests of run.py blend, one at a time: together they would take a server each
pytestmark = pytest.mark.xdist_group("blend")


@pytest.fixture
def few_steps(monkeypatch):
    monkeypatch.setattr("cli.variants.DEMO_STEPS", {100: 5, 50: 5, 25: 4, 8: 4})


def test_the_demo_gives_pictures_scores_and_a_page_and_goes_on_after_a_stop(server, few_steps, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--demo", "2", "--rows", "(e)", "templates", "--output", str(out), "--url", server.url]
    assert evaluate.main(options) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 5 and said[0].startswith("[1/4] scene-0, (e) ")
    assert said[-1].startswith("4 results, 0 failures")
    tasks = json.loads((out / "scores.json").read_text())["tasks"]
    for task in tasks.values():
        assert len(task) == 2
        for scores in task.values():
            assert 0 < scores["fidelity"] <= 1 and 0 <= scores["leakage"] < 0.5
            assert scores["psnr"] > 20 and scores["ssim"] > 0.9 and scores["seconds"] > 0
            assert np.asarray(Image.open(scores["picture"])).shape == (64, 64, 3)
    page = (out / "report.html").read_text()
    assert page.count("<img") == 2 * (5 + 2) and "0.6542" in page and "not comparable" in page

    # as after a stop: one picture is gone, and of another the scores were not written yet
    pictures = sorted((out / "pictures").glob("*.png"))
    when = {path: path.stat().st_mtime_ns for path in pictures[2:]}
    pictures[0].unlink()
    pictures[1].with_suffix(".json").unlink()
    assert evaluate.main(options) == 0
    assert capsys.readouterr().out.count("is there") == 2
    assert all(path.stat().st_mtime_ns == x for path, x in when.items())
    assert json.loads((out / "scores.json").read_text())["tasks"].keys() == tasks.keys()


def test_a_task_that_fails_is_in_the_page_and_the_others_go_on(server, few_steps, tmp_path, capsys, monkeypatch):
    from cli import drawn

    def with_faults(folder: Path, count: int) -> Path:
        """Of three tasks one lacks a picture, and one has a word that the model does not know."""
        table = really(folder, count)
        (folder / "scene-0 concept 1.png").unlink()
        table.write_text(table.read_text().replace("box, star, snow", "box, dragon, snow"))
        return table

    really = drawn.draw_jobs
    monkeypatch.setattr(drawn, "draw_jobs", with_faults)
    out = tmp_path / "out"
    assert evaluate.main(["--demo", "3", "--rows", "few steps", "--output", str(out), "--url", server.url]) == 1
    said, page = capsys.readouterr().out, (out / "report.html").read_text()
    for text in (said, page):
        assert "scene-0 concept 1.png is not there" in text and "does not know the word" in text
    assert "1 results, 2 failures" in said and "2 tasks are left out" in page


def test_a_server_that_is_not_there_is_named(tmp_path, capsys):
    assert evaluate.main(["--demo", "1", "--output", str(tmp_path / "out"), "--url", "http://127.0.0.1:9"]) == 2
    assert "no ComfyUI answers at http://127.0.0.1:9" in capsys.readouterr().out


def test_an_encoder_that_is_not_there_is_named(server, few_steps, tmp_path, capsys):
    options = ["--demo", "1", "--rows", "few steps", "--output", str(tmp_path / "out"), "--url", server.url]
    assert evaluate.main([*options, "--dino", "dinov2.safetensors"]) == 1
    assert "'dinov2.safetensors' is not in ComfyUI's models/clip_vision. There is none" in capsys.readouterr().out


def test_a_scene_is_drawn_where_the_task_has_none(server):
    """With the demo model in the place of the checkpoint.

    Its latents are half as wide as pictures, not an eighth, of which older hosts know nothing: they draw it smaller.
    """
    work = scene_work(Task(concepts=[Path()], objects=["cup"], prompt="red cup, meadow", seed=3, name="a cup"))
    graphs.for_demo_model(work.prompt)
    for node in work.prompt.values():
        if node["class_type"] == "EmptyLatentImage":
            node["inputs"] |= dict(width=128, height=128)
        elif node["inputs"].get("text") == "blurry, distorted":
            node["inputs"]["text"] = ""
        elif node["class_type"] == "KSampler":
            node["inputs"]["steps"] = 4
    (content,) = Client(server.url).images(work.prompt, [work.save], work.files)
    assert content.startswith(b"\x89PNG") and work.output.startswith("a_cup-")
