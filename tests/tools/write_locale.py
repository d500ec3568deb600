"""Writes locales/en/nodeDefs.json, the texts of the nodes as translators find them.

python tests/tools/write_locale.py, with the Python of a ComfyUI that COMFYUI_DIR names.
"""

import json
import tempfile
from pathlib import Path

from comfy_host import PACK, boot

ENGLISH = PACK / "locales" / "en" / "nodeDefs.json"


def english() -> dict:
    """Display name, description, inputs and outputs of every node of the pack, in ComfyUI's format of locales."""
    import nodes

    ours = {name: cls for name, cls in nodes.NODE_CLASS_MAPPINGS.items() if name.startswith("PnPMix")}
    return {name: texts(cls.GET_SCHEMA()) for name, cls in ours.items()}


def texts(schema) -> dict:
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": {x.id: {"name": x.id, "tooltip": x.tooltip} for x in schema.inputs or []},
        "outputs": {str(k): {"name": x.display_name, "tooltip": x.tooltip} for k, x in enumerate(schema.outputs or [])},
    }


if __name__ == "__main__":
    boot(Path(tempfile.mkdtemp()), "--cpu")
    ENGLISH.parent.mkdir(exist_ok=True)
    ENGLISH.write_text(json.dumps(english(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
