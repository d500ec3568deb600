"""A GPU works ahead of the program until the program looks at a number; then the two wait for each other.

A look in each layer costs more than what the layer adds. Counted on the CPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from comfy_host import Graph
from conductor_graph import run_conductor
from conductor_oracle import random_lora
from learned_concepts import blend, blend_concept, encode, ksampler, learned, samples
from mixer_graph import run_pnp_mix
from small_models import LAYOUTS, comfy_model, diffusers_unet, small_clip

pytestmark = pytest.mark.oldest
LOOKS = {
    getattr(torch.ops.aten, name).default for name in ("item", "_local_scalar_dense", "nonzero", "equal", "is_nonzero")
}


class Watch(TorchDispatchMode):
    """Counts looks at numbers within calls of a UNet."""

    inside, looks, calls = False, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.looks += self.inside and func in LOOKS
        return func(*args, **(kwargs or {}))


@pytest.fixture
def model():
    return comfy_model(LAYOUTS["SD 1.x"])


@contextmanager
def nothing_waits(model) -> Iterator[None]:
    watch, unet = Watch(), model.model.diffusion_model

    def before(*_):
        watch.inside, watch.calls = True, watch.calls + 1

    def after(*_):
        watch.inside = False

    hooks = [unet.register_forward_pre_hook(before), unet.register_forward_hook(after, always_call=True)]
    try:
        with watch:
            yield
    finally:
        for hook in hooks:
            hook.remove()
    assert watch.calls > 0 and watch.looks == 0


def test_mixing(model):
    with nothing_waits(model):
        run_pnp_mix(model)


def test_blending(model):
    graph, clip = Graph(), small_clip("SD 1.x")
    patched, positive = blend(graph, model, clip, blend_concept(graph, learned(model, "dog", 1)))
    with nothing_waits(model):
        samples(graph, ksampler(graph, patched, positive, encode(graph, clip, "")))


def test_conducting(model):
    loras = [random_lora(diffusers_unet(LAYOUTS["SD 1.x"]), k) for k in range(2)]
    with nothing_waits(model):
        run_conductor(model, loras)
