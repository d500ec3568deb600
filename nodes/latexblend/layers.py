"""The cross-attention layers of ComfyUI's UNet, and what identifies a checkpoint."""

import re
from typing import Any

from ...pnpmix.latexblend import bank
from ..common.checks import BadInput, model_family
from ..common.types import TrainedConcept

Layer = tuple[str, int, int]  # block's name and number, and the index in it: by which patches are found
NAMES = {"input_blocks": "input", "middle_block": "middle", "output_blocks": "output"}


def cross_attentions(unet) -> dict[str, tuple[Layer, Any]]:
    """Returns the layers by their names in a checkpoint, such as input_blocks.4.1.transformer_blocks.0.attn2."""
    found = {}
    for name, module in unet.named_modules():
        parts = re.fullmatch(r"(\w+?_blocks?)\.(\d+)\..*transformer_blocks\.(\d+)\.attn2", name)
        if parts:
            block, number, index = parts.groups()
            found[name] = ((NAMES[block], 0 if block == "middle_block" else int(number), int(index)), module)
    return found


def layer_widths(unet) -> dict[str, int]:
    """Returns how many numbers the keys of each cross-attention layer have."""
    return {name: module.to_k.weight.shape[0] for name, (_, module) in cross_attentions(unet).items()}


def fingerprint(model) -> str:
    """Returns the fingerprint of one W_k of the checkpoint, without the LoRAs on it."""
    name, (_, module) = next(iter(cross_attentions(model.model.diffusion_model).items()))
    backup = getattr(model, "backup", {}).get(f"diffusion_model.{name}.to_k.weight")
    weight = module.to_k.weight if backup is None else backup.weight
    return bank.fingerprint(weight)


def check_fits(node: str, name: str, learned: TrainedConcept, model) -> None:
    """Refuses a concept that was trained with another architecture."""
    family = model_family(model)
    if learned.family != family:
        fault = f"'{learned.name}' was trained with another family ({learned.family}, this model is {family})."
        raise BadInput(node, name, fault, "Train it again on this checkpoint.")
    try:
        bank.check(learned.features, layer_widths(model.model.diffusion_model))
    except ValueError as error:
        fault = f"'{learned.name}' does not fit this model: {error}."
        raise BadInput(node, name, fault, "Train it again on this checkpoint.") from error


def checkpoint_name(prompt: dict, node_id: str, name: str = "model") -> str:
    """Returns the file that the MODEL at an input came from, as far as the graph tells; else ""."""
    seen = set()
    while node_id not in seen:
        seen.add(node_id)
        node = (prompt or {}).get(node_id)
        if node is None:
            return ""
        inputs = node["inputs"]
        for file in ("ckpt_name", "unet_name", "model_name"):
            if isinstance(inputs.get(file), str):
                return inputs[file]
        link = inputs.get(name, inputs.get("model"))
        if not isinstance(link, list):
            return "the demo model" if node["class_type"] == "PnPMixDemoModel" else ""
        node_id, name = str(link[0]), "model"
    return ""
