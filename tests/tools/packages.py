"""Makes the pack's libraries known under their own names; the repository itself stays off sys.path (its `nodes` is not
ComfyUI's)."""

import importlib.util
import sys
from pathlib import Path

for name in ("pnpmix", "demo", "benchmarks", "cli"):
    folder = Path(__file__).resolve().parents[2] / name
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
