"""Train Concept's training loop, in place of a sampler."""

import contextlib
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import comfy.model_management
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy.model_sampling import V_PREDICTION
from torch import Tensor

from ...pnpmix.files.tensors import described
from ...pnpmix.latexblend import training
from ...pnpmix.latexblend.bank import Features, extract
from ...pnpmix.schedule import to_eps
from ..common.attention import differentiable_attention, plain_attention
from ..common.checks import BadInput
from ..common.compiled import uncompiled
from ..common.gradients import checkpointed, unchanged_norms, with_gradients
from ..common.messages import show_text
from .layers import cross_attentions
from .words import DEMO, embeddings_of, find, has_article, make_room, noun_ids, read, tokenizer_of, write

NODE = "Train Concept"
# Whose embedding V* begins with, as in the authors' code: an entry of the vocabulary, 42170, and no word, since it does
# not end one. As a word, "ktn" is cut into "k" and "tn".
RARE_TOKEN = "ktn"
PREVIEW_EVERY, PREVIEW_STEPS, PREVIEW_CFG = 250, 12, 4.0
KEPT_EVERY = 25  # steps: what is kept where the loss becomes NaN
SPOKEN_EVERY = 1.0  # seconds
STEP = "pnpmix_learning_step"  # in transformer_options, for the length of one call


class Settings(NamedTuple):
    """The inputs of the node, by their names there."""

    noun: str
    steps: int
    learning_rate: float
    resolution: int
    rank: int
    seed: int
    augment: bool
    prior_weight: float
    dtype: str
    name: str = ""
    resumable: bool = False
    keep_on_cancel: bool = False
    checkpointing: bool = True

    def described(self, steps: int, words: "Words") -> dict[str, str]:
        """Returns the settings for the metadata of a file."""
        told = ("learning_rate", "resolution", "rank", "seed", "augment", "prior_weight", "dtype")
        ids = next(iter(noun_ids(NODE, words.clip, self.noun).values()))
        own = {"steps": str(steps), "prompt": training.EXTRACTED_FROM, "noun_ids": str(ids)}
        return own | {name: str(getattr(self, name)) for name in told}


def mean(values: list[float]) -> float:
    """Returns the mean, 0 of no values."""
    return sum(values) / max(len(values), 1)


class Words(NamedTuple):
    """The prompts of the base flow and the concept flow."""

    clip: Any
    noun: str
    lengths: dict[str, int]  # tokens of the noun, of each encoder

    @property
    def length(self) -> int:
        """Returns the number of tokens of the slot, 1 + L."""
        return 1 + next(iter(self.lengths.values()))

    def identifiers(self) -> dict[str, Tensor]:
        """Returns V* of each encoder before training."""
        return {encoder: rare_vector(self.clip, encoder) for encoder in self.lengths}

    def base(self, template: str) -> tuple[Tensor, Tensor | None, int]:
        """Returns the base flow's context (1, tokens, width) and pooled vector, and the slot's first token."""
        chunks, first = base_tokens(NODE, self.clip, template, self.noun)
        context, pooled = self.clip.encode_from_tokens(write(chunks), return_pooled=True)
        return context, pooled, first

    def bare(self) -> tuple[Tensor, Tensor | None]:
        """Returns the same of the noun alone, padded to the length of the other contexts."""
        chunks = read(NODE, self.clip, self.noun)
        return self.clip.encode_from_tokens(write(chunks), return_pooled=True)


def base_tokens(node: str, clip, template: str, noun: str) -> tuple[dict, int]:
    """Returns the chunks of template("a noun"), and the index of the article, which V* replaces."""
    chunks, index = read(node, clip, template.format(f"a {noun}")), 0
    ids = noun_ids(node, clip, noun)
    for encoder, own in chunks.items():
        places = find(clip, encoder, own, ids[encoder])
        if len(own) > 1 or not places:
            fault = f"'{noun}' is too long: with the words around it, CLIP reads it in pieces of 75 tokens."
            raise BadInput(node, "noun", fault, "Name the class of the object in a word or two, such as dog.")
        c, index = places[-1]
        if not has_article(clip, encoder, own[c], index):
            make_room(node, clip, encoder, own[c], index)
            index += 1
    return chunks, index - 1


