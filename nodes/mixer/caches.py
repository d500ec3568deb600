"""Patches that keep outputs from call to call, for speed: the calls of an inversion and of a mixer are not alike.

ComfyUI's EasyCache and LazyCache get a cache of their own for each kind of call. What others keep is out of reach, so
that a run stops where they answer with something that was kept of other rows.
"""

import contextlib
from collections.abc import Callable, Iterator

from ...pnpmix.mixer.sampling import Rows
from ..common.checks import BadInput
from ..common.memory import is_oom

CACHE = "easycache"  # in transformer_options, of both nodes
REMEDY = "Bypass that patch; ComfyUI's own EasyCache and LazyCache work here."


def new_cache(transformer_options: dict, sampling) -> dict:
    """What to add to the transformer_options of calls that share an empty cache.

    Args:
        sampling: the model_sampling in use.
    """
    pattern = transformer_options.get(CACHE)
    return {} if pattern is None else {CACHE: pattern.clone().prepare_timesteps(sampling)}


def cache_of_each_layout(transformer_options: dict, sampling) -> Callable[[Rows], dict]:
    """Rows → the `new_cache` that only calls with these rows fill."""
    caches = {}

    def cache(rows: Rows) -> dict:
        if rows.roles == ("personal",):  # a call of its own is made for what it reads: nothing of it may be skipped
            return new_cache(transformer_options, sampling)
        layout = (rows.roles, rows.concepts.start, rows.concepts.stop)
        if layout not in caches:
            caches[layout] = new_cache(transformer_options, sampling)
        return caches[layout]

    return cache


class Reuse:
    """Stops a run where a call is answered, in whole or in part, with what was kept of rows that lay otherwise.

    Args:
        layers: how many layers a whole call passes `enter` in, or a multiple of it; 0 where they are not counted.
    """

    def __init__(self, layers: int):
        self.layers, self.entered = layers, 0
        self.layout: tuple | None = None  # of the call before

    def enter(self) -> None:
        self.entered += 1

    def patch(self, q, key, value, extra_options):
        """attn1_patch."""
        self.enter()
        return q, key, value

    @contextlib.contextmanager
    def watch(self, rows: Rows, counted: bool = True) -> Iterator[None]:
        """
        Args:
            counted: whether these rows pass `enter` at all.

        Raises:
            BadInput
        """
        layout, self.entered = (rows.roles, rows.concepts), 0
        is_new = layout != self.layout
        try:
            yield
        except RuntimeError as error:  # of torch: shapes do not fit
            if not is_new or self.layout is None or is_oom(error) or not {"size", "shape"} & words(error):
                raise
            fault = f"one of its patches cannot do with other rows than in the call before ({error})."
            raise BadInput("Mask Noise Mixer", "model", fault, REMEDY) from error
        if is_new and counted and self.layers > 0 and (self.entered == 0 or self.entered % self.layers > 0):
            fault = "one of its patches answers with outputs that it kept of other rows, which would be mistaken."
            raise BadInput("Mask Noise Mixer", "model", fault, REMEDY)
        self.layout = layout


def words(error: Exception) -> set[str]:
    return set(str(error).lower().replace("sizes", "size").replace("shapes", "shape").split())


def attention_layers(unet) -> int:
    """Of which each calls attn1_patch."""
    return sum(type(module).__name__ == "BasicTransformerBlock" for module in unet.modules())
