"""Model calls over as many independent items as fit in memory."""

from collections.abc import Callable

import torch
from torch import Tensor


def in_groups(call: Callable[[slice], Tensor], count: int, size: int) -> tuple[Tensor, int]:
    """Concatenates call(group) over consecutive slices of range(count), at most `size` long.

    A group that runs out of memory is halved and tried again.

    Returns:
        the concatenated results, and the group size that fitted.
    Raises:
        torch.cuda.OutOfMemoryError: a single item does not fit.
    """
    results, first = [], 0
    while first < count:
        group = slice(first, min(first + size, count))
        try:
            results.append(call(group))
            first = group.stop
        except torch.cuda.OutOfMemoryError:
            if group.stop - group.start == 1:
                raise
            size = (group.stop - group.start) // 2
    return torch.cat(results), size
