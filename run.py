"""Starts ComfyUI with this pack in it, or tests the pack.

    python3 run.py [options of ComfyUI]         set up, then start ComfyUI
    python3 run.py test [options of pytest]     set up, then run every test
    python3 run.py demo [options of the demo]   set up, then run the demo, which needs no ComfyUI

Needs Python and git alone. The first two find a ComfyUI in COMFYUI_DIR, round this folder, in ~/comfy/ComfyUI or in
~/ComfyUI; without one, the first command clones its latest release into ~/ComfyUI.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

PACK = Path(__file__).resolve().parent
RELEASES = "https://github.com/comfyanonymous/ComfyUI"
# Tested together. ComfyUI itself takes any version, and a mixed trio does not import.
TORCH = ["torch==2.12.1", "torchvision==0.27.1", "torchaudio==2.11.0"]
# ComfyUI 0.3.64 counts on transformers to bring it, which version 5 no longer does
MISSING_IN_COMFYUI = ["requests"]


def is_comfyui(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "comfy").is_dir()


def find_comfyui() -> Path | None:
    """The ComfyUI to use; None where there is none.

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
    """The ComfyUIs to test with: the one that `find_comfyui` finds and, where there is one, a newer one."""
    newer = Path(os.environ.get("COMFYUI_NEW_DIR", Path.home() / "ComfyUI-new")).expanduser()
    return [folder for folder in (find_comfyui(), newer) if folder is not None and is_comfyui(folder)]


def find_browser() -> str | None:
    """An installed Chromium; None where there is none."""
    return next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)


def clone_latest_release(url: str, folder: Path) -> None:
    listing = ["git", "ls-remote", "--tags", "--refs", "--sort=-version:refname", url, "v*"]
    tags = subprocess.run(listing, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    if not tags:
        raise SystemExit(f"No release was found at {url}.")
    latest = tags[0].split("refs/tags/")[1]
    print(f"Cloning ComfyUI {latest} into {folder}", flush=True)
    clone = ["git", "-c", "advice.detachedHead=false", "clone", "--quiet", "--depth", "1"]
    subprocess.run([*clone, "--branch", latest, url, str(folder)], check=True)


def python_in(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def create_environment(environment: Path, *requirements: str | Path) -> Path:
    """A virtual environment with the requirements (files are paths), made or brought up to date."""
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
    """The Python that runs this ComfyUI, with the pack's requirements added to what it has."""
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


def start(options: list[str]) -> int:
    comfyui = find_comfyui()
    if comfyui is None:
        comfyui = Path.home() / "ComfyUI"
        clone_latest_release(RELEASES, comfyui)
    python = python_of(comfyui)
    link_pack(comfyui)
    has_gpu = "import sys, torch; sys.exit(not (torch.cuda.is_available() or torch.backends.mps.is_available()))"
    if subprocess.run([python, "-c", has_gpu]).returncode != 0 and "--cpu" not in options:
        options = ["--cpu", *options]
    if "--preview-method" not in options:
        options = ["--preview-method", "auto", *options]  # ComfyUI's own default shows none
    print(f"Starting ComfyUI in {comfyui}; stop it with Ctrl+C")
    return subprocess.run([python, "main.py", *options], cwd=comfyui).returncode


def demo(options: list[str]) -> int:
    python = create_environment(PACK / ".venv" / "demo", TORCH[0], PACK / "demo" / "requirements.txt")
    return subprocess.run([python, "-m", "demo", *options], cwd=PACK).returncode


def run_tests(python: Path, options: list[str], comfyui: Path | None = None) -> int:
    """pytest's exit code."""
    # small tensors: one process a core is faster than one process with all cores
    variables = os.environ | {"OMP_NUM_THREADS": "1"} | ({"COMFYUI_DIR": str(comfyui)} if comfyui else {})
    tests = [python, "-m", "pytest", "-c", PACK / "tests" / "pytest.ini", "-n", "auto", "--dist", "loadgroup", *options]
    return subprocess.run(tests, cwd=PACK, env=variables).returncode


def test(options: list[str]) -> int:
    passed = True
    for host in find_hosts() or [None]:
        needs = [host / "requirements.txt", *MISSING_IN_COMFYUI] if host else []
        environment = PACK / ".venv" / (host.name if host else "no-host")
        python = create_environment(environment, *TORCH, *needs, PACK / "requirements-dev.txt")
        if host and find_browser() is None:
            subprocess.run([python, "-m", "playwright", "install", "chromium"], check=True)
        print(f"\nTesting with {host or 'no ComfyUI'}", flush=True)
        # ruff takes milliseconds, so every environment may check the whole tree
        for check in (["check"], ["format", "--check"]):
            passed &= subprocess.run([python, "-m", "ruff", *check, PACK]).returncode == 0
        passed &= run_tests(python, [PACK / "tests", *options], host) == 0

    environment = PACK / ".venv" / "transformers-4"
    create_environment(environment, *TORCH, "transformers>=4.50,<5", PACK / "requirements-dev.txt")
    # groundingdino-py asks for supervision 0.6.0 exactly, other packs for newer ones
    python = create_environment(environment, "supervision>=0.26")
    print("\nTesting Grounded Mask's models with transformers 4 and a newer supervision", flush=True)
    names = ("test_grounding.py", "test_segmentation.py")
    code = run_tests(python, [*(PACK / "tests" / "unit" / name for name in names), *options])
    passed &= code == 0 or (code == 5 and bool(options))  # 5: the options select none of these
    return int(not passed)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    command = {"test": test, "demo": demo}.get(arguments[0] if arguments else "")
    try:
        sys.exit(command(arguments[1:]) if command else start(arguments))
    except KeyboardInterrupt:
        sys.exit(130)
    except subprocess.CalledProcessError as error:
        sys.exit(f"This step failed: {' '.join(map(str, error.cmd))}")
