"""LoRA and ED-LoRA files, read as data."""

import re
from typing import NamedTuple

from pydantic import TypeAdapter
from torch import Tensor

from ...pnpmix.files.tensors import described, is_plain, read_file
from ...pnpmix.files.texts import Name
from ..common.file_lists import model_files, path_of
from ..common.loading import dictionary_in, reading

EMBEDDINGS = {"new_concept_embedding": "l", "new_concept_embedding_2": "g"}  # part of an ED-LoRA file → text encoder
NETWORKS = ("unet", "text_encoder", "text_encoder_2")


class LoraFile(NamedTuple):
    """The content of a LoRA or ED-LoRA file."""

    weights: dict[str, Tensor]  # in names that ComfyUI knows
    tokens: dict[str, dict[str, Tensor]]  # of an ED-LoRA: token → text encoder "l" or "g" → (layers, width)
    unread: list[str]  # names of entries that are of no kind that ComfyUI reads


def read(node: str, name: str) -> LoraFile:
    """Reads a LoRA or ED-LoRA file.

    Raises:
        BadInput: it is missing, damaged, no LoRA, or asks for code to be run.
    """
    path = path_of(node, "lora_name", name, model_files("loras"))
    with reading(node, "lora_name", path, "Use the file as its trainer saved it."):
        content = dictionary_in(read_file(path), "params", "state_dict")
        if not all(isinstance(key, str) for key in content):
            raise ValueError("its entries have no names")
        parts = nested(content) if any(key.split(".")[0] in EMBEDDINGS for key in content) else {}
        tokens = tokens_of(parts)
        flat = of_ed_lora(parts) if parts else {key: x for key, x in content.items() if isinstance(x, Tensor)}
        known = {key: match for key in flat if (match := ENTRY.fullmatch(key))}
        for key, match in known.items():
            check_entry(key, match["kind"], flat[key])
        weights = {comfyui_name(match): flat[key] for key, match in known.items()}
        unread = sorted(content.keys() - known.keys()) if not parts else []
        if not (weights or tokens):
            raise ValueError(f"it holds no weights of a LoRA, but '{unread[0][:100]}'" if unread else "it is empty")
    return LoraFile(weights, tokens, unread)


# Entries of a layer, of every kind of LoRA that ComfyUI knows; those of PEFT may have an adapter's name in them
ENTRY = re.compile(
    r"(?P<layer>.+?)(?P<kind>\.lora_(?:up|down|mid)\.weight|_lora\.(?:up|down)\.weight|"
    r"\.lora(?:_linear_layer)?\.(?:up|down)\.weight|\.lora_[AB](?:(?:\.\w+)?\.weight)?|\.[ab][12]\.weight|"
    r"\.(?:hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)|oft_blocks|rescale|[wb]_norm|diff(?:_b)?|set_weight|"
    r"dora_scale|alpha|reshape_weight))"
)
OF_UNET = re.compile(r"(?:unet\.|(?:down_blocks|up_blocks|mid_block|conv_in|conv_out|time_embedding|add_embedding)\.)")
PEFT = "base_model.model."  # before or behind the network's name


def check_entry(name: str, kind: str, x: Tensor) -> None:
    """Refuses an entry that no LoRA has.

    Raises:
        ValueError: no LoRA has such an entry.
    """
    if kind == ".alpha":  # a whole number too
        if x.is_complex() or not is_plain(x) or x.numel() != 1:
            raise ValueError(f"entry '{name}' has shape {tuple(x.shape)}, expected: a single number")
        described(x.float(), name)
    elif kind == ".reshape_weight":
        if x.is_floating_point() or x.is_complex() or not is_plain(x) or x.ndim != 1:
            raise ValueError(f"entry '{name}' has shape {tuple(x.shape)}, expected: whole numbers in a row")
    else:
        described(x, name)


def comfyui_name(match: re.Match) -> str:
    """Returns an entry's name as ComfyUI knows it, where diffusers, PEFT or SimpleTuner have another one."""
    layer, kind = match["layer"], re.sub(r"(\.lora_[AB])\.\w+\.weight", r"\1.weight", match["kind"])
    plain = layer.replace(PEFT, "")
    if plain.startswith("text_model.") and plain != layer:
        return f"text_encoder.{plain}{kind}"
    is_of_unet = OF_UNET.match(plain) or (plain != layer and not plain.startswith("text_encoder"))
    if is_of_unet and ".processor" not in plain:
        return f"lora_unet_{plain.removeprefix('unet.').replace('.', '_')}{kind}"
    return plain + kind


def layers_in(weights: dict[str, Tensor]) -> set[str]:
    """Returns the layers that a file's entries belong to, in the names of ComfyUI's maps."""
    return {match["layer"] for name in weights if (match := ENTRY.fullmatch(name))}


def nested(content: dict) -> dict[str, dict[str, Tensor]]:
    """Splits an ED-LoRA into its parts, which are prefixes of the names in a .safetensors file."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, x in content.items():
        if isinstance(x, dict):
            parts[key] = x
        else:
            part, _, rest = key.partition(".")
            parts.setdefault(part, {})[rest] = x
    return parts


def of_ed_lora(parts: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """Returns the entries of up and down, in ComfyUI's names.

    The files have no alpha, which ComfyUI takes for 1: a layer becomes W + s * up @ down.
    """
    encoder = "te1" if "text_encoder_2" in parts else "te"
    prefixes = dict(zip(NETWORKS, ("lora_unet_", f"lora_{encoder}_", "lora_te2_"), strict=True))
    result = {}
    for part, prefix in prefixes.items():
        for key, x in parts.get(part, {}).items():
            module, _, kind = str(key).partition(".lora_")
            result[f"{prefix}{module.replace('.', '_')}.lora_{kind}"] = x
    return result


def tokens_of(parts: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """Returns the vectors of an ED-LoRA's tokens: token → text encoder "l" or "g" → (layers, width).

    Raises:
        ValueError: a token has no name, or its vectors are no (layers, width).
    """
    found: dict[str, dict[str, Tensor]] = {}
    for part, encoder in EMBEDDINGS.items():
        for token, x in parts.get(part, {}).items():
            TypeAdapter(Name).validate_python(token)
            found.setdefault(token, {})[encoder] = described(x, f"{part}.{token}", (None, None))
    return found
