"""Checks of the Conductor's inputs."""

import comfy.lora
import comfy.ops
import torch
from comfy.hooks import EnumHookType
from torch import Tensor

from ..common.checks import BadInput, check_conditioning, check_latent, check_size, model_family
from ..common.compiled import is_compiled
from ..common.messages import at_fault
from ..common.types import CONCEPT_FILE, ConceptFile, ConductedConcept, LayoutGuidance
from .layers import layers_of
from .lora_weights import counted, fitting

SPECIAL = {"area", "mask", "gligen", "start_percent", "end_percent"}


def check_plain_prompt(node: str, name: str, conditioning: list) -> None:
    """Refuses prompts that are combined, timed or limited to an area: a branch has one for the whole image."""
    special = [key for _, options in conditioning for key in options if key in SPECIAL]
    if len(conditioning) != 1 or special:
        fault = "it is combined, timed or limited to an area, and a branch takes one prompt for the whole image."
        raise BadInput(node, name, fault, "Wire a plain prompt; the concept's mask says where it is.")


def check_not_compiled(node: str, model) -> None:
    """Refuses a compiled model, into whose layers nothing can be injected."""
    network = model.model.diffusion_model
    if is_compiled(model) or "diffusion_model" in model.object_patches or hasattr(network, "_orig_mod"):
        fault = "it is compiled, and its features can be neither read nor replaced."
        raise BadInput(node, "model", fault, "Bypass the node that compiles it.")


def check_batch(node: str, name: str, latent: dict) -> Tensor:
    """Returns the latents (B, C, H, W) float32 of a LATENT."""
    samples = latent["samples"]
    if not isinstance(samples, Tensor) or samples.ndim != 4 or samples.numel() == 0:
        return check_latent(node, name, latent)  # which says what is wrong
    for one in samples.split(1):
        check_latent(node, name, {"samples": one})
    return samples.float().cpu()


def check_concept(concept: ConductedConcept, model) -> list[str]:
    """Refuses prompts and LoRAs that do not fit, and returns messages about the LoRA."""
    node = f"Conducted Concept '{concept.name}'"
    for name, conditioning in (("positive", concept.positive), ("negative", concept.negative)):
        check_conditioning(node, name, conditioning, model)
        check_plain_prompt(node, name, conditioning)
    hooks, others = (x[0][1].get("hooks") for x in (concept.positive, concept.negative))
    if hooks is not others:
        fault = "it has another LoRA than positive."
        raise BadInput(node, "negative", fault, "Wire both outputs of the same Concept LoRA.")
    return [] if hooks is None else check_weights(concept, hooks, model)


def check_weights(concept: ConductedConcept, hooks, model) -> list[str]:
    """Refuses what ComfyUI would leave out with no more than a line in the log, and says how much of it fits."""
    file: ConceptFile = concept.positive[0][1].get(CONCEPT_FILE) or ConceptFile("its weights", 1)
    remedy, messages = "Use a LoRA of this model's family.", []
    with at_fault(file.node_id):
        count = layers_of(model.model.diffusion_model).depth
        if file.layers not in (1, count):
            fault = f"{file.name} has prompts for {file.layers} layers, and this model has {count}."
            raise BadInput("Concept LoRA", "lora_name", fault, "Use an ED-LoRA of this model's family.")
        changes, keys = file.changes_words, comfy.lora.model_lora_keys_unet(model.model, {})
        for hook in hooks.get_type(EnumHookType.Weight):
            if not hook.need_weight_init:  # of ComfyUI's own nodes, which made it from a checkpoint
                changes |= bool(hook.weights)
                continue
            found, all_layers = counted(hook.weights, keys, of_text=False)
            try:
                changes |= bool(fitting(hook.weights, keys, model.model))
            except ValueError as error:
                fault = f"{file.name} is for another model family: {error}."
                raise BadInput("Concept LoRA", "lora_name", fault, remedy) from error
            if all_layers:
                messages.append(f"{found} of {all_layers} layers of {file.name} are in this model.")
                if found < all_layers:
                    messages[-1] = f"Warning: {messages[-1]}"
        if not changes:
            fault = f"none of the layers of {file.name} is in this model, so that it changes nothing."
            raise BadInput("Concept LoRA", "lora_name", fault, remedy)
    return messages


def check_guidance(guidance: LayoutGuidance, model, latent: Tensor) -> None:
    """Refuses a layout reference of another model family or size, and weights without gradients."""
    node = "Layout Alignment"
    with at_fault(guidance.node_id):
        family = model_family(model)
        if guidance.reference.family != family:
            fault = f"it was made with a model of another family ({guidance.reference.family}, this one is {family})."
            raise BadInput(node, "layout", fault, "Make the layout reference with this checkpoint.")
        remedy = "Scale the layout image to the new image's size."
        check_size(node, "layout", guidance.reference.layout.trajectory, latent, "the new image", model, remedy)
        check_gradients(node, model.model.diffusion_model)


def check_gradients(node: str, unet: torch.nn.Module) -> None:
    """Refuses weights that have no backward pass: quantized tensors, and fp8 weights with fast fp8 operations."""
    for module in unet.modules():
        fast = isinstance(module, comfy.ops.fp8_ops.Linear) and module.weight.dtype.itemsize == 1
        quantized = any(type(x.data) is not Tensor for x in module._parameters.values() if x is not None)
        if fast or quantized:
            fault = "its weights are quantized and have no gradient."
            remedy = "Load it with weight_dtype default and without --fast fp8, or bypass Layout Alignment."
            raise BadInput(node, "model", fault, remedy)
