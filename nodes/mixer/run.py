"""One run of the mixer: the node's decisions, what follows once the model is loaded, its guider and its sampler."""

from dataclasses import dataclass

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import latent_preview
import torch
from torch import Tensor

from ...pnpmix.mixer.dilution import Dilution
from ...pnpmix.mixer.inversion import Inversion, edit_friendly_trajectory
from ...pnpmix.mixer.sampling import BatchRows, roles_needed, sample_pnp_mix
from ...pnpmix.schedule import NoisePath
from ..common.beside import kept_beside
from ..common.checks import check_predictions
from ..common.compiled import fully_guarded, is_compiled
from ..common.hooks import Hook, installed
from ..common.memory import is_oom, pinned, place_for, room_for, rows_that_fit
from ..common.messages import show
from ..common.types import APPEARANCE, DILUTION, Appearance, InpaintedBackground
from .checks import NODE, check_caching, check_schedule, check_start, not_the_mixers
from .families import family_of, joint_blocks, noise_path
from .guider import RowGuider
from .hooks import ROWS, ConceptsOnGrid, areas_of, hooked
from .hooks.controlnet_hints import ControlNetHints
from .hooks.feature_cache import FeatureCache, dependencies
from .hooks.joint_attention import JointAttention
from .hooks.output_caches import CACHE, ForeignCaches, HostCaches, attention_layers
from .hooks.own_prompts import OwnPrompts, PromptsApart, is_apart, room_apart
from .hooks.trained_concepts import TrainedConcepts, each_to_its_own
from .hooks.unet_attention import UNetAttention
from .masks import Targets


@dataclass(frozen=True)
class Mix:
    """What the node decides, on the CPU, before the model is loaded."""

    inversion: Inversion
    targets: Targets
    guided: list[bool]  # for each step, whether appearance is guided
    adain: bool
    features: FeatureCache | None
    swap_guidance: float
    mix_reference_noise: bool
    falling_guidance: bool

    @property
    def rows_a_concept(self) -> int:
        """Counts the batch rows of a concept in a model call, at most."""
        return len(roles_needed(any(self.guided), self.swap_guidance))


@dataclass(frozen=True)
class Run:
    """All of one run, on the device: nothing is decided after this."""

    mix: Mix
    inversion: Inversion
    personal: Tensor  # (N + 1, n, C, H, W) trajectories of the concepts' pictures
    dilution: Dilution | None
    masks: Tensor  # (n, 1, h, w)
    object_masks: Tensor | None  # the same; None: no AdaIN
    path: NoisePath
    options: dict  # the model options of all calls
    hooks: list[Hook]
    concepts_per_call: int


def decide(
    model,
    inversion: Inversion,
    targets: Targets,
    positive: list,
    negative: list,
    cfg: float,
    keep_personal: bool,
    **settings,
) -> Mix:
    """Returns what the inputs of the node mean for a run; `settings` are those of a `Mix` that it takes as they are.

    Raises:
        BadInput: features are to be cached, and cannot be.
    """
    appearance: Appearance | None = model.model_options.get(APPEARANCE)
    guided, features = guided_steps(appearance, model, inversion.sigmas), None
    if keep_personal and any(guided):
        features = cache_beside(inversion, model, targets.concepts, positive, negative, cfg, sum(guided))
    adain = appearance is not None and appearance.adain
    return Mix(inversion, targets, guided, adain, features, **settings)


def guided_steps(appearance: Appearance | None, model, sigmas: Tensor) -> list[bool]:
    """Says for each step whether appearance is guided."""
    if appearance is None:
        return [False] * (len(sigmas) - 1)
    percents = (appearance.start_percent, appearance.end_percent)
    sampling = model.get_model_object("model_sampling")
    start, end = (float(sampling.percent_to_sigma(percent)) for percent in percents)
    return [end <= sigma <= start for sigma in sigmas[:-1].tolist()]


def cache_beside(inversion: Inversion, model, concepts, positive, negative, cfg, steps: int) -> FeatureCache:
    """Returns a cache for `steps` guided steps, with what is of use from earlier runs with this inversion."""
    check_caching(model, [positive, negative, *(concept.positive for concept in concepts)])
    made_with = dependencies(model, concepts, positive, negative, cfg, inversion)
    return FeatureCache(made_with, steps * len(concepts), kept_beside(inversion.eps).values())


