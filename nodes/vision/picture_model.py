"""Networks of other packages under ComfyUI's model management, and their image encodings."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..common.loading import load_where_it_runs, patcher_of

MAX_KEPT = 32  # images whose encodings are cached; those of a detector take 20 to 30 MB each


class PictureModel:
    """A network whose image encodings are computed once for each image and cached for as long as that lives."""

    def __init__(self, model: Any):
        self.model = model
        self.patcher = patcher_of(torch.nn.Sequential(model))  # Sam.device cannot be set, which ModelPatcher does
        self.encodings = WeakTensorKeyDictionary()  # image batch → {index: tensors on the CPU}

    def load(self, memory: int) -> torch.device:
        """Loads the network and returns its device, with `memory` bytes free beside its weights."""
        return load_where_it_runs(self.patcher, memory)

    def encoding(
        self, images: Tensor, index: int, encode: Callable[[Tensor], list[Tensor]], device: torch.device
    ) -> list[Tensor]:
        """Returns encode(image) of one (H, W, 3) image of the batch (n, H, W, 3 or 4), on the device."""
        known = self.encodings.setdefault(images, {})
        if index in known:
            return [x.to(device) for x in known[index]]
        found = encode(images[index, ..., :3].to(device).float())  # hosts may hold images in half precision
        if sum(map(len, self.encodings.values())) < MAX_KEPT:
            known[index] = [x.cpu() for x in found]
        return found
