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
