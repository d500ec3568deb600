"""The packages for the tests; the repository itself stays off sys.path (its `nodes` is not ComfyUI's)."""

import importlib.util
import sys
from pathlib import Path

for name in ("pnpmix", "demo", "benchmarks"):
    folder = Path(__file__).resolve().parents[1] / name
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])


def pytest_terminal_summary(terminalreporter):
    from comfy_host import COMFYUI

    if COMFYUI is None:
        terminalreporter.section("NO COMFYUI WAS FOUND", red=True)
        terminalreporter.line("The tests that need it, which are the ones that matter, were SKIPPED.")
        terminalreporter.line("Set COMFYUI_DIR, or start ComfyUI once with python3 run.py, and run them again.")
