"""What self-attention reads of the concepts' pictures, kept from one run of the mixer for the next.

It depends on the pictures, prompts, model and noise levels, and on nothing that people try out most: alpha, guidance,
masks, dilution. It lives beside the inversion, a node's output, and goes when that leaves ComfyUI's own cache.
"""

import contextlib
import uuid
from collections.abc import Iterable, Iterator

import comfy.model_management
import torch
from torch import Tensor

from ...pnpmix.mixer.sampling import Rows
from ..common.checks import BadInput
from ..common.types import APPEARANCE, DILUTION, Appearance, Concept

SHARE = 0.25  # of the free memory, at most
Layer = tuple  # of the UNet, and of which prompt


class PersonalRows:
    """Of each (step, concept) the input of every guided layer, (tokens, channels).

    Args:
        made_with: for each concept all that its inputs depend on.
        expected: (step, concept) pairs that will be needed.
        before: what earlier runs have left, of which it takes over what is of use.
    """

    def __init__(self, made_with: list[list], expected: int, before: Iterable["PersonalRows"] = ()):
        self.made_with, self.expected, self.place = made_with, expected, None
        self.inputs: dict[tuple[int, int], dict[Layer, Tensor]] = {}
        for earlier in before:
            layers = set().union(*earlier.inputs.values())
            for k, own in enumerate(made_with):
                if k < len(earlier.made_with) and same(own, earlier.made_with[k]):
                    # a call that was skipped has left some out
                    whole = {key: x for key, x in earlier.inputs.items() if key[1] == k and x.keys() == layers}
                    self.inputs = {**whole, **self.inputs}
        self.found = len(self.inputs)

    def has(self, step: int, concepts: slice) -> bool:
        return all((step, k) in self.inputs for k in range(concepts.start, concepts.stop))

    @contextlib.contextmanager
    def filling(self, rows: Rows) -> Iterator[None]:
        """For the length of a call with these rows: what one that fails has left half-written is forgotten."""
        written = range(rows.concepts.start, rows.concepts.stop) if "personal" in rows.roles else ()
        self.forget(rows.step, written)
        try:
            yield
        except BaseException:
            self.forget(rows.step, written)
            raise

    def forget(self, step: int, concepts: Iterable[int]) -> None:
        for k in concepts:
            self.inputs.pop((step, k), None)

    def keep(self, personal: Tensor, rows: Rows, extra_options: dict) -> None:
        """
        Args:
            personal: (chunks, concepts, tokens, channels).

        Raises:
            BadInput: the call that these rows are of has gone through this layer before.
        """
        for chunk, of_chunk in zip(extra_options["cond_or_uncond"], personal, strict=True):
            for k, x in enumerate(of_chunk, rows.concepts.start):
                if (rows.step, k) in self.inputs or self.fits():
                    layer = (chunk, extra_options["block"], extra_options["block_index"])
                    own = self.inputs.setdefault((rows.step, k), {})
                    if layer in own:
                        fault = "one of its patches guides with a further call, which reads other features."
                        raise BadInput("Mask Noise Mixer", "keep_personal", fault, "Switch it off.")
                    own[layer] = x.to(self.place or x.device, copy=True)

    def fits(self) -> bool:
        """Whether there is room for one more; moves everything to the CPU where the device is too small for all."""
        if self.place is None and self.inputs:
            device = next(iter(next(iter(self.inputs.values())).values())).device
            room = SHARE * comfy.model_management.get_free_memory(device)
            total = self.bytes() / len(self.inputs) * self.expected
            self.place = device if total <= room else torch.device("cpu")
            self.inputs = {
                key: {layer: x.to(self.place) for layer, x in found.items()} for key, found in self.inputs.items()
            }
        if self.place is None or self.place.type != "cpu":
            return True
        # what is kept is no longer free, so that it counts on both sides
        return self.bytes() < SHARE * (comfy.model_management.get_free_memory(self.place) + self.bytes())

    def take(self, rows: Rows, extra_options: dict, like: Tensor) -> Tensor:
        """(chunks, concepts, tokens, channels), on the device of `like`."""
        block, index = extra_options["block"], extra_options["block_index"]
        found = [
            self.inputs[rows.step, k][chunk, block, index].to(like)
            for chunk in extra_options["cond_or_uncond"]
            for k in range(rows.concepts.start, rows.concepts.stop)
        ]
        return torch.stack(found).unflatten(0, (len(extra_options["cond_or_uncond"]), -1))

    def bytes(self) -> int:
        return sum(x.numel() * x.element_size() for found in self.inputs.values() for x in found.values())


def dependencies(model, concepts: list[Concept], positive: list, negative: list, cfg: float, inversion) -> list[list]:
    """All that the personal rows of each concept depend on, in the form that `same` compares."""
    appearance: Appearance = model.model_options[APPEARANCE]
    options = {name: x for name, x in model.model_options.items() if name not in (APPEARANCE, DILUTION)}
    shared = [model.model, model.patches_uuid, model.object_patches, model.wrappers, options, appearance.layers]
    shared += [inversion.sigmas, cfg != 1, negative if cfg != 1 else None]
    shared.append([x.learned for x in concepts if x.learned is not None])  # which are not in the others' prompts
    own_prompts = [positive if x.positive is None else x.positive for x in concepts]
    return [[*shared, x.learned, x.latent, x.seed, own] for x, own in zip(concepts, own_prompts, strict=True)]


def same(a, b) -> bool:
    """Whether two values mean the same to the model; of unknown objects only one and the same object does."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or (a.dtype == b.dtype and a.device == b.device and torch.equal(a, b))
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(x, b[name]) for name, x in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a is b or (isinstance(a, bool | int | float | str | uuid.UUID) and a == b)
