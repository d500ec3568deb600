"""run.py blend and api, in ComfyUI's own server: tables with faults, stops, and two at the same time.

One server and one more that a command starts itself: a ComfyUI takes ten seconds to start.
"""

import ast
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cli import blend, graphs
from cli.drawn import draw_jobs
from cli.pictures import InputFile
from cli.server import Server as Client
from PIL import Image
from scipy.ndimage import binary_dilation

from comfy_host import COMFYUI, DEVICE, PACK
from workflow_files import DEFAULT

# one at a time, so that one server serves them all
pytestmark = pytest.mark.xdist_group("blend")
FEW = ["--demo", "--steps", "4"]


@pytest.fixture
def table(tmp_path) -> Path:
    """Of three drawn scenes."""
    return draw_jobs(tmp_path / "drawn", 3)


def start_blend(*options: str, comfyui_options: tuple[str, ...] = (), log: Path) -> subprocess.Popen:
    """As run.py does, once it has found ComfyUI's Python."""
    code = "import runpy, sys; sys.path[0] = sys.argv.pop(1); runpy.run_module('cli', run_name='__main__')"
    command = [sys.executable, "-c", code, str(PACK), "blend", *options]
    command += ["--", *comfyui_options] if comfyui_options else []
    with log.open("w") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | {"COMFYUI_DIR": str(COMFYUI)})


def picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"), float) / 255


def test_a_table_with_faults_gives_the_other_pictures_and_goes_on_later(server, table, tmp_path, capsys):
    """Pictures with their graph in them; what failed is made once it is mended, and nothing twice."""
    out, drawn = tmp_path / "out", table.parent
    broken, gone = drawn / "scene-1 concept 1.png", drawn / "scene-2.png"
    whole, hidden = broken.read_bytes(), gone.rename(drawn / "elsewhere.png")
    broken.write_bytes(whole[:200])
    with table.open("a") as file:
        masks = "scene-0 target mask 1.png,scene-0 object mask 1.png"
        file.write(f'scene-0.png,scene-0 concept 1.png,heart,"a dragon",0,{masks}\n')
    options = [*FEW, "--table", str(table), "--output", str(out), "--url", server.url]
    assert blend.main(options) == 1
    said = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"\[1/4\] .*scene-0-\w{10}\.png, [\d.]+ s; Paste Back: Changed [\d.]+% of the image", said[0])
    assert "[2/4] FAILED: row 3: " in said[1] and f"{broken} is no image" in said[1]
    assert f"[3/4] FAILED: row 4: the image {gone} is not there" == said[2]
    assert "[4/4] FAILED: row 5: Finished picture: " in said[3] and "does not know the word 'dragon'" in said[3]
    assert said[-1] == f"1 made, 0 there already, 3 failed, in {out}"

    (made,) = out.iterdir()
    graph = json.loads(Image.open(made).text["prompt"])
    assert {"PnPMixDemoModel", "PnPMixSampler", "SaveImage"} < {node["class_type"] for node in graph.values()}
    change = np.abs(picture(made) - picture(drawn / "scene-0.png")).max(-1)
    masks = np.stack([picture(drawn / f"scene-0 target mask {k}.png")[..., 0] > 0.5 for k in (1, 2)])
    assert all(change[mask].mean() > 0.1 for mask in masks)
    assert change[~binary_dilation(masks.any(0), iterations=4)].max() < 1 / 255

    broken.write_bytes(whole)
    hidden.rename(gone)
    lines = table.read_text().splitlines()
    table.write_text("\n".join(lines[:-1]))
    first, when = made.read_bytes(), made.stat().st_mtime_ns
    assert blend.main(options) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"2 made, 1 there already, 0 failed, in {out}"
    assert (made.read_bytes(), made.stat().st_mtime_ns) == (first, when) and len(list(out.iterdir())) == 3


def test_an_unknown_checkpoint_is_answered_by_those_that_are_there(server, table, tmp_path, capsys):
    options = ["--table", str(table), "--output", str(tmp_path / "out"), "--url", server.url]
    assert blend.main([*options, "--checkpoint", "min.safetensors"]) == 1
    said = capsys.readouterr().out
    assert said.count("'min.safetensors' is not in") == 3 and "There are: mine.safetensors, other.safetensors" in said


def test_what_finds_things_is_asked_for_by_name(server, table, tmp_path, capsys):
    """Without masks and without its files: the nodes' own message, with where to get them."""
    lines = [",".join(line.split(",")[:3]) for line in table.read_text().splitlines()[:2]]
    (table.parent / "words.csv").write_text("\n".join(lines))
    options = [
        "--table",
        str(table.parent / "words.csv"),
        "--output",
        str(tmp_path / "out"),
        "--url",
        server.url,
    ]
    assert blend.main([*options, "--checkpoint", "mine.safetensors"]) == 1
    said = capsys.readouterr().out
    assert "groundingdino_swint_ogc.pth" in said and "https://" in said and "sam_vit_b" in said


def test_a_server_that_is_not_there_is_named(table, tmp_path, capsys):
    options = ["--demo", "--table", str(table), "--output", str(tmp_path / "out")]
    for url in ("http://127.0.0.1:9", "nowhere"):
        assert blend.main([*options, "--url", url]) == 2
        assert f"no ComfyUI answers at {url}" in capsys.readouterr().out


