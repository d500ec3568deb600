"""What ComfyUI's networks need before a gradient can pass through them; all of it is undone afterwards."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@contextlib.contextmanager
def with_gradients(*networks: nn.Module) -> Iterator[None]:
    """Allows a backward pass through the networks, although nodes run in inference mode, which records none."""
    with torch.inference_mode(False), torch.enable_grad(), ordinary_weights(*networks):
        yield


@contextlib.contextmanager
def ordinary_weights(*networks: nn.Module) -> Iterator[None]:
    """Replaces weights that were made in inference mode, which autograd refuses, by views of the same memory.

    A weight that someone else has replaced meanwhile, as hooks with LoRAs do, stays replaced.
    """
    lent = []
    try:
        with torch.inference_mode(False):
            places: list[tuple[dict[str, Any], Callable]] = []
            for module in (module for network in networks for module in network.modules()):
                places += [(module._parameters, frozen), (module._buffers, alias)]
            for tensors, view in places:
                for name, x in tensors.items():
                    if x is not None and (x.is_inference() or x.requires_grad):
                        tensors[name] = view(x)
                        lent.append((tensors, name, x, tensors[name]))
        yield
    finally:
        for tensors, name, x, own in lent:
            if tensors[name] is own:
                tensors[name] = x


def frozen(weight: Tensor) -> nn.Parameter:
    """Returns a parameter without gradient over the memory of another one."""
    return nn.Parameter(alias(weight), requires_grad=False)


def alias(x: Tensor) -> Tensor:
    """Returns an ordinary tensor over the memory of one that may have been made in inference mode."""
    return torch.empty(0, dtype=x.dtype, device=x.device).set_(
        x.untyped_storage(), x.storage_offset(), x.size(), x.stride()
    )


@contextlib.contextmanager
def unchanged_norms(encoder: nn.Module) -> Iterator[None]:
    """Copies what goes into the norms of ComfyUI's CLIP, which adds to it in place before the backward pass."""
    norms = [module for module in encoder.modules() if isinstance(module, nn.LayerNorm)]
    hooks = [norm.register_forward_pre_hook(lambda _, args: (args[0].clone(), *args[1:])) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def checkpointed(unet: nn.Module) -> Iterator[None]:
    """Keeps only the inputs of blocks, which compute again in the backward pass: less memory, a third more time."""
    blocks = [module for module in unet.modules() if isinstance(module, ResBlock | BasicTransformerBlock)]
    try:
        for block in blocks:
            block.forward = computed_again(block.forward)
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)


def computed_again(forward):
    """Returns the same function with `torch.utils.checkpoint` around it."""

    def call(*args, **kwargs):
        # ComfyUI writes into the one dictionary of a call which block it is in; by the backward pass that is the last
        args = tuple(dict(x) if isinstance(x, dict) else x for x in args)
        kwargs = {name: dict(x) if isinstance(x, dict) else x for name, x in kwargs.items()}
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return call
