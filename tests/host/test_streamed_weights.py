"""Newer ComfyUI streams weights to a GPU, in a way that knows neither gradients nor LoRAs as hooks.

Nodes that need these have it read an ordinary model.
"""

import gc
import weakref

import pytest
import torch

from comfy_host import Graph, pack_module, refused
from conductor_graph import chain, conductor
from conductor_oracle import random_lora
from learned_concepts import TEXT, blend, blend_concept, closest, encode, guidance, ksampler, learn, learned, samples
from oracle import relative_error
from small_models import LAYOUTS, comfy_model, diffusers_unet, small_clip

pytestmark = pytest.mark.newest


def streamed(patcher, twin=None):
    """What a loader of such a host gives; `twin` is what it reads when asked for an ordinary model."""
    from comfy.model_patcher import ModelPatcher

    class Streamed(ModelPatcher):
        def is_dynamic(self):
            return True

        def set_in_use_by_current_prompt(self, in_use):
            pass

    own = Streamed(patcher.model, patcher.load_device, patcher.offload_device)
    if twin is not None:
        own.cached_patcher_init = (lambda disable_dynamic: twin.clone(), ())
    return own


@pytest.fixture
def models():
    """The same weights thrice: to be streamed, to be read again, and to compare with."""
    return [comfy_model(LAYOUTS["SD 1.x"]) for _ in range(3)]


def learned_by(model, clip):
    graph = Graph()
    return graph.run(learned=learn(graph, model, clip))["learned"]


def test_learning(models):
    clips = [small_clip("SD 1.x") for _ in range(3)]
    model = streamed(*models[:2])
    clips[0].patcher = streamed(clips[0].patcher, clips[1].patcher)
    assert closest(learned_by(model, clips[0]), learned_by(models[2], clips[2])) == 0


def test_what_was_read_to_learn_with_goes_with_the_node(models):
    read = []

    def again(disable_dynamic: bool):
        read.append(weakref.ref(models[1].model))
        return models.pop(1)

    model = streamed(models[0])
    model.cached_patcher_init = (again, ())
    learned_by(model, small_clip("SD 1.x"))
    gc.collect()
    assert [own() for own in read] == [None]


def test_blending_guidance(models):
    def picture(model) -> torch.Tensor:
        graph, clip = Graph(), small_clip("SD 1.x")
        chained = blend_concept(graph, learned(models[2], "dog", 1))
        blended, positive = blend(graph, model, clip, chained, text=TEXT)
        guided = guidance(graph, blended, end_percent=1.0)
        return samples(graph, ksampler(graph, guided, positive, encode(graph, clip, "")))[0]

    assert relative_error(picture(streamed(*models[:2])), picture(models[2])) == 0


def conduct(model) -> torch.Tensor:
    graph = Graph()
    link = conductor(graph, model, chain(graph, [random_lora(diffusers_unet(LAYOUTS["SD 1.x"]), 1)]))
    return graph.run(latent=link)["latent"]["samples"]


def test_conducting_reads_the_model_once_and_keeps_it_no_longer_than_the_graph(models):
    read, model = [], streamed(models[0])
    model.cached_patcher_init = (lambda disable_dynamic: read.append(1) or models[1].clone(), ())
    assert relative_error(conduct(model), conduct(models[2])) == 0
    conduct(model)
    assert read == [1]
    resident = pack_module("conductor.paths").RESIDENT
    known, gone = len(resident), weakref.ref(model)
    del model
    Graph()  # a new one forgets what was given to the last
    gc.collect()
    assert gone() is None and len(resident) == known - 1


def test_a_model_that_cannot_be_read_again(models):
    with refused("Train Concept", "model", "--disable-dynamic-vram"):
        learned_by(streamed(models[0]), small_clip("SD 1.x"))
