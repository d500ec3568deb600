"""Save Concept, Load Concept and Import Concept: trained concepts in files."""

import contextlib
import os
import re
from collections.abc import Callable, Sequence

import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io, ui
from pydantic import BaseModel, ValidationError, field_validator
from torch import Tensor
from typing_extensions import override

from ...pnpmix.files.pickles import read_pickle
from ...pnpmix.files.tensors import described, read_safetensors
from ...pnpmix.files.texts import Label, Name, Text, first_fault
from ...pnpmix.latexblend import bank
from ...pnpmix.latexblend.bank import FORMAT, VERSION, check, extract, from_tensors
from ...pnpmix.latexblend.training import EXTRACTED_FROM
from ..common.checks import BadInput, check_model, check_name, model_family
from ..common.file_lists import model_files, path_of, validate
from ..common.files import save_new
from ..common.loading import CONCEPTS, reading
from ..common.messages import show
from ..common.types import LATEXBLEND_CATEGORY, TrainedConcept, TrainedType, schema
from .layers import checkpoint_name, cross_attentions, fingerprint, layer_widths
from .samplers import encode_slot, rare_vector
from .words import noun_ids

LARGEST_TOKEN = 1024**2  # bytes of a file with the vectors of a word
LEAST_WIDTH = 32  # numbers of a token in any text encoder
STATE = "training."  # before the names of the training state
FIELDS = ("name", "noun", "family", "checkpoint", "fingerprint")


def file_choice(tooltip: str, *endings: str) -> io.Combo.Input:
    """Returns the input 'file' with the concept files of these endings."""
    return io.Combo.Input("file", options=model_files(CONCEPTS, *endings).names, tooltip=tooltip)


