"""mypy over the library, the command line and the nodes: python tests/tools/check_types.py

ComfyUI imports the nodes as a part of one package, whose name is that of its folder and may be none in Python. So mypy
reads them in a copy of the code, in a folder that has such a name.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]
MYPY = [sys.executable, "-m", "mypy", "--config-file", str(PACK / "pyproject.toml")]


def main() -> int:
    codes = [subprocess.run(MYPY, cwd=PACK).returncode]
    with tempfile.TemporaryDirectory() as place:
        for folder in ("pnpmix", "nodes", "demo"):
            for path in (PACK / folder).rglob("*.py"):
                copy = Path(place) / "pack" / path.relative_to(PACK)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, copy)
        cache = ["--cache-dir", str(PACK / ".mypy_cache" / "nodes")]
        codes.append(subprocess.run([*MYPY, *cache, "-p", "pack.nodes"], cwd=place).returncode)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
