"""Inpaint Background: the scene without its objects, for Background Dilution++."""

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import folder_paths
import spandrel
import torch
from comfy_api.latest import io
from torch import Tensor
from typing_extensions import override

from ...pnpmix.masks import to_image_size
from ...pnpmix.vision.inpainting import MAX_SIDE, fill_by_model, fill_smoothly, fill_weights, inpaint
from ..host.checks import BadInput, check_aspect, check_image, check_numbers
from ..host.loading import load_weights, patcher_of
from ..host.messages import show
from ..host.types import CATEGORY, InpaintModelType, schema

NODE = "Inpaint Background"


class PnPMixInpaintModelLoader(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return schema(
            node_id="PnPMixInpaintModelLoader",
            search_aliases=["lama", "big-lama", "object removal"],
            display_name="Load Inpaint Model",
            category=CATEGORY,
            description="Loads LaMa, which paints an object out of a picture.",
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=folder_paths.get_filename_list("inpaint"),
                    tooltip="big-lama.pt, or LaMa as .safetensors, in models/inpaint.",
                )
            ],
            outputs=[InpaintModelType.Output(display_name="inpaint_model", tooltip="For Inpaint Background.")],
        )

    @classmethod
    @override
    def execute(cls, model_name) -> io.NodeOutput:
        node = "Load Inpaint Model"
        weights = load_weights(node, "inpaint", model_name)
        remedy = "Use big-lama.pt."
        try:
            model = spandrel.ModelLoader().load_from_state_dict(weights)
        except Exception as error:  # the tests for its many architectures stumble over weights of none of them
            fault = f"{model_name} is of no known architecture ({type(error).__name__})."
            raise BadInput(node, "model_name", fault, remedy) from error
        if not isinstance(model, spandrel.MaskedImageModelDescriptor):
            fault = f"{model_name} ({model.architecture.name}) is no inpainting model."
            raise BadInput(node, "model_name", fault, remedy)
        return io.NodeOutput(model.eval())


class PnPMixInpaintBackground(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return schema(
            node_id="PnPMixInpaintBackground",
            search_aliases=["lama", "remove object", "erase", "empty background"],
            display_name=NODE,
            category=CATEGORY,
            description="Paints the objects out of the background. Everything outside the grown mask stays as it is.",
            inputs=[
                io.Image.Input("image", tooltip="The background. A batch gives a batch."),
                io.Mask.Input(
                    "mask",
                    tooltip="The objects to remove. Several masks are joined; as many as there are pictures go one "
                    "to each.",
                ),
                InpaintModelType.Input(
                    "inpaint_model",
                    optional=True,
                    tooltip="From Load Inpaint Model. Without it the surroundings flow smoothly into the hole.",
                ),
                io.Int.Input(
                    "expand",
                    default=8,
                    min=0,
                    max=512,
                    tooltip="Grows the mask on each side, in image pixels, so that no rim of the object stays.",
                ),
                io.Int.Input(
                    "feather",
                    default=4,
                    min=0,
                    max=512,
                    tooltip="Width of the soft border, in image pixels, inside the grown mask and at most expand.",
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
        check_aspect(NODE, "mask", mask, *image.shape[1:3])
        image, device = image.cpu(), comfy.model_management.intermediate_device()
        masks, messages = objects_to_remove(mask, len(image), image.shape[1:3])
        if not masks.any((1, 2)).all():
            messages.append("Warning: a mask is empty, so its picture stays as it is.")

        fill = fill_smoothly
        if inpaint_model is not None:
            patcher = model_patcher(inpaint_model)
            memory = 2048 * min(image[0, ..., 0].numel(), MAX_SIDE**2)  # LaMa takes about 2 KB a pixel
            comfy.model_management.load_models_gpu([patcher], memory_required=memory, force_full_load=True)
            inpaint_model.to(patcher.load_device)  # nodes of other packs take it off without telling the patcher
            fill = fill_by_model(inpaint_model, patcher.load_device)

        progress = comfy.utils.ProgressBar(len(image))
        results = []
        for picture, objects in zip(image, masks, strict=True):
            comfy.model_management.throw_exception_if_processing_interrupted()
            weights = fill_weights(objects.float(), expand, feather)
            if (weights > 0).all():
                fault = f"grown by {expand} pixels it covers the whole picture."
                raise BadInput(NODE, "mask", fault, "Mark only the objects in white, or lower expand.")
            results.append(inpaint(picture, weights, fill) if objects.any() else picture)
            progress.update(1)
        messages.append(f"Removed {masks.float().mean():.1%} of the picture.")
        show(NODE, cls.hidden.unique_id, messages)
        return io.NodeOutput(torch.stack(results).to(device))


def objects_to_remove(mask: Tensor, count: int, size: tuple[int, int]) -> tuple[Tensor, list[str]]:
    """The binary mask (H, W) of each of `count` pictures, and what had to be done for it."""
    mask, messages = mask.reshape(-1, *mask.shape[-2:]).float().cpu().clamp(0, 1), []
    if mask.shape[1:] != size:
        (height, width), (was_height, was_width) = size, mask.shape[1:]
        messages.append(f"Warning: mask resized from {was_width} x {was_height} to {width} x {height}.")
    # 0.5: the masks of a JPEG are nowhere quite black or white
    masks = torch.stack([to_image_size(x, *size) >= 0.5 for x in mask])
    if count == 1 or len(masks) != count:
        masks = masks.any(0).expand(count, *size)
    return masks, messages


def model_patcher(model) -> comfy.model_patcher.ModelPatcher:
    """One for each model, whichever pack loaded it."""
    if not hasattr(model, "patcher"):
        model.patcher = patcher_of(model.model)
    return model.patcher


NODES = [PnPMixInpaintModelLoader, PnPMixInpaintBackground]