class PnPMixSaveConcept(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return schema(
            node_id="PnPMixSaveConcept",
            search_aliases=["latexblend", "save embedding", "keep concept", "pnp-mix"],
            display_name="Save Concept",
            category=LATEXBLEND_CATEGORY,
            description="Saves a trained concept to models/concepts, for any later graph.",
            inputs=[
                TrainedType.Input("learned", tooltip="From Train Concept or Import Concept."),
                io.String.Input(
                    "filename_prefix",
                    default="concept",
                    tooltip="Start of the file's name; a number follows. A / makes a folder.",
                ),
            ],
            outputs=[TrainedType.Output(display_name="learned", tooltip="The same, for Blend Concept.")],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @override
    def execute(cls, learned: TrainedConcept, filename_prefix: str) -> io.NodeOutput:
        node = "Save Concept"
        folder = folder_paths.get_folder_paths(CONCEPTS)[0]
        try:
            data = file_bytes(learned)
        except ValueError as error:
            what = first_fault(error) if isinstance(error, ValidationError) else str(error)
            raise BadInput(node, "learned", f"no file can hold it: {what}.", "Train it again.") from error
        name = save_new(node, filename_prefix, folder, ".safetensors", data)
        message = f"Saved as {name} ({len(data) / 1e6:.2f} MB). Load Concept finds it; press R there."
        show(node, cls.hidden.unique_id, [message])
        return io.NodeOutput(learned, ui=ui.PreviewText(message))


class PnPMixLoadConcept(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return schema(
            node_id="PnPMixLoadConcept",
            search_aliases=["latexblend", "trained concept", "pnp-mix"],
            display_name="Load Concept",
            category=LATEXBLEND_CATEGORY,
            description="Loads a trained concept from models/concepts.",
            inputs=[file_choice("A file written by Save Concept. Press R to refresh the list.", ".safetensors")],
            outputs=[
                TrainedType.Output(display_name="learned", tooltip="For Blend Concept, or to continue its training."),
                io.String.Output(display_name="noun", tooltip="The word of a prompt that is replaced by the concept."),
            ],
        )

    @classmethod
    @override
    def validate_inputs(cls, file):
        return validate("Load Concept", "file", file, model_files(CONCEPTS, ".safetensors"))

    @classmethod
    @override
    def fingerprint_inputs(cls, file):
        with contextlib.suppress(BadInput, OSError):  # `execute` says what is wrong
            return os.path.getmtime(path_of("Load Concept", "file", file, model_files(CONCEPTS, ".safetensors")))

    @classmethod
    @override
    def execute(cls, file) -> io.NodeOutput:
        learned = read_concept(path_of("Load Concept", "file", file, model_files(CONCEPTS, ".safetensors")))
        return io.NodeOutput(learned, learned.noun)


class PnPMixImportConcept(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        node = "Import Concept"
        return schema(
            node_id="PnPMixImportConcept",
            search_aliases=["latexblend", "custom diffusion", "delta", "concept bank", "pnp-mix"],
            display_name=node,
            category=LATEXBLEND_CATEGORY,
            description="Loads a concept of other trainers: a concept bank (.pt) or delta.bin of the authors' code, "
            "or what diffusers' Custom Diffusion saves.",
            inputs=[
                file_choice("A .pt or .bin file in models/concepts. No code in it is run.", ".pt", ".bin"),
                io.String.Input("noun", default="", tooltip="The noun that it was trained with, such as dog."),
                io.String.Input("name", default="", tooltip="A name for messages. Without it the file's."),
                io.Clip.Input(
                    "clip", optional=True, tooltip="The CLIP that it was trained with, for trained weights (.bin)."
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The checkpoint that it was trained with, for trained weights (.bin). Unwired: SDXL.",
                ),
            ],
            outputs=[TrainedType.Output(display_name="learned", tooltip="For Save Concept or Blend Concept.")],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    @override
    def validate_inputs(cls, file):
        return validate("Import Concept", "file", file, model_files(CONCEPTS, ".pt", ".bin"))

    @classmethod
    @override
    def execute(cls, file, noun, name, clip=None, model=None) -> io.NodeOutput:
        node = "Import Concept"
        if not noun.strip():
            raise BadInput(node, "noun", "it is empty.", "Write the noun that the concept was trained with.")
        for what, text in (("noun", noun), ("name", name)):
            check_name(node, what, text)
        if model is not None:
            check_model(node, model)
        path = path_of(node, "file", file, model_files(CONCEPTS, ".pt", ".bin"))
        remedy = "Use a file of the same kind of checkpoint, and the noun that it was trained with."
        with reading(node, "file", path, remedy):
            content = dictionary(read_pickle(path))
            if is_embedding(content):
                raise embedding(node, path)
            if is_custom_diffusion(content):
                content = as_delta(node, path, content)
            is_delta = "unet" in content and "modifier_token" in content
            for wired, what in ((clip, "clip"), (model, "model")):
                if is_delta and wired is None:
                    fault = f"{file} holds trained weights."
                    raise BadInput(node, what, fault, "Wire what the concept was trained with.")
            widths = None if model is None else layer_widths(model.model.diffusion_model)
            tokens = None if clip is None else 1 + len(next(iter(noun_ids(node, clip, noun).values())))
            features = from_delta(content, clip, model, noun) if is_delta else from_bank(content, model)
            check(features, widths, tokens)
        checkpoint = checkpoint_name(cls.hidden.prompt, cls.hidden.unique_id)
        settings = {"imported": os.path.basename(path)}
        name = name or os.path.splitext(os.path.basename(path))[0]
        origin = ("SDXL EPS", "", "") if model is None else (model_family(model), checkpoint, fingerprint(model))
        learned = TrainedConcept(features, name, noun, *origin, settings)
        return io.NodeOutput(learned)


class Described(BaseModel):
    """The metadata of a concept file, beside the tensors."""

    version: str
    name: Name
    noun: Name
    family: Label
    checkpoint: Label
    fingerprint: Label
    settings: dict[Label, Text]

    @field_validator("version")
    @classmethod
    def known(cls, version: str) -> str:
        """Refuses files of later versions."""
        if version != VERSION:
            raise ValueError(f"this pack reads version {VERSION}, update the pack")
        return version

    @field_validator("settings")
    @classmethod
    def counted(cls, settings: dict[str, str]) -> dict[str, str]:
        """Checks the settings that continuing a training reads."""
        for name in ("steps", "rank"):
            if not settings.get(name, "0").isdecimal() or len(settings.get(name, "0")) > 9:
                raise ValueError(f"'{name}' should be a whole number")
        return settings


def file_bytes(learned: TrainedConcept) -> bytes:
    """Returns the content of a concept file.

    Raises:
        ValueError: no file could hold it.
    """
    told = {field: getattr(learned, field) for field in FIELDS} | {"settings": learned.settings, "version": VERSION}
    Described.model_validate(told)
    from_tensors(bank.to_tensors(learned.features))  # what half precision cannot hold is said now
    return bank.file_bytes(learned.features, told, {STATE + name: x for name, x in learned.state.items()})


def read_concept(path: str) -> TrainedConcept:
    """Reads a concept file that Save Concept wrote, and refuses any other."""
    node, name = "Load Concept", os.path.basename(path)
    with reading(node, "file", path, "Train it again, or get the file again."):
        tensors, metadata = read_safetensors(path, lambda metadata: FORMAT in metadata)
        if FORMAT not in metadata:
            if is_embedding(tensors):
                raise embedding(node, path)
            raise BadInput(node, "file", f"{name} is not a trained concept.", "Choose a file that Save Concept wrote.")
        about = Described.model_validate_json(metadata[FORMAT])
        state = {key.removeprefix(STATE): described(x, key) for key, x in tensors.items() if key.startswith(STATE)}
        features = from_tensors({key: x for key, x in tensors.items() if not key.startswith(STATE)})
    described_by = {field: getattr(about, field) for field in FIELDS}
    return TrainedConcept(features, **described_by, settings=about.settings, state=state)


def dictionary(content: object) -> dict:
    """Returns the dictionary that a file holds.

    Raises:
        ValueError: it is none of names.
    """
    if not isinstance(content, dict) or not content or not all(isinstance(key, str) for key in content):
        raise ValueError("it should be a concept bank (.pt), a delta.bin, or the weights that diffusers saves")
    return content


# --- Files of other makers

OF_EMBEDDINGS = {"string_to_param", "emb_params", "clip_l", "clip_g"}
CUSTOM_DIFFUSION = re.compile(r"(?:unet\.)?(.+\.attn2)\.processor\.(to_[kv])_custom_diffusion\.weight")


def is_embedding(content: dict) -> bool:
    """Tells a textual inversion of any maker: names → vectors, or their batch, and nothing else."""
    if content.keys() & OF_EMBEDDINGS:
        return True
    wide = (x for x in content.values() if isinstance(x, Tensor) and x.ndim in (1, 2) and x.shape[-1] >= LEAST_WIDTH)
    return len(content) == len(list(wide)) == 1 and "." not in next(iter(content))


def embedding(node: str, path: str) -> BadInput:
    """Returns the error for a textual inversion, which holds no keys and values."""
    stem = os.path.splitext(os.path.basename(path))[0]
    fault = f"{os.path.basename(path)} is an embedding of textual inversion, which holds no concept's keys and values."
    return BadInput(node, "file", fault, f"Put it into models/embeddings, and write embedding:{stem} in a prompt.")


def is_custom_diffusion(content: dict) -> bool:
    """Tells the weights that diffusers' Custom Diffusion training saves."""
    return any(CUSTOM_DIFFUSION.fullmatch(name) for name in content)


def as_delta(node: str, path: str, content: dict) -> dict:
    """Returns the weights that diffusers' training script saves, with V* from the file beside them.

    Raises:
        BadInput: there is no such file, or more than one.
    """
    folder = os.path.dirname(path)
    found = {}
    for name in sorted(os.listdir(folder)):
        other = os.path.join(folder, name)
        if name.endswith(".bin") and other != path and os.path.isfile(other) and os.path.getsize(other) < LARGEST_TOKEN:
            with contextlib.suppress(Exception):  # another file, whatever it is
                if is_embedding(vectors := dictionary(read_pickle(other))):
                    found[name] = vectors
    if len(found) != 1:
        fault = (
            f"beside {os.path.basename(path)} there is not one file with its word, but {', '.join(found) or 'none'}."
        )
        remedy = "Put both into a folder of their own: diffusers saves the word as <new1>.bin."
        raise BadInput(node, "file", fault, remedy)
    names = {name: CUSTOM_DIFFUSION.fullmatch(name) for name in content}
    weights = {f"{match[1]}.{match[2]}.weight": content[name] for name, match in names.items() if match}
    (vectors,) = found.values()
    return {"unet": weights, "modifier_token": vectors}


# Of the published files; what `unet_to_diffusers` asks of a configuration
SDXL = dict(
    num_res_blocks=[2, 2, 2],
    channel_mult=[1, 2, 4],
    transformer_depth=[0, 0, 2, 2, 10, 10],
    transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10],
    transformer_depth_middle=10,
)


def diffusers_names(model) -> dict[str, str]:
    """Returns diffusers' name of each cross-attention layer → ComfyUI's."""
    names = comfy.utils.unet_to_diffusers(SDXL if model is None else model.model.model_config.unet_config)
    ending = ".to_k.weight"
    return {
        theirs.removesuffix(ending): ours.removesuffix(ending)
        for theirs, ours in names.items()
        if theirs.endswith(f"attn2{ending}")
    }


def numbers(x: object, name: str, shape: Sequence[int | None]) -> Tensor:
    """Returns a checked entry in float32, in memory of its own."""
    return described(x, name, shape).float().clone()  # of a view of a larger one, the part


def from_bank(content: dict, model) -> dict:
    """Returns the features of a concept bank (.pt) of the authors' code."""
    names, features = diffusers_names(model), {}
    for theirs, pair in content.items():
        layer = names.get(theirs.removesuffix(".processor").removeprefix("unet."))
        if layer is None or not isinstance(pair, dict) or set(pair) != {"k", "v"}:
            raise ValueError(f"entry '{theirs[:100]}' is no layer of this model with k and v")
        pair = {side: x[0] if isinstance(x, Tensor) and x.ndim == 3 and len(x) == 1 else x for side, x in pair.items()}
        features[layer] = tuple(numbers(pair[side], f"{theirs}.{side}", (None, None)) for side in "kv")
    return features


def from_delta(content: dict, clip, model, noun: str) -> dict:
    """Computes the features from the trained W_k, W_v and V* of a delta.bin."""
    names, weights, identifiers = diffusers_names(model), content["unet"], content["modifier_token"]
    if not isinstance(weights, dict) or not isinstance(identifiers, dict) or len(identifiers) != 1:
        raise ValueError("it is not of one concept")
    (vectors,) = identifiers.values()
    vectors = vectors if isinstance(vectors, list) else [vectors]
    encoders = sorted(noun_ids("Import Concept", clip, noun), key=lambda encoder: encoder == "g")  # l before g
    if len(vectors) != len(encoders):
        raise ValueError(f"it has V* for {len(vectors)} encoders, this CLIP has {len(encoders)}")
    vectors = [
        numbers(x[0] if isinstance(x, Tensor) and x.ndim == 2 and len(x) == 1 else x, "modifier_token", own.shape)
        for x, own in zip(vectors, (rare_vector(clip, encoder) for encoder in encoders), strict=True)
    ]
    widths = {
        layer: module.to_k.weight.shape for layer, (_, module) in cross_attentions(model.model.diffusion_model).items()
    }
    project = {}
    for theirs, layer in names.items():
        sides = {side: f"{theirs}.to_{side}.weight" for side in "kv"}
        w_k, w_v = (numbers(weights.get(name), name, widths[layer]) for name in sides.values())
        project[layer] = projection(w_k), projection(w_v)
    identifier = dict(zip(encoders, vectors, strict=True))
    context, _, _ = encode_slot("Import Concept", clip, EXTRACTED_FROM, noun, identifier)
    return extract(context[0], project)


def projection(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """Returns x → x W^T in the weight's precision."""
    return lambda x: torch.nn.functional.linear(x.to(weight), weight)


NODES = [PnPMixSaveConcept, PnPMixLoadConcept, PnPMixImportConcept]
