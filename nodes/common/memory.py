"""What fits in memory, by ComfyUI's own estimates, and where tensors are kept between nodes."""

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from comfy.samplers import CFGGuider
from torch import Tensor

SMALL_SHARE = 0.05  # of the free memory, above which trajectories stay on the CPU
KEPT_SHARE = 0.25  # of the free memory, at most, for what one model call leaves for the next


def is_oom(error: Exception) -> bool:
    """Tells whether memory ran out, by whatever error this ComfyUI knows for it."""
    if isinstance(error, comfy.model_management.InterruptProcessingException):
        return False  # where torch has no error of its own for it, ComfyUI takes any
    ask = getattr(comfy.model_management, "is_oom", None)  # newer hosts
    return ask(error) if ask else isinstance(error, comfy.model_management.OOM_EXCEPTION)


def free_memory(guider: CFGGuider) -> float:
    """Returns the free bytes, by ComfyUI's own estimate."""
    # newer hosts ask the patcher, which may hold weights that it can give up
    ask = getattr(guider.model_patcher, "get_free_memory", comfy.model_management.get_free_memory)
    return ask(guider.model_patcher.load_device)


def rows_that_fit(guider: CFGGuider, shape: torch.Size) -> int:
    """Returns how many latents of `shape` (C, H, W) one model call may take."""
    return int(free_memory(guider) / (1.5 * guider.inner_model.memory_required([1, *shape])))


def room_for(model: ModelPatcher, rows: int, least: int, shape: torch.Size) -> Tensor:
    """Returns the `noise` by which ComfyUI knows how much room to make before it samples: that of one call.

    Args:
        rows: latents of `shape` (C, H, W) in a call.
        least: of them that a call is split into at most. No more are asked for than fit beside the model's weights,
            which would be left out of the device to make room for them.
    """
    total = comfy.model_management.get_total_memory(model.load_device)
    both = 2 * model.memory_required([1, *shape])  # ComfyUI counts each row twice, conditional and unconditional
    beside = int((total - model.model_size()) / both)
    return torch.zeros((max(least, min(rows, beside)), *shape))


def place_for(trajectories: int, trajectory: Tensor, guider: CFGGuider, device: torch.device) -> torch.device:
    """Returns where trajectories are kept while mixing: on the device, unless batch rows need the memory."""
    size = trajectories * trajectory.numel() * trajectory.element_size()
    return device if size < SMALL_SHARE * free_memory(guider) else torch.device("cpu")


def place_for_some(size: int, guider: CFGGuider, device: torch.device) -> tuple[torch.device, int] | None:
    """Returns where items of so many bytes are cached between model calls, and how many fit there.

    On the device, or else on the CPU; None where there is no room for a single one.
    """
    cpu = torch.device("cpu")
    for place, free in ((device, free_memory(guider)), (cpu, comfy.model_management.get_free_memory(cpu))):
        count = int(KEPT_SHARE * free / size)
        if count > 0:
            return place, count
    return None


def pinned(x: Tensor, device: torch.device) -> Tensor:
    """Pins memory for asynchronous copies to a GPU, where ComfyUI holds these to be safe."""
    safe = device.type == "cuda" and comfy.model_management.device_supports_non_blocking(device)
    return x.pin_memory() if safe and x.device.type == "cpu" else x


def for_host(x: Tensor) -> Tensor:
    """Converts to the device and precision in which images and masks travel between nodes."""
    dtype = getattr(comfy.model_management, "intermediate_dtype", lambda: torch.float32)()  # older hosts: always 32
    return x.to(comfy.model_management.intermediate_device(), dtype)
