"""The features that self-attention reads of the concept images, cached for the next run of the mixer.

They depend on the pictures, prompts, model and noise levels, and on nothing that people try out most: alpha, guidance,
masks, dilution. The cache lives beside the inversion, a node's output, and goes when that leaves ComfyUI's own cache.
"""

import uuid
from collections.abc import Iterable

import comfy.model_management
import torch
from einops import rearrange
from torch import Tensor

from ....pnpmix.mixer.sampling import BatchRows
from ...common.checks import BadInput
from ...common.hooks import Call, Hook
from ...common.types import APPEARANCE, DILUTION, Appearance, Concept
from . import telling

FEATURES = "pnpmix_features"  # in transformer_options: the cache that a call reads or fills
SHARE = 0.25  # of the free memory, at most
Layer = tuple  # of the UNet, and of which prompt


class FeatureCache(Hook):
    """The input of every guided self-attention layer, (tokens, channels), of each (step, concept).

    Args:
        made_with: for each concept all that its features depend on.
        expected: how many (step, concept) pairs will be needed.
        before: the caches of earlier runs, of which it takes over what is of use.
    """

    def __init__(self, made_with: list[list], expected: int, before: Iterable["FeatureCache"] = ()):
        self.made_with, self.expected = made_with, expected
        self.place: torch.device | None = None  # where the features are; not decided before the first are known
        self.features: dict[tuple[int, int], dict[Layer, Tensor]] = {}
        for earlier in before:
            layers = set().union(*earlier.features.values())
            for k, own in enumerate(made_with):
                if k < len(earlier.made_with) and same(own, earlier.made_with[k]):
                    # a call that was skipped has left some out
                    whole = {key: x for key, x in earlier.features.items() if key[1] == k and x.keys() == layers}
                    self.features = {**whole, **self.features}
        self.found = len(self.features)

    def has(self, step: int, concepts: slice) -> bool:
        """Says whether the features of these concepts at this step are cached."""
        return all((step, k) in self.features for k in range(concepts.start, concepts.stop))

    def around(self, call: Call, rows: BatchRows) -> Call:
        """Lets the layers of the call find this cache; what a call that fails has left half-written is forgotten."""
        written = range(rows.concepts.start, rows.concepts.stop) if "personal" in rows.roles else ()
        call = telling(call, {FEATURES: self})

        def filling(options: dict):
            self.forget(rows.step, written)
            try:
                return call(options)
            except BaseException:
                self.forget(rows.step, written)
                raise

        return filling

    def forget(self, step: int, concepts: Iterable[int]) -> None:
        """Drops the features of these concepts at a step."""
        for k in concepts:
            self.features.pop((step, k), None)

    def add(self, personal: Tensor, rows: BatchRows, extra_options: dict) -> None:
        """Caches what one layer reads.

        Args:
            personal: (chunks, concepts, tokens, channels).

        Raises:
            BadInput: the call that these batch rows are of has gone through this layer before.
        """
        for chunk, of_chunk in zip(extra_options["cond_or_uncond"], personal, strict=True):
            for k, x in enumerate(of_chunk, rows.concepts.start):
                if (rows.step, k) in self.features or self.fits():
                    layer = (chunk, extra_options["block"], extra_options["block_index"])
                    own = self.features.setdefault((rows.step, k), {})
                    if layer in own:
                        fault = "one of its patches guides with a further call, which reads other features."
                        raise BadInput("Mask Noise Mixer", "keep_personal", fault, "Switch it off.")
                    own[layer] = x.to(self.place or x.device, copy=True)

    def fits(self) -> bool:
        """Says whether there is room for one more; moves all to the CPU where the device is too small for them."""
        if self.place is None and self.features:
            device = next(iter(next(iter(self.features.values())).values())).device
            room = SHARE * comfy.model_management.get_free_memory(device)
            total = self.bytes() / len(self.features) * self.expected
            self.place = device if total <= room else torch.device("cpu")
            self.features = {
                key: {layer: x.to(self.place) for layer, x in found.items()} for key, found in self.features.items()
            }
        if self.place is None or self.place.type != "cpu":
            return True
        # what is cached is no longer free, so that it counts on both sides
        return self.bytes() < SHARE * (comfy.model_management.get_free_memory(self.place) + self.bytes())

    def read(self, rows: BatchRows, extra_options: dict, like: Tensor) -> Tensor:
        """Returns what one layer reads (chunks, concepts, tokens, channels), on the device of `like`."""
        block, index, chunks = extra_options["block"], extra_options["block_index"], extra_options["cond_or_uncond"]
        found = [
            self.features[rows.step, k][chunk, block, index].to(like)
            for chunk in chunks
            for k in range(rows.concepts.start, rows.concepts.stop)
        ]
        return rearrange(
            found, "(chunks concepts) tokens channels -> chunks concepts tokens channels", chunks=len(chunks)
        )

    def bytes(self) -> int:
        """Returns the size of the cache."""
        return sum(x.numel() * x.element_size() for found in self.features.values() for x in found.values())

    def report(self) -> str:
        """Says what was found from the run before, and what is cached for the next one."""
        size = f"{self.bytes() / 1e6:.0f} MB"
        if len(self.features) < self.expected:
            size += f", which is all that fits: {len(self.features)} of {self.expected}"
        return (
            f"Feature cache: {self.found} of {self.expected} reference features found from the previous run. Cached "
            f"for the next: {size}."
        )


def dependencies(model, concepts: list[Concept], positive: list, negative: list, cfg: float, inversion) -> list[list]:
    """Returns all that the personal rows of each concept depend on, in the form that `same` compares."""
    appearance: Appearance = model.model_options[APPEARANCE]
    options = {name: x for name, x in model.model_options.items() if name not in (APPEARANCE, DILUTION)}
    shared = [model.model, model.patches_uuid, model.object_patches, model.wrappers, options, appearance.layers]
    shared += [inversion.sigmas, cfg != 1, negative if cfg != 1 else None]
    shared.append([x.learned for x in concepts if x.learned is not None])  # which are not in the others' prompts
    own_prompts = [positive if x.positive is None else x.positive for x in concepts]
    return [[*shared, x.learned, x.latent, x.seed, own] for x, own in zip(concepts, own_prompts, strict=True)]


def same(a, b) -> bool:
    """Says whether two values mean the same to the model; of unknown objects only one and the same object does."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or (a.dtype == b.dtype and a.device == b.device and torch.equal(a, b))
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(x, b[name]) for name, x in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a is b or (isinstance(a, bool | int | float | str | uuid.UUID) and a == b)
