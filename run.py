"""Starts ComfyUI with this pack in it, or tests the pack.

    python3 run.py [options of ComfyUI]                 set up, then start ComfyUI
    python3 run.py test [--all] [options of pytest]     set up, then run the tests; --all: the nightly ones too
    python3 run.py demo [options of the demo]           set up, then run the demo, which needs no ComfyUI
    python3 run.py blend [options]                      set up, then blend images from the command line (--help)
    python3 run.py evaluate [options]                   set up, then measure the method on your tasks (--help)
    python3 run.py api [template]                       print a template in API format, or the templates' names

Needs only Python and git. All but demo and api find a ComfyUI in COMFYUI_DIR, around this folder, in ~/comfy/ComfyUI
or in ~/ComfyUI. Without one, the latest release is cloned into ~/ComfyUI; for the tests, the oldest release that the
pack supports and the latest one into .hosts in this folder.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from functools import partial
from pathlib import Path

PACK = Path(__file__).resolve().parent
TESTS = PACK / "tests"
RELEASES = "https://github.com/comfyanonymous/ComfyUI"
# Tested together. ComfyUI itself takes any version, and a mixed trio does not import.
TORCH = ["torch==2.12.1", "torchvision==0.27.1", "torchaudio==2.11.0"]
# ComfyUI 0.3.64 counts on transformers to bring it, which version 5 no longer does
MISSING_IN_COMFYUI = ["requests"]


def is_comfyui(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "comfy").is_dir()


def find_comfyui() -> Path | None:
    """Returns the ComfyUI to use; None where there is none.

    Raises:
        SystemExit: COMFYUI_DIR names something else.
    """
    if "COMFYUI_DIR" in os.environ:
        folder = Path(os.environ["COMFYUI_DIR"]).expanduser().resolve()
        if not is_comfyui(folder):
            raise SystemExit(f"COMFYUI_DIR: {folder} is not a ComfyUI (no main.py beside a folder comfy).")
        return folder
    home = Path.home()
    candidates = [Path(os.path.abspath(__file__)).parents[2], home / "comfy" / "ComfyUI", home / "ComfyUI"]
    return next((folder for folder in candidates if is_comfyui(folder)), None)


def find_hosts() -> list[Path]:
    """Returns the ComfyUIs to test with, oldest first: what `find_comfyui` finds and a newer one, if any."""
    newer = Path(os.environ.get("COMFYUI_NEW_DIR", Path.home() / "ComfyUI-new")).expanduser()
    return [folder for folder in (find_comfyui(), newer) if folder is not None and is_comfyui(folder)]


def find_browser() -> str | None:
    """Returns an installed Chromium; None where there is none."""
    return next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)


def latest_release(url: str) -> str:
    """Returns the tag of the latest release."""
    listing = ["git", "ls-remote", "--tags", "--refs", "--sort=-version:refname", url, "v*"]
    tags = subprocess.run(listing, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    if not tags:
        raise SystemExit(f"No release was found at {url}.")
    return tags[0].split("refs/tags/")[1]


def oldest_release() -> str:
    """Returns the tag of the oldest release that the pack supports."""
    project = (PACK / "pyproject.toml").read_text(encoding="utf-8")
    return "v" + re.search(r'^requires-comfyui = ">=([\d.]+)"$', project, re.MULTILINE).group(1)


def clone_release(url: str, tag: str, folder: Path) -> None:
    print(f"Cloning ComfyUI {tag} into {folder}", flush=True)
    clone = ["git", "-c", "advice.detachedHead=false", "clone", "--quiet", "--depth", "1"]
    subprocess.run([*clone, "--branch", tag, url, str(folder)], check=True)


def bring_hosts(url: str, place: Path) -> list[Path]:
    """Clones into `place` the ComfyUIs to test with, and returns those that it could, oldest first.

    A clone from an earlier time is brought up to date.
    """
    oldest, newest = place / "oldest", place / "newest"
    try:
        for folder, tag in ((oldest, oldest_release()), (newest, latest_release(url))):
            cloned = subprocess.run(["git", "-C", folder, "tag", "--points-at", "HEAD"], capture_output=True, text=True)
            if not is_comfyui(folder) or tag not in cloned.stdout.split():
                shutil.rmtree(folder, ignore_errors=True)
                clone_release(url, tag, folder)
    except (subprocess.CalledProcessError, OSError) as error:
        print(f"ComfyUI could not be brought up to date from {url}: {error}", flush=True)
    return [folder for folder in (oldest, newest) if is_comfyui(folder)]


def python_in(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def create_environment(environment: Path, *requirements: str | Path) -> Path:
    """Makes a virtual environment with the requirements (files are paths), or updates it, and returns its Python."""
    python, is_new = python_in(environment), not environment.exists()
    wanted = [x for r in requirements for x in (("-r", str(r)) if isinstance(r, Path) else (r,))]
    try:
        if not python.is_file():
            print(f"Making a Python environment in {environment}; this downloads several GB the first time", flush=True)
            venv.create(environment, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv"], check=True)
        subprocess.run([python, "-m", "uv", "pip", "install", "--quiet", "--python", python, *wanted], check=True)
    except BaseException:  # half an environment would pass for a whole one at the next start
        if is_new:
            shutil.rmtree(environment, ignore_errors=True)
        raise
    return python


def python_of(comfyui: Path) -> Path:
    """Returns the Python that runs this ComfyUI, with the pack's requirements added to what it has."""
    own = [python_in(comfyui / name) for name in (".venv", "venv")] + [comfyui.parent / "python_embeded" / "python.exe"]
    python = next((path for path in own if path.is_file()), None)
    if python is None and importlib.util.find_spec("torch"):
        python = Path(sys.executable)
    if python is None:
        needs = [*TORCH, *MISSING_IN_COMFYUI, comfyui / "requirements.txt", PACK / "requirements.txt"]
        return create_environment(comfyui / ".venv", *needs)
    if subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode != 0:
        subprocess.run([python, "-m", "ensurepip"], check=True)  # environments made by uv have no pip
    subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", PACK / "requirements.txt"], check=True)
    return python


