"""The two passes over the model, as a guider and samplers of ComfyUI."""

import contextlib
from collections.abc import Callable
from typing import TypeVar

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import torch
from comfy_api.torch_helpers.torch_compile import COMPILE_KEY
from torch import Tensor

from ...pnpmix.mixer.dilution import Dilution
from ...pnpmix.mixer.inversion import Inversion, ddpm_invert, edit_friendly_trajectory
from ...pnpmix.mixer.sampling import Rows, roles_needed, sample_pnp_mix
from ..common.checks import BadInput
from ..common.memory import is_oom, pinned, place_for, place_for_some, rows_that_fit
from ..common.messages import at_fault
from ..common.types import APPEARANCE, DILUTION, Appearance, Concept, InpaintedBackground
from ..latexblend.patches import BELONGS, BLENDED, PLAN
from .caches import CACHE, Reuse, attention_layers, cache_of_each_layout, new_cache
from .families import family_of, has_frames, joint_blocks, noise_path
from .joint_attention import JointAttention
from .kept import PersonalRows
from .own_prompts import PREDICT, calc_cond_batch, cannot_share, predict_apart
from .patches import ROWS, areas_of, install_appearance, keep_hints_from_personal_rows

# Timesteps of an inversion in one call, at most: between calls progress, preview and Cancel get their turn.
MAX_ROWS = 16
Prediction = TypeVar("Prediction")


class RowGuider(comfy.samplers.CFGGuider):
    """Classifier-free guidance over rows of which some may have a prompt of their own."""

    reads = frozenset({APPEARANCE, DILUTION})

    def __init__(self, model, positive: list, negative: list, cfg: float, own_positives: list[list | None] = ()):
        super().__init__(model)
        self.set_cfg(cfg)
        own = {str(k): cond for k, cond in enumerate(own_positives) if cond is not None}
        self.inner_set_conds({"positive": positive, "negative": negative, **own})
        self.has_frames, self.apart = has_frames(model), False  # apart: whether personal rows have calls of their own

    def framed(self, x: Tensor) -> Tensor:
        """(B, C, H, W) as this model takes it."""
        return x.unsqueeze(2) if self.has_frames else x

    def flat(self, x: Tensor) -> Tensor:
        """The inverse of `framed`."""
        return x.squeeze(2) if self.has_frames else x

    def bring_conditionings(self, device: torch.device) -> None:
        """Once a run; ComfyUI alone would copy them to the device anew for every call."""
        for entry in (entry for entries in self.conds.values() for entry in entries):
            conds = entry["model_conds"].items()
            entry["model_conds"] = {
                name: cond._copy_with(cond.cond.to(device)) if isinstance(cond.cond, Tensor) else cond
                for name, cond in conds
            }
        self.stacked = {}

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006 the signature of the base class
        comfy.model_management.throw_exception_if_processing_interrupted()
        rows = model_options["transformer_options"].get(ROWS)
        positive = self.conds["positive"]
        if rows is not None and "personal" in rows.roles and len(self.conds) > 2 and not self.apart:
            positive = [self.with_own_prompts(k, rows) for k in range(len(positive))]
        guide = model_options.get("sampler_cfg_function")
        if guide is not None:
            model_options = {**model_options, "sampler_cfg_function": for_each_row(guide)}
        denoised = comfy.samplers.sampling_function(
            self.inner_model, self.framed(x), timestep, self.conds["negative"], positive, self.cfg, model_options, seed
        )
        if len(denoised) != len(x):
            fault = "one of its patches mixes rows with those of the call before, as guidance with momentum does."
            raise BadInput("Mask Noise Mixer", "model", fault, "Bypass that patch.")
        return self.flat(denoised)

    def with_own_prompts(self, k: int, rows: Rows) -> dict:
        """The mixer's k-th conditioning for every row but the personal ones that have their own."""
        layout = (k, rows.roles, rows.concepts.start, rows.concepts.stop)
        if layout not in self.stacked:
            self.stacked[layout] = self.stack(self.conds["positive"][k], rows)
        return self.stacked[layout]

    def is_apart(self, k: int) -> bool:
        """Whether no call of a transformer reads the k-th concept's own prompt beside every part of the mixer's."""
        own = self.conds.get(str(k))
        return own is not None and any(
            cannot_share(own[0]["model_conds"], entry["model_conds"]) for entry in self.conds["positive"]
        )

    def stack(self, entry: dict, rows: Rows) -> dict:
        indices = range(rows.concepts.start, rows.concepts.stop)
        own = [self.conds[str(k)][0] if str(k) in self.conds else entry for k in indices]
        sources = [own[k] if role == "personal" else entry for role in rows.roles for k in range(len(own))]
        stacked, names = {}, sources[0] if len(sources) == 1 else entry
        for name, cond in names["model_conds"].items():
            per_row = [source["model_conds"].get(name, cond) for source in sources]
            stacked[name] = cond._copy_with(per_row[0].concat(per_row[1:]))
        return {**entry, "model_conds": stacked, BLENDED: entry}

    def belongs(self, rows: Rows) -> dict:
        """What tells the layers, where the prompt is blended, which concept each of the rows belongs to."""
        if all(entry.get(PLAN) is None for entry in self.conds["positive"]):
            return {}
        indices = range(rows.concepts.start, rows.concepts.stop)
        return {
            BELONGS: [
                None if role == "personal" and str(k) in self.conds else k for role in rows.roles for k in indices
            ]
        }


