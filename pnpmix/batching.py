"""Calls over as many independent items as fit in memory."""

from collections.abc import Callable

import torch
from torch import Tensor


def is_torch_oom(error: Exception) -> bool:
    """Tells whether torch ran out of GPU memory."""
    return isinstance(error, torch.cuda.OutOfMemoryError)


def in_groups(
    call: Callable[[slice], Tensor], count: int, size: int, is_oom: Callable[[Exception], bool] = is_torch_oom
) -> tuple[Tensor, int]:
    """Concatenates call(group) over consecutive slices of range(count), at most `size` long.

    A group that runs out of memory is halved and tried again.

    Args:
        is_oom: whether an error means that memory ran out; hosts know more such errors than torch's own.

    Returns:
        the concatenated results, and the group size that fitted.

    Raises:
        what `call` raises, where it is not for memory or a single item does not fit.
    """
    results, first = [], 0
    while first < count:
        group = slice(first, min(first + size, count))
        try:
            results.append(call(group))
            first = group.stop
        except Exception as error:
            if group.stop - group.start == 1 or not is_oom(error):
                raise
            size = (group.stop - group.start) // 2
    return torch.cat(results), size


def fetch(x: Tensor, device: torch.device) -> Tensor:
    """Copies x to the device, asynchronously from pinned memory."""
    return x.to(device, non_blocking=x.is_pinned())