def test_a_picture_that_another_run_may_be_reading_is_not_written_anew(server, table):
    """ComfyUI writes what is sent to it in place, so that a graph could read half of it. Half a picture is replaced."""
    drawn = InputFile(table.parent / "scene-0.png")
    Client(server.url).send("shared.png", drawn)
    sent = server.base / "input" / "pnp-mix" / "shared.png"
    os.utime(sent, (1, 1))
    Client(server.url).send("shared.png", drawn)
    assert sent.stat().st_mtime == 1
    sent.write_bytes(drawn.encode()[:50])
    Client(server.url).send("shared.png", drawn)
    assert sent.read_bytes() == drawn.encode()


@pytest.mark.oldest
def test_two_at_the_same_time_write_each_picture_whole(server, table, tmp_path):
    out, logs = tmp_path / "out", [tmp_path / "log 1", tmp_path / "log 2"]
    options = [*FEW, "--table", str(table), "--output", str(out), "--url", server.url]
    both = [start_blend(*options, log=log) for log in logs]
    assert [process.wait(300) for process in both] == [0, 0], [log.read_text() for log in logs]
    assert len(list(out.iterdir())) == 3, "nothing half is left"
    for path in out.iterdir():
        Image.open(path).load()


@pytest.mark.oldest
def test_a_run_outlives_its_comfyui_and_neither_outlives_it(server, tmp_path, capsys):
    """ComfyUI is killed: one job fails, and the next has another. The run is killed: its ComfyUI ends by itself, and
    the same command goes on where it was."""
    table = draw_jobs(tmp_path / "drawn", 4)
    base, out, log = tmp_path / "base", tmp_path / "out", tmp_path / "log"
    (base / "custom_nodes").mkdir(parents=True)
    (base / "custom_nodes" / "pnp-mix").symlink_to(PACK)
    options = [*FEW, "--table", str(table), "--output", str(out)]
    process = start_blend(*options, comfyui_options=(*DEVICE, "--base-directory", str(base)), log=log)

    def made() -> list[Path]:
        assert process.poll() is None, log.read_text()
        return list(out.glob("*.png"))

    def started() -> list[int]:
        """Its ComfyUI."""
        lines = {path: read(path) for path in Path("/proc").glob("*/cmdline")}
        found = [int(path.parent.name) for path, line in lines.items() if str(base).encode() in line]
        return [number for number in found if number != process.pid]

    wait(made, 300)
    (comfyui,) = started()
    os.kill(comfyui, signal.SIGKILL)
    wait(lambda: len(made()) == 2, 300)
    assert "FAILED: row 3: ComfyUI ended in the middle" in log.read_text()
    process.kill()
    process.wait()
    wait(lambda: not started(), 60)
    first = {path.name: path.read_bytes() for path in out.glob("*.png")}

    assert len(first) == 2 and blend.main([*options, "--url", server.url]) == 0
    assert "2 made, 2 there already, 0 failed" in capsys.readouterr().out
    assert first.items() < {path.name: path.read_bytes() for path in out.glob("*.png")}.items()


def wait(question, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not question():
        assert time.monotonic() < end
        time.sleep(0.05)


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # the process has ended
        return b""


def test_the_program_of_the_page_that_uses_the_http_api_runs_as_written(server, table, tmp_path, monkeypatch):
    """But for the address and the words; its ComfyUI has the demo model and masks in the place of the files."""
    (program,) = re.findall(r"```python\n(.*?)```", (PACK / "cli" / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(program.splitlines()) <= 20
    home, drawn = tmp_path / "home", table.parent
    pack = home / "ComfyUI" / "custom_nodes" / "pnp-mix"
    pack.mkdir(parents=True)
    (home / "ComfyUI" / "input").symlink_to(server.base / "input")
    command = [sys.executable, PACK / "run.py", "api", DEFAULT]
    graph = json.loads(subprocess.check_output(command, text=True))
    client = Client(server.url)
    ids = {node["_meta"]["title"]: node_id for node_id, node in graph.items()}
    for k in (1, 2):
        for kind in ("target mask", "object mask"):
            client.send(f"{kind}{k}.png", InputFile(drawn / f"scene-0 {kind} {k}.png", "mask"))
        graphs.load_mask(graph[ids[f"{graphs.OBJECT} {k}: {graphs.IN_PICTURE}"]], f"pnp-mix/object mask{k}.png")
    files = [f"pnp-mix/target mask{k}.png" for k in (1, 2)]
    graphs.load_masks(graph, ids[f"{graphs.SCENE}: {graphs.IN_SCENE}"], files)
    graphs.for_demo_model(graph)
    for node in graph.values():
        if node["class_type"] == "PnPMixDDPMInvert":
            node["inputs"] |= dict(steps=4, skip_steps=1)
    stand_in = f"import sys; assert sys.argv[1:] == ['api', {DEFAULT!r}]; print({json.dumps(graph)!r})"
    (pack / "run.py").write_text(stand_in)
    for name, file in (("scene", "scene-0"), ("my_dog", "scene-0 concept 1"), ("my_cat", "scene-0 concept 2")):
        (tmp_path / f"{name}.png").write_bytes((drawn / f"{file}.png").read_bytes())
    program = program.replace("http://127.0.0.1:8188", server.url)
    program = program.replace("a photo of a dog and a cat on a street", "heart, star, sea")
    environment = os.environ | {"HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    status, _, outputs = done.stdout.partition(" ")
    assert status == "success", done.stdout + done.stderr
    shown = [x for node in ast.literal_eval(outputs).values() for x in node.get("images", [])]
    (saved,) = (x for x in shown if x["type"] == "output")
    assert picture(server.base / "output" / saved["subfolder"] / saved["filename"]).shape == (64, 64, 3)
