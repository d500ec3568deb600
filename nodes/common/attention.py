"""ComfyUI's attention, as patches of all three methods call it."""

from comfy.ldm.modules.attention import attention_pytorch, optimized_attention
from torch import Tensor


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, extra_options: dict, mask: Tensor | None = None
) -> Tensor:
    """Returns what the layer of a patch would have computed, (B, tokens, channels), with the host's backend."""
    heads, precision = extra_options["n_heads"], extra_options["attn_precision"]
    return optimized_attention(
        query, key, value, heads, mask=mask, attn_precision=precision, transformer_options=extra_options
    )


def differentiable_attention(attention, *args, **kwargs) -> Tensor:
    """Computes PyTorch's attention (an `optimized_attention_override`): some of the others have no backward pass."""
    return attention_pytorch(*args, **kwargs)
