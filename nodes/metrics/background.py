"""Background Kept: how little the scene changed outside the masks."""

from functools import partial

import comfy.model_management
from comfy_api.latest import io
from torch import Tensor
from typing_extensions import override

from ...pnpmix.metrics.background import lpips, lpips_network, psnr, ssim
from ...pnpmix.metrics.statistics import Measured
from ..common.checks import BadInput
from ..common.types import SCORES_CATEGORY, schema
from .encoders import checked_masks, plain_pictures
from .scores import score_outputs, scored

NODE = "Background Kept"


class PnPMixBackgroundKept(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return schema(
            node_id="PnPMixBackgroundKept",
            search_aliases=["psnr", "ssim", "lpips", "background preservation", "evaluate", "metric", "difference"],
            display_name=NODE,
            category=SCORES_CATEGORY,
            description="How little the scene changed outside the masks: PSNR, SSIM, and LPIPS if its package is "
            "installed.",
            inputs=[
                io.Image.Input("images", tooltip="The images to measure; each gets a value."),
                io.Image.Input(
                    "original", tooltip="The scene image, at the same size: one for all, or one for each image."
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where changes are wanted; that area does not count. Several masks are joined; as many "
                    "masks as images go one to each. Without a mask everything counts.",
                ),
            ],
            outputs=score_outputs(
                psnr="In dB, mean over the images. Above 40: hardly visible; 100: identical pixels.",
                ssim="0 to 1, mean over the images. 1: identical.",
            ),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @override
    def execute(cls, images, original, mask=None) -> io.NodeOutput:
        pictures, originals = plain_pictures(NODE, "images", images), plain_pictures(NODE, "original", original)
        check_size(images, original)
        masks, messages = images.new_zeros(images.shape[:3]).cpu(), list[str]()
        if mask is not None:
            masks, messages = checked_masks(NODE, "mask", mask, images)
        if len(originals) == 1:
            originals *= len(pictures)
        triples = [(a, b, m.float()) for a, b, m in zip(pictures, originals, masks, strict=True)]
        try:
            measures = [
                Measured("PSNR, dB", each(psnr, triples), digits=1),
                Measured("SSIM", each(ssim, triples)),
            ]
        except ValueError as error:
            raise BadInput(NODE, "mask", str(error), "Paint only the area that should change.") from error
        try:
            perceived = each(partial(lpips, lpips_network()), triples)
            measures.append(Measured("LPIPS", perceived, more_is_better=False))
        except (FileNotFoundError, ValueError) as error:
            messages.append(f"LPIPS is left out: {error}")
        return scored(NODE, cls, measures, messages, means=2)


def check_size(images: Tensor, original: Tensor) -> None:
    """Refuses an original of another size, or neither one nor as many as there are images."""
    if images.shape[1:3] != original.shape[1:3]:
        (height, width), (own_height, own_width) = original.shape[1:3], images.shape[1:3]
        fault = f"it is {width} x {height} pixels, the images {own_width} x {own_height}."
        raise BadInput(NODE, "original", fault, "Bring both to one size, such as with Paste Back or Fit Picture.")
    if len(original) not in (1, len(images)):
        fault = f"it is a batch of {len(original)}, for {len(images)} images."
        raise BadInput(NODE, "original", fault, "Wire one, or one for each image.")


def each(measure, triples: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[float, ...]:
    """Returns measure(image, original, mask) of each triple."""
    values = []
    for triple in triples:
        comfy.model_management.throw_exception_if_processing_interrupted()
        values.append(measure(*triple))
    return tuple(values)


NODES = [PnPMixBackgroundKept]
