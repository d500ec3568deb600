"""Concept LoRA and Conducted Concept: a prompt with its LoRA, and the mask of the concept."""

import comfy.hooks
import comfy.lora
import torch
from comfy_api.latest import io
from node_helpers import conditioning_set_values
from typing_extensions import override

from ..common.checks import BadInput, check_mask, check_numbers, check_text
from ..common.file_lists import model_files
from ..common.messages import show
from ..common.types import (
    CONCEPT_FILE,
    CONDUCTOR_CATEGORY,
    EXPERT,
    ConceptFile,
    ConductedConcept,
    ConductedType,
    schema,
)
from . import lora_files
from .layer_prompts import LayerPrompts, encode_for_each_layer, same_length, token_widths
from .lora_weights import counted, fitting


class PnPMixConceptLora(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return schema(
            node_id="PnPMixConceptLora",
            search_aliases=["lora", "ed-lora", "edlora", "load lora", "concept conductor", "character", "pnp-mix"],
            display_name="Concept LoRA",
            category=CONDUCTOR_CATEGORY,
            description="A prompt with its own LoRA, for a Conducted Concept. The model itself is unchanged.",
            inputs=[
                io.Clip.Input(
                    "clip", tooltip="CLIP of the same checkpoint. The LoRA's changes to it apply to this prompt only."
                ),
                io.Combo.Input(
                    "lora_name",
                    options=model_files("loras").names,
                    tooltip="A LoRA or ED-LoRA in models/loras. Pickle code in a file is never executed.",
                ),
                io.Float.Input(
                    "strength",
                    default=0.7,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Strength of the LoRA. Higher: closer to its images, less variation in pose and light.",
                ),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The whole image, with this concept's trigger words for every object: for a dog and a cat "
                    "on a beach, <dog1> <dog2> and <dog1> <dog2> on a beach.",
                ),
                io.String.Input(
                    "negative_text", default="", multiline=True, tooltip="Negative prompt of this concept's branch."
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="For Conducted Concept."),
                io.Conditioning.Output(display_name="negative", tooltip="For the same Conducted Concept."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @override
    def execute(cls, clip, lora_name, strength, text, negative_text="") -> io.NodeOutput:
        node = "Concept LoRA"
        check_numbers(node, strength=strength)
        for name, words in (("text", text), ("negative_text", negative_text)):
            check_text(node, name, words)
        file = lora_files.read(node, lora_name)
        layers = check_tokens(node, file, clip, text)
        clip, in_clip, messages = with_weights(node, clip, file, lora_name, strength)
        if file.unread:
            messages.append(
                f"Warning: ComfyUI does not read {len(file.unread)} entries of {lora_name}, such as {file.unread[0]}."
            )
        show(node, cls.hidden.unique_id, messages)
        negative = clip.encode_from_tokens_scheduled(clip.tokenize(negative_text))
        hooks = comfy.hooks.create_hook_lora(file.weights, strength, strength)
        if file.tokens:
            positive = encode_for_each_layer(clip, text, file.tokens, layers)
            ((cond, options),) = negative
            positive, negative = same_length(positive, [[torch.cat([cond] * layers, 1), options]], layers)
            hooks.add(LayerPrompts(layers))
        else:
            positive = clip.encode_from_tokens_scheduled(clip.tokenize(text))
        # one group for both: ComfyUI tells by its identity which prompts may share a call
        own = ConceptFile(lora_name, layers, cls.hidden.unique_id, bool(in_clip or file.tokens))
        named = {"hooks": hooks, CONCEPT_FILE: own}
        return io.NodeOutput(*(conditioning_set_values(x, named) for x in (positive, negative)))


def with_weights(node: str, clip, file: lora_files.LoraFile, name: str, strength: float) -> tuple[object, int, list]:
    """Returns a clone of the CLIP with the LoRA's text layers, their number, and messages."""
    keys = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
    try:
        patches = fitting(file.weights, keys, clip.cond_stage_model)
    except ValueError as error:
        fault = f"{name} is for another text encoder: {error}."
        raise BadInput(node, "lora_name", fault, "Use a LoRA of this checkpoint's family.") from error
    found, all_layers = counted(file.weights, keys, of_text=True)
    clip = clip.clone()
    clip.add_patches(patches, strength)
    said = [f"Warning: {found} of {all_layers} text layers of {name} are in this CLIP."] if found < all_layers else []
    return clip, len(patches), said


MOST_LAYERS = {"l": 16, "g": 70}  # with cross-attention, in UNets of these text encoders


def check_tokens(node: str, file: lora_files.LoraFile, clip, text: str) -> int:
    """Returns for how many cross-attention layers the file has a prompt, and refuses tokens that do not fit."""
    if not file.tokens:
        return 1
    remedy = "Use an ED-LoRA of this checkpoint's family, as its trainer saved it."
    sizes = {len(x) for parts in file.tokens.values() for x in parts.values()}
    widths = token_widths(clip)
    if not widths:
        raise BadInput(
            node,
            "clip",
            "it does not support the tokens of an ED-LoRA.",
            "Wire the CLIP of an SD 1.x or SDXL checkpoint.",
        )
    if len(sizes) != 1:
        fault = f"its tokens are for {' and '.join(map(str, sorted(sizes)))} layers."
        raise BadInput(node, "lora_name", fault, remedy)
    most = MOST_LAYERS["g" if "g" in widths else "l"]
    if max(sizes) > most:
        raise BadInput(node, "lora_name", f"its tokens are for {max(sizes)} layers, not at most {most}.", remedy)
    for token, parts in file.tokens.items():
        for encoder, width in widths.items():
            own = parts[encoder].shape[1] if encoder in parts else 0
            if own != width:
                fault = f"token '{token}' has {own} numbers for the text encoder {encoder}, expected: {width}."
                raise BadInput(node, "lora_name", fault, remedy)
    missing = [token for token in file.tokens if token not in text]
    if missing:
        fault = f"it lacks '{missing[0]}', a trigger word of this ED-LoRA."
        raise BadInput(node, "text", fault, f"Write {' '.join(file.tokens)} for every object.")
    return sizes.pop()


class PnPMixConductedConcept(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return schema(
            node_id="PnPMixConductedConcept",
            search_aliases=["multi concept", "multi lora", "regional lora", "regional prompt", "character", "pnp-mix"],
            display_name="Conducted Concept",
            category=CONDUCTOR_CATEGORY,
            description="A concept and its mask in the new image; chain one for each.",
            inputs=[
                io.Conditioning.Input("positive", tooltip="From Concept LoRA: the prompt with the concept's LoRA."),
                io.Conditioning.Input("negative", tooltip="From the same Concept LoRA."),
                io.Mask.Input("mask", tooltip="Where the concept goes, such as one object of the layout image."),
                ConductedType.Input("concepts", optional=True, tooltip="The concepts before this one."),
                io.String.Input(
                    "name", default="", tooltip="A name for messages, such as dog. Without it a number.", **EXPERT
                ),
            ],
            outputs=[
                ConductedType.Output(
                    display_name="concepts", tooltip="For the next Conducted Concept, or the Conductor."
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @override
    def execute(cls, positive, negative, mask, concepts=(), name="") -> io.NodeOutput:
        name = name or str(len(concepts) + 1)
        mask = check_mask(f"Conducted Concept '{name}'", "mask", mask, "Paint where the concept should be.")
        concept = ConductedConcept(positive, negative, mask, name, cls.hidden.unique_id)
        return io.NodeOutput([*concepts, concept])


NODES = [PnPMixConceptLora, PnPMixConductedConcept]
