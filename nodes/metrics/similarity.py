"""Image Similarity and Text Similarity: CLIP-I, DINO and CLIP-T of each image."""

import comfy.utils
from comfy_api.latest import io
from typing_extensions import override

from ...pnpmix.metrics.similarity import color_similarity, image_similarity, text_similarity
from ...pnpmix.metrics.statistics import Measured
from ..common.checks import BadInput
from ..common.types import SCORES_CATEGORY, schema
from .encoders import embed_pictures, embed_text, mean_color, plain_pictures, regions
from .scores import score_outputs, scored

IMAGE, TEXT = "Image Similarity", "Text Similarity"
OUTSIDE = (-1.0,) * 3  # no color


class PnPMixImageSimilarity(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return schema(
            node_id="PnPMixImageSimilarity",
            search_aliases=["clip-i", "clip score", "dino score", "evaluate", "metric", "compare images", "fidelity"],
            display_name=IMAGE,
            category=SCORES_CATEGORY,
            description="How similar images and references are to an encoder (CLIP-I, DINO): the mean cosine.",
            inputs=[
                io.Image.Input("images", tooltip="The images to measure; each gets a value."),
                io.Image.Input("references", tooltip="What they should look like, such as your concept images."),
                io.ClipVision.Input(
                    "encoder",
                    optional=True,
                    tooltip="From Load CLIP Vision: CLIP, SigLIP or DINOv2. Without it only the color histograms are "
                    "compared (their intersection).",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the object is in the images; only that counts. Several masks are joined; as many "
                    "masks as images go one to each.",
                ),
                io.Mask.Input("reference_mask", optional=True, tooltip="The same for the references."),
            ],
            outputs=score_outputs(score="1: identical, 0: nothing in common; mean over the images."),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @override
    def execute(cls, images, references, encoder=None, mask=None, reference_mask=None) -> io.NodeOutput:
        color = OUTSIDE if encoder is None else mean_color(encoder)
        shown, messages = regions(IMAGE, "images", images, "mask", mask, color)
        wanted, more = regions(IMAGE, "references", references, "reference_mask", reference_mask, color)
        if encoder is None:
            name, values = "Colors", [mean_of_colors(picture, wanted) for picture in shown]
        else:
            progress = comfy.utils.ProgressBar(len(shown) + len(wanted))
            embedded = [embed_pictures(IMAGE, encoder, pictures, progress) for pictures in (shown, wanted)]
            name, values = "Image similarity", image_similarity(*embedded).tolist()
        return scored(IMAGE, cls, [Measured(name, tuple(values))], messages + more)


def mean_of_colors(picture, references) -> float:
    """Returns the mean color similarity over the references; pixels that are OUTSIDE do not count."""
    own, *others = (x[x.amin(-1) >= 0] for x in (picture, *references))
    return sum(color_similarity(own, other) for other in others) / len(others)


class PnPMixTextSimilarity(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return schema(
            node_id="PnPMixTextSimilarity",
            search_aliases=["clip-t", "clip score", "prompt alignment", "evaluate", "metric"],
            display_name=TEXT,
            category=SCORES_CATEGORY,
            description="How well images match a text (CLIP-T): the cosine of their CLIP embeddings.",
            inputs=[
                io.Image.Input("images", tooltip="The images to measure; each gets a value."),
                io.String.Input(
                    "text",
                    default="",
                    multiline=True,
                    tooltip="What the images should show. CLIP reads 75 tokens.",
                ),
                io.Clip.Input("clip", tooltip="The text encoder of a CLIP, with its projection, from Load CLIP."),
                io.ClipVision.Input("encoder", tooltip="The image encoder of the same CLIP, from Load CLIP Vision."),
            ],
            outputs=score_outputs(score="The cosine, mean over the images. CLIPScore is 2.5 times that."),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @override
    def execute(cls, images, text, clip, encoder) -> io.NodeOutput:
        pictures = plain_pictures(TEXT, "images", images)
        words, messages = embed_text(TEXT, clip, text)
        shown = embed_pictures(TEXT, encoder, pictures, comfy.utils.ProgressBar(len(pictures)))
        if shown.shape[1] != len(words):
            fault = f"it gives {shown.shape[1]} numbers, the text encoder {len(words)}: they are not of the same CLIP."
            raise BadInput(TEXT, "encoder", fault, "Load both from the same CLIP, such as ViT-L/14.")
        values = text_similarity(shown, words).tolist()
        return scored(TEXT, cls, [Measured("Text similarity", tuple(values))], messages)


NODES = [PnPMixImageSimilarity, PnPMixTextSimilarity]
