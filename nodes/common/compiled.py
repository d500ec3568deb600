"""Models that torch.compile wraps: ComfyUI's TorchCompileModel does so, and other packs by the same function."""

import functools
from collections.abc import Callable

import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers.torch_compile import COMPILE_KEY, TORCH_COMPILE_KWARGS, apply_torch_compile_factory
from torch import nn

from .hooks import with_options


def is_compiled(model) -> bool:
    """Says whether torch.compile wraps the MODEL."""
    return bool(model.wrappers.get(WrappersMP.APPLY_MODEL, {}).get(COMPILE_KEY))


def fully_guarded(options: dict, network: nn.Module) -> dict:
    """Returns the model options of a run with a compiled network that is compiled again for other patches.

    Newer hosts drop torch's guards on `transformer_options`, so that a graph also answers calls with other patches, or
    with other settings of the same ones, as if they had not changed. What is not compiled is returned as it is.

    Args:
        options: with the wrappers of the MODEL, as a sampler gets them.
        network: the diffusion model.
    """
    if COMPILE_KEY not in apply_wrappers(options):
        return options
    settings = options[TORCH_COMPILE_KWARGS]
    compiled = torch.compile(network, **{**settings, "backend": own_backend(settings["backend"])})
    return with_apply_wrapper(options, [apply_torch_compile_factory({"diffusion_model": compiled})])


def uncompiled(options: dict) -> dict:
    """Returns the model options of a call that is not compiled."""
    return with_apply_wrapper(options, [])


def apply_wrappers(options: dict) -> dict[str, list]:
    """Returns the APPLY_MODEL wrappers by their keys."""
    return options["transformer_options"].get("wrappers", {}).get(WrappersMP.APPLY_MODEL, {})


def with_apply_wrapper(options: dict, own: list[Callable]) -> dict:
    """Returns the model options with other wrappers in the place of the one that compiles."""
    of_apply = {**apply_wrappers(options), COMPILE_KEY: own}
    wrappers = {**options["transformer_options"].get("wrappers", {}), WrappersMP.APPLY_MODEL: of_apply}
    return with_options(options, {"wrappers": wrappers})


@functools.cache
def own_backend(backend: str | Callable) -> Callable:
    """Returns a backend of torch.compile that does the same and is not equal to it.

    torch finds the graphs of a function by their backend: those that lack guards are of the host's, and never found.
    """

    def compile_graph(graph, inputs, **settings):
        if backend == "inductor":  # which as a function takes mode and options in another form
            import torch._inductor as inductor

            options = inductor.list_mode_options(settings.get("mode", "default")) | settings.get("options", {})
            return inductor.compile(graph, inputs, options)
        return torch._dynamo.lookup_backend(backend)(graph, inputs, **settings)

    return compile_graph
