"""LoRA and ED-LoRA files, read as data."""

import os
from typing import NamedTuple

import comfy.lora_convert
import comfy.utils
import folder_paths
from torch import Tensor

from ...demo import loras as demo
from ...pnpmix.vision.checkpoints import check_file
from ..host.checks import BadInput
from ..host.loading import check_pickle, is_plain

DEMO = "demo model: "  # before the names of those that come with this pack
EMBEDDINGS = {"new_concept_embedding": "l", "new_concept_embedding_2": "g"}  # part of an ED-LoRA file → text encoder
NETWORKS = ("unet", "text_encoder", "text_encoder_2")


class LoraFile(NamedTuple):
    """What a file holds."""

    weights: dict[str, Tensor]  # in names that ComfyUI knows
    tokens: dict[str, dict[str, Tensor]]  # of an ED-LoRA: token → text encoder "l" or "g" → (layers, width)

    @property
    def layers(self) -> int:
        """Cross-attention layers that have a prompt of their own; 1: all share one."""
        return max((len(x) for parts in self.tokens.values() for x in parts.values()), default=1)


def names() -> list[str]:
    own = sorted(DEMO + path.name for path in demo.FOLDER.glob("*.safetensors"))
    return [*folder_paths.get_filename_list("loras"), *own]


def path_of(node: str, name: str) -> str:
    if name not in names():  # no other file is ever opened
        place = folder_paths.get_folder_paths("loras")[0]
        raise BadInput(node, "lora_name", f"'{name}' is not in models/loras.", f"Put it into {place} and press R.")
    if name.startswith(DEMO):
        return str(demo.FOLDER / name.removeprefix(DEMO))
    path = folder_paths.get_full_path("loras", name)
    if path is None:
        raise BadInput(node, "lora_name", f"'{name}' is no file.", "Choose another one.")
    return path


def read(node: str, name: str) -> LoraFile:
    """
    Raises:
        BadInput: it is missing, damaged, no LoRA, or asks for code to be run.
    """
    path = path_of(node, name)
    try:
        check_file(path)
        check_pickle(node, path, "lora_name")
        content = comfy.utils.load_torch_file(path, safe_load=True)
        content = content.get("params", content)
        parts = nested(content) if any(key.split(".")[0] in EMBEDDINGS for key in content) else None
        flat = of_comfyui(parts) if parts else {key: x for key, x in content.items() if isinstance(x, Tensor)}
        tokens = tokens_of(parts) if parts else {}
        odd = [key for key, x in flat.items() if not is_plain(x)]
        odd += [token for token, own in tokens.items() for x in own.values() if not is_plain(x) or x.ndim != 2]
        weights = comfy.lora_convert.convert_lora(flat)
    except BadInput:
        raise
    except Exception as error:  # a damaged file makes torch and safetensors raise almost anything
        fault = f"{os.path.basename(path)} is damaged, cut short or no LoRA ({type(error).__name__})."
        raise BadInput(node, "lora_name", fault, "Download or train it again.") from error
    if odd or not (weights or tokens):
        fault = f"'{odd[0]}' is no plain tensor." if odd else "there are no weights."
        remedy = "Use the file as its trainer saved it."
        raise BadInput(node, "lora_name", f"in {os.path.basename(path)}, {fault}", remedy)
    return LoraFile(weights, tokens)


def nested(content: dict) -> dict[str, dict[str, Tensor]]:
    """The parts of an ED-LoRA, which in a .safetensors file are the beginnings of the names."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, x in content.items():
        if isinstance(x, dict):
            parts[key] = x
        else:
            part, _, rest = key.partition(".")
            parts.setdefault(part, {})[rest] = x
    return parts


def of_comfyui(parts: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """W + s * up @ down: the files have no alpha, and ComfyUI takes none for 1."""
    encoder = "te1" if "text_encoder_2" in parts else "te"
    prefixes = dict(zip(NETWORKS, ("lora_unet_", f"lora_{encoder}_", "lora_te2_"), strict=True))
    result = {}
    for part, prefix in prefixes.items():
        for key, x in parts.get(part, {}).items():
            module, _, kind = key.partition(".lora_")
            result[f"{prefix}{module.replace('.', '_')}.lora_{kind}"] = x
    return result


def tokens_of(parts: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for part, encoder in EMBEDDINGS.items():
        for token, x in parts.get(part, {}).items():
            found.setdefault(token, {})[encoder] = x
    return found
