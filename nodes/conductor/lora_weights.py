"""Checks whether a LoRA fits a network, by what ComfyUI would compute, without computing it."""

import contextlib
import logging
import re
import threading
from collections.abc import Iterator

import comfy.lora
import torch
from torch import Tensor

from .lora_files import layers_in

OF_TEXT = re.compile(r"lora_te|lora_prior_te|text_encoder|clip_")  # beginnings of layers of text encoders


def fitting(weights: dict[str, Tensor], keys: dict, network: torch.nn.Module) -> dict:
    """Returns a LoRA's patches of a network.

    Args:
        keys: ComfyUI's map of the network.

    Raises:
        ValueError: says which entry does not fit.
    """
    try:
        patches = comfy.lora.load_lora(weights, keys, log_missing=False)
    except KeyError as error:
        raise ValueError(f"entry {error} is missing") from error
    own = network.state_dict()
    for name, patch in patches.items():
        if name not in own:
            raise ValueError(f"there is no {name} here")
        check_patch(name, patch, own[name].shape)
    return patches


def check_patch(name: str, patch, shape: torch.Size) -> None:
    """Lets ComfyUI compute a patch on the meta device, which takes no memory whatever a file asks for.

    Raises:
        ValueError: it cannot be, or the weight would get another shape.
    """
    weight = torch.empty(shape, device="meta")
    with complaints() as said:
        try:
            weight = comfy.lora.calculate_weight([(1.0, without_limit(patch), 1.0, None, None)], weight, name)
        except Exception as error:  # whatever sizes that do not match make of it
            said.append(f"{type(error).__name__}: {error}")
    if said or weight.shape != shape:
        raise ValueError(f"it does not fit {name}, which is {tuple(shape)} here")


def without_limit(patch):
    """Returns an orthogonal fine-tuning without the limit of its norm, which would need values to compare."""
    if getattr(patch, "name", None) not in ("oft", "boft") or patch.weights[2] is None:
        return patch
    blocks, rescale, _, *others = patch.weights
    return type(patch)(patch.loaded_keys, (blocks, rescale, 0.0, *others))


@contextlib.contextmanager
def complaints() -> Iterator[list[str]]:
    """Collects what ComfyUI logs inside the block instead of raising; the log does not get it."""
    said: list[str] = []
    thread = threading.get_ident()

    def note(record: logging.LogRecord) -> bool:
        if record.thread != thread or record.levelno < logging.WARNING:
            return True
        said.append(record.getMessage())
        return False

    root = logging.getLogger()
    root.addFilter(note)
    try:
        yield said
    finally:
        root.removeFilter(note)


def counted(weights: dict[str, Tensor], keys: dict, of_text: bool) -> tuple[int, int]:
    """Returns how many of the file's layers of such a network exist in it, and how many the file has."""
    layers = {layer for layer in layers_in(weights) if bool(OF_TEXT.match(layer)) == of_text}
    return len(layers & keys.keys()), len(layers)
