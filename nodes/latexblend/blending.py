"""Blend Concept and Blend: trained concepts in a prompt."""

from comfy_api.latest import io
from typing_extensions import override

from ...pnpmix.latexblend.blending import Slot
from ..common.checks import BadInput, check_choice, check_mask, check_model, check_numbers
from ..common.messages import at_fault, show
from ..common.types import EXPERT, LATEXBLEND_CATEGORY, BlendedConcept, BlendType, TrainedConcept, TrainedType, schema
from .hooks import NODE, PLAN, Plan, install
from .layers import check_fits, checkpoint_name, fingerprint
from .words import left_out_of, place, write

SLOTS = ["auto", "replace", "insert"]


class PnPMixBlendConcept(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return schema(
            node_id="PnPMixBlendConcept",
            search_aliases=["multi concept", "multi subject", "personalization", "latexblend", "lora", "pnp-mix"],
            display_name="Blend Concept",
            category=LATEXBLEND_CATEGORY,
            description="A trained concept, and the word of the prompt that it replaces. Chain one for each.",
            inputs=[
                TrainedType.Input("learned", tooltip="From Train Concept or Load Concept."),
                io.Int.Input(
                    "occurrence",
                    default=1,
                    min=1,
                    max=99,
                    tooltip="Which occurrence of the noun in the text becomes the concept. 2: the second.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.01,
                    tooltip="0: the plain prompt, 1: the concept, linear in between. Lower: less like the photos, "
                    "more variation.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where in the image the concept may act; scaled to the image. Unwired: anywhere.",
                ),
                BlendType.Input("concepts", optional=True, tooltip="The concepts before this one."),
            ],
            outputs=[BlendType.Output(display_name="concepts", tooltip="For the next Blend Concept, or for Blend.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @override
    def execute(cls, learned: TrainedConcept, occurrence, strength, mask=None, concepts=()) -> io.NodeOutput:
        check_numbers("Blend Concept", occurrence=occurrence, strength=strength)
        if mask is not None:
            mask = check_mask(f"Blend Concept '{learned.name}'", "mask", mask, "Paint where the concept should be.")
        return io.NodeOutput([*concepts, BlendedConcept(learned, occurrence, strength, mask, cls.hidden.unique_id)])


class PnPMixBlend(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return schema(
            node_id="PnPMixBlend",
            search_aliases=["multi concept", "blend concepts", "latexblend", "personalization", "pnp-mix"],
            display_name=NODE,
            category=LATEXBLEND_CATEGORY,
            description="Encodes a prompt in which words become trained concepts (LaTexBlend). Any sampler may follow.",
            inputs=[
                io.Model.Input(
                    "model", tooltip="The checkpoint that the concepts were trained with. LoRAs may be on it."
                ),
                io.Clip.Input("clip", tooltip="The CLIP of the same checkpoint."),
                io.String.Input(
                    "text",
                    multiline=True,
                    tooltip="The prompt, with the noun of each concept: a photo of a dog and a cat on a beach.",
                ),
                BlendType.Input("concepts", tooltip="The chain of Blend Concept nodes."),
                io.Float.Input(
                    "start_percent",
                    default=0.1,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="When the concepts start to act (fraction of the steps). Higher: the plain prompt "
                    "decides the "
                    "layout, and the concepts' shapes show less.",
                    **EXPERT,
                ),
                io.Boolean.Input(
                    "bind",
                    default=True,
                    tooltip="Each concept's identifier attends where its noun does. Off: as trained, which leaks "
                    "more between concepts.",
                    **EXPERT,
                ),
                io.Combo.Input(
                    "slot",
                    options=SLOTS,
                    default="auto",
                    tooltip="Which token the identifier replaces before the noun. auto: an article, or an inserted "
                    "'a'; "
                    "replace: the word before it; insert: always an inserted 'a'.",
                    **EXPERT,
                ),
                io.Float.Input(
                    "region",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.01,
                    tooltip="How strictly concepts are limited to their masks. 0: not at all; 1: nothing outside.",
                    **EXPERT,
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="For the sampler. Other prompts are unchanged with it."),
                io.Conditioning.Output(display_name="positive", tooltip="For the sampler, with this model."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    @override
    def execute(cls, model, clip, text, concepts, start_percent, bind, slot, region) -> io.NodeOutput:
        check_numbers(NODE, start_percent=start_percent, region=region)
        check_choice(NODE, "slot", slot, SLOTS)
        check_model(NODE, model)
        if not concepts:
            raise BadInput(NODE, "concepts", "it holds none.", "Wire Blend Concept.")
        for concept in concepts:
            with at_fault(concept.node_id):
                check_fits(f"Blend Concept '{concept.learned.name}'", "learned", concept.learned, model)
        with at_fault(concepts[-1].node_id):
            chunks, firsts = place(NODE, clip, text, concepts, slot)
        messages = warnings(model, concepts, cls.hidden.prompt, cls.hidden.unique_id) + left_out_of(NODE, clip, text)
        show(NODE, cls.hidden.unique_id, messages)
        slots = [
            Slot(c.learned.features, first, length_of(c.learned), c.strength, c.mask)
            for c, first in zip(concepts, firsts, strict=True)
        ]
        blended = model.clone()
        install(blended)
        positive = [
            [context, {**options, PLAN: Plan(slots, context, start_percent, bind, region)}]
            for context, options in clip.encode_from_tokens_scheduled(write(chunks))
        ]
        return io.NodeOutput(blended, positive)


def length_of(learned: TrainedConcept) -> int:
    """Returns the tokens of a concept's slot, 1 + L."""
    return len(next(iter(learned.features.values()))[0])


def warnings(model, concepts: list[BlendedConcept], prompt: dict, node_id: str) -> list[str]:
    """Warns of concepts that were trained on another checkpoint."""
    own = fingerprint(model)
    return [
        f"Warning: '{c.learned.name}' was trained with {c.learned.checkpoint or 'another checkpoint'}, and this is "
        f"{checkpoint_name(prompt, node_id) or 'another one'}. It may look different; train it again if it does."
        for c in concepts
        if c.learned.fingerprint != own
    ]


NODES = [PnPMixBlendConcept, PnPMixBlend]