def link_pack(comfyui: Path) -> None:
    """Puts this folder into ComfyUI/custom_nodes, unless it lives there."""
    place = comfyui / "custom_nodes" / "pnp-mix"
    if PACK.parent == (comfyui / "custom_nodes").resolve() or place.resolve() == PACK:
        return
    if place.exists() and not place.is_symlink():
        raise SystemExit(f"{place} is another copy of this pack. Remove it, or run the run.py in there.")
    place.unlink(missing_ok=True)
    if os.name == "nt":  # needs no privilege, unlike a symbolic link
        subprocess.run(["cmd", "/c", "mklink", "/J", str(place), str(PACK)], check=True)
    else:
        place.symlink_to(PACK, target_is_directory=True)


def prepare() -> tuple[Path, Path, list[str]]:
    """Returns ComfyUI with this pack in it, its Python, and the options that it needs on this machine."""
    comfyui = find_comfyui()
    if comfyui is None:
        comfyui = Path.home() / "ComfyUI"
        clone_release(RELEASES, latest_release(RELEASES), comfyui)
    python = python_of(comfyui)
    link_pack(comfyui)
    has_gpu = "import sys, torch; sys.exit(not (torch.cuda.is_available() or torch.backends.mps.is_available()))"
    return comfyui, python, ["--cpu"] if subprocess.run([python, "-c", has_gpu]).returncode != 0 else []


def start(options: list[str]) -> int:
    comfyui, python, needed = prepare()
    if "--preview-method" not in options:
        options = ["--preview-method", "auto", *options]  # ComfyUI's own default shows none
    options += [option for option in needed if option not in options]
    print(f"Starting ComfyUI in {comfyui}; stop it with Ctrl+C")
    return subprocess.run([python, "main.py", *options], cwd=comfyui).returncode


def command_line(command: str, options: list[str]) -> int:
    """Runs a command of `cli/` and returns its exit code.

    That is a package of its own: it runs in ComfyUI's Python, which this file cannot count on.
    """
    comfyui, python, needed = prepare()
    # the folder that paths are relative to stays the user's, and is not on the path
    code = "import runpy, sys; sys.path[0] = sys.argv.pop(1); runpy.run_module('cli', run_name='__main__')"
    line = [str(x) for x in (python, "-c", code, PACK, command, *options, "--", *needed)]
    variables = os.environ | {"COMFYUI_DIR": str(comfyui)}
    if os.name != "nt":
        os.execve(line[0], line, variables)  # takes this process's place, so that whoever stops it stops that
    return subprocess.run(line, env=variables).returncode


