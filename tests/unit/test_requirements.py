"""The pack asks for what it uses, and for nothing that would change what a person has."""

import ast
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

PACK = Path(__file__).resolve().parents[2]
REQUIREMENTS = PACK / "requirements.txt"
PACKAGES = [Requirement(line).name for line in REQUIREMENTS.read_text().splitlines()]
# what every ComfyUI brings: modules of its own, and packages
HOST = [
    "aiohttp",
    "comfy",
    "comfy_api",
    "comfy_execution",
    "folder_paths",
    "latent_preview",
    "node_helpers",
    "nodes",
    "psutil",
    "server",
    "typing_extensions",
]
OWN, OPTIONAL = ["pnpmix", "demo"], ["pillow_heif"]  # the second is asked for where it is needed
WITH_COMFYUI = [
    "torch",
    "torchvision",
    "numpy",
    "safetensors",
    "einops",
    "jinja2",
    "pillow",
    "scipy",
    "pydantic",
    "spandrel",
    "transformers",
    "huggingface_hub",
]


def imported(file: Path) -> set[str]:
    """The packages that a file imports, at its top or later."""
    names = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.append(node.module)
    return {name.split(".")[0] for name in names}


def test_the_pack_uses_what_it_asks_for():
    files = [
        PACK / "__init__.py",
        *(x for folder in ("pnpmix", "nodes", "cli") for x in PACK.glob(f"{folder}/**/*.py")),
    ]
    used = set().union(*map(imported, files)) - set(sys.stdlib_module_names) - set(HOST) - set(OWN) - set(OPTIONAL)
    assert {name.lower().replace("_", "-") for name in used} == {
        name.replace("pillow", "pil").replace("_", "-") for name in PACKAGES
    }


def test_installing_changes_nothing_where_all_is_newer(tmp_path):
    """Dry run of the resolver where other packs have put newer versions, another OpenCV and a newer supervision."""
    subprocess.run([sys.executable, "-m", "uv", "venv", "--quiet", "--offline", tmp_path / "env"], check=True)
    (site_packages,) = tmp_path.glob("env/[Ll]ib/**/site-packages")
    for name in [*PACKAGES, "supervision", "opencv-python-headless"]:
        metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: 99.0"]
        if name in PACKAGES and name not in WITH_COMFYUI:
            metadata += [f"Requires-Dist: {need}" for need in requires(name) or ()]
        folder = site_packages / f"{name.replace('-', '_')}-99.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("\n".join(metadata) + "\n")
        (folder / "RECORD").touch()
    install = [sys.executable, "-m", "uv", "pip", "install", "--dry-run", "--offline", "--python", tmp_path / "env"]
    result = subprocess.run([*install, "-r", REQUIREMENTS], capture_output=True, text=True)
    assert result.returncode == 0 and "no changes" in result.stderr, result.stderr
