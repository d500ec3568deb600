"""What nodes cache from run to run beside another node's output, which itself is unchanged."""

from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

KEPT = WeakTensorKeyDictionary()  # a tensor of an output → node → what that node keeps


def kept_beside(output: Tensor) -> dict[str, Any]:
    """Returns node → what it caches beside an output, for as long as ComfyUI keeps that.

    Args:
        output: a tensor that the output consists of.
    """
    return KEPT.setdefault(output, {})


def replace_kept(output: Tensor, node_id: str, prompt: dict, value: Any) -> None:
    """Sets what a node caches from now on; None: nothing. Caches of nodes that no longer exist are dropped.

    Args:
        prompt: the graph that runs, as ComfyUI gives it to nodes.
    """
    kept = KEPT.setdefault(output, {})
    kept[node_id] = value
    kind = prompt.get(node_id, {}).get("class_type")
    for other in list(kept):
        if kept[other] is None or (other != node_id and prompt.get(other, {}).get("class_type") != kind):
            del kept[other]
