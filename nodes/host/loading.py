"""Model files: found in ComfyUI's folders, read as data, placed by ComfyUI's model management."""

import os

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...pnpmix.vision.checkpoints import is_torchscript, read_torchscript
from .checks import BadInput

MODEL_FILES = {".pth", ".pt", ".ckpt", ".safetensors"}
BERT = "bert-base-uncased"
FOLDERS = {"grounding-dino": MODEL_FILES, "sams": MODEL_FILES, "inpaint": MODEL_FILES, BERT: set()}


def register_folders() -> None:
    """models/<name> of each, after the places that extra_model_paths.yaml or another pack gave it."""
    for name, extensions in FOLDERS.items():
        folder_paths.add_model_folder_path(name, os.path.join(folder_paths.models_dir, name))
        paths, others = folder_paths.folder_names_and_paths[name]
        folder_paths.folder_names_and_paths[name] = (paths, set(others) | extensions)


def load_weights(node: str, folder: str, file: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint that the input 'model_name' names; no code in it is run."""
    path = folder_paths.get_full_path(folder, file)
    if path is None:
        raise BadInput(node, "model_name", f"'{file}' is not in models/{folder}.", "Put it there and press R.")
    try:
        weights = read_torchscript(path) if is_torchscript(path) else comfy.utils.load_torch_file(path, safe_load=True)
        weights = weights.get("model", weights)
        return {name: tensor for name, tensor in weights.items() if isinstance(tensor, Tensor)}
    except Exception as error:  # a damaged file makes torch and safetensors raise almost anything
        fault = f"{path} is damaged, cut short or no checkpoint ({type(error).__name__})."
        raise BadInput(node, "model_name", fault, "Download it again.") from error


def patcher_of(model: torch.nn.Module) -> ModelPatcher:
    management = comfy.model_management
    return ModelPatcher(model, management.get_torch_device(), management.unet_offload_device())
