"""Multipath sampling in ComfyUI: a guider that runs one branch at a time, and the sampler that calls it."""

import math
import weakref
from collections.abc import Callable
from functools import partial

import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from ...pnpmix.attention import attention_probabilities
from ...pnpmix.conductor.injection import fuse, inside
from ...pnpmix.conductor.layout import Alignment, Layout, layout_gradient, nearest_level
from ...pnpmix.conductor.refinement import Masks, Refinement
from ...pnpmix.conductor.sampling import Placement, sample_concept_conductor
from ..common.checks import BadInput
from ..common.gradients import ordinary_weights, with_gradients
from ..common.loading import resident
from ..common.memory import is_oom
from ..common.types import LAYOUT_GUIDANCE, REFINEMENT, ConductedConcept, LayoutGuidance
from .taps import Layers, Stop, differentiable, here, layers_of, with_attention_tap, with_patch, with_stop

NODE = "Conductor"
RESIDENT: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # MODEL → what it is run as, see `kept_resident`
KINDS = {"both": ("self", "cross"), "self": ("self",), "cross": ("cross",)}


def kept_resident(model):
    """Returns `resident(model)`, once while the graph holds the MODEL, so that another seed reads no file again."""
    if model in RESIDENT:
        return RESIDENT[model]
    own = resident(NODE, model)
    if own is not model:
        RESIDENT[model] = own
    return own


class BranchGuider(comfy.samplers.CFGGuider):
    """Branch 0 is the base model, 1..n are the concepts, whose weights come as hooks of their conditioning."""

    reads = frozenset({LAYOUT_GUIDANCE, REFINEMENT})

    def __init__(
        self,
        model,
        positive: list,
        negative: list,
        cfg: float,
        concepts: list[ConductedConcept],
        guidance: LayoutGuidance | None,
    ):
        super().__init__(model)
        self.set_cfg(cfg)
        conds = {"positive": positive, "negative": negative}
        for k, concept in enumerate(concepts, 1):
            conds |= {f"positive {k}": concept.positive, f"negative {k}": concept.negative}
        if guidance is not None:
            conds["layout"] = guidance.reference.positive
        self.model_patcher = kept_resident(model)
        self.inner_set_conds(conds)

    def names(self, branch: int) -> tuple[str, str]:
        return ("positive", "negative") if branch == 0 else (f"positive {branch}", f"negative {branch}")

    def rows(self, names: tuple[str, ...], x: Tensor, sigma: Tensor, options: dict) -> None:
        """One call of the model, or two where memory is short, for what the taps in `options` take from it."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        conds = [self.conds[name] for name in names]
        comfy.samplers.calc_cond_batch(self.inner_model, conds, x, sigma.expand(len(x)), options)

    def guided(self, x: Tensor, sigma: Tensor, options: dict, seed: int | None) -> Tensor:
        """Denoised estimate of the base model with classifier-free guidance."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        positive, negative = self.conds["positive"], self.conds["negative"]
        arguments = (x, sigma.expand(len(x)), negative, positive, self.cfg, options, seed)
        return comfy.samplers.sampling_function(self.inner_model, *arguments)


