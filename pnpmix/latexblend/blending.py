"""Feature replacement in the latent textual space: blends concepts into the keys and values of a prompt."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..masks import to_latent_grid
from .bank import Features

FAINTEST = 1e-4  # of a concept's attention that is left outside its region


class Slot(NamedTuple):
    """The place of a concept in a prompt, and its strength."""

    features: Features
    first: int  # token of V*; the noun's follow
    length: int  # 1 + L
    strength: float = 1.0  # 0..1, from the plain prompt's keys and values to the concept's
    mask: Tensor | None = None  # (H, W) in 0..1, where in the picture; None: anywhere
    owners: frozenset[int] | None = None  # of PnP-MIX's concepts those in whose rows it acts; None: in all rows

    @property
    def last(self) -> int:
        """Returns the index of the noun's last token."""
        return self.first + self.length - 1


def acting(slots: Sequence[Slot], concept: int) -> list[Slot]:
    """Returns the slots that act in the batch rows of one of PnP-MIX's concepts.

    Its result inside a target comes from that concept's rows alone, so identities that share no row cannot mix. In no
    paper.
    """
    return [slot for slot in slots if slot.owners is None or concept in slot.owners]


def blend(
    key: Tensor,
    value: Tensor,
    layer: str,
    slots: Sequence[Slot],
    repeats: Sequence[int] = (0,),
    acts: bool = True,
    bound: bool = False,
) -> None:
    """Moves K and V of each slot by its strength from the prompt's own to the concept's, in place.

    On a straight line from the plain prompt to all that a strength of 1 does, binding included.

    Args:
        key, value: (B, tokens, inner) after the projections.
        repeats: offsets at which the prompt begins, where it stands in the context several times.
        acts: whether it is time for the concepts; until then their words stay the prompt's.
        bound: V* gets the attention logits of the noun's last token, by a copy of its key.
    """
    for slot in slots:
        if slot.strength == 0:
            continue
        for offset in repeats:
            own = slice(offset + slot.first, offset + slot.first + slot.length)
            learned_key, learned_value = slot.features[layer] if acts else (key[:, own], value[:, own])
            if bound:
                learned_key = torch.cat([learned_key[..., -1:, :], learned_key[..., 1:, :]], -2)
            for x, learned in ((key, learned_key), (value, learned_value)):
                x[:, own] = learned if slot.strength == 1 else torch.lerp(x[:, own], learned.to(x), slot.strength)


def region_bias(
    slots: Sequence[Slot], region: float, grid: tuple[int, int], tokens: int, repeats: Sequence[int] = (0,)
) -> Tensor:
    """Returns what is added to a layer's logits (h * w, tokens), so that concepts with a mask act inside it.

    By a concept's strength, as all that it does.

    Args:
        region: 0..1; 0 adds nothing, 1 leaves FAINTEST outside.
        grid: height and width of the layer.
    """
    bias = torch.zeros(grid[0] * grid[1], tokens)
    for slot in slots:
        if slot.mask is not None and slot.strength > 0:
            outside = 1 - to_latent_grid(slot.mask.float().cpu(), *grid).flatten()
            logits = (1 - region * slot.strength * outside).clamp(min=FAINTEST).log()[:, None]
            for offset in repeats:
                bias[:, offset + slot.first : offset + slot.last + 1] = logits
    return bias


def layer_grid(grid: tuple[int, int], positions: int) -> tuple[int, int]:
    """Returns height and width of a layer with so many tokens, for hosts that do not tell; `grid` is the latent's."""
    height, width = grid
    while height * width > positions:
        height, width = math.ceil(height / 2), math.ceil(width / 2)
    return height, width