def for_each_row(guide: Callable[[dict], Tensor]) -> Callable[[dict], Tensor]:
    """A sampler_cfg_function that works for several rows also where it was written for a single one, as RenormCFG."""

    def guide_rows(args: dict) -> Tensor:
        try:
            return guide(args)
        except RuntimeError as error:
            count = len(args["input"])
            if count == 1 or "ambiguous" not in str(error):  # which torch calls it to compare several at once
                raise
        of_rows = {name for name, x in args.items() if isinstance(x, Tensor) and x.ndim > 0 and len(x) == count}
        rows = ({**args, **{name: args[name][i : i + 1] for name in of_rows}} for i in range(count))
        return torch.cat([guide(row) for row in rows])

    return guide_rows


class InvertSampler(comfy.samplers.Sampler):
    """Edit-friendly DDPM inversion of the latent image; the result is left in `inversion`, on the CPU."""

    def __init__(self, seed: int, max_rows: int):
        self.seed, self.max_rows = seed, max_rows
        self.inversion: Inversion | None = None

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask=None, disable_pbar=False
    ):
        model_wrap.bring_conditionings(sigmas.device)
        model_options = extra_args["model_options"]
        transformer_options = model_options["transformer_options"]

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            # no timestep follows from another, so that nothing of one is of use to the next
            told = {**transformer_options, **new_cache(transformer_options, model_wrap.inner_model.model_sampling)}
            options = {**model_options, "transformer_options": told}
            return model_wrap(x, sigma, model_options=options, seed=extra_args["seed"])

        inversion = ddpm_invert(
            denoise,
            model_wrap.flat(latent_image)[0],
            sigmas,
            self.seed,
            timesteps_per_call=max(1, min(self.max_rows, rows_that_fit(model_wrap, noise.shape[1:]))),
            callback=lambda done, denoised: callback(done - 1, *[model_wrap.framed(denoised)] * 2, len(sigmas) - 1),
            is_oom=is_oom,
            path=noise_path(model_wrap.inner_model.model_sampling),
        )
        self.inversion = Inversion(*(x.cpu() for x in inversion[:3]), *inversion[3:])
        return latent_image