def prepare(mix: Mix, guider: RowGuider, sigmas: Tensor, model_options: dict, shape: torch.Size) -> Run:
    """Returns all of a run, once the model is loaded.

    Args:
        shape: (C, H, W) or (C, 1, H, W) of a latent, as the model takes it.
    """
    model, device, concepts = guider.inner_model, sigmas.device, mix.targets.concepts
    guider.bring_conditionings(device)
    path = noise_path(model.model_sampling)
    # of the scene also its predictions, and the clean plate
    place = place_for(len(concepts) + 3, mix.inversion.trajectory, guider, device)
    stored, eps = (pinned(x.to(place), device) for x in (mix.inversion.trajectory, mix.inversion.eps))
    inversion = Inversion(sigmas, stored, eps, mix.inversion.seed)

    def trajectory(latent: Tensor, seed: int) -> Tensor:
        x0 = guider.flat(model.process_latent_in(guider.framed(latent.to(place))))[0]
        return edit_friendly_trajectory(x0, sigmas.to(place), seed, path)

    options = fully_guarded(comfy.model_patcher.create_model_options_clone(model_options), model.diffusion_model)
    fit = max(1, rows_that_fit(guider, shape) // mix.rows_a_concept)
    height, width = shape[-2:]
    hooks, concepts_per_call = hooks_of(mix, guider, options, (height, width), device, fit)
    options = installed(hooks, options)
    inpainted: InpaintedBackground | None = options.get(DILUTION)
    dilution = None
    if inpainted is not None:
        # with the scene's own noise, so that the two agree wherever inpainting changed nothing
        inpaint = pinned(trajectory(inpainted.latent, inversion.seed), device)
        dilution = Dilution(inpaint, mix.targets.boxes.to(device), inpainted.beta, inpainted.outside)
    object_masks = mix.targets.object_masks
    personal = torch.stack([trajectory(x.latent, x.seed) for x in concepts], dim=1)
    return Run(
        mix=mix,
        inversion=inversion,
        personal=pinned(personal, device),
        dilution=dilution,
        masks=mix.targets.shared.to(device),
        object_masks=object_masks.to(device) if mix.adain and object_masks is not None else None,
        path=path,
        options=options,
        hooks=hooks,
        concepts_per_call=concepts_per_call,
    )


def hooks_of(
    mix: Mix, guider: RowGuider, options: dict, grid: tuple[int, int], device: torch.device, fit: int
) -> tuple[list[Hook], int]:
    """Returns the hooks of a run, the outermost first, and how many concepts may share a call beside them.

    Args:
        options: the model options without the hooks.
        grid: height and width of the latent.
        fit: how many concepts may share a call as far as the model's own memory goes.
    """
    model, conds, concepts = guider.inner_model, guider.conds, mix.targets.concepts
    family, appearance = family_of(model), options.get(APPEARANCE)
    prompts = OwnPrompts(conds)
    shared: list[Hook] = [TrainedConcepts(conds), ControlNetHints()]
    cached = CACHE in options["transformer_options"]
    if cached:
        shared.append(HostCaches(model.model_sampling))
    if mix.features is not None:
        shared.insert(0, mix.features)
    if appearance is not None and is_compiled(guider.model_patcher):  # a number would be part of the graph
        appearance = appearance._replace(alpha=torch.tensor(appearance.alpha, device=device))
    on_grid = ConceptsOnGrid(concepts, grid, areas_of(conds, grid))
    if family is None:
        layers = 0 if cached else attention_layers(model.diffusion_model)
        attention = [] if appearance is None else [UNetAttention(model.diffusion_model, appearance, on_grid, device)]
        return [*shared, ForeignCaches(layers, patched=True), *attention, prompts], fit
    if appearance is None:
        return [*shared, ForeignCaches(0, patched=False), prompts], fit
    layers = 0 if cached else joint_blocks(model.diffusion_model, family)
    joint = JointAttention(guider.model_patcher, family, appearance, on_grid, device)
    inner = [*shared, ForeignCaches(layers, patched=False), joint]
    apart = [concept for k, concept in enumerate(concepts) if is_apart(conds, k)]
    if not apart:
        return [*inner, prompts], fit
    place, count = room_apart(joint, guider, apart, device)
    return [PromptsApart(prompts, inner, place)], min(fit, count)


class MixGuider(RowGuider):
    """The GUIDER of a run. It brings what the run starts from, so that whoever samples with it decides none of that."""

    def __init__(self, mix: Mix, model, positive: list, negative: list, cfg: float, node_id: str):
        concepts = mix.targets.concepts
        own = [None if concept.positive is positive else concept.positive for concept in concepts]
        super().__init__(model, each_to_its_own(positive, concepts), negative, cfg, own)
        self.mix, self.node_id, self.count = mix, node_id, len(concepts)

    @property
    def empty(self) -> Tensor:
        """The latent to sample from, (1, C, H, W) or (1, C, 1, H, W): zeros, as the start is in the inversion."""
        return self.framed(torch.zeros(1, *self.mix.inversion.eps.shape[1:]))

    def sample(
        self, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, disable_pbar=False, seed=None
    ):
        """Returns (1 + n, C, H, W), or (1 + n, C, 1, H, W): the output and the reference latents.

        Args:
            noise, latent_image: zeros, like `empty`.
            sigmas: all noise levels of the inversion, or the first of them.
            seed: not used; the inversion has its own.

        Raises:
            BadInput: it is called with anything else, or with another sampler.
        """
        mix, inversion, rows = self.mix, self.mix.inversion, self.mix.rows_a_concept
        check_start(noise, latent_image, denoise_mask, self.empty)
        check_schedule(sigmas, inversion.sigmas)
        room = room_for(self.model_patcher, rows * self.count, rows, self.empty.shape[1:])
        more = dict(callback=callback, disable_pbar=disable_pbar, seed=inversion.seed)
        result = super().sample(room, latent_image, sampler, sigmas, **more)
        check_predictions(NODE, result)
        if mix.features is not None and len(sigmas) == len(inversion.sigmas):
            show(NODE, self.node_id, [mix.features.report()])
        return result

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006 the signature of the base class
        if ROWS not in model_options.get("transformer_options", {}):
            raise not_the_mixers("sampler")
        return super().predict_noise(x, timestep, model_options, seed)


def sample_mix(model, x, sigmas, extra_args, callback, disable=None):
    """PnP-MIX as a sampler function like those of k-diffusion, for guiders of its own.

    Args:
        model: ComfyUI's wrapper of a `MixGuider`, which other packs may have wrapped again.
        x: (B, C, H, W) or (B, C, 1, H, W), of which only the shape is read.
        sigmas: see `MixGuider.sample`; checked here again, because wrapped samplers may get others than the guider.

    Returns:
        (1 + n, C, H, W), or (1 + n, C, 1, H, W): the output and the reference latents at the last of the noise levels.
    """
    guider = getattr(model, "inner_model", None)
    if not isinstance(guider, MixGuider):
        raise not_the_mixers("guider")
    mix = guider.mix
    check_schedule(sigmas, mix.inversion.sigmas)
    run = prepare(mix, guider, mix.inversion.sigmas.to(x.device), extra_args["model_options"], x.shape[1:])

    def denoise(x: Tensor, sigma: Tensor, rows: BatchRows) -> Tensor:
        def call(options: dict) -> Tensor:
            return model(x, sigma, **{**extra_args, "model_options": options})

        return hooked(run.hooks, call, rows)(run.options)

    def report(step: int, latents: Tensor, denoised: Tensor) -> None:
        if callback is not None:
            at = {"i": step, "sigma": sigmas[step], "sigma_hat": sigmas[step]}
            callback({**at, "x": guider.framed(latents), "denoised": guider.framed(denoised)})

    output, references = sample_pnp_mix(
        denoise,
        run.inversion,
        run.personal,
        run.masks,
        mix.guided,
        mix.swap_guidance,
        mix.mix_reference_noise,
        run.dilution,
        run.object_masks,
        concepts_per_call=run.concepts_per_call,
        callback=report,
        is_oom=is_oom,
        path=run.path,
        falling_guidance=mix.falling_guidance,
        cached=mix.features.has if mix.features else lambda step, concepts: False,
        stop=len(sigmas) - 1,
    )
    return guider.framed(torch.cat([output[None], references]))


SAMPLER = comfy.samplers.KSAMPLER(sample_mix)


def sample(guider: MixGuider) -> Tensor:
    """Samples with the mixer's own guider and sampler, and a preview of output and references side by side."""
    sigmas = guider.mix.inversion.sigmas
    preview = latent_preview.prepare_callback(guider.model_patcher, len(sigmas) - 1)

    def side_by_side(step: int, denoised: Tensor, latents: Tensor, steps: int) -> None:
        wide = torch.cat(list(denoised), dim=-1)[None]  # previews show the first row only
        preview(step, wide, wide, steps)

    result = guider.sample(guider.empty, guider.empty, SAMPLER, sigmas, callback=side_by_side)
    return result.to(comfy.model_management.intermediate_device())
