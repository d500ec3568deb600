"""A network that looks at pictures, in the hands of ComfyUI's model management."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..common.loading import load_where_it_runs, patcher_of

MAX_KEPT = 32  # pictures whose encodings are kept; those of a detector take 20 to 30 MB each


class PictureModel:
    """What the words or boxes do not change is computed once for a picture, and kept as long as that lives."""

    def __init__(self, model: torch.nn.Module):
        self.model = model
        self.patcher = patcher_of(torch.nn.Sequential(model))  # Sam.device cannot be set, which ModelPatcher does
        self.encodings = WeakTensorKeyDictionary()  # image batch → {index: tensors on the CPU}

    def load(self, memory: int) -> torch.device:
        """Where the network runs, with so many bytes free beside its weights."""
        return load_where_it_runs(self.patcher, memory)

    def encoding(
        self, images: Tensor, index: int, encode: Callable[[Tensor], list[Tensor]], device: torch.device
    ) -> list[Tensor]:
        """encode(picture) of one (H, W, 3) picture of the batch (n, H, W, 3 or 4), on the device."""
        known = self.encodings.setdefault(images, {})
        if index in known:
            return [x.to(device) for x in known[index]]
        found = encode(images[index, ..., :3].to(device).float())  # hosts may keep pictures in half precision
        if sum(map(len, self.encodings.values())) < MAX_KEPT:
            known[index] = [x.cpu() for x in found]
        return found
