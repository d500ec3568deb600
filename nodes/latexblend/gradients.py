"""What ComfyUI's networks need before a gradient can go through them; all of it is undone."""

import contextlib
from collections.abc import Iterator

import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from torch import nn
from torch.utils.checkpoint import checkpoint


@contextlib.contextmanager
def with_gradients(*networks: nn.Module) -> Iterator[None]:
    """Nodes run in inference mode, in which nothing is kept for a backward pass; and what was loaded in it cannot be.

    So for as long as this lasts, a network's weights are stood in for by ordinary tensors over the same memory.
    """
    with torch.inference_mode(False), torch.enable_grad():
        borrowed = [
            (module, name, weight)
            for network in networks
            for module in network.modules()
            for name, weight in module._parameters.items()
            if weight is not None and (weight.is_inference() or weight.requires_grad)
        ]
        try:
            for module, name, weight in borrowed:
                module._parameters[name] = nn.Parameter(alias(weight), requires_grad=False)
            buffers = [
                (module, name, x)
                for network in networks
                for module in network.modules()
                for name, x in module._buffers.items()
                if x is not None and x.is_inference()
            ]
            for module, name, x in buffers:
                module._buffers[name] = alias(x)
            yield
        finally:
            for module, name, weight in borrowed:
                module._parameters[name] = weight
            for module, name, x in locals().get("buffers", ()):
                module._buffers[name] = x


def alias(x: torch.Tensor) -> torch.Tensor:
    """An ordinary tensor over the memory of one that may have been made in inference mode."""
    return torch.empty(0, dtype=x.dtype, device=x.device).set_(
        x.untyped_storage(), x.storage_offset(), x.size(), x.stride()
    )


@contextlib.contextmanager
def unchanged_norms(encoder: nn.Module) -> Iterator[None]:
    """ComfyUI's CLIP adds to its activations in place, after a norm that needs them as they were."""
    norms = [module for module in encoder.modules() if isinstance(module, nn.LayerNorm)]
    hooks = [norm.register_forward_pre_hook(lambda _, args: (args[0].clone(), *args[1:])) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def checkpointed(unet: nn.Module) -> Iterator[None]:
    """Blocks keep their inputs alone and compute again in the backward pass: less memory, and a third more time."""
    blocks = [module for module in unet.modules() if isinstance(module, ResBlock | BasicTransformerBlock)]
    try:
        for block in blocks:
            block.forward = computed_again(block.forward)
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)


def computed_again(forward):
    def call(*args, **kwargs):
        # ComfyUI writes into the one dictionary of a call which block it is in; by the backward pass that is the last
        args = tuple(dict(x) if isinstance(x, dict) else x for x in args)
        kwargs = {name: dict(x) if isinstance(x, dict) else x for name, x in kwargs.items()}
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return call