def api(options: list[str]) -> int:
    """Prints a template as ComfyUI's server takes it, for programs that use its HTTP API."""
    from cli import graphs  # needs no other package

    if not options:
        print(*sorted(path.stem.removesuffix(".app") for path in graphs.TEMPLATES.glob("*.json")), sep="\n")
        return 0
    try:
        print(json.dumps(graphs.api_graph(" ".join(options)), indent=2))
    except FileNotFoundError:
        raise SystemExit(f"There is no template '{' '.join(options)}'. python3 run.py api lists them.") from None
    return 0


def demo(options: list[str]) -> int:
    python = create_environment(PACK / ".venv" / "demo", TORCH[0], PACK / "demo" / "requirements.txt")
    return subprocess.run([python, "-m", "demo", *options], cwd=PACK).returncode


def plan(hosts: list[Path], everything: bool) -> list[tuple[Path | None, list[Path], list[str]]]:
    """Returns (ComfyUI, folders of tests, markers left out) of each run of pytest; tests/pytest.ini defines markers.

    What needs no ComfyUI runs once.
    """
    nightly = [] if everything else ["nightly"]
    if len(hosts) < 2:
        return [(host, [TESTS], nightly) for host in hosts or [None]]
    oldest, newest = ([], []) if everything else (["newest"], ["oldest"])
    with_host = [TESTS / "host", TESTS / "browser"]
    return [(hosts[0], with_host, nightly + oldest), (hosts[1], [TESTS], nightly + newest)]


def run_tests(python: Path, options: list[str | Path], host: Path | None = None, left_out: Sequence[str] = ()) -> int:
    """Pytest's exit code."""
    # small tensors: one process a core is faster than one process with all cores
    variables = os.environ | {"OMP_NUM_THREADS": "1"} | ({"COMFYUI_DIR": str(host)} if host else {})
    variables.pop(
        "PYTHONDONTWRITEBYTECODE", None
    )  # a dozen Pythons start here: 10 s each if none keeps what it compiled
    tests = [python, "-m", "pytest", "-c", TESTS / "pytest.ini", "-n", "auto", "--dist", "loadgroup"]
    tests += ["-m", " and ".join(f"not {marker}" for marker in left_out)]
    return subprocess.run([*tests, *options], cwd=PACK, env=variables).returncode


def test(options: list[str]) -> int:
    everything, options = "--all" in options, [x for x in options if x != "--all"]
    runs = plan(find_hosts() or bring_hosts(RELEASES, PACK / ".hosts"), everything)
    pythons = []
    for host, _, _ in runs:
        needs = [host / "requirements.txt", *MISSING_IN_COMFYUI] if host else []
        environment = PACK / ".venv" / (host.name if host else "no-host")
        pythons.append(create_environment(environment, *TORCH, *needs, PACK / "requirements-dev.txt"))
    newest, has_host = pythons[-1], runs[-1][0] is not None
    if has_host and find_browser() is None:
        subprocess.run([newest, "-m", "playwright", "install", "chromium"], check=True)
    checks = (["-m", "ruff", "check"], ["-m", "ruff", "format", "--check"], [TESTS / "tools" / "check_types.py"])
    checked = [subprocess.run([newest, *check], cwd=PACK).returncode for check in checks]

    codes = []
    for python, (host, paths, left_out) in zip(pythons, runs, strict=True):
        print(f"\nTesting with {host or 'no ComfyUI'}", flush=True)
        codes.append(run_tests(python, [*paths, *options], host, left_out))
    environment, versions = PACK / ".venv" / "transformers-4", [*TORCH[:2], "transformers>=4.50,<5"]
    python = create_environment(environment, *versions, PACK / "requirements-dev.txt")
    print("\nTesting Grounded Mask's models with transformers 4", flush=True)
    names = ("test_detection.py", "test_segmentation.py")
    codes.append(run_tests(python, [*(TESTS / "unit" / name for name in names), *options]))
    fine = {0, 5} if options else {0}  # 5: the options select none of these
    return int(any(checked) or 0 not in codes or not fine.issuperset(codes))


if __name__ == "__main__":
    arguments = sys.argv[1:]
    commands = {"test": test, "demo": demo, "api": api}
    commands |= {name: partial(command_line, name) for name in ("blend", "evaluate")}
    command = commands.get(arguments[0] if arguments else "")
    try:
        sys.exit(command(arguments[1:]) if command else start(arguments))
    except KeyboardInterrupt:
        sys.exit(130)
    except subprocess.CalledProcessError as error:
        sys.exit(f"This step failed: {' '.join(map(str, error.cmd))}")
