"""Inpaint Background: the clean plate, which is the scene without its objects, for Background Dilution++."""

from collections.abc import Callable
from functools import partial

import comfy.model_management
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from typing_extensions import override

from ...pnpmix.vision.inpainting import MAX_SIDE, fill_by_model, fill_smoothly, fill_weights, inpaint
from ..common.checks import BadInput, check_aspect, check_image, check_numbers, masks_of, masks_of_pictures
from ..common.loading import load_where_it_runs, patcher_of
from ..common.memory import for_host
from ..common.messages import show
from ..common.types import MASKS_CATEGORY, InpaintModelType, schema

NODE = "Inpaint Background"


class PnPMixInpaintBackground(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return schema(
            node_id="PnPMixInpaintBackground",
            search_aliases=["lama", "remove object", "erase", "empty background"],
            display_name=NODE,
            category=MASKS_CATEGORY,
            description="Removes the objects from the scene. Pixels outside the expanded mask are unchanged.",
            inputs=[
                io.Image.Input("image", tooltip="The scene image. A batch gives a batch."),
                io.Mask.Input(
                    "mask",
                    tooltip="The objects to remove. Several masks are joined; as many masks as images go one to each.",
                ),
                InpaintModelType.Input(
                    "inpaint_model",
                    optional=True,
                    tooltip="From Load Inpaint Model. Without it the hole is filled smoothly from its border.",
                ),
                io.Int.Input(
                    "expand",
                    default=8,
                    min=0,
                    max=512,
                    tooltip="Grows the mask on each side, in image pixels, so that no rim of the object remains.",
                ),
                io.Int.Input(
                    "feather",
                    default=4,
                    min=0,
                    max=512,
                    tooltip="Width of the soft border, in image pixels, inside the expanded mask and at most expand.",
                ),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="For VAE Encode and Background Dilution++.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @override
    def execute(cls, image, mask, inpaint_model=None, expand=8, feather=4) -> io.NodeOutput:
        check_numbers(NODE, expand=expand, feather=feather)
        check_image(NODE, "image", image)
        mask = masks_of(NODE, "mask", mask)
        check_aspect(NODE, "mask", mask, *image.shape[1:3])
        image = image.cpu()
        masks, messages = masks_of_pictures(mask, len(image), image.shape[1:3])
        if not masks.any((1, 2)).all():
            messages.append("Warning: a mask is empty, so its image is unchanged.")

        check = comfy.model_management.throw_exception_if_processing_interrupted
        fill: Callable = partial(fill_smoothly, check=check)
        if inpaint_model is not None:
            memory = 2048 * min(image[0, ..., 0].numel(), MAX_SIDE**2)  # LaMa takes about 2 KB a pixel
            fill = fill_by_model(inpaint_model, load_where_it_runs(model_patcher(inpaint_model), memory), check)

        progress = comfy.utils.ProgressBar(len(image))
        results = []
        for picture, objects in zip(image, masks, strict=True):
            weights = fill_weights(objects.float(), expand, feather)
            if (weights > 0).all():
                fault = f"expanded by {expand} pixels it covers the whole image."
                raise BadInput(NODE, "mask", fault, "Mark only the objects in white, or lower expand.")
            results.append(inpaint(picture, weights, fill) if objects.any() else picture)
            progress.update(1)
        messages.append(f"Removed {masks.float().mean():.1%} of the image.")
        told = show(NODE, cls.hidden.unique_id, messages)
        return io.NodeOutput(for_host(torch.stack(results)), ui=told)


def model_patcher(model) -> ModelPatcher:
    """Returns the ModelPatcher of an inpainting model, one for each, whichever pack loaded it."""
    if not hasattr(model, "patcher"):
        model.patcher = patcher_of(model.model)
    if model.patcher.loaded_size() > 0 and model.device != model.patcher.load_device:
        model.patcher.detach()  # nodes of other packs take it off without telling the host
    return model.patcher


NODES = [PnPMixInpaintBackground]
