"""`pnpmix` for the unit tests; the repository itself stays off sys.path (its `nodes` is not ComfyUI's)."""

import importlib.util
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "pnpmix"

spec = importlib.util.spec_from_file_location(
    "pnpmix", PACKAGE / "__init__.py", submodule_search_locations=[str(PACKAGE)]
)
sys.modules["pnpmix"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["pnpmix"])


def pytest_terminal_summary(terminalreporter):
    from comfy_host import COMFYUI

    if COMFYUI is None:
        terminalreporter.section("NO COMFYUI WAS FOUND", red=True)
        terminalreporter.line("The tests that need it, which are the ones that matter, were SKIPPED.")
        terminalreporter.line("Set COMFYUI_DIR, or start ComfyUI once with python3 run.py, and run them again.")
