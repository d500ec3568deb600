"""Guided appearance attention (eq. 3.3).

Beyond the paper: its limit to the concepts' objects, and its form for transformers.
"""

from collections.abc import Callable, Sequence

import torch
from einops import rearrange
from torch import Tensor


def guided_appearance_attention(
    key: Tensor,
    value: Tensor,
    alpha: float | Tensor,
    roles: tuple[str, ...],
    chunks: int = 1,
    cached: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Lets the swap rows read the look of their concept in one self-attention layer.

    In a swap row K = K_per and V = V_per + alpha * (V_per - V_ref); its queries stay its own. The
    projections to K and V are linear without bias, so this is done on their inputs and any
    attention kernel may follow.

    Args:
        key, value: (chunks * len(roles) * concepts, tokens, channels) inputs of the projections.
        alpha: appearance guidance scale; 0 replaces the values without strengthening them.
        roles: what each block of batch rows is, of "personal", "swap" and "plain".
        chunks: how often the rows are repeated in the batch (conditional, unconditional, ...).
        cached: key and value of the personal rows (chunks, concepts, tokens, channels), where `roles` has none.

    Returns:
        new key and value; the arguments are not changed.
    """
    key_by_role, value_by_role = (by_role(x, roles, chunks) for x in (key, value))
    personal_key, personal = cached or (key_by_role["personal"], value_by_role["personal"])
    key_by_role["swap"] = personal_key
    value_by_role["swap"] = personal + alpha * (personal - value_by_role["swap"])
    # each row is written once, where the whole batch has to lie in one piece for the projections
    key, value = (torch.stack([x[role] for role in roles], 1) for x in (key_by_role, value_by_role))
    together = "chunks roles concepts ... -> (chunks roles concepts) ..."
    return rearrange(key, together), rearrange(value, together)


def guided_joint_attention(
    key: Tensor,
    value: Tensor,
    alpha: float | Tensor,
    roles: tuple[str, ...],
    chunks: int,
    image: slice,
    rotations: Tensor | None = None,
    cached: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Does the same in a transformer, where text and image share one attention; the text keeps its keys and values.

    Here it is done after the projections, which do have a bias: it cancels in V_per - V_ref and stays once.

    Args:
        key, value: (chunks * len(roles) * concepts, ..., tokens, channels), keys with their rotary positions.
        image: which tokens are the picture's.
        rotations: (concepts, channels / 2, 2, 2) of each concept's keys, see `apply_rope`; None: none.
        cached: key and value of the picture's tokens in the personal rows (chunks, concepts, ..., tokens, channels),
            where `roles` has none.

    Returns:
        new key and value.
    """
    of_image = (key[..., image, :], value[..., image, :])
    image_key, image_value = guided_appearance_attention(*of_image, alpha, roles, chunks, cached)
    if rotations is not None:
        swap = by_role(image_key, roles, chunks)["swap"]
        swap.copy_(apply_rope(swap, rotations))
    joined = []
    for whole, part in ((key, image_key), (value, image_value)):
        joined.append(torch.cat([whole[..., : image.start, :], part, whole[..., image.stop :, :]], -2))
    return joined[0], joined[1]


def apply_rope(key: Tensor, rotations: Tensor) -> Tensor:
    """Returns the keys as they were if the picture lay elsewhere: rotary positions add up.

    A key carries its place in the concept's picture, and queries look at the same place in theirs; where the object is
    to be seen at another place, all keys of its picture are moved there.

    Args:
        key: (..., concepts, heads, tokens, channels); neighbouring channels are a pair.
        rotations: (concepts, channels / 2, 2, 2), the model's own rotary embedding of the distance.
    """
    pairs = rearrange(key.to(rotations.dtype), "... (pairs two) -> ... pairs 1 two", two=2)
    by = rearrange(rotations, "concepts pairs out two -> concepts 1 1 pairs out two")
    rotated = by[..., 0] * pairs[..., 0] + by[..., 1] * pairs[..., 1]
    return rearrange(rotated, "... pairs out -> ... (pairs out)").to(key.dtype)


def by_role(x: Tensor, roles: tuple[str, ...], chunks: int) -> dict[str, Tensor]:
    """Returns each role's rows (chunks, concepts, ...), as views of the batch (chunks * roles * concepts, ...)."""
    split = "(chunks roles concepts) ... -> roles chunks concepts ..."
    return dict(zip(roles, rearrange(x, split, chunks=chunks, roles=len(roles)), strict=True))


def attend_to_objects(
    attend: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pairs: Sequence[tuple[Tensor, Tensor] | None],
    roles: tuple[str, ...],
    chunks: int = 1,
) -> Tensor:
    """Lets the target of each swap row read nothing but its concept's object in one self-attention layer.

    What surrounds the target still reads the concept's whole picture; otherwise it would take the object's look too.

    Args:
        attend: attention of (B, ..., tokens, channels) queries to as many keys and values as given; the last argument
            says which of all tokens these are.
        output: attend(query, key, value) of all tokens, (..., tokens, channels); changed in place.
        query, key, value: (chunks * len(roles) * concepts, ..., tokens, channels), swap rows as eq. 3.3 has them.
        pairs: for each concept the tokens of its target and those that these may read, (t,) and (o,) indices; None
            leaves its row as it is.

    Returns:
        output.
    """
    of_swap, query, key, value = (by_role(x, roles, chunks)["swap"] for x in (output, query, key, value))
    for k, pair in enumerate(pairs):
        if pair is not None:
            target, own = pair
            read = attend(query[:, k, ..., target, :], key[:, k, ..., own, :], value[:, k, ..., own, :], own)
            of_swap[:, k].index_copy_(-2, target, read)
    return output