def encode_slot(
    node: str, clip, template: str, noun: str, identifiers: dict[str, Tensor]
) -> tuple[Tensor, Tensor | None, int]:
    """Encodes template("V* noun").

    Returns:
        the concept flow's context (1, 1 + L, width) of the slot, the prompt's pooled vector, the slot's first token.
    """
    chunks, first = base_tokens(node, clip, template, noun)
    for encoder, own in chunks.items():
        token = (identifiers[encoder], 1.0)
        own[0][first] = [token] if encoder == DEMO else token
    context, pooled = clip.encode_from_tokens(write(chunks), return_pooled=True)
    length = 1 + len(next(iter(noun_ids(node, clip, noun).values())))
    return context[:, first : first + length], pooled, first


def rare_vector(clip, encoder: str) -> Tensor:
    """Returns the embedding that V* starts from."""
    if encoder == DEMO:
        return clip.cond_stage_model.table.weight[0].detach().float().cpu().clone()
    token = tokenizer_of(clip, encoder).tokenizer.convert_tokens_to_ids(RARE_TOKEN)
    return embeddings_of(clip, encoder)[token].detach().float().cpu().clone()


def in_its_place(clip):
    """Returns a CLIP that encodes where its weights are; others let the host move weights that are in use."""
    own = clip.clone()
    own.cond_stage_model, own.load_model = clip.cond_stage_model, lambda *_, **__: clip.patcher
    return own


class Step(NamedTuple):
    """What the layers need to know of a call."""

    context: Tensor  # (B, tokens + length, width)
    first: list[int]  # of each concept row
    length: int


