"""Multipath sampling in ComfyUI: a guider that runs one branch at a time, and the sampler that calls it."""

import math
import weakref
from collections.abc import Callable

import comfy.model_management
import comfy.samplers
from torch import Tensor

from ...pnpmix.conductor.layout import Alignment, Layout, layout_gradient, nearest_level
from ...pnpmix.conductor.refinement import Masks, Refinement
from ...pnpmix.conductor.sampling import Placement, sample_concept_conductor
from ..common.checks import BadInput
from ..common.gradients import ordinary_weights, with_gradients
from ..common.hooks import installed, with_options
from ..common.loading import resident
from ..common.memory import is_oom
from ..common.types import LAYOUT_GUIDANCE, REFINEMENT, ConductedConcept, LayoutGuidance
from .hooks import CALL, AttentionMap, BranchCall, Injection, LayoutCall, LayoutKeys, Recording
from .layers import layers_of

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
    """Guides branches: 0 is the base model, 1..n are the concepts, whose LoRAs come as hooks of their conditioning."""

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
        """Returns the names of a branch's prompts."""
        return ("positive", "negative") if branch == 0 else (f"positive {branch}", f"negative {branch}")

    def rows(self, names: tuple[str, ...], x: Tensor, sigma: Tensor, options: dict) -> None:
        """Evaluates the model once, or twice where memory is short, for what the hooks in `options` read of it."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        conds = [self.conds[name] for name in names]
        comfy.samplers.calc_cond_batch(self.inner_model, conds, x, sigma.expand(len(x)), options)

    def guided(self, x: Tensor, sigma: Tensor, options: dict, seed: int | None) -> Tensor:
        """Returns the denoised estimate of the base model with classifier-free guidance."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        positive, negative = self.conds["positive"], self.conds["negative"]
        arguments = (x, sigma.expand(len(x)), negative, positive, self.cfg, options, seed)
        return comfy.samplers.sampling_function(self.inner_model, *arguments)


class Branches:
    """Runs the branches for `pnpmix.conductor.sampling.Paths`, for the time of one run.

    Args:
        options: model options of the run.
        layout: what the layout alignment follows; None: there is none.
        reference_keys: F_ref by level, as far as they are known; others are added.
    """

    def __init__(
        self,
        guider: BranchGuider,
        concepts: int,
        inject: str,
        options: dict,
        seed: int | None,
        layout: Layout | None,
        reference_keys: dict,
    ):
        self.guider, self.concepts, self.seed = guider, concepts, seed
        self.layout, self.reference_keys = layout, reference_keys
        layers, kinds = layers_of(guider.inner_model.diffusion_model), KINDS[inject]
        features: dict[tuple, Tensor] = {}
        self.for_keys = installed([LayoutKeys(layers.keys)], options)
        recording, injection = Recording(features, kinds, layers.last), Injection(features, kinds, concepts)
        attention = AttentionMap(layers.attention)  # which only some steps read
        self.for_recording = [installed(hooks, options) for hooks in ([recording], [recording, attention])]
        self.for_injection = [installed(hooks, options) for hooks in ([injection], [injection, attention])]

    def keys(self, name: str, x: Tensor, sigma: Tensor) -> Tensor:
        """Returns the keys (B, tokens, channels) with a prompt of one of the branches."""
        call = LayoutCall()
        self.guider.rows((name,), x, sigma, with_options(self.for_keys, {CALL: call}))
        return call.keys

    def reference(self, sigma: Tensor) -> Tensor:
        """Returns F_ref at the layout's level next to `sigma`."""
        assert self.layout is not None, "only layout alignment asks for it"
        level = nearest_level(self.layout, sigma)
        if level not in self.reference_keys:
            x = self.layout.trajectory[level : level + 1].to(sigma.device)
            keys = self.keys("layout", x, self.layout.sigmas[level].to(sigma))
            self.reference_keys[level] = keys.detach().clone().cpu()
        return self.reference_keys[level].to(sigma.device)

    def layout_gradient(self, branch: int, x: Tensor, sigma: Tensor) -> Tensor:
        """Returns the gradient of `layout_loss` for x (B, C, H, W) of a branch."""
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

    def record(self, branch: int, x: Tensor, sigma: Tensor, masks: Masks, attention: bool) -> Tensor | None:
        """Records a concept's features, and returns its attention (B, T, T) where asked for."""
        call, options = BranchCall(masks, branch), self.for_recording[attention]
        names: tuple[str, ...] = self.guider.names(branch)
        if math.isclose(self.guider.cfg, 1) and not options.get("disable_cfg1_optimization"):
            names = names[:1]  # as ComfyUI leaves out what has no weight
        self.guider.rows(names, x, sigma, with_options(options, {CALL: call}))
        return call.attention

    def denoise(self, x: Tensor, sigma: Tensor, masks: Masks, attention: bool) -> tuple[Tensor, Tensor | None]:
        """Returns the base model's denoised estimate with the features injected, and its attention where asked for."""
        call = BranchCall(masks)
        options = with_options(self.for_injection[attention], {CALL: call})
        return self.guider.guided(x, sigma, options, self.seed), call.attention


class ConductSampler(comfy.samplers.Sampler):
    """Runs Concept Conductor; the final masks are left in `masks`."""

    def __init__(
        self,
        masks: Masks,
        inject: str,
        guidance: LayoutGuidance | None,
        reference_keys: dict,
        refinement: Refinement | None,
        show_masks: Callable[[Tensor, Masks], None],
    ):
        self.masks, self.inject, self.guidance = masks, inject, guidance
        self.reference_keys, self.refinement, self.show_masks = reference_keys, refinement, show_masks

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask=None, disable_pbar=False
    ):
        device, steps = sigmas.device, len(sigmas) - 1
        final = {grid: x.to(device) for grid, x in self.masks.final.items()}
        masks = Masks(final, self.masks.custom.to(device), self.masks.base.to(device))
        options, seed = extra_args["model_options"], extra_args["seed"]
        alignment, layout, differentiated = None, None, []
        if self.guidance is not None:
            differentiated = [model_wrap.inner_model, *(patcher.model for patcher in model_wrap.loaded_models)]
            layout = self.guidance.reference.layout
            alignment = Alignment(layout, *self.guidance[1:4])
        branches = Branches(model_wrap, len(masks.custom), self.inject, options, seed, layout, self.reference_keys)
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
