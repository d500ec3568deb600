"""What fits on the device, by ComfyUI's own estimates."""

import comfy.model_management
import torch
from comfy.samplers import CFGGuider
from torch import Tensor

from ...pnpmix.mixer.inversion import Inversion

SMALL_SHARE = 0.05  # of the free memory, above which trajectories stay on the CPU


def free_memory(guider: CFGGuider) -> float:
    """Bytes, by ComfyUI's own estimate."""
    # newer hosts ask the patcher, which may hold weights that it can give up
    ask = getattr(guider.model_patcher, "get_free_memory", comfy.model_management.get_free_memory)
    return ask(guider.model_patcher.load_device)


def rows_that_fit(guider: CFGGuider, shape: torch.Size) -> int:
    """How many latents of `shape` (C, H, W) one model call may take."""
    return int(free_memory(guider) / (1.5 * guider.inner_model.memory_required([1, *shape])))


def place_for(trajectories: int, inversion: Inversion, guider: CFGGuider, device: torch.device) -> torch.device:
    """Where so many trajectories are kept while mixing: on the device, unless rows of the model need the room."""
    size = trajectories * inversion.trajectory.numel() * inversion.trajectory.element_size()
    return device if size < SMALL_SHARE * free_memory(guider) else torch.device("cpu")


def pinned(x: Tensor, device: torch.device) -> Tensor:
    """For copies to a GPU that nobody waits for."""
    return x.pin_memory() if x.device.type == "cpu" and device.type == "cuda" else x