class MixSampler(comfy.samplers.Sampler):
    """PnP-MIX: the output in row 0 of the result, then the branches.

    The masks of `concepts` have the picture's size; `masks`, `boxes` and `object_masks` (None: no AdaIN) are
    (n, 1, H, W) on the latent grid. `guided` says for each step whether appearance is guided.
    """

    def __init__(
        self,
        inversion: Inversion,
        concepts: list[Concept],
        masks: Tensor,
        boxes: Tensor,
        object_masks: Tensor | None,
        guided: list[bool],
        swap_guidance: float,
        mix_branches: bool,
        falling_guidance: bool,
        kept: PersonalRows | None,
    ):
        self.inversion, self.concepts, self.masks, self.boxes = inversion, concepts, masks, boxes
        self.object_masks, self.guided = object_masks, guided
        self.swap_guidance, self.mix_branches = swap_guidance, mix_branches
        self.falling_guidance, self.kept = falling_guidance, kept

    @property
    def rows_a_concept(self) -> int:
        """In a model call, at most."""
        return len(roles_needed(any(self.guided), self.swap_guidance))

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask=None, disable_pbar=False
    ):
        model, device, steps = model_wrap.inner_model, sigmas.device, len(sigmas) - 1
        path = noise_path(model.model_sampling)
        model_wrap.bring_conditionings(device)
        # of the background also the predictions, and the emptied background
        place = place_for(len(self.concepts) + 3, self.inversion.trajectory, model_wrap, device)
        stored = (pinned(x.to(place), device) for x in self.inversion[1:3])
        inversion = Inversion(sigmas, *stored, *self.inversion[3:])

        def trajectory(latent: Tensor, seed: int) -> Tensor:
            x0 = model_wrap.flat(model.process_latent_in(model_wrap.framed(latent.to(place))))[0]
            return edit_friendly_trajectory(x0, sigmas.to(place), seed, path)

        model_options = comfy.model_patcher.create_model_options_clone(extra_args["model_options"])
        appearance: Appearance | None = model_options.get(APPEARANCE)
        joint: JointAttention | None = None
        reuse, family = Reuse(0), family_of(model)
        if CACHE not in model_options["transformer_options"] and not is_compiled(model_wrap.model_patcher):
            unet = model.diffusion_model
            reuse = Reuse(attention_layers(unet) if family is None else joint_blocks(unet, family))
        if appearance is not None:
            grid = tuple(latent_image.shape[-2:])
            areas = areas_of(model_wrap.conds, grid)
            what = (appearance, self.concepts, grid, device, areas)
            if family is None:
                install_appearance(model_options, model.diffusion_model, *what, self.kept)
            else:
                joint = JointAttention(model_wrap.model_patcher, *what, model_options["transformer_options"], reuse)
                joint.install(model_options)
        apart = [x for k, x in enumerate(self.concepts) if joint is not None and model_wrap.is_apart(k)]
        concepts_per_call = max(1, rows_that_fit(model_wrap, noise.shape[1:]) // self.rows_a_concept)
        if apart:
            model_wrap.apart = joint.apart = True
            concepts_per_call = min(concepts_per_call, room_apart(joint, model_wrap, apart, device))
        keep_hints_from_personal_rows(model_options)
        inpainted: InpaintedBackground | None = model_options.get(DILUTION)
        dilution = None
        if inpainted is not None:
            # with the background's own noise, so that the two agree wherever inpainting changed nothing
            inpaint = pinned(trajectory(inpainted.latent, inversion.seed), device)
            dilution = Dilution(inpaint, self.boxes.to(device), inpainted.beta, inpainted.outside)

        transformer_options = model_options["transformer_options"]
        if family is None and reuse.layers > 0:
            patches = transformer_options.setdefault("patches", {})
            patches["attn1_patch"] = [reuse.patch, *patches.get("attn1_patch", [])]
        cache_of = cache_of_each_layout(transformer_options, model.model_sampling)

        def options_of(rows: Rows, options: dict) -> dict:
            told = {**transformer_options, **cache_of(rows), **model_wrap.belongs(rows), ROWS: rows}
            return {**options, "transformer_options": told}

        def watched(rows: Rows, predict: Callable[[], Prediction]) -> Prediction:
            guided = joint is not None and rows.roles != ("plain",)
            filling = contextlib.nullcontext() if self.kept is None else self.kept.filling(rows)
            with filling, reuse.watch(rows, counted=family is None or guided):
                prediction = predict()
                if guided:
                    joint.check_entered()
                return prediction

        def call(arguments: dict, rows: Rows) -> list[Tensor]:
            arguments = {**arguments, "model_options": options_of(rows, arguments["model_options"])}
            others = model_options.get(PREDICT, calc_cond_batch)
            return watched(rows, lambda: others(arguments))

        def denoise(x: Tensor, sigma: Tensor, rows: Rows) -> Tensor:
            options, seed = options_of(rows, model_options), extra_args["seed"]
            if apart and "personal" in rows.roles:
                options[PREDICT] = predict_apart(model_wrap, joint, call)
                return model_wrap(x, sigma, model_options=options, seed=seed)
            return watched(rows, lambda: model_wrap(x, sigma, model_options=options, seed=seed))

        def preview(step: int, output: Tensor, branches: Tensor) -> None:
            side_by_side = model_wrap.framed(torch.cat([output, *branches], dim=-1)[None])  # previews show row 0 only
            callback(step, side_by_side, side_by_side, steps)

        personal = pinned(torch.stack([trajectory(x.latent, x.seed) for x in self.concepts], dim=1), device)
        output, branches = sample_pnp_mix(
            denoise,
            inversion,
            personal,
            self.masks.to(device),
            self.guided,
            self.swap_guidance,
            self.mix_branches,
            dilution,
            None if self.object_masks is None else self.object_masks.to(device),
            concepts_per_call=concepts_per_call,
            callback=preview,
            is_oom=is_oom,
            path=path,
            falling_guidance=self.falling_guidance,
            known=self.kept.has if self.kept else lambda step, concepts: False,
        )
        return model_wrap.framed(torch.cat([output[None], branches]))


def room_apart(joint: JointAttention, guider: RowGuider, concepts: list[Concept], device: torch.device) -> int:
    """How many concepts may share a call while what is read of their pictures waits for it.

    Args:
        concepts: those whose prompts cannot share a batch with the mixer's.

    Raises:
        BadInput: there is no room for one, or it could not be told whose is whose.
    """
    size, name, fault = joint.bytes_of_a_picture(chunks=1 if guider.cfg == 1 else 2), concepts[0].name, None
    place = place_for_some(size, guider, device)
    if is_compiled(guider.model_patcher):
        fault = f"the prompt of '{name}' has another length or kind, and a compiled model keeps nothing between calls."
    limits = {"area", "timestep_start", "timestep_end", "hooks"}
    common = [guider.conds["positive"], *([] if guider.cfg == 1 else [guider.conds["negative"]])]
    if any(len(entries) != 1 or not entries[0].keys().isdisjoint(limits) for entries in common):
        fault = f"the prompt of '{name}' has another length or kind, and the mixer's are combined, timed or in an area."
    if place is None:
        fault = f"the prompt of '{name}' has another length or kind: {size / 1e9:.1f} GB must be kept, and do not fit."
    if fault is not None:
        remedy = "Use prompts of the same kind and the same number of tokens, or leave the Concepts' positive unwired."
        with at_fault(concepts[0].node_id):
            raise BadInput("Mask Noise Mixer", "concepts", fault, remedy)
    joint.place, count = place
    return count


def guided_steps(appearance: Appearance | None, model, sigmas: Tensor) -> list[bool]:
    """Whether appearance is guided, for each step."""
    if appearance is None:
        return [False] * (len(sigmas) - 1)
    percents = (appearance.start_percent, appearance.end_percent)
    sampling = model.get_model_object("model_sampling")
    start, end = (float(sampling.percent_to_sigma(percent)) for percent in percents)
    return [end <= sigma <= start for sigma in sigmas[:-1].tolist()]


def acts_by_time(model, conditionings: list[list]) -> bool:
    """Whether anything may look at the noise level of a call: it would see only the first of several."""
    known = {"transformer_options", APPEARANCE, DILUTION}
    patched = model.model_options.keys() - known or any(model.model_options["transformer_options"].values())
    wrapped = any(key != COMPILE_KEY for key in wrappers_of(model))
    return bool(patched or wrapped or any(is_timed(options) for cond in conditionings for _, options in cond))


def is_compiled(model) -> bool:
    return COMPILE_KEY in wrappers_of(model)


def wrappers_of(model) -> list:
    """Keys of all that wrap a part of its sampling."""
    return [key for by_key in model.wrappers.values() for key, functions in by_key.items() if functions]


def is_timed(options: dict) -> bool:
    """Whether a conditioning, or a ControlNet in it, is for a part of the schedule only."""
    control = options.get("control")
    while control is not None:
        if tuple(control.timestep_percent_range) != (0.0, 1.0):
            return True
        control = control.previous_controlnet
    return not options.keys().isdisjoint({"start_percent", "end_percent", "hooks"})
