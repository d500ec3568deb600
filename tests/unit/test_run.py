"""The commands of the README find, fetch and link what they need."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

PACK = Path(__file__).resolve().parents[2]


def functions() -> dict:
    return runpy.run_path(str(PACK / "run.py"))


def make_comfyui(folder: Path) -> Path:
    (folder / "comfy").mkdir(parents=True)
    (folder / "custom_nodes").mkdir()
    (folder / "main.py").touch()
    return folder


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for name in ("COMFYUI_DIR", "COMFYUI_NEW_DIR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_comfyui_is_found_in_the_usual_places(home, monkeypatch):
    run = functions()
    assert run["find_comfyui"]() is None
    plain = make_comfyui(home / "ComfyUI")
    assert run["find_comfyui"]() == plain
    by_comfy_cli = make_comfyui(home / "comfy" / "ComfyUI")
    assert run["find_comfyui"]() == by_comfy_cli
    elsewhere = make_comfyui(home / "elsewhere")
    monkeypatch.setenv("COMFYUI_DIR", str(elsewhere))
    assert run["find_comfyui"]() == elsewhere
    newer = make_comfyui(home / "ComfyUI-new")
    assert run["find_hosts"]() == [elsewhere, newer]
    monkeypatch.setenv("COMFYUI_DIR", str(home / "nothing"))
    with pytest.raises(SystemExit, match="COMFYUI_DIR"):
        run["find_comfyui"]()


def test_comfyui_round_the_clone_comes_first(home):
    make_comfyui(home / "ComfyUI")
    around = make_comfyui(home / "mine")
    clone = around / "custom_nodes" / "pnp-mix"
    clone.mkdir()
    (clone / "run.py").write_bytes((PACK / "run.py").read_bytes())
    assert runpy.run_path(str(clone / "run.py"))["find_comfyui"]() == around


def test_the_latest_release_is_cloned(home):
    origin = home / "origin"
    git = ["git", "-C", str(origin), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "init", "-q", str(origin)], check=True)
    for tag in ("v0.9.0", "v0.10.1", "v0.10.0"):
        (origin / "version").write_text(tag)
        subprocess.run([*git, "add", "."], check=True)
        subprocess.run([*git, "commit", "-q", "-m", tag], check=True)
        subprocess.run([*git, "tag", tag], check=True)
    functions()["clone_latest_release"](origin.as_uri(), home / "ComfyUI")
    assert (home / "ComfyUI" / "version").read_text() == "v0.10.1"


@pytest.mark.skipif(os.name == "nt", reason="links are made by the command interpreter there")
def test_the_pack_is_linked_once_and_never_over_another_copy(home):
    comfyui = make_comfyui(home / "ComfyUI")
    place = comfyui / "custom_nodes" / "pnp-mix"
    place.symlink_to(home / "a clone that is gone")
    for _ in range(2):
        functions()["link_pack"](comfyui)
        assert place.resolve() == PACK
    place.unlink()
    (place / "nodes").mkdir(parents=True)
    with pytest.raises(SystemExit, match="another copy"):
        functions()["link_pack"](comfyui)


def test_tests_without_comfyui_say_so(home):
    """pytest on one host test: skipped, and the reason is in the last lines."""
    tests = [sys.executable, "-m", "pytest", str(PACK / "tests" / "host" / "test_progress.py"), "-p", "no:xdist"]
    result = subprocess.run(tests, capture_output=True, text=True, cwd=home)
    assert "1 skipped" in result.stdout
    assert "NO COMFYUI" in "\n".join(result.stdout.splitlines()[-6:])
