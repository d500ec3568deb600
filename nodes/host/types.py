"""What travels between the nodes of this pack."""

import dataclasses
from typing import NamedTuple

from comfy_api.latest import io
from torch import Tensor

from ...pnpmix.mixer.inversion import Inversion
from ...pnpmix.vision.framing import Frame, Size

CATEGORY = "PnP-MIX"

InversionType = io.Custom("PNPMIX_INVERSION")
ConceptsType = io.Custom("PNPMIX_CONCEPTS")
DetectorType = io.Custom("PNPMIX_DETECTOR")  # ModelPatcher of a pnpmix.vision.detection.GroundingDino
SegmenterType = io.Custom("PNPMIX_SEGMENTER")  # grounding_models.Segmenter
InpaintModelType = io.Custom("INPAINT_MODEL")  # spandrel's descriptor, as in comfyui-inpaint-nodes
PlaceType = io.Custom("PNPMIX_PLACE")


def schema(search_aliases: list[str], **fields) -> io.Schema:
    """With the words that people search for, where ComfyUI has a place for them; versions before raise a TypeError."""
    later = {"search_aliases": search_aliases}
    known = {field.name for field in dataclasses.fields(io.Schema)}
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
    node_id: str | None = None  # of its node in the graph, which takes the concept's colour


class Appearance(NamedTuple):
    """Settings of guided appearance attention, in the model_options of a MODEL."""

    alpha: float
    layers: str  # "all" or "decoder"
    start_percent: float
    end_percent: float
    adain: bool = False


class InpaintedBackground(NamedTuple):
    """Settings of background dilution++, in the model_options of a MODEL."""

    latent: Tensor  # (1, C, H, W)
    beta: float
    expand: int  # image pixels
    outside: str  # "scaled" or "blended"


class Place(NamedTuple):
    """PNPMIX_PLACE: where Fit Picture's part came from."""

    photo: Size
    frame: Frame  # on the photo
    size: Size  # that the frame was scaled to


# Where a MODEL carries them. Only the mixer reads them, so any other sampler works as if they were not there.
APPEARANCE, DILUTION = "pnpmix_appearance", "pnpmix_dilution"
