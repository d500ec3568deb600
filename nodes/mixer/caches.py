"""ComfyUI's EasyCache and LazyCache keep outputs from call to call; a mixer's calls do not all have the same rows."""

from collections.abc import Callable

from ...pnpmix.mixer.sampling import Rows

CACHE = "easycache"  # in transformer_options, of both nodes


def cache_of_each_layout(transformer_options: dict, sampling) -> Callable[[Rows], dict]:
    """Rows → what to add to the transformer_options of their calls: a cache that only calls with these rows fill.

    Args:
        sampling: the model_sampling in use.
    """
    pattern, caches = transformer_options.get(CACHE), {}

    def cache(rows: Rows) -> dict:
        if pattern is None:
            return {}
        if rows.roles == ("personal",):  # a call of its own is made for what it reads: nothing of it may be skipped
            return {CACHE: pattern.clone().prepare_timesteps(sampling)}
        layout = (rows.roles, rows.concepts.start, rows.concepts.stop)
        if layout not in caches:
            caches[layout] = pattern.clone().prepare_timesteps(sampling)
        return {CACHE: caches[layout]}

    return cache
