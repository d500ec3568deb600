"""Background Kept: what a blend left of its background."""

from functools import partial

import comfy.model_management
from comfy_api.latest import io
from torch import Tensor
from typing_extensions import override

from ...pnpmix.metrics.background import lpips, lpips_network, psnr, ssim
from ...pnpmix.metrics.statistics import Measured
from ..common.checks import BadInput
from ..common.types import CATEGORY, schema
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
            category=CATEGORY,
            description="How much of the background stayed as it was, outside the masks: PSNR, SSIM, and LPIPS where "
            "its package is installed.",
            inputs=[
                io.Image.Input("images", tooltip="The pictures to measure; each gets a value."),
                io.Image.Input(
                    "original", tooltip="The background, in the same size: one for all, or one for each picture."
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where a change is wanted: that does not count. Several masks are joined; as many as "
                    "there are pictures go one to each. Without it everything counts.",
                ),
            ],
            outputs=score_outputs(
                psnr="In dB, mean over the pictures. Above 40 hardly visible; 100: the same pixels.",
                ssim="0 to 1, mean over the pictures. 1: the same.",
            ),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @override
    def execute(cls, images, original, mask=None) -> io.NodeOutput:
        pictures, originals = plain_pictures(NODE, "images", images), plain_pictures(NODE, "original", original)
        check_size(images, original)
        masks, messages = images.new_zeros(images.shape[:3]).cpu(), []
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
            raise BadInput(NODE, "mask", str(error), "Mark only what is to change in white.") from error
        try:
            perceived = each(partial(lpips, lpips_network()), triples)
            measures.append(Measured("LPIPS", perceived, more_is_better=False))
        except (FileNotFoundError, ValueError) as error:
            messages.append(f"LPIPS left out: {error}")
        return scored(NODE, cls, measures, messages, means=2)


def check_size(images: Tensor, original: Tensor) -> None:
    if images.shape[1:3] != original.shape[1:3]:
        (height, width), (own_height, own_width) = original.shape[1:3], images.shape[1:3]
        fault = f"it is {width} x {height} pixels, the pictures {own_width} x {own_height}."
        raise BadInput(NODE, "original", fault, "Bring both to one size, such as with Paste Back or Fit Picture.")
    if len(original) not in (1, len(images)):
        fault = f"it is a batch of {len(original)}, for {len(images)} pictures."
        raise BadInput(NODE, "original", fault, "Wire one, or one for each picture.")


def each(measure, triples: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[float, ...]:
    """measure(picture, original, mask) of each."""
    values = []
    for triple in triples:
        comfy.model_management.throw_exception_if_processing_interrupted()
        values.append(measure(*triple))
    return tuple(values)


NODES = [PnPMixBackgroundKept]
