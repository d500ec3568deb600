"""Attention maps: where tokens look, which two of the methods read."""

import torch
from einops import rearrange
from torch import Tensor


def attention_probabilities(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """Returns A = softmax(Q K^T / sqrt(d)), the mean over the heads: (B, queries, keys), float32 or wider.

    Args:
        query: (B, queries, heads * d).
        key: (B, keys, heads * d).
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    query, key = (rearrange(x.to(dtype), "b tokens (heads d) -> heads b tokens d", heads=heads) for x in (query, key))
    total = query.new_zeros(*query.shape[1:3], key.shape[2])
    for q, k in zip(query, key, strict=True):  # one head at a time, because all of them take heads times the memory
        total += (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
    return total / heads
