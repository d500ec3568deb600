"""SegSim and SegSim Concept: Concept Conductor's measure of several concepts in one picture."""

import comfy.utils
import torch
from comfy_api.latest import io
from torch import Tensor
from typing_extensions import override

from ...pnpmix.metrics.segsim import Subjects, count_subjects, omission, redundancy, segsim
from ...pnpmix.metrics.similarity import regional_crop
from ...pnpmix.metrics.statistics import Measured
from ..common.checks import BadInput, check_image
from ..common.types import SCORES_CATEGORY, DetectorType, ReferencesType, SegmenterType, SubjectReference, schema
from ..vision.grounded_mask import look_for
from .encoders import embed_pictures, mean_color
from .scores import score_outputs, scored

SCORE, CONCEPT = "SegSim", "SegSim Concept"
BOX_THRESHOLD, TEXT_THRESHOLD = 0.3, 0.25  # as Grounded Mask's defaults


class PnPMixSegSimConcept(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return schema(
            node_id="PnPMixSegSimConcept",
            search_aliases=["segmentation similarity", "concept conductor", "evaluate", "metric"],
            display_name=CONCEPT,
            category=SCORES_CATEGORY,
            description="One of your concepts for SegSim: its images, and the text that finds it.",
            inputs=[
                io.Image.Input("images", tooltip="Images of the concept, one or a batch. Their values are averaged."),
                io.String.Input(
                    "prompt", default="", tooltip="Its class, such as: dog. Grounding DINO finds it by this text."
                ),
                ReferencesType.Input("concepts", optional=True, tooltip="The SegSim Concepts before this one."),
            ],
            outputs=[
                ReferencesType.Output(display_name="references", tooltip="For the next SegSim Concept or SegSim.")
            ],
        )

    @classmethod
    @override
    def execute(cls, images, prompt, concepts=()) -> io.NodeOutput:
        check_image(CONCEPT, "images", images)
        if not isinstance(prompt, str) or not prompt.strip():
            raise BadInput(CONCEPT, "prompt", "it has no words.", "Name what to find, such as: dog")
        return io.NodeOutput([*concepts, SubjectReference(images, " ".join(prompt.lower().split()))])


class PnPMixSegSim(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return schema(
            node_id="PnPMixSegSim",
            search_aliases=["segmentation similarity", "concept conductor", "omission", "redundancy", "metric"],
            display_name=SCORE,
            category=SCORES_CATEGORY,
            description="How similar each concept is to the most similar object in an image, and whether objects are "
            "missing or duplicated.",
            inputs=[
                io.Image.Input("images", tooltip="The images to measure; each gets a value."),
                ReferencesType.Input(
                    "references", tooltip="All concepts that an image should show, from the last SegSim Concept."
                ),
                DetectorType.Input("detector", tooltip="From Load Grounding DINO. Finds the objects by text."),
                SegmenterType.Input("segmenter", tooltip="From Load SAM. Outlines them."),
                io.ClipVision.Input("encoder", tooltip="From Load CLIP Vision: CLIP or DINOv2. Compares them."),
            ],
            outputs=score_outputs(score="0 to 1, mean over concepts and images. A concept that is not found counts 0."),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @override
    def execute(cls, images, references, detector, segmenter, encoder) -> io.NodeOutput:
        check_image(SCORE, "images", images)
        if len(references) == 0:
            raise BadInput(SCORE, "references", "it holds no concept.", "Wire SegSim Concept.")
        prompts = list(dict.fromkeys(reference.prompt for reference in references))
        progress = comfy.utils.ProgressBar(sum(len(x.images) for x in references) + len(images))

        def subjects(pictures: Tensor, index: int, prompt: str) -> Tensor:
            """Returns embeddings (n, d) of the objects in one image of a batch."""
            crops = subject_crops(detector, segmenter, pictures, index, prompt, mean_color(encoder))
            return embed_pictures(SCORE, encoder, crops)

        own: list[list[Tensor]] = []
        for reference in references:
            own.append([])
            for index in range(len(reference.images)):
                own[-1].append(subjects(reference.images, index, reference.prompt))
                progress.update(1)
        similar, counts = [], []
        for index in range(len(images)):
            found = {prompt: subjects(images, index, prompt) for prompt in prompts}
            counts.append(count_subjects([x.prompt for x in references], {p: len(x) for p, x in found.items()}))
            similar.append(segsim(torch.cat([x for x in found.values() if len(x)] or [torch.zeros(0, 1)]), own))
            progress.update(1)
        measures = [
            Measured("SegSim", tuple(sum(values) / len(values) for values in similar)),
            Measured("Omission", tuple(float(omission(x)) for x in counts), more_is_better=False, digits=2),
            Measured("Redundancy", tuple(float(redundancy(x)) for x in counts), more_is_better=False, digits=2),
        ]
        return scored(SCORE, cls, measures, [*unseen(references, own), *details(references, similar, counts)])


def subject_crops(detector, segmenter, images: Tensor, index: int, prompt: str, color) -> list[Tensor]:
    """Returns a crop of each object that the text finds in one image of a batch, for the encoder."""
    _, objects, _ = look_for(CONCEPT, detector, images, index, prompt, BOX_THRESHOLD, TEXT_THRESHOLD)
    if not objects:
        return []
    masks = segmenter.masks(images, index, torch.stack([x.box for x in objects]))
    picture = images[index, ..., :3].float().cpu()
    return [regional_crop(picture, mask, color) for mask in masks if mask.any()]


def unseen(references: list[SubjectReference], own: list[list[Tensor]]) -> list[str]:
    """Returns warnings about reference images in which nothing was found; they count 0, whatever is measured."""
    return [
        f"Warning: no '{reference.prompt}' found in image {k} of concept {number}, which counts 0."
        for number, (reference, pictures) in enumerate(zip(references, own, strict=True), 1)
        for k, segments in enumerate(pictures, 1)
        if len(segments) == 0
    ]


def details(references: list[SubjectReference], similar: list[list[float]], counts: list[list[Subjects]]) -> list[str]:
    """Returns a line for each image: each concept's value, and how many objects were found of how many concepts."""
    lines = []
    for k, (values, subjects) in enumerate(zip(similar, counts, strict=True), 1):
        alike = ", ".join(f"{x.prompt} {value:.3f}" for x, value in zip(references, values, strict=True))
        found = ", ".join(f"{x.found} of {x.wanted} {x.prompt}" for x in subjects)
        lines.append(f"Image {k}: {alike}; found {found}")
    return lines


NODES = [PnPMixSegSimConcept, PnPMixSegSim]
