"""Low-rank adaptations of the demo model: each gives one shape a look that none of the model's words mean."""

from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

FOLDER = Path(__file__).parent / "loras"
RANK = 2
PREFIX = "lora_unet_"


def key_of(module: str) -> str:
    """Returns what files and every host call a module, which is given by diffusers' name."""
    return PREFIX + module.replace(".", "_")


def load_lora(shape: str) -> dict[str, Tensor]:
    """Reads the LoRA of a shape.

    Raises:
        ValueError: there is none for the shape, or the file is damaged.
    """
    path = FOLDER / f"{shape}.safetensors"
    try:
        return {name: x.float() for name, x in safetensors.torch.load_file(path).items()}
    except (OSError, SafetensorError) as error:
        fault = f"{path} is missing, damaged or cut short ({error})."
        raise ValueError(f"{fault} Get it again, with git checkout.") from error


def merged(weights: dict[str, Tensor], loras: list[dict[str, Tensor]], strength: float = 1.0) -> dict[str, Tensor]:
    """Returns a UNet's state dict with W + strength * up @ down for every LoRA."""
    result = dict(weights)
    for lora in loras:
        for name in weights:
            key = key_of(name.removesuffix(".weight"))
            if f"{key}.lora_up.weight" in lora:
                up, down = lora[f"{key}.lora_up.weight"], lora[f"{key}.lora_down.weight"]
                result[name] = result[name] + strength * float(lora[f"{key}.alpha"]) / len(down) * up @ down
    return result
