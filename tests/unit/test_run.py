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


@pytest.fixture
def releases(home) -> str:
    """The address of a repository with the oldest release that the pack supports and two later ones."""
    origin = home / "origin"
    git = ["git", "-C", str(origin), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "init", "-q", str(make_comfyui(origin))], check=True)
    for tag in (functions()["oldest_release"](), "v9.9.0", "v9.10.1", "v9.10.0"):
        for path in ("main.py", "comfy/version"):  # what a ComfyUI is known by
            (origin / path).write_text(tag)
        subprocess.run([*git, "add", "."], check=True)
        subprocess.run([*git, "commit", "-q", "-m", tag], check=True)
        subprocess.run([*git, "tag", tag], check=True)
    return origin.as_uri()


def test_the_latest_release_is_cloned(home, releases):
    run = functions()
    run["clone_release"](releases, run["latest_release"](releases), home / "ComfyUI")
    assert (home / "ComfyUI" / "main.py").read_text() == "v9.10.1"


def test_tests_bring_the_oldest_and_the_newest_release(home, releases):
    run, place = functions(), home / "pack" / ".hosts"
    hosts = run["bring_hosts"](releases, place)
    assert hosts == [place / "oldest", place / "newest"]
    assert [(host / "main.py").read_text() for host in hosts] == ["v0.3.64", "v9.10.1"]

    (hosts[0] / "kept").touch()
    subprocess.run(["git", "-C", str(home / "origin"), "tag", "v10.0.0", "v9.9.0"], check=True)
    assert run["bring_hosts"](releases, place) == hosts
    assert (hosts[0] / "kept").exists() and (hosts[1] / "main.py").read_text() == "v9.9.0", "the newest by its number"

    # without a network what is there serves
    assert run["bring_hosts"]((home / "gone").as_uri(), place) == hosts
    assert run["bring_hosts"]((home / "gone").as_uri(), home / "elsewhere") == []


def test_what_needs_no_comfyui_runs_once_and_nothing_is_left_out_of_both():
    plan, old, new = functions()["plan"], Path("old"), Path("new")
    (_, with_old, not_old), (_, with_new, not_new) = plan([old, new], everything=False)
    folders = {path.parent for path in (PACK / "tests").glob("*/test_*.py")}
    assert set(with_old) == folders - {PACK / "tests" / "unit"} and with_new == [PACK / "tests"]
    assert set(not_old) & set(not_new) == {"nightly"}
    assert [left_out for _, _, left_out in plan([old, new], everything=True)] == [[], []]
    for hosts in ([], [new]):
        assert plan(hosts, everything=False) == [(hosts[0] if hosts else None, [PACK / "tests"], ["nightly"])]


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


def test_commands_of_the_command_line_run_in_comfyuis_python_and_in_the_users_folder(home):
    """Paths are relative to where the user is; the pack's own folder `nodes` is not what ComfyUI imports."""
    code = (
        "import runpy, sys; start = runpy.run_path(sys.argv[1])['command_line'];"
        "start.__globals__['prepare'] = lambda: (sys.argv[2], sys.executable, ['--cpu']);"
        "sys.exit(start(sys.argv[3], sys.argv[4:]))"
    )
    (home / "table.csv").write_text("scene,seed\n")
    for command, option, file, fault in (
        ("blend", "--table", "table.csv", "table.csv lacks the columns: concepts, objects"),
        ("evaluate", "--tasks", "here", "no tasks.csv in here"),
    ):
        line = [sys.executable, "-c", code, str(PACK / "run.py"), str(home), command, option, file]
        said = subprocess.run(line, capture_output=True, text=True, cwd=home)
        assert said.returncode == 2 and f"run.py {command}: " in said.stdout and fault in said.stdout, said
    assert [path.name for path in home.iterdir()] == ["table.csv"]


def run_pytest(*arguments: str, without: str = "nothing") -> str:
    """What pytest says in the folder of the tests, in a Python that lacks a package, where no test may fail."""
    code = f"import sys, pytest; sys.modules[{without!r}] = None; sys.exit(pytest.main(sys.argv[1:]))"
    tests = [sys.executable, "-c", code, "-p", "no:xdist", *arguments]
    result = subprocess.run(tests, capture_output=True, text=True, cwd=PACK / "tests")
    assert result.returncode in (0, 5), result.stdout  # 5: nothing was left to run
    return result.stdout


def test_tests_without_comfyui_say_so(home):
    """Tests in ComfyUI and in its editor: skipped, and the reason is in the last lines."""
    said = run_pytest("host/test_requirements.py", "browser")
    files = len(list((PACK / "tests" / "browser").glob("test_*.py")))
    assert f"{2 + files} skipped" in said
    assert "NO COMFYUI" in "\n".join(said.splitlines()[-6:])


def test_tests_of_the_editor_without_playwright_say_so(home):
    make_comfyui(home / "ComfyUI")
    said = run_pytest("browser", "-rs", without="playwright")
    assert "no playwright: install" in said and "error" not in said
