"""What hooks into a model have in common. Each lives for one run of a sampler, in a file of its own method."""

from collections.abc import Callable, Sequence
from typing import Any

Call = Callable[[dict], Any]  # model options → what the model predicts with them


class Hook:
    """What reads or writes inside a model while a sampler runs it.

    What belongs to one call travels in the call's transformer_options: two calls may run in two threads.
    """

    def install(self, options: dict) -> dict:
        """Returns the model options with this hook's patches, for all calls of the run."""
        return options

    def around(self, call: Call, rows: Any) -> Call:
        """Returns `call`, which evaluates `rows`, with what this hook does before and after it."""
        return call


def installed(hooks: Sequence[Hook], options: dict) -> dict:
    """Returns the model options with the patches of all hooks."""
    for hook in hooks:
        options = hook.install(options)
    return options


def with_options(options: dict, more: dict) -> dict:
    """Returns the model options with more entries in their transformer_options."""
    return {**options, "transformer_options": {**options.get("transformer_options", {}), **more}}
