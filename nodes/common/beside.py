"""What nodes cache from run to run beside another node's output, which itself is unchanged."""

from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

KEPT = WeakTensorKeyDictionary()  # a tensor of an output → (node, its type) → what it keeps


def kept_beside(output: Tensor) -> dict[tuple, Any]:
    """Returns (node, its type) → what it caches beside an output, for as long as ComfyUI keeps that.

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
    kept[node_id, type_in(prompt, node_id)] = value
    for node, kind in list(kept):
        if kept[node, kind] is None or type_in(prompt, node) != kind:
            del kept[node, kind]


def type_in(prompt: dict, node_id: str) -> str | None:
    """Returns the type of a node in a graph; None where there is no such node."""
    return prompt.get(node_id, {}).get("class_type")
