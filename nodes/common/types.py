"""What travels between the nodes of this pack."""

import dataclasses
import inspect
from typing import Literal, NamedTuple

from comfy_api.latest import io
from torch import Tensor

from ...pnpmix.conductor.layout import Layout
from ...pnpmix.latexblend.bank import Features
from ...pnpmix.mixer.inversion import Inversion
from ...pnpmix.vision.framing import Frame, Size

CATEGORY = "PnP-MIX"
CONDUCTOR_CATEGORY, LATEXBLEND_CATEGORY = f"{CATEGORY}/Concept Conductor", f"{CATEGORY}/LaTexBlend"
MASKS_CATEGORY, SCORES_CATEGORY, DEMO_CATEGORY = f"{CATEGORY}/masks", f"{CATEGORY}/scores", f"{CATEGORY}/demo"

InversionType = io.Custom("PNPMIX_INVERSION")
ConceptsType = io.Custom("PNPMIX_CONCEPTS")
DetectorType = io.Custom("PNPMIX_DETECTOR")  # vision.detection.Detector
SegmenterType = io.Custom("PNPMIX_SEGMENTER")  # vision.segmentation.Segmenter
InpaintModelType = io.Custom("INPAINT_MODEL")  # spandrel's descriptor, as in comfyui-inpaint-nodes
PlaceType = io.Custom("PNPMIX_PLACE")
ReferencesType = io.Custom("PNPMIX_REFERENCES")
ScoresType = io.Custom("PNPMIX_SCORES")  # list of pnpmix.metrics.statistics.Measured, of the same pictures
LayoutType = io.Custom("PNPMIX_LAYOUT")
ConductedType = io.Custom("PNPMIX_CONDUCTED")
TrainedType = io.Custom("PNPMIX_LEARNED")
BlendType = io.Custom("PNPMIX_BLEND")


# For an input that most people never touch: editors that know such inputs show them on request alone
EXPERT = {"advanced": True} if "advanced" in inspect.signature(io.Int.Input).parameters else {}


def schema(search_aliases: list[str], shows_result: bool = False, **fields) -> io.Schema:
    """Builds a schema, without fields that the oldest supported ComfyUI refuses with a TypeError.

    Args:
        search_aliases: Words that people search for.
        shows_result: The node shows on itself what it returned, also where nothing had to run again.
    """
    known = {field.name for field in dataclasses.fields(io.Schema)}
    later = {"search_aliases": search_aliases, "has_intermediate_output": shows_result}
    return io.Schema(**fields, **{name: value for name, value in later.items() if name in known})


class InvertedLatent(NamedTuple):
    """PNPMIX_INVERSION: an inversion on the CPU, and what it was made with."""

    inversion: Inversion
    family: str  # of the model, see `checks.model_family`
    settings: dict[str, str]  # the inputs of the node that made it, for the reader of a saved file


class Concept(NamedTuple):
    """One of PNPMIX_CONCEPTS."""

    latent: Tensor  # (1, C, H, W)
    mask: Tensor  # (h, w) in image pixels, of any size
    positive: list | None  # CONDITIONING; None: the mixer's
    seed: int
    name: str
    object_mask: Tensor | None = None  # (h, w) of the object in the person's picture
    node_id: str | None = None  # of its node in the graph, which takes the concept's color
    learned: "TrainedConcept | None" = None  # who it is, of the concepts that Blend puts into the mixer's prompt
    title: str = ""  # of its node in the editor, where that is not the name

    @property
    def label(self) -> str:
        """Returns the name of its node in messages."""
        return f"Concept '{self.name}'" + (f" (node '{self.title}')" if self.title else "")


class Appearance(NamedTuple):
    """Settings of guided appearance attention, in the model_options of a MODEL."""

    alpha: float | Tensor  # (), of a compiled model
    layers: str  # "all", "decoder" or "vital"
    start_percent: float
    end_percent: float
    adain: bool = False
    position: str = "target"  # or "kept": where a transformer sees the concept's object


class InpaintedBackground(NamedTuple):
    """Settings of background dilution++, in the model_options of a MODEL."""

    latent: Tensor  # (1, C, H, W)
    beta: float
    expand: int  # image pixels
    outside: Literal["scaled", "blended"]
    node_id: str | None = None  # of its node in the graph, which a message may be about


class Place(NamedTuple):
    """PNPMIX_PLACE: the crop box of Fit Picture."""

    photo: Size
    frame: Frame  # on the photo
    size: Size  # that the frame was scaled to


class SubjectReference(NamedTuple):
    """One of PNPMIX_REFERENCES: images of a concept, and the text by which it is found."""

    images: Tensor  # (m, H, W, 3 or 4)
    prompt: str


class LayoutReference(NamedTuple):
    """PNPMIX_LAYOUT: a layout image at every noise level, on the CPU."""

    layout: Layout
    positive: list  # CONDITIONING that describes it
    family: str  # of the model, see `checks.model_family`


class LayoutGuidance(NamedTuple):
    """Settings of layout alignment, in the model_options of a MODEL."""

    reference: LayoutReference
    weight: float
    concept_weight: float
    end: float
    node_id: str | None = None  # of its node in the graph, which a message may be about


class ConductedConcept(NamedTuple):
    """One of PNPMIX_CONDUCTED: a branch with its own LoRA."""

    positive: list  # CONDITIONING, which carries the weights as hooks
    negative: list
    mask: Tensor  # (h, w) in image pixels, of any size
    name: str
    node_id: str | None = None  # of its node in the graph, which takes the concept's color


class ConceptFile(NamedTuple):
    """The file that a concept's CONDITIONING came from, under CONCEPT_FILE."""

    name: str
    layers: int  # prompts joined in the conditioning, one for each cross-attention layer; 1: one for all
    node_id: str | None = None  # of Concept LoRA
    changes_words: bool = False  # it brings words of its own, or changes the text encoder


class TrainedConcept(NamedTuple):
    """PNPMIX_LEARNED: a concept as LaTexBlend keeps it, on the CPU."""

    features: Features
    name: str
    noun: str
    family: str  # of the model, see `checks.model_family`
    checkpoint: str  # name of the file that it was trained with; "" where that is not known
    fingerprint: str  # of that checkpoint's W_k
    settings: dict[str, str]  # the inputs of the node that made it, for the reader of a saved file
    state: dict[str, Tensor] = {}  # to go on from, where it was asked for


class BlendedConcept(NamedTuple):
    """One of PNPMIX_BLEND."""

    learned: TrainedConcept
    occurrence: int  # of the noun in the prompt, from 1
    strength: float
    mask: Tensor | None  # (h, w), where in the picture
    node_id: str | None = None  # of its node in the graph, which a message may be about


# Where a MODEL carries them. Only the samplers of this pack read them, so any other works as if they were not there.
APPEARANCE, DILUTION = "pnpmix_appearance", "pnpmix_dilution"
LAYOUT_GUIDANCE, REFINEMENT = "pnpmix_layout_guidance", "pnpmix_refinement"
CONCEPT_FILE = "pnpmix_concept_file"
