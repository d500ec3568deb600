"""A learned concept in PnP-MIX: each acts in the rows of its own concept alone."""

from functools import cache, partial

import pytest
import torch

from blend_oracle import OracleSlot
from comfy_host import Graph, output, pack_module, refused
from learned_concepts import CAR, DOG, TEXT, blend, blend_concept, diffusers_names, encode, learned
from mixer_graph import appearance, concept, dilution, mixer
from mixer_graph import invert as invert_longer
from oracle import OracleConcept, PnPMix, Prompt, relative_error
from pictures import HEIGHT, WIDTH, ellipse, latent
from small_models import LAYOUTS, comfy_model, diffusers_unet, small_clip
from small_transformers import FAMILIES, small_transformer
from small_transformers import conditioning as flux_prompt

NEGATIVE, OWN = "blurry", "a photo of a cat"
STEPS, SKIP = 4, 1
invert = partial(invert_longer, steps=STEPS, skip_steps=SKIP)


class Case:
    """A model, its CLIP and two learned concepts."""

    def __init__(self, layout: str):
        self.layout, self.unet, self.clip = layout, diffusers_unet(LAYOUTS[layout]), small_clip(layout)
        self.model = comfy_model(LAYOUTS[layout], self.unet)
        self.things = [learned(self.model, "dog", 1), learned(self.model, "sports car", 2, tokens=3)]

    @cache  # noqa: B019 as long as the module's tests
    def mixed(self, wired=(0, 1), own_prompt=False, **settings) -> torch.Tensor:
        """Output and references. `wired`: the concepts whose learned one is wired to Concept too."""
        graph, link, words = Graph(), None, None
        for thing in self.things:
            words = blend_concept(graph, thing, words)
        blended, positive = blend(graph, self.model, self.clip, words)
        for k, thing in enumerate(self.things):
            own = {"learned": thing} if k in wired else {}
            if own_prompt and k == 1:
                own["positive"] = encode(graph, self.clip, OWN)
            link = concept(graph, k, link, **own)
        plain, negative = encode(graph, self.clip, TEXT), encode(graph, self.clip, NEGATIVE)
        inversion = invert(graph, self.model, positive=plain, negative=negative)
        patched = dilution(graph, appearance(graph, blended))
        given = dict(positive=positive, negative=negative, **settings)
        result = mixer(graph, patched, inversion, link, **given)
        results = graph.run(latent=result, references=output(result, 1))
        return torch.cat([results["latent"]["samples"], results["references"]["samples"]])

    def prompt(self, text: str, *blended: OracleSlot) -> Prompt:
        context, pooled = self.clip.encode_from_tokens(self.clip.tokenize(text), return_pooled=True)
        return Prompt(context, pooled if self.layout == "SDXL" else None, (HEIGHT, WIDTH), list(blended))

    def expected(self, own_prompt=False, cfg=1.0) -> torch.Tensor:
        """From the equations, with each prompt encoded and blended by itself."""
        names, scale = diffusers_names(self.model), self.model.model.latent_format.scale_factor
        prediction = "v_prediction" if LAYOUTS[self.layout].model_type == "V_PREDICTION" else "epsilon"
        plain, negative = self.prompt(TEXT), self.prompt(NEGATIVE)
        method = PnPMix(self.unet, prediction, plain, negative, STEPS, SKIP, beta=0.8, seed=7, cfg=cfg)
        given = []
        for k, (thing, tokens) in enumerate(zip(self.things, (DOG, CAR), strict=True)):
            features = {names[name][: -len(".to_k.weight")] + ".processor": x for name, x in thing.features.items()}
            scene = self.prompt(TEXT, OracleSlot(features, tokens))
            own = self.prompt(OWN) if own_prompt and k == 1 else None
            inputs = dict(seed=1 + k, prompt=own, scene_prompt=scene)
            given.append(OracleConcept(latent(10 + k) * scale, ellipse(k), ellipse(1 - k), **inputs))
        result, references = method.run(latent(0) * scale, given, inpainted=latent(5) * scale)
        return torch.cat([result, *references]) / scale


@pytest.fixture(scope="module")
def case(request):
    return Case(request.param)


@pytest.fixture(scope="module")
def small():
    return Case("SD 1.x")


@pytest.mark.oldest
@pytest.mark.parametrize(
    "case, settings", [("SD 1.x", dict(own_prompt=True, cfg=3.0)), ("SDXL", {})], indirect=["case"]
)
def test_the_rows_of_a_concept_have_that_concept_alone_in_their_prompt(case, settings):
    ours, theirs = case.mixed(**settings), case.expected(**settings)
    assert all(relative_error(x, y) < 2e-4 for x, y in zip(ours, theirs, strict=True))


