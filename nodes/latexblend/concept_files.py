"""Save Concept, Load Concept and Import Concept: learned concepts kept in files."""

import contextlib
import json
import os

import comfy.utils
import folder_paths
import safetensors
import torch
from comfy_api.latest import io, ui
from torch import Tensor
from typing_extensions import override

from ...demo import concepts as demo
from ...pnpmix.latexblend import bank
from ...pnpmix.latexblend.bank import FORMAT, VERSION, check, extract, from_tensors
from ...pnpmix.latexblend.training import EXTRACTED_FROM
from ..host.checks import BadInput, check_model, model_family
from ..host.files import save_new
from ..host.loading import CONCEPTS, check_pickle, is_plain
from ..host.messages import show
from ..host.types import CATEGORY, LearnedConcept, LearnedType, schema
from .layers import checkpoint_name, cross_attentions, fingerprint, layer_widths
from .samplers import encode_slot
from .words import noun_ids

DEMO = "demo model: "  # before the names of those that come with this pack
STATE = "training."  # before the names of what learning goes on from
FIELDS = ("name", "noun", "family", "checkpoint", "fingerprint")


def concept_files(*endings: str) -> list[str]:
    files = [*folder_paths.get_filename_list(CONCEPTS), *sorted(DEMO + path.name for path in demo.files())]
    return [file for file in files if file.endswith(endings)]


def concept_path(node: str, file: str | None, *endings: str) -> str:
    """The path of a file of the list; no other file is ever opened."""
    path = None
    if file in concept_files(*endings):
        own = file.startswith(DEMO)
        path = str(demo.FOLDER / file.removeprefix(DEMO)) if own else folder_paths.get_full_path(CONCEPTS, file)
    if path is None:
        fault = "no file is chosen." if file is None else f"{file!r} is not in models/{CONCEPTS}."
        raise BadInput(node, "file", fault, f"Put it into {folder_paths.get_folder_paths(CONCEPTS)[0]} and press R.")
    return path


def file_choice(tooltip: str, *endings: str) -> io.Combo.Input:
    return io.Combo.Input("file", options=concept_files(*endings), tooltip=tooltip)


def validate(node: str, file: str | None, *endings: str) -> bool | str:
    if file is None:  # a linked value is not known yet; then `execute` is the first to see it
        return True
    try:
        concept_path(node, file, *endings)
    except BadInput as error:
        return str(error)
    return True


