"""Blend's hook into ComfyUI's UNets: the keys and values of trained concepts, in the rows of its conditionings."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from comfy.model_patcher import set_model_options_patch_replace
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key, copy_nested_dicts, get_wrappers_with_key
from torch import Tensor

from ...pnpmix.latexblend.blending import Slot, acting, blend, region_bias
from ..common.attention import plain_attention
from ..common.checks import BadInput
from ..common.compiled import fully_guarded
from ..common.hooks import Hook, with_options
from .layers import cross_attentions

NODE, KEY = "Blend", "pnpmix_blend"
PLAN = "pnpmix_blend_plan"  # in a conditioning
# In transformer_options, for the length of one call: `Active` or None, by the uuids of conditionings, which are new in
# each run, and in the order of the call's chunks, which is all that a compiled model reads
ACTIVE, CHUNKS = "pnpmix_blend_active", "pnpmix_blend_chunks"
MAPS = "pnpmix_blend_maps"  # in transformer_options, while Blending Guidance looks
# Of the mixer's batches: in transformer_options for each row the concept that it belongs to, None where it has another
# prompt; in a conditioning that holds several prompts, the one that is blended
BELONGS, BLENDED = "pnpmix_blend_belongs", "pnpmix_blend_blended"


class Plan(NamedTuple):
    """What is blended into a conditioning."""

    slots: list[Slot]
    context: Tensor  # (1, tokens, width), which the slots are positions in
    start_percent: float
    bind: bool
    region: float


class Active(NamedTuple):
    """A plan in one sampling run."""

    plan: Plan  # on the device
    tokens: int  # of the conditioning, with what was joined to it
    start: float  # noise level from which on K and V are blended
    biases: dict  # of layers and slots already seen
    acts: bool = False  # whether they are blended in this call


class BlendedPrompts(Hook):
    """Blends trained concepts into the batch rows of their own conditionings, whatever sampler runs the MODEL."""

    def __init__(self, unet):
        self.unet = unet
        self.known: dict = {}  # uuid of a conditioning of the run → Active, None where nothing is blended

    def install(self, options: dict) -> dict:
        options = copy_nested_dicts(options)
        add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, self.wrap_call, options, is_model_options=True)
        add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, tell_chunks, options, is_model_options=True)
        add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, guard_fully, options, is_model_options=True)
        others = options["transformer_options"].get("patches_replace", {}).get("attn2", {})
        for name, (layer, _) in cross_attentions(self.unet).items():
            attention = BlendAttention(name, others.get(layer, others.get(layer[:2])))
            options = set_model_options_patch_replace(options, attention, "attn2", *layer)
        return options

    def wrap_call(self, executor, model, conds, x_in, timestep, model_options):
        """Provides a call with its plans (a CALC_COND_BATCH wrapper)."""
        entries = [(entry, own) for own in conds for entry in own or [] if entry.get(PLAN) is not None]
        if not entries:
            return executor(model, conds, x_in, timestep, model_options)
        if not self.known.keys() >= {entry["uuid"] for entry, _ in entries}:
            check_installed(model_options)
            self.known = {entry["uuid"]: activate(entry, own, model, x_in.device) for entry, own in entries}
        sigma = float(timestep.max())  # read once a call, because each look at a number waits for the GPU
        active = {uuid: None if x is None else x._replace(acts=sigma <= x.start) for uuid, x in self.known.items()}
        return executor(model, conds, x_in, timestep, with_options(model_options, {ACTIVE: active}))


def guard_fully(executor, *args, **kwargs):
    """Lets a compiled model be compiled again where what is blended changes (an OUTER_SAMPLE wrapper)."""
    guider = executor.class_obj
    guider.model_options = fully_guarded(guider.model_options, guider.model_patcher.model.diffusion_model)
    return executor(*args, **kwargs)


def tell_chunks(executor, x, t, c_concat, c_crossattn, control, transformer_options, **conds):
    """Looks up what is blended into each chunk of a call (an APPLY_MODEL wrapper)."""
    if ACTIVE in transformer_options:
        chunks = [transformer_options[ACTIVE].get(uuid) for uuid in transformer_options["uuids"]]
        transformer_options = {**transformer_options, CHUNKS: chunks}
    return executor(x, t, c_concat, c_crossattn, control, transformer_options, **conds)


def install(model) -> None:
    """Installs the hook on a clone of a MODEL, once however many Blends there are."""
    if not is_installed(model):
        model.model_options = BlendedPrompts(model.model.diffusion_model).install(model.model_options)


def is_installed(model) -> bool:
    """Says whether a Blend has patched the MODEL."""
    return bool(get_wrappers_with_key(WrappersMP.CALC_COND_BATCH, KEY, model.model_options, is_model_options=True))


def check_installed(model_options: dict) -> None:
    """Refuses a MODEL whose blended cross-attention a later node has replaced."""
    replaced = model_options["transformer_options"].get("patches_replace", {}).get("attn2", {})
    if not all(isinstance(x, BlendAttention) for key, x in replaced.items() if len(key) == 3) or not replaced:
        fault = "a later node put its own cross-attention in the place of the blended one."
        raise BadInput(NODE, "model", fault, "Put Blend after that node, for example after IP-Adapter.")


def activate(entry: dict, others: list[dict], model, device: torch.device) -> Active | None:
    """Brings a plan to the device of a run.

    Returns:
        None where the conditioning was emptied, as ConditioningZeroOut does, or is another one's copy.

    Raises:
        BadInput: its tokens are no longer those that Blend has counted.
    """
    plan: Plan = entry[PLAN]
    cond = entry.get(BLENDED, entry)["model_conds"]["c_crossattn"]
    context = cond.cond.to("cpu", torch.float32)
    # with areas, ComfyUI gives negative prompts the dictionary of a positive one
    copied = any(PLAN not in other and other["model_conds"].get("c_crossattn") is cond for other in others)
    if copied or not context.any():
        return None
    length = plan.context.shape[1]
    if context.shape[1] < length or not torch.equal(context[:, :length], plan.context.to("cpu", torch.float32)):
        fault = "its positive was changed by another node, so that the words of concepts cannot be told."
        raise BadInput(NODE, "text", fault, "Wire positive to the sampler itself, or join others behind it.")
    if "area" in entry and any(slot.mask is not None for slot in plan.slots):
        fault = "a concept has a mask, and its positive is limited to an area."
        raise BadInput(NODE, "concepts", fault, "Use the mask or the area, not both.")
    slots = [slot._replace(features=on(device, slot)) for slot in plan.slots]
    start = float(model.model_sampling.percent_to_sigma(plan.start_percent))
    return Active(plan._replace(slots=slots), context.shape[1], start, {})


def on(device: torch.device, slot: Slot) -> dict:
    """Returns the features of a slot on the device."""
    return {layer: tuple(x.to(device) for x in pair) for layer, pair in slot.features.items()}


class BlendAttention:
    """attn2_replace of one layer.

    Args:
        name: of the layer, as banks have it.
        other: the attn2_replace that was there, of IP-Adapter for example.
    """

    def __init__(self, name: str, other=None):
        self.name, self.other = name, other

    def to(self, target):
        return BlendAttention(self.name, self.other.to(target)) if hasattr(self.other, "to") else self

    def add(self, *_, **__):
        """How IP-Adapter joins a patch that it takes for its own."""
        raise BadInput(NODE, "model", "IP-Adapter comes after it.", "Put Blend after IP-Adapter.")

    def __call__(self, query, key, value, extra_options):
        mask, chunks = None, extra_options.get(CHUNKS, [])
        for n, active in enumerate(chunks):
            if active is None:
                continue
            each = len(key) // len(chunks)
            for rows, slots in parts(active.plan.slots, n * each, each, extra_options.get(BELONGS)):
                bias = self.change(rows, slots, query, key, value, active, extra_options)
                if bias is not None:
                    if mask is None:
                        mask = key.new_zeros(len(key), *bias.shape)
                    mask[rows] = bias.to(mask)
        if self.other is not None and mask is not None:
            fault = "a concept has a mask, and another node replaces cross-attention, as IP-Adapter does."
            raise BadInput(NODE, "concepts", fault, "Unwire the mask, or bypass that node.")
        if self.other is not None:
            return self.other(query, key, value, extra_options)
        return plain_attention(query, key, value, extra_options, mask)

    def change(
        self, rows: slice, slots: list[Slot], query, key, value, active: Active, extra_options: dict
    ) -> Tensor | None:
        """Blends and binds rows of one conditioning in place; gives what is added to their logits."""
        plan, tokens = active.plan, key.shape[1]
        repeats = range(0, tokens - active.tokens + 1, active.tokens)
        own_key, own_value = key[rows], value[rows]
        acts, grid = active.acts, tuple(extra_options["activations_shape"][2:])
        if MAPS in extra_options:  # at identifiers as they were trained
            free_key = own_key.clone()
            blend(free_key, own_value.clone(), self.name, slots, repeats, acts)
            extra_options[MAPS].look(self.name, query[rows], free_key, extra_options["n_heads"], grid, slots)
        if acts or plan.bind:
            blend(own_key, own_value, self.name, slots, repeats, acts, plan.bind)
        if plan.region == 0 or all(slot.mask is None for slot in slots):
            return None
        layer = (grid, tokens, *(slot.first for slot in slots))
        if layer not in active.biases:
            active.biases[layer] = region_bias(slots, plan.region, grid, tokens, repeats).to(key.device)
        return active.biases[layer]


def parts(
    slots: list[Slot], start: int, count: int, belongs: Sequence[int | None] | None
) -> Iterator[tuple[slice, list[Slot]]]:
    """The rows of one conditioning, and what acts in them.

    Args:
        start, count: of the rows in the batch.
        belongs: see `BELONGS`; None: the batch is not the mixer's.
    """
    if belongs is None:
        yield slice(start, start + count), slots
        return
    if len(belongs) != count:
        fault = f"one of its patches repeats, tiles or reorders the batch ({count} rows), so that rows cannot be told."
        raise BadInput("Mask Noise Mixer", "model", fault, "Bypass that patch, for example tiled diffusion.")
    for row, concept in enumerate(belongs, start):
        own = [] if concept is None else acting(slots, concept)
        if own:
            yield slice(row, row + 1), own
