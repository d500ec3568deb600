"""Guided appearance attention (eq. 3.3)."""

from einops import rearrange
from torch import Tensor


def guided_appearance_attention(
    key: Tensor, value: Tensor, alpha: float, roles: tuple[str, ...], chunks: int = 1
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
    Returns:
        new key and value; the arguments are not changed.
    """
    personal, swap = roles.index("personal"), roles.index("swap")
    pattern = "(chunks roles concepts) t c -> chunks roles concepts t c"
    key, value = (rearrange(x, pattern, chunks=chunks, roles=len(roles)).clone() for x in (key, value))

    key[:, swap] = key[:, personal]
    value[:, swap] = value[:, personal] + alpha * (value[:, personal] - value[:, swap])
    return key.flatten(0, 2), value.flatten(0, 2)
