"""Patches that cache outputs from call to call: the calls of an inversion and of a mixer are not alike.

ComfyUI's EasyCache and LazyCache get a cache of their own for each kind of call. What others cache is out of reach, so
that a run stops where they answer with something that was cached of other batch rows.
"""

from ....pnpmix.mixer.sampling import BatchRows
from ...common.checks import BadInput
from ...common.hooks import Call, Hook
from ...common.memory import is_oom
from . import telling, with_first_patch

CACHE = "easycache"  # in transformer_options, of both nodes
PASSED = "pnpmix_passed"  # in transformer_options: the layers that a call has passed
REMEDY = "Bypass that patch; ComfyUI's own EasyCache and LazyCache work here."


def new_cache(transformer_options: dict, sampling) -> dict:
    """Returns what to add to the transformer_options of calls that share an empty cache.

    Args:
        sampling: the model_sampling in use.
    """
    pattern = transformer_options.get(CACHE)
    return {} if pattern is None else {CACHE: pattern.clone().prepare_timesteps(sampling)}


class HostCaches(Hook):
    """Gives each layout of batch rows a cache of its own, where EasyCache or LazyCache is in use.

    Args:
        sampling: the model_sampling in use.
    """

    def __init__(self, sampling):
        self.sampling, self.caches = sampling, {}

    def install(self, options: dict) -> dict:
        self.transformer_options = options["transformer_options"]
        return options

    def around(self, call: Call, rows: BatchRows) -> Call:
        if rows.roles == ("personal",):  # a call of its own is made for what it reads: nothing of it may be skipped
            return telling(call, new_cache(self.transformer_options, self.sampling))
        layout = (rows.roles, rows.concepts.start, rows.concepts.stop)
        if layout not in self.caches:
            self.caches[layout] = new_cache(self.transformer_options, self.sampling)
        return telling(call, self.caches[layout])


class Passed:
    """Counts the layers of one call."""

    def __init__(self):
        self.layers = 0


def count_layer(options: dict) -> None:
    """Counts a layer of the call that has these transformer_options, if its layers are counted."""
    if PASSED in options:
        options[PASSED].layers += 1


def counting_patch(q, key, value, extra_options):
    """Counts a self-attention layer of a UNet (an attn1_patch)."""
    count_layer(extra_options)
    return q, key, value


class ForeignCaches(Hook):
    """Stops a run where a call is answered, in whole or in part, with what was cached of other batch rows.

    Args:
        layers: how many layers a whole call passes, or a divisor of that; 0 where they are not counted.
        patched: whether self-attention layers are counted by a patch (UNets), in every call. Otherwise another hook
            counts them, in the calls that it guides.
    """

    def __init__(self, layers: int, patched: bool):
        self.layers, self.patched = layers, patched
        self.layout: tuple | None = None  # of the call before

    def install(self, options: dict) -> dict:
        return with_first_patch(options, "attn1_patch", counting_patch) if self.patched and self.layers > 0 else options

    def around(self, call: Call, rows: BatchRows) -> Call:
        def watched(options: dict):
            """Evaluates the call, and refuses cached outputs.

            Raises:
                BadInput: a patch answers for other rows than the model was asked for.
            """
            layout, passed = (rows.roles, rows.concepts), Passed()
            is_new = layout != self.layout
            try:
                prediction = telling(call, {PASSED: passed})(options)
            except RuntimeError as error:  # of torch: shapes do not fit
                if not is_new or self.layout is None or is_oom(error) or not {"size", "shape"} & words(error):
                    raise
                fault = f"one of its patches does not work with other batch rows than in the previous call ({error})."
                raise BadInput("Mask Noise Mixer", "model", fault, REMEDY) from error
            counted = self.layers > 0 and (self.patched or rows.roles != ("plain",))
            if is_new and counted and (passed.layers == 0 or passed.layers % self.layers > 0):
                fault = (
                    "one of its patches answers with outputs that it cached of other batch rows, which would be wrong."
                )
                raise BadInput("Mask Noise Mixer", "model", fault, REMEDY)
            self.layout = layout
            return prediction

        return watched


def words(error: Exception) -> set[str]:
    """Returns the words of an error message."""
    return set(str(error).lower().replace("sizes", "size").replace("shapes", "shape").split())


def attention_layers(unet) -> int:
    """Counts the transformer blocks of a UNet, each of which calls attn1_patch."""
    return sum(type(module).__name__ == "BasicTransformerBlock" for module in unet.modules())