class PnPMixSaveConcept(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return schema(
            node_id="PnPMixSaveConcept",
            search_aliases=["latexblend", "save embedding", "keep concept", "pnp-mix"],
            display_name="Save Concept",
            category=CATEGORY,
            description="Keeps a learned concept in models/concepts, for any later graph.",
            inputs=[
                LearnedType.Input("learned", tooltip="From Learn Concept or Import Concept."),
                io.String.Input(
                    "filename_prefix",
                    default="concept",
                    tooltip="Start of the file's name; a number follows. A / makes a folder.",
                ),
            ],
            outputs=[LearnedType.Output(display_name="learned", tooltip="The same, for Blend Concept.")],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @override
    def execute(cls, learned: LearnedConcept, filename_prefix: str) -> io.NodeOutput:
        node = "Save Concept"
        folder = folder_paths.get_folder_paths(CONCEPTS)[0]
        data = file_bytes(learned)
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
            search_aliases=["latexblend", "learned concept", "pnp-mix"],
            display_name="Load Concept",
            category=CATEGORY,
            description="Takes a learned concept from models/concepts.",
            inputs=[file_choice("A file written by Save Concept. Press R to refresh the list.", ".safetensors")],
            outputs=[
                LearnedType.Output(display_name="learned", tooltip="For Blend Concept, or to learn on from."),
                io.String.Output(display_name="noun", tooltip="The word of a prompt that becomes the concept."),
            ],
        )

    @classmethod
    @override
    def validate_inputs(cls, file):
        return validate("Load Concept", file, ".safetensors")

    @classmethod
    @override
    def fingerprint_inputs(cls, file):
        with contextlib.suppress(BadInput, OSError):  # `execute` says what is wrong
            return os.path.getmtime(concept_path("Load Concept", file, ".safetensors"))

    @classmethod
    @override
    def execute(cls, file) -> io.NodeOutput:
        learned = read_concept(concept_path("Load Concept", file, ".safetensors"))
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
            category=CATEGORY,
            description="Takes a concept of the authors' code: a concept bank (.pt), or a delta.bin of its training.",
            inputs=[
                file_choice("A .pt or .bin file in models/concepts. No code in it is run.", ".pt", ".bin"),
                io.String.Input("noun", default="", tooltip="The noun that it was learned with, such as dog."),
                io.String.Input("name", default="", tooltip="A name for messages. Without it the file's."),
                io.Clip.Input(
                    "clip", optional=True, tooltip="The CLIP that it was learned with; a delta.bin needs it."
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The checkpoint that it was learned with; a delta.bin needs it. Without it: an SDXL one.",
                ),
            ],
            outputs=[LearnedType.Output(display_name="learned", tooltip="For Save Concept or Blend Concept.")],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    @override
    def validate_inputs(cls, file):
        return validate("Import Concept", file, ".pt", ".bin")

    @classmethod
    @override
    def execute(cls, file, noun, name, clip=None, model=None) -> io.NodeOutput:
        node = "Import Concept"
        if not noun.strip():
            raise BadInput(node, "noun", "it is empty.", "Write the noun that the concept was learned with.")
        if model is not None:
            check_model(node, model)
        path = concept_path(node, file, ".pt", ".bin")
        content = read_pickle(node, path)
        is_delta = "unet" in content and "modifier_token" in content
        for wired, what in ((clip, "clip"), (model, "model")):
            if is_delta and wired is None:
                raise BadInput(node, what, f"{file} is a delta.bin.", "Wire what the concept was learned with.")
        widths = None if model is None else layer_widths(model.model.diffusion_model)
        tokens = None if clip is None else 1 + len(next(iter(noun_ids(node, clip, noun).values())))
        try:
            features = from_delta(content, clip, model, noun) if is_delta else from_bank(content, model)
            check(features, widths, tokens)
        except ValueError as error:
            remedy = "Use a file of the same kind of checkpoint, and the noun that it was learned with."
            raise BadInput(node, "file", f"{file} does not fit: {error}.", remedy) from error
        checkpoint = checkpoint_name(cls.hidden.prompt, cls.hidden.unique_id)
        settings = {"imported": os.path.basename(path)}
        name = name or os.path.splitext(os.path.basename(path))[0]
        origin = ("SDXL EPS", "", "") if model is None else (model_family(model), checkpoint, fingerprint(model))
        learned = LearnedConcept(features, name, noun, *origin, settings)
        return io.NodeOutput(learned)


def file_bytes(learned: LearnedConcept) -> bytes:
    told = {field: getattr(learned, field) for field in FIELDS} | {"settings": learned.settings}
    return bank.file_bytes(learned.features, told, {STATE + name: x for name, x in learned.state.items()})


def read_concept(path: str) -> LearnedConcept:
    node, name = "Load Concept", os.path.basename(path)
    remedy = "Learn it again, or get the file again."
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = json.loads((file.metadata() or {}).get(FORMAT, "{}"))
            if metadata:
                tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 no dictionary
    except OSError as error:
        fault = f"{name} cannot be read ({error.strerror})."
        raise BadInput(node, "file", fault, "Press R, and choose another.") from error
    except Exception as error:  # damage makes safetensors and torch raise almost anything
        fault = f"{name} is damaged or cut short ({type(error).__name__})."
        raise BadInput(node, "file", fault, remedy) from error
    if not isinstance(metadata, dict) or not metadata.keys() >= {*FIELDS, "settings", "version"}:
        raise BadInput(node, "file", f"{name} is no learned concept.", "Choose a file that Save Concept wrote.")
    if metadata["version"] != VERSION:
        fault = f"{name} is of version {metadata['version']}, this pack reads {VERSION}."
        raise BadInput(node, "file", fault, "Update the pack.")
    try:
        features = from_tensors({key: x for key, x in tensors.items() if not key.startswith(STATE)})
    except ValueError as error:
        raise BadInput(node, "file", f"{name} is damaged: {error}.", remedy) from error
    state = {key.removeprefix(STATE): x for key, x in tensors.items() if key.startswith(STATE)}
    return LearnedConcept(features, *(metadata[field] for field in FIELDS), metadata["settings"], state)


def read_pickle(node: str, path: str) -> dict:
    """A file's dictionary of tensors; no code in it is run."""
    name = os.path.basename(path)
    check_pickle(node, path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile or damaged file makes torch raise almost anything
        fault = f"{name} is damaged, or holds more than tensors ({type(error).__name__})."
        raise BadInput(node, "file", fault, "Use the file as its authors published it.") from error
    if not isinstance(content, dict) or not content or not all(isinstance(key, str) for key in content):
        raise BadInput(node, "file", f"{name} is no concept.", "Choose a concept bank (.pt) or a delta.bin.")
    return content


# Of the published files; what `unet_to_diffusers` asks of a configuration
SDXL = dict(
    num_res_blocks=[2, 2, 2],
    channel_mult=[1, 2, 4],
    transformer_depth=[0, 0, 2, 2, 10, 10],
    transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10],
    transformer_depth_middle=10,
)


def diffusers_names(model) -> dict[str, str]:
    """diffusers' name of each cross-attention layer → ours."""
    names = comfy.utils.unet_to_diffusers(SDXL if model is None else model.model.model_config.unet_config)
    ending = ".to_k.weight"
    return {
        theirs.removesuffix(ending): ours.removesuffix(ending)
        for theirs, ours in names.items()
        if theirs.endswith(f"attn2{ending}")
    }


def tensor(x: object, name: str) -> Tensor:
    """
    Raises:
        ValueError: it is none that a file holds every number of.
    """
    if not isinstance(x, Tensor) or not is_plain(x) or not x.is_floating_point():
        raise ValueError(f"{name} is no plain tensor")
    return x.detach().float().clone()  # of a view of a larger one, the part


def from_bank(content: dict, model) -> dict:
    names, features = diffusers_names(model), {}
    for theirs, pair in content.items():
        layer = names.get(theirs.removesuffix(".processor").removeprefix("unet."))
        if layer is None or not isinstance(pair, dict) or set(pair) != {"k", "v"}:
            raise ValueError(f"{theirs!r} is no layer of this model with k and v")
        features[layer] = tuple(tensor(pair[side], theirs).squeeze(0) for side in "kv")
    return features


def from_delta(content: dict, clip, model, noun: str) -> dict:
    """From the learned W_k, W_v and V* of a delta.bin."""
    names, weights, identifiers = diffusers_names(model), content["unet"], content["modifier_token"]
    if not isinstance(weights, dict) or not isinstance(identifiers, dict) or len(identifiers) != 1:
        raise ValueError("it is not of one concept")
    (vectors,) = identifiers.values()
    vectors = [tensor(x, "modifier_token") for x in (vectors if isinstance(vectors, list) else [vectors])]
    encoders = sorted(noun_ids("Import Concept", clip, noun), key=lambda encoder: encoder == "g")  # l before g
    if len(vectors) != len(encoders):
        raise ValueError(f"it has V* for {len(vectors)} encoders, this CLIP has {len(encoders)}")
    widths = {
        layer: module.to_k.weight.shape for layer, (_, module) in cross_attentions(model.model.diffusion_model).items()
    }
    project = {}
    for theirs, layer in names.items():
        own = [tensor(weights.get(f"{theirs}.to_{side}.weight"), theirs) for side in "kv"]
        if any(w.shape != widths[layer] for w in own):
            raise ValueError(f"{theirs} has shape {tuple(own[0].shape)}, not {tuple(widths[layer])}")
        project[layer] = tuple(lambda x, w=w: torch.nn.functional.linear(x.to(w), w) for w in own)
    identifier = dict(zip(encoders, vectors, strict=True))
    context, _, _ = encode_slot(clip, EXTRACTED_FROM, noun, identifier)
    return extract(context[0], project)


NODES = [PnPMixSaveConcept, PnPMixLoadConcept, PnPMixImportConcept]
