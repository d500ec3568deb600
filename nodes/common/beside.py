"""What nodes keep from run to run beside another node's output, which itself stays as it was given."""

from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

KEPT = WeakTensorKeyDictionary()  # a tensor of an output → node → what that node keeps


def kept_beside(output: Tensor) -> dict[str, Any]:
    """Node → what it keeps beside an output, for as long as ComfyUI keeps that.

    Args:
        output: a tensor that the output consists of.
    """
    return KEPT.setdefault(output, {})


def replace_kept(output: Tensor, node_id: str, prompt: dict, value: Any) -> None:
    """What a node keeps from now on; None: nothing. What nodes have kept that are no longer there is forgotten.

    Args:
        prompt: the graph that runs, as ComfyUI gives it to nodes.
    """
    kept = KEPT.setdefault(output, {})
    kept[node_id] = value
    kind = prompt.get(node_id, {}).get("class_type")
    for other in list(kept):
        if kept[other] is None or (other != node_id and prompt.get(other, {}).get("class_type") != kind):
            del kept[other]
