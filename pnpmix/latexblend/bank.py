"""h_c: what is kept of a concept, and how it is written down."""

import hashlib
import json
from collections.abc import Callable, Mapping

import safetensors.torch
import torch
from torch import Tensor

FORMAT, VERSION = "latexblend concept", "1"  # of files: under which name what is told stands in the metadata

Features = dict[str, tuple[Tensor, Tensor]]  # layer → K and V (1 + L, inner) of "V* noun"


def extract(
    context: Tensor, project: Mapping[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]]
) -> Features:
    """h_c from the text encoder's output (1 + L, width) for the slot of "photo of V* noun".

    Args:
        project: of each layer the learned W_k and W_v.
    """
    with torch.no_grad():
        return {
            layer: tuple(side(context).detach().float().cpu().clone() for side in sides)  # type: ignore[misc]
            for layer, sides in project.items()
        }


def to_tensors(features: Features) -> dict[str, Tensor]:
    """As a file holds them: "<layer>.k" and "<layer>.v", in half precision."""
    return {
        f"{layer}.{side}": x.half().contiguous()
        for layer, pair in features.items()
        for side, x in zip("kv", pair, strict=True)
    }


def file_bytes(features: Features, told: Mapping[str, object], others: Mapping[str, Tensor] | None = None) -> bytes:
    """A safetensors file.

    Args:
        told: what else there is to know, as JSON has it.
        others: tensors beside the features, whose names end neither in .k nor in .v.
    """
    tensors = to_tensors(features) | {name: x.contiguous() for name, x in (others or {}).items()}
    # one entry: of several, the order in the file is left to chance
    return safetensors.torch.save(tensors, {FORMAT: json.dumps({"version": VERSION, **told})})


def fingerprint(weight: Tensor) -> str:
    """Of a checkpoint, by its first W_k."""
    return hashlib.sha256(weight.detach().cpu().half().numpy().tobytes()).hexdigest()[:16]


def from_tensors(tensors: Mapping[str, Tensor]) -> Features:
    """The inverse of `to_tensors`; names that end otherwise are left out.

    Raises:
        ValueError: a layer has only one of the two, or they are not finite (1 + L, inner) with one number of tokens.
    """
    layers = {name[:-2] for name in tensors if name.endswith((".k", ".v"))}
    features: Features = {}
    for layer in sorted(layers):
        missing = [side for side in "kv" if f"{layer}.{side}" not in tensors]
        if missing:
            raise ValueError(f"{layer} has no {missing[0].upper()}")
        features[layer] = (tensors[f"{layer}.k"].float(), tensors[f"{layer}.v"].float())
    check(features)
    return features


def check(features: Features, widths: Mapping[str, int] | None = None, tokens: int | None = None) -> None:
    """
    Args:
        widths: of each layer of the model the number of channels; None: not known.
        tokens: 1 + L; None: whatever it is, the same everywhere.
    Raises:
        ValueError: says what does not fit.
    """
    if not features:
        raise ValueError("it holds no layer")
    tokens = tokens or len(next(iter(features.values()))[0])
    if tokens < 2:
        raise ValueError("it has no token for the noun")
    if widths is not None and set(widths) != set(features):
        both = len(set(widths) & set(features))
        raise ValueError(f"it has {len(features)} layers, of which the model's {len(widths)} share {both}")
    for layer, (key, value) in features.items():
        width = key.shape[-1] if widths is None else widths[layer]
        if key.shape != (tokens, width) or value.shape != (tokens, width):
            raise ValueError(f"{layer} has shapes {tuple(key.shape)} and {tuple(value.shape)}, not {(tokens, width)}")
        if not (torch.isfinite(key).all() and torch.isfinite(value).all()):
            raise ValueError(f"{layer} contains NaN or infinity")
