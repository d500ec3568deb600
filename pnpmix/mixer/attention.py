"""Guided appearance attention (eq. 3.3), and beyond the paper its limit to the concepts' objects and its form for
transformers."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def guided_appearance_attention(
    key: Tensor,
    value: Tensor,
    alpha: float,
    roles: tuple[str, ...],
    chunks: int = 1,
    kept: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Lets the swap rows read the look of their concept in one self-attention layer.

    In a swap row K = K_per and V = V_per + alpha * (V_per - V_ref); its queries stay its own. The
    projections to K and V are linear without bias, so this is done on their inputs and any
    attention kernel may follow.

    Args:
        key, value: (chunks * len(roles) * concepts, tokens, channels) inputs of the projections.
        alpha: appearance guidance scale; 0 replaces the values without strengthening them.
        roles: what each block of rows is, of "personal", "swap" and "plain".
        chunks: how often the rows are repeated in the batch (conditional, unconditional, ...).
        kept: key and value of the personal rows (chunks, concepts, tokens, channels), where `roles` has none.
    Returns:
        new key and value; the arguments are not changed.
    """
    key_by_role, value_by_role = (by_role(x, roles, chunks) for x in (key, value))
    personal_key, personal = kept or (key_by_role["personal"], value_by_role["personal"])
    key_by_role["swap"] = personal_key
    value_by_role["swap"] = personal + alpha * (personal - value_by_role["swap"])
    # each row is written once, where the whole batch has to lie in one piece for the projections
    key, value = (torch.stack([x[role] for role in roles], 1).flatten(0, 2) for x in (key_by_role, value_by_role))
    return key, value


def guided_joint_attention(
    key: Tensor,
    value: Tensor,
    alpha: float,
    roles: tuple[str, ...],
    chunks: int,
    image: slice,
    rotations: Tensor | None = None,
    kept: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The same in a transformer, where text and picture share one attention: the text keeps its own keys and values.

    Here it is done after the projections, which do have a bias: it cancels in V_per - V_ref and stays once.

    Args:
        key, value: (chunks * len(roles) * concepts, ..., tokens, channels), keys with their rotary positions.
        image: which tokens are the picture's.
        rotations: (concepts, channels / 2, 2, 2), by how much each concept's keys are turned, see `turn`; None: not.
        kept: key and value of the picture's tokens in the personal rows (chunks, concepts, ..., tokens, channels),
            where `roles` has none.
    """
    of_image = (key[..., image, :], value[..., image, :])
    image_key, image_value = guided_appearance_attention(*of_image, alpha, roles, chunks, kept)
    if rotations is not None:
        swap = by_role(image_key, roles, chunks)["swap"]
        swap.copy_(turn(swap, rotations))
    joined = []
    for whole, part in ((key, image_key), (value, image_value)):
        joined.append(torch.cat([whole[..., : image.start, :], part, whole[..., image.stop :, :]], -2))
    return joined[0], joined[1]


def turn(key: Tensor, rotations: Tensor) -> Tensor:
    """Keys as they were if the picture lay elsewhere: rotary positions add up.

    A key carries its place in the concept's picture, and queries look at the same place in theirs; where the object is
    to be seen at another place, all keys of its picture are moved there.

    Args:
        key: (..., concepts, heads, tokens, channels); neighbouring channels are a pair.
        rotations: (concepts, channels / 2, 2, 2), the model's own rotary embedding of the distance.
    """
    pairs, by = key.to(rotations.dtype).unflatten(-1, (-1, 1, 2)), rotations[:, None, None]
    return (by[..., 0] * pairs[..., 0] + by[..., 1] * pairs[..., 1]).flatten(-2).to(key.dtype)


def by_role(x: Tensor, roles: tuple[str, ...], chunks: int) -> dict[str, Tensor]:
    """(chunks * len(roles) * concepts, ...) → for each role its rows (chunks, concepts, ...), without a copy."""
    return dict(zip(roles, x.unflatten(0, (chunks, len(roles), -1)).unbind(1), strict=True))


def attend_to_objects(
    attend: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cells: Sequence[tuple[Tensor, Tensor] | None],
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
        cells: for each concept the tokens of its target and those that these may read, (t,) and (o,) indices; None
            leaves its row as it is.
    Returns:
        output.
    """
    swap, blocks = roles.index("swap"), (chunks, len(roles), len(cells))
    for k, target_and_object in enumerate(cells):
        if target_and_object is not None:
            target, own = target_and_object
            query_k, key_k, value_k = (x.unflatten(0, blocks)[:, swap, k] for x in (query, key, value))
            seen = attend(query_k[..., target, :], key_k[..., own, :], value_k[..., own, :], own)
            output.unflatten(0, blocks)[:, swap, k].index_copy_(-2, target, seen)
    return output
