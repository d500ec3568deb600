"""Installing the pack leaves ComfyUI's Python as ComfyUI needs it."""

import subprocess
import sys
from importlib.metadata import version

from packaging.requirements import Requirement

from comfy_host import COMFYUI


def test_packages_fit_together():
    check = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout


def test_comfyui_has_what_it_asks_for():
    lines = (line.split("#")[0].strip() for line in (COMFYUI / "requirements.txt").read_text().splitlines())
    for requirement in map(Requirement, filter(None, lines)):
        if requirement.marker is None or requirement.marker.evaluate():
            assert requirement.specifier.contains(version(requirement.name), prereleases=True), requirement