class TrainSampler(comfy.samplers.Sampler):
    """Training in the place of sampling, so that models are loaded and brought to the device as for any other run."""

    features: Features  # when it is done
    state: dict[str, Tensor]

    def __init__(
        self,
        model,
        words: Words,
        settings: Settings,
        views: Tensor,
        masks: Tensor,
        class_pictures: Tensor | None,
        state: dict[str, Tensor],
        node_id: str,
    ):
        self.model, self.words, self.settings, self.node_id = model, words, settings, node_id
        self.views, self.masks = views, masks
        self.class_pictures = views[:0] if class_pictures is None else class_pictures
        self.resumed = state
        self.unet = model.model.diffusion_model
        self.losses: list[float] = []
        self.messages: list[str] = []
        self.done = int(state.get("steps", 0))
        self.kept: tuple[Features, int] | None = None  # and at which step
        self.base = [words.base(template) for template in training.TEMPLATES]
        self.bare = words.bare()
        self.unconditional = words.clip.encode_from_tokens(write(read(NODE, words.clip, "")), return_pooled=True)
        self.words = words._replace(clip=in_its_place(words.clip))

    def prompts(self) -> list:
        """Returns CONDITIONING of everything but the concept flow: each template, the bare noun, the empty prompt."""
        return [
            [context.detach().clone(), {"pooled_output": None if pooled is None else pooled.detach().clone()}]
            for context, pooled, *_ in (*self.base, self.bare, self.unconditional)
        ]

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask=None, disable_pbar=False
    ):
        with with_gradients():
            self.base_model, self.device = model_wrap.inner_model, noise.device
            self.conds = [
                {name: self.processed(cond) for name, cond in entry["model_conds"].items()}
                for entry in model_wrap.conds["positive"]
            ]
            self.options = uncompiled(extra_args["model_options"])["transformer_options"]
            self.views, self.class_pictures = (
                self.base_model.process_latent_in(x.clone().to(self.device)) for x in (self.views, self.class_pictures)
            )
            self.masks = self.masks.clone().to(self.device)
            try:
                self.prepare()
                self.learn()
            finally:
                self.options = {}  # whose attention holds this sampler: both go with the node, and the model with them
        return latent_image

    def processed(self, cond) -> Tensor:
        """Returns the tensor of a model_cond as the UNet gets it."""
        return cond.process_cond(batch_size=1, device=self.device, area=None).cond.clone()

    def prepare(self) -> None:
        """Makes the parameters and replaces the cross-attention layers."""
        generator = training.step_generator(self.settings.seed, -2)
        self.layers = cross_attentions(self.unet)
        self.deltas = {}
        for name, (_, module) in self.layers.items():
            for side in "kv":
                outputs, inputs = getattr(module, f"to_{side}").weight.shape
                delta = training.new_delta(outputs, inputs, self.settings.rank, generator)
                self.deltas[f"{name}.{side}"] = tuple(x.to(self.device) for x in delta)
        self.identifiers = {encoder: x.to(self.device) for encoder, x in self.words.identifiers().items()}
        self.parameters = {f"identifier.{encoder}": x for encoder, x in self.identifiers.items()} | {
            f"delta.{name}.{i}": x for name, delta in self.deltas.items() for i, x in enumerate(delta)
        }
        if self.resumed:
            self.resume()
        replaced = self.options.get("patches_replace", {})
        attention = {layer: self.attention(name) for name, (layer, _) in self.layers.items()}
        self.options = {
            **self.options,
            "patches_replace": {**replaced, "attn2": {**replaced.get("attn2", {}), **attention}},
            "optimized_attention_override": differentiable_attention,
        }

    def resume(self) -> None:
        """Continues from the state of another run: the parameters, and the optimizer's two moments of each."""
        shapes = {f"{name}{end}": x.shape for name, x in self.parameters.items() for end in ("", ".mean", ".square")}
        try:
            if self.resumed.keys() - {"steps"} != shapes.keys():
                raise ValueError(f"it has {len(self.resumed) - 1} entries, this model's are {len(shapes)} others")
            for name, shape in shapes.items():
                described(self.resumed[name], name, shape)
        except ValueError as error:
            fault = f"its training state does not fit this model: {error}."
            raise BadInput(NODE, "learned", fault, "Load its own checkpoint, or unwire it.") from error
        for name, x in self.parameters.items():
            x.copy_(self.resumed[name])

    def attention(self, name: str):
        """Returns the attn2_replace of a layer."""

        def attend(query, key, value, extra_options):
            step: Step | None = extra_options.get(STEP)
            if step is not None:
                key, value = (
                    training.training_features(
                        x, self.deltas[f"{name}.{side}"], step.context, step.first, step.length, len(step.first)
                    )
                    for side, x in (("k", key), ("v", value))
                )
            return plain_attention(query, key, value, extra_options)

        return attend

    def learn(self) -> None:
        """Runs the training and keeps its result."""
        settings, device = self.settings, self.device
        moments = {name: x for name, x in self.resumed.items() if name.endswith((".mean", ".square"))}
        self.progress = comfy.utils.ProgressBar(settings.steps)
        self.previewer = latent_preview.get_previewer(device, self.base_model.latent_format)
        self.spoken = 0.0
        try:
            encoder = self.words.clip.cond_stage_model
            with with_gradients(self.unet, encoder), unchanged_norms(encoder), self.saving_memory():
                moments = training.fit(
                    self.parameters,
                    self.loss_of,
                    range(self.done, settings.steps),
                    settings.learning_rate,
                    moments,
                    self.after_step,
                )
        except training.Diverged as error:
            fault = f"at step {error.step} the loss became NaN or infinite."
            if self.kept is None:
                raise BadInput(NODE, "learning_rate", fault, "Lower it, or set dtype to fp32.") from error
            self.features, self.done = self.kept
            self.state = {}
            self.messages.append(f"Warning: {fault} The concept of {self.done} steps is kept; lower learning_rate.")
            return
        except comfy.model_management.InterruptProcessingException:  # newer hosts raise it within a step
            if not settings.keep_on_cancel or self.done == 0:
                raise
            self.tell_cancelled()
            self.features, self.state = self.extracted(), {}  # the optimizer's moments are gone
            return
        self.features = self.extracted()
        if settings.resumable:
            everything = {**self.parameters, **moments}
            self.state = {name: x.detach().cpu().clone() for name, x in everything.items()}

    @contextlib.contextmanager
    def saving_memory(self) -> Iterator[None]:
        """Uses gradient checkpointing where the node asks for it."""
        with checkpointed(self.unet) if self.settings.checkpointing else contextlib.nullcontext():
            yield

    def loss_of(self, step: int) -> Tensor:
        """Returns the loss () of a training step."""
        device, shape = self.device, self.views.shape[1:]
        drawn = training.draw(self.settings.seed, step, len(self.views), len(self.class_pictures), shape)
        sampling = self.base_model.model_sampling
        sigma = sampling.sigma(drawn.timesteps.to(device)).float()
        x0, mask = self.views[drawn.view][None], self.masks[drawn.view][None]
        rows = [self.conds[drawn.base_template]]
        if len(self.class_pictures):
            x0 = torch.cat([x0, self.class_pictures[drawn.class_picture][None]])
            mask = torch.cat([mask, torch.ones_like(mask)])
            rows.append(self.conds[len(training.TEMPLATES)])
        own = self.own_context(training.TEMPLATES[drawn.concept_template])
        first = self.base[drawn.base_template][2]
        x = x0 + sigma.view(-1, 1, 1, 1) * drawn.noise.to(device)
        denoised = self.denoise(x, sigma, rows, own, [first])
        predicts_v = isinstance(sampling, V_PREDICTION)
        losses = training.prediction_loss(denoised, x0, sigma, mask, predicts_v)
        return training.total_loss(losses, self.settings.prior_weight)

    def own_context(self, template: str) -> Tensor:
        """Returns the concept flow's context (1, 1 + L, width) of a template."""
        context, _, _ = encode_slot(NODE, self.words.clip, template, self.words.noun, self.identifiers)
        return context.to(self.device)

    def denoise(self, x: Tensor, sigma: Tensor, rows: list[dict], own: Tensor | None, first: list[int]) -> Tensor:
        """Returns D(x, sigma) (B, C, H, W); `own` is None where only the plain prompts act."""
        conds = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        options = dict(self.options)
        if own is not None:
            context = conds["c_crossattn"]
            extras = torch.cat([own.to(context), *[torch.zeros_like(own).to(context)] * (len(rows) - 1)])
            conds["c_crossattn"] = torch.cat([context, extras], 1)
            options[STEP] = Step(conds["c_crossattn"], first, self.words.length)
        options |= {"cond_or_uncond": [0] * len(rows), "uuids": [None] * len(rows), "sigmas": sigma}
        return self.base_model.apply_model(x, sigma, transformer_options=options, **conds)

    def after_step(self, step: int, loss: float) -> bool:
        """Tells how it goes; True ends training."""
        self.losses.append(loss)
        self.done = step
        if step % KEPT_EVERY == 0:
            features = self.extracted()
            if all(torch.isfinite(x).all() for pair in features.values() for x in pair):
                self.kept = features, step
        preview = None
        if self.previewer is not None and step % PREVIEW_EVERY == 0:
            preview = self.previewer.decode_latent_to_preview_image("JPEG", self.picture())
        self.progress.update_absolute(step, self.settings.steps, preview)
        if time.monotonic() - self.spoken > SPOKEN_EVERY:
            self.spoken = time.monotonic()
            text = f"step {step} of {self.settings.steps}, loss {mean(self.losses[-50:]):.4f}"
            show_text(text, self.node_id)
        if comfy.model_management.processing_interrupted():
            if not self.settings.keep_on_cancel:
                comfy.model_management.throw_exception_if_processing_interrupted()
            comfy.model_management.interrupt_current_processing(False)
            self.tell_cancelled()
            return True
        return False

    def tell_cancelled(self) -> None:
        """Adds a warning that the run was cancelled."""
        steps = f"{self.done} of {self.settings.steps} steps"
        self.messages.append(f"Warning: cancelled; the concept of {steps} is kept.")

    def extracted(self) -> dict:
        """Returns the features h_c of the concept so far."""

        def projection(name: str, side: str, linear):
            return lambda x: linear(x.float()) + training.apply_delta(self.deltas[f"{name}.{side}"], x.float())

        project = {
            name: tuple(projection(name, side, getattr(module, f"to_{side}")) for side in "kv")
            for name, (_, module) in self.layers.items()
        }
        with torch.no_grad():
            return extract(self.own_context(training.EXTRACTED_FROM)[0], project)

    @torch.no_grad()
    def picture(self) -> Tensor:
        """Samples a latent of EXTRACTED_FROM with the concept so far."""
        template = training.TEMPLATES.index(training.EXTRACTED_FROM)
        own, first = self.own_context(training.EXTRACTED_FROM), self.base[template][2]
        sigmas = comfy.samplers.calculate_sigmas(self.base_model.model_sampling, "normal", PREVIEW_STEPS)
        generator = training.step_generator(self.settings.seed, -3)
        x = torch.randn((1, *self.views.shape[1:]), generator=generator).to(self.device)
        x, denoised = x * (1 + sigmas[0] ** 2).sqrt().to(x), x
        for sigma, following in pairwise(sigmas.to(x)):
            cond = self.denoise(x, sigma[None], [self.conds[template]], own, [first])
            uncond = self.denoise(x, sigma[None], [self.conds[-1]], None, [])
            denoised = uncond + PREVIEW_CFG * (cond - uncond)
            x = x + (following - sigma) * to_eps(x, denoised, sigma)
        return denoised