class Branches:
    """`pnpmix.conductor.sampling.Paths` for the time of one run."""

    def __init__(self, guider: BranchGuider, concepts: int, inject: str, options: dict, seed: int | None):
        self.guider, self.concepts, self.seed = guider, concepts, seed
        self.kinds = KINDS[inject]
        self.layers: Layers = layers_of(guider.inner_model.diffusion_model)
        self.layout: Layout | None = None
        self.kept: dict = {}  # F_ref by level
        self.features: dict[tuple, Tensor] = {}  # by layer, kind, concept and chunk
        self.branch, self.masks = 0, Masks({}, torch.empty(0), torch.empty(0))
        self.tapped: Tensor | None = None
        self.recording = with_stop(self.with_outputs(options, self.record_output))
        self.fusing = self.with_outputs(options, self.fuse_output)
        self.keying = with_stop(with_attention_tap(differentiable(options), self.layers.keys, self.take_keys))

    def with_outputs(self, options: dict, patch: Callable) -> dict:
        for name, kind in (("attn1_output_patch", "self"), ("attn2_output_patch", "cross")):
            if kind in self.kinds:
                options = with_patch(options, name, partial(patch, kind))
        return options

    # What the taps do

    def take_keys(self, query: Tensor, key: Tensor, extra: dict) -> None:
        self.tapped = key
        raise Stop

    def take_attention(self, query: Tensor, key: Tensor, extra: dict) -> None:
        """Of the conditional rows."""
        chunks = extra["cond_or_uncond"]
        if 0 in chunks:
            size = len(query) // len(chunks)
            rows = slice(chunks.index(0) * size, (chunks.index(0) + 1) * size)
            self.tapped = attention_probabilities(query[rows], key[rows], extra["n_heads"])

    def layer_masks(self, extra: dict) -> Tensor:
        """(n, B, tokens)."""
        return self.masks.final[tuple(extra["activations_shape"][-2:])].flatten(2)

    def record_output(self, kind: str, hidden: Tensor, extra: dict) -> Tensor:
        layer = here(extra)
        if layer[0] != "output":
            return hidden
        chunks, mask = extra["cond_or_uncond"], self.layer_masks(extra)[self.branch - 1]
        for chunk, rows in zip(chunks, hidden.chunk(len(chunks)), strict=True):
            self.features[layer, kind, self.branch, chunk] = inside(rows, mask)
        if layer == self.layers.last and kind == self.kinds[-1]:
            raise Stop
        return hidden

    def fuse_output(self, kind: str, hidden: Tensor, extra: dict) -> Tensor:
        layer = here(extra)
        if layer[0] != "output":
            return hidden
        chunks, masks, concepts = extra["cond_or_uncond"], self.layer_masks(extra), range(1, self.concepts + 1)
        fused = [
            fuse(rows, [self.features[layer, kind, k, chunk] for k in concepts], masks)
            for chunk, rows in zip(chunks, hidden.chunk(len(chunks)), strict=True)
        ]
        return torch.cat(fused)

    # What the loop calls

    def keys(self, name: str, x: Tensor, sigma: Tensor) -> Tensor:
        self.guider.rows((name,), x, sigma, self.keying)
        return self.tapped

    def reference(self, sigma: Tensor) -> Tensor:
        level = nearest_level(self.layout, sigma)
        if level not in self.kept:
            x = self.layout.trajectory[level : level + 1].to(sigma.device)
            keys = self.keys("layout", x, self.layout.sigmas[level].to(sigma))
            self.kept[level] = keys.detach().clone().cpu()
        return self.kept[level].to(sigma.device)

    def layout_gradient(self, branch: int, x: Tensor, sigma: Tensor) -> Tensor:
        reference = self.reference(sigma)
        try:
            with with_gradients():
                x = x.clone().requires_grad_()
                keys = self.keys(self.guider.names(branch)[0], x, sigma.clone())
                return layout_gradient(keys, reference.clone(), x)
        except RuntimeError as error:
            if is_oom(error):
                raise
            fault = f"something in this MODEL cannot be run backwards ({error})."
            remedy = "Take off other patches, or bypass Layout Alignment."
            raise BadInput("Layout Alignment", "model", fault, remedy) from error
        finally:
            self.tapped = None

    def record(self, branch: int, x: Tensor, sigma: Tensor, masks: Masks, attention: bool) -> Tensor | None:
        self.branch, self.masks = branch, masks
        options = self.tapping(self.recording, attention)
        names = self.guider.names(branch)
        if math.isclose(self.guider.cfg, 1) and not options.get("disable_cfg1_optimization"):
            names = names[:1]  # as ComfyUI leaves out what has no weight
        self.guider.rows(names, x, sigma, options)
        return self.tapped if attention else None

    def denoise(self, x: Tensor, sigma: Tensor, masks: Masks, attention: bool) -> tuple[Tensor, Tensor | None]:
        self.masks = masks
        denoised = self.guider.guided(x, sigma, self.tapping(self.fusing, attention), self.seed)
        return denoised, self.tapped if attention else None

    def tapping(self, options: dict, attention: bool) -> dict:
        return with_attention_tap(options, self.layers.attention, self.take_attention) if attention else options


class ConductSampler(comfy.samplers.Sampler):
    """Concept Conductor; the masks of the end are left in `masks`."""

    def __init__(
        self,
        masks: Masks,
        inject: str,
        guidance: LayoutGuidance | None,
        kept: dict,
        refinement: Refinement | None,
        show_masks: Callable[[Tensor, Masks], None],
    ):
        self.masks, self.inject, self.guidance, self.kept = masks, inject, guidance, kept
        self.refinement, self.show_masks = refinement, show_masks

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask=None, disable_pbar=False
    ):
        device, steps = sigmas.device, len(sigmas) - 1
        final = {grid: x.to(device) for grid, x in self.masks.final.items()}
        masks = Masks(final, self.masks.custom.to(device), self.masks.base.to(device))
        options, seed = extra_args["model_options"], extra_args["seed"]
        branches = Branches(model_wrap, len(masks.custom), self.inject, options, seed)
        alignment, differentiated = None, []
        if self.guidance is not None:
            differentiated = [model_wrap.inner_model, *(patcher.model for patcher in model_wrap.loaded_models)]
            reference = self.guidance.reference
            branches.layout, branches.kept = reference.layout, self.kept
            alignment = Alignment(reference.layout, *self.guidance[1:4])
        placement = None
        if denoise_mask is not None:
            placement = Placement(latent_image.float(), noise, denoise_mask[:, :1].float())
        seen = [masks]

        def preview(step: int, denoised: Tensor, x: Tensor, masks: Masks) -> None:
            if masks is not seen[-1]:
                seen.append(masks)
                self.show_masks(denoised, masks)
            callback(step, denoised, x, steps)

        with ordinary_weights(*differentiated):
            x, self.masks = sample_concept_conductor(
                branches, noise, sigmas, masks, alignment, self.refinement, placement, preview
            )
        return x