@pytest.mark.newest
def test_it_is_so_with_the_newest_comfyui(small):
    assert relative_error(small.mixed(), small.expected()) < 2e-4
    assert relative_error(small.mixed(wired=()), small.mixed()) > 1e-3, "it does something"


@pytest.mark.oldest
def test_a_learned_concept_adds_no_row(small):
    """Nor a call."""
    rows = []
    hook = small.model.model.diffusion_model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    try:
        Case.mixed.__wrapped__(small, wired=())
        before, rows[:] = list(rows), []
        Case.mixed.__wrapped__(small)
    finally:
        hook.remove()
    assert rows == before


@pytest.mark.oldest
def test_a_concept_that_is_wired_nowhere_acts_in_every_row(small, monkeypatch):
    """Bit for bit as before there was this input; also beside a Concept that has one."""
    hook = pack_module("mixer.hooks.trained_concepts").TrainedConcepts
    everywhere = small.mixed(wired=())
    with monkeypatch.context() as before:
        before.setattr(hook, "around", lambda self, call, rows: call)
        assert torch.equal(Case.mixed.__wrapped__(small, wired=()), everywhere)
    assert relative_error(small.mixed(wired=(0,))[1], everywhere[1]) < 1e-5, "the dog's row has both words"
    assert relative_error(small.mixed(wired=(0,))[2], small.mixed()[2]) < 1e-5, "the car's has the car alone"


@pytest.mark.oldest
def test_what_is_kept_for_the_next_run_knows_what_was_learned(small):
    def run(*things) -> torch.Tensor:
        given = dict(positive=positive, negative=negative, keep_personal=True)
        links = None
        for k, thing in enumerate(things):
            links = concept(graph, k, links, learned=thing)
        return graph.run(latent=mixer(graph, patched, kept, links, **given))["latent"]["samples"]

    graph = Graph()
    words = blend_concept(graph, small.things[1], blend_concept(graph, small.things[0]))
    blended, positive = blend(graph, small.model, small.clip, words)
    patched, negative = appearance(graph, blended), encode(graph, small.clip, NEGATIVE)
    inversion = invert(graph, small.model, positive=encode(graph, small.clip, TEXT), negative=negative)
    kept = graph.run(x=inversion)["x"]
    first, other = run(*small.things), run(None, small.things[1])
    assert relative_error(run(*small.things), first) < 1e-5
    assert relative_error(first, other) > 1e-4


def refusal(small, thing=None, model=None, positive="plain", own=None) -> None:
    """Runs one Concept with a graph in which Blend puts the car into a prompt."""
    graph = Graph()
    blended, words = blend(graph, small.model, small.clip, blend_concept(graph, small.things[1]))
    plain, negative = encode(graph, small.clip, TEXT), encode(graph, small.clip, NEGATIVE)
    prompts = {"plain": plain, "blended": words, None: None}
    inversion = invert(graph, small.model, positive=plain, negative=negative)
    link = concept(graph, 0, learned=thing, name="mine", positive=prompts[own])
    given = dict(positive=prompts[positive], negative=negative)
    graph.run(x=mixer(graph, model or blended, inversion, link, **given))


@pytest.mark.oldest
def test_a_learned_concept_that_cannot_act_is_named(small):
    dog, car = small.things
    with refused("Concept 'mine'", "'learned'", "no word of the Mask Noise Mixer's prompt becomes 'dog'"):
        refusal(small, dog)
    with refused("Concept 'mine'", "'learned'", "becomes 'dog'", "Wire Blend's positive"):
        refusal(small, dog, positive="blended")
    with refused("Concept 'mine'", "'learned'", "another family", "SDXL EPS"):
        refusal(small, car._replace(family="SDXL EPS"), positive="blended")
    with refused("Concept 'mine'", "'learned'", "does not know 'sports car'", "same Blend"):
        refusal(small, car, small.model, "blended")
    with refused("Concept 'mine'", "'positive'", "blended"):
        refusal(small, own="blended")


@pytest.mark.oldest
def test_a_transformer_has_no_place_for_it(small):
    transformer = small_transformer("Flux.1")
    graph, common = Graph(), dict(positive=flux_prompt("Flux.1", 1), negative=flux_prompt("Flux.1", 2))
    size = {"samples": torch.zeros(1, FAMILIES["Flux.1"].channels, 6, 8)}
    inversion = invert(graph, transformer, latent=size, steps=2, skip_steps=0, scheduler="simple", **common)
    link = concept(graph, 0, latent=size, learned=small.things[0], name="mine")
    with refused("Concept 'mine'", "'learned'", "transformer", "Unwire it"):
        graph.run(x=mixer(graph, transformer, inversion, link, **common))
