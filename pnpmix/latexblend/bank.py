"""h_c: the features of a concept, and their file format."""

import hashlib
import json
from collections.abc import Callable, Mapping

import safetensors.torch
import torch
from torch import Tensor

from ..files.tensors import described

FORMAT, VERSION = "latexblend concept", "1"  # of files: under which name what is told stands in the metadata

Features = dict[str, tuple[Tensor, Tensor]]  # layer → K and V (1 + L, inner) of "V* noun"


def extract(
    context: Tensor, project: Mapping[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]]
) -> Features:
    """Computes h_c from the text encoder's output (1 + L, width) for the slot of "photo of V* noun".

    Args:
        project: of each layer the trained W_k and W_v.
    """
    with torch.no_grad():
        return {
            layer: tuple(side(context).detach().float().cpu().clone() for side in sides)  # type: ignore[misc]
            for layer, sides in project.items()
        }


def to_tensors(features: Features) -> dict[str, Tensor]:
    """Returns the features as a file holds them: "<layer>.k" and "<layer>.v", in half precision."""
    return {
        f"{layer}.{side}": x.half().contiguous()
        for layer, pair in features.items()
        for side, x in zip("kv", pair, strict=True)
    }


def file_bytes(features: Features, told: Mapping[str, object], others: Mapping[str, Tensor] | None = None) -> bytes:
    """Returns the content of a safetensors file.

    Args:
        told: what else there is to know, as JSON has it.
        others: tensors beside the features, whose names end neither in .k nor in .v.
    """
    tensors = to_tensors(features) | {name: x.contiguous() for name, x in (others or {}).items()}
    # one entry: of several, the order in the file is left to chance
    return safetensors.torch.save(tensors, {FORMAT: json.dumps({"version": VERSION, **told})})


def fingerprint(weight: Tensor) -> str:
    """Returns the fingerprint of a checkpoint, from its first W_k."""
    return hashlib.sha256(weight.detach().cpu().half().numpy().tobytes()).hexdigest()[:16]


def from_tensors(tensors: Mapping[str, Tensor]) -> Features:
    """Converts the result of `to_tensors` back.

    Raises:
        ValueError: a name ends otherwise, a layer has only one of the two, or they are not finite (1 + L, inner) with
            one number of tokens.
    """
    for name in tensors:
        if not name.endswith((".k", ".v")):
            raise ValueError(f"entry '{name}' is neither K nor V of a layer")
    features: Features = {}
    for layer in sorted({name[:-2] for name in tensors}):
        missing = [side for side in "kv" if f"{layer}.{side}" not in tensors]
        if missing:
            raise ValueError(f"{layer} has no {missing[0].upper()}")
        key, value = (described(tensors[f"{layer}.{side}"], f"{layer}.{side}", (None, None)) for side in "kv")
        features[layer] = (key.float(), value.float())
    check(features)
    return features


def check(features: Features, widths: Mapping[str, int] | None = None, tokens: int | None = None) -> None:
    """Refuses features that do not fit a model.

    Args:
        widths: of each layer of the model the number of channels; None: not known.
        tokens: 1 + L; None: whatever it is, the same everywhere.

    Raises:
        ValueError: says what does not fit.
    """
    if not features:
        raise ValueError("it holds no layer")
    if widths is not None and set(widths) != set(features):
        both = len(set(widths) & set(features))
        raise ValueError(f"it has {len(features)} layers, of which the model's {len(widths)} share {both}")
    for layer, pair in features.items():
        for side, x in zip("kv", pair, strict=True):
            described(x, f"{layer}.{side}", (tokens, None if widths is None else widths[layer]))
            tokens = len(x)
        if pair[0].shape != pair[1].shape:
            raise ValueError(f"{layer} has K of shape {tuple(pair[0].shape)} and V of {tuple(pair[1].shape)}")
        if tokens is not None and tokens < 2:
            raise ValueError("it has no token for the noun")
