"""What it takes to have gradients in ComfyUI, whose nodes run in inference mode."""

import comfy.ops
import torch
from torch import nn

from ..common.checks import BadInput


def make_plain(model: nn.Module) -> None:
    """Swaps every weight that was made in inference mode, which autograd refuses, for an equal one that was not."""
    with torch.inference_mode(False):
        plain: dict[int, nn.Parameter] = {}
        for module in model.modules():
            for name, weight in module._parameters.items():
                if weight is not None and weight.is_inference():
                    if id(weight) not in plain:
                        plain[id(weight)] = nn.Parameter(weight.clone(), requires_grad=False)
                    module._parameters[name] = plain[id(weight)]


def check_gradients(node: str, unet: nn.Module) -> None:
    """Refuses weights through which nothing can be run backwards."""
    for module in unet.modules():
        quick = isinstance(module, comfy.ops.fp8_ops.Linear) and module.weight.dtype.itemsize == 1
        quantised = any(type(x.data) is not torch.Tensor for x in module._parameters.values() if x is not None)
        if quick or quantised:
            fault = "its weights are quantised, and gradients cannot be had through them."
            remedy = "Load it with weight_dtype default and without --fast fp8, or bypass Layout Alignment."
            raise BadInput(node, "model", fault, remedy)
