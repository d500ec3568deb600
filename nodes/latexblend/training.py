"""Train Concept: trains a concept on a handful of photos and a noun."""

from collections.abc import Iterator

import comfy.model_management
import comfy.samplers
import torch
from comfy_api.latest import io
from torch import Tensor
from typing_extensions import override

from ...pnpmix.latexblend import training
from ...pnpmix.latexblend.curve import draw_losses
from ..common.checks import (
    BadInput,
    check_choice,
    check_image,
    check_model,
    check_name,
    check_numbers,
    model_family,
)
from ..common.gradients import with_gradients
from ..common.loading import resident, resident_clip
from ..common.memory import for_host
from ..common.messages import show
from ..common.types import EXPERT, LATEXBLEND_CATEGORY, TrainedConcept, TrainedType, schema
from .layers import checkpoint_name, fingerprint
from .samplers import NODE, Settings, TrainSampler, Words, mean
from .words import noun_ids

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
VIEWS, MOST_VIEWS = 20, 400  # of each photo and of all, encoded beforehand
LEAST = 64  # pixels of a photo's shorter side


class PnPMixTrainConcept(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return schema(
            node_id="PnPMixTrainConcept",
            search_aliases=["train", "lora training", "dreambooth", "textual inversion", "latexblend", "pnp-mix"],
            display_name=NODE,
            category=LATEXBLEND_CATEGORY,
            description="Trains a concept from 3 to 5 photos of your object (LaTexBlend). The result is a small "
            "set of keys and values; "
            "the checkpoint is unchanged. Save Concept stores it.",
            is_input_list=True,  # as the host's dataset nodes give photos of different sizes
            inputs=[
                io.Model.Input("model", tooltip="SD 1.x, SD 2.x or SDXL checkpoint. Its weights are unchanged."),
                io.Clip.Input("clip", tooltip="The CLIP of the same checkpoint. Its weights are unchanged."),
                io.Vae.Input("vae", tooltip="The VAE of the same checkpoint."),
                io.Image.Input(
                    "images", tooltip="3 to 5 photos of the object in different surroundings: a batch or a list."
                ),
                io.String.Input(
                    "noun",
                    default="",
                    tooltip="The class of the object, as prompts will name it, such as dog.",
                ),
                io.Int.Input(
                    "steps",
                    default=3000,
                    min=1,
                    max=100000,
                    tooltip="Training steps. More: closer to the photos, then overfitted, and slower.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=2e-5,
                    min=0.0,
                    max=1.0,
                    step=1e-6,
                    round=1e-9,
                    tooltip="Learning rate of AdamW. Higher: trains in fewer steps and forgets more; too high: NaN.",
                ),
                io.Int.Input(
                    "resolution",
                    default=512,
                    min=64,
                    max=2048,
                    step=8,
                    tooltip="Side of the square that photos are cropped and scaled to, in pixels. Higher: finer, "
                    "more memory and time.",
                ),
                io.Int.Input(
                    "rank",
                    default=0,
                    min=0,
                    max=1024,
                    tooltip="0 trains the full projections. Low ranks take less memory and capture less.",
                    **EXPERT,
                ),
                io.Int.Input(
                    "seed",
                    default=42,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=False,
                    tooltip="Seed of noise, prompts and views. On the CPU the same seed gives the same concept.",
                ),
                io.Boolean.Input(
                    "augment",
                    default=True,
                    tooltip="Also train on mirrored, scaled and cropped photos. Off: only on the photos themselves.",
                ),
                io.Image.Input(
                    "class_images",
                    optional=True,
                    tooltip="Images of other objects of its class, up to 200. They preserve the meaning of the noun.",
                ),
                io.Float.Input(
                    "prior_weight",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Weight of class_images. 1: as in the paper's code, a quarter of the photos'. Higher: the "
                    "concept stays closer to its class.",
                    **EXPERT,
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPES),
                    default="bf16",
                    tooltip="Precision of the UNet's computation; trained weights are fp32. bf16: half the memory.",
                    **EXPERT,
                ),
                io.String.Input("name", default="", tooltip="A name for messages and files. Without it the noun."),
                TrainedType.Input(
                    "learned",
                    optional=True,
                    tooltip="From Load Concept: continues its training up to steps. It must have been made resumable.",
                ),
                io.Boolean.Input(
                    "resumable",
                    optional=True,
                    default=False,
                    tooltip="Store the training state in the concept. Its file grows from 0.1-0.6 MB to hundreds "
                    "of MB.",
                    **EXPERT,
                ),
                io.Boolean.Input(
                    "keep_on_cancel",
                    optional=True,
                    default=False,
                    tooltip="Cancel ends the training and the graph continues with the concept so far. Off: it "
                    "ends the run.",
                    **EXPERT,
                ),
                io.Boolean.Input(
                    "checkpointing",
                    optional=True,
                    default=True,
                    tooltip="Gradient checkpointing: about half the memory, a third more time.",
                    **EXPERT,
                ),
            ],
            outputs=[
                TrainedType.Output(display_name="learned", tooltip="For Save Concept and Blend Concept."),
                io.Image.Output(display_name="losses", tooltip="A plot of the loss of each step."),
                io.LossMap.Output(display_name="loss_map", tooltip="The same for Plot Loss Graph."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    @override
    def execute(cls, images, class_images=(), **inputs) -> io.NodeOutput:
        given = {name: value[0] for name, value in inputs.items() if value}
        settings = Settings(**{name: given[name] for name in Settings._fields if name in given})
        model, clip, vae, learned = given["model"], given["clip"], given["vae"], given.get("learned")
        check_settings(settings)
        check_model(NODE, model)
        check_precision(model)
        words = Words(
            resident_clip(NODE, clip),
            settings.noun,
            {name: len(ids) for name, ids in noun_ids(NODE, clip, settings.noun).items()},
        )
        photos = photos_of("images", images)
        others = photos_of("class_images", class_images) if settings.prior_weight > 0 else []
        if not photos:
            raise BadInput(NODE, "images", "it holds no photo.", "Wire 3 to 5 photos of the object.")
        state = resumed_state(learned, settings, model) if learned is not None else {}
        messages = [] if others else ["Warning: no class_images, so the noun may lose some of its meaning."]

        node_id = cls.hidden.unique_id
        own = resident(NODE, model).clone()
        # brought to the device with it, and left there: each step encodes V* anew
        own.set_additional_models("pnpmix_encoder", [words.clip.patcher])
        own.set_model_compute_dtype(DTYPES[settings.dtype])
        views, masks = encode_views(vae, photos, settings)
        pictures = torch.cat([encode(vae, square(x, settings.resolution)) for x in others]) if others else None
        sampler = TrainSampler(own, words, settings, views, masks, pictures, state, node_id)
        with with_gradients():
            guider = comfy.samplers.CFGGuider(own)
            guider.set_conds(sampler.prompts(), [])
            rows = torch.zeros(2, *views.shape[1:])
            guider.sample(rows, rows, sampler, torch.ones(2), disable_pbar=True, seed=settings.seed)

        messages += sampler.messages
        show(
            NODE,
            node_id,
            [*messages, f"Trained for {len(sampler.losses)} steps, loss {mean(sampler.losses[-50:]):.4f}."],
        )
        prompt = cls.hidden.prompt
        result = TrainedConcept(
            sampler.features,
            settings.name or settings.noun,
            settings.noun,
            model_family(model),
            checkpoint_name(prompt, node_id),
            fingerprint(model),
            settings.described(sampler.done, words),
            sampler.state if settings.resumable else {},
        )
        return io.NodeOutput(result, for_host(draw_losses(sampler.losses)[None]), {"loss": sampler.losses})


def check_settings(settings: Settings) -> None:
    """Refuses numbers, choices and names that no training can use."""
    numbers = ("steps", "learning_rate", "resolution", "rank", "seed", "prior_weight")
    check_numbers(NODE, **{name: getattr(settings, name) for name in numbers})
    check_choice(NODE, "dtype", settings.dtype, list(DTYPES))
    for name in ("noun", "name"):
        check_name(NODE, name, getattr(settings, name))
    if not settings.noun.strip():
        raise BadInput(NODE, "noun", "it is empty.", "Name the class of the object in a word, such as dog.")


def check_precision(model) -> None:
    """Refuses weights that have no gradient."""
    weight = model.model.diffusion_model.input_blocks[0][0].weight
    if weight.element_size() < 2 or type(weight.data) is not Tensor:
        fault = f"its weights are quantized ({weight.dtype})."
        raise BadInput(NODE, "model", fault, "Load the checkpoint with weight_dtype default, or its fp16 file.")


def photos_of(name: str, batches: list) -> list[Tensor]:
    """Returns each photo (H, W, 3 or 4) of some batches, which may have different sizes, without copies."""
    photos: list[Tensor] = []
    for batch in batches or []:
        if batch is None:
            continue
        check_image(NODE, name, batch)
        least = min(batch.shape[1:3])
        if least < LEAST:
            fault = f"a photo is only {batch.shape[2]} × {batch.shape[1]} pixels."
            raise BadInput(NODE, name, fault, f"Use photos of at least {LEAST} pixels on each side.")
        photos += batch.unbind()
    return photos


def square(photo: Tensor, size: int) -> Tensor:
    """Crops an image (H, W, 3 or 4) to its central square, (3, size, size)."""
    return training.square(photo[..., :3].float().cpu().movedim(-1, 0), size)


def encode(vae, picture: Tensor) -> Tensor:
    """Encodes an image (3, S, S) to its latent (1, C, H, W), as VAE Encode does; Cancel ends it."""
    comfy.model_management.throw_exception_if_processing_interrupted()
    return vae.encode(picture[None].movedim(1, -1)).float().cpu()


def encode_views(vae, photos: list[Tensor], settings: Settings) -> tuple[Tensor, Tensor]:
    """Returns the latents (n, C, H, W) of all views, and masks (n, 1, H, W) of the photo in them.

    One after another: in pixels there is never more than one of them.
    """
    latents, masks = [], []
    for picture, mask in views_of(photos, settings):
        latents.append(encode(vae, picture))
        masks.append(training.mask_on_latent(mask, latents[-1].shape[-2:])[None])
    return torch.cat(latents), torch.stack(masks)


def views_of(photos: list[Tensor], settings: Settings) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields views (3, S, S), and the mask (S, S) of the photo in each."""
    generator = training.step_generator(settings.seed, -1)
    of_each = max(1, min(VIEWS, MOST_VIEWS // len(photos)))
    for photo in photos:
        picture = square(photo, settings.resolution)
        if not settings.augment:
            yield picture, torch.ones(picture.shape[1:])
            continue
        for _ in range(of_each):
            yield training.augment(picture, generator)


def resumed_state(learned: TrainedConcept, settings: Settings, model) -> dict[str, Tensor]:
    """Returns the training state of a concept, and refuses one that does not fit these settings."""
    remedy = "Set it as it was, or unwire learned to start over."
    if not learned.state:
        fault = f"'{learned.name}' was trained with resumable off, and cannot be continued."
        raise BadInput(NODE, "learned", fault, "Unwire it to start over.")
    if learned.family != model_family(model):
        fault = f"it was trained with another family ({learned.family})."
        raise BadInput(NODE, "learned", fault, "Load that checkpoint, or unwire it.")
    if learned.noun != settings.noun:
        raise BadInput(NODE, "noun", f"'{learned.name}' was trained as '{learned.noun}'.", remedy)
    if learned.settings.get("rank") != str(settings.rank):
        raise BadInput(NODE, "rank", f"'{learned.name}' has rank {learned.settings.get('rank')}.", remedy)
    if int(learned.settings.get("steps", 0)) >= settings.steps:
        fault = f"'{learned.name}' has {learned.settings['steps']} of {settings.steps} steps."
        raise BadInput(NODE, "steps", fault, "Raise it to continue training.")
    return {"steps": torch.tensor(int(learned.settings["steps"])), **learned.state}


NODES = [PnPMixTrainConcept]
