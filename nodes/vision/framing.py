"""Fit Picture and Paste Back: crop the photo to the region that the model works on, and paste the result back."""

import comfy.model_management
import torch
from comfy_api.latest import io
from torch import Tensor
from typing_extensions import override

from ...pnpmix.masks import to_image_size
from ...pnpmix.vision.framing import (
    Frame,
    Size,
    bounding_frame,
    crop_frame,
    cut_masks,
    cut_pictures,
    fits,
    mask_in_place,
    object_frame,
    overlap,
    pad_frame,
    paste,
    picture_in_place,
    same_shape,
    to_multiple,
    whole,
)
from ...pnpmix.vision.inpainting import fill_weights
from ..common.checks import BadInput, check_choice, check_image, check_marks_an_object, check_numbers, masks_of
from ..common.memory import for_host
from ..common.messages import show
from ..common.types import CATEGORY, Place, PlaceType, schema

FIT, PASTE = "Fit Picture", "Paste Back"
MODES = CROP, PAD, OBJECT = ["crop", "pad", "around the object"]
MAX_SIDE = 16384  # pixels, as ComfyUI's own nodes have it


class PnPMixFitPicture(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return schema(
            node_id="PnPMixFitPicture",
            search_aliases=["crop", "pad", "resize", "scale image", "crop around mask", "crop and stitch", "fit"],
            display_name=FIT,
            category=CATEGORY,
            description="Crops or pads a photo of any size to the size that the model works at, and its mask with it.",
            inputs=[
                io.Image.Input("image", tooltip="The photo. All images of a batch are cropped alike."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="The object in the photo. It is cropped with the image; several masks count as one "
                    "object and all are cropped.",
                ),
                io.Int.Input(
                    "width",
                    default=512,
                    min=8,
                    max=MAX_SIDE,
                    step=8,
                    tooltip="Width of the result, in pixels: 512 for SD 1.x, 768 for SD 2.x, 1024 for SDXL.",
                ),
                io.Int.Input(
                    "height",
                    default=512,
                    min=8,
                    max=MAX_SIDE,
                    step=8,
                    tooltip="Height of the result, in pixels.",
                ),
                io.Image.Input(
                    "like",
                    optional=True,
                    tooltip="An image whose size is used instead of width and height, for example the scene after "
                    "its Fit Picture.",
                ),
                io.Combo.Input(
                    "mode",
                    options=MODES,
                    default=CROP,
                    tooltip="crop: the largest crop of this aspect ratio, around the object if a mask is wired. pad: "
                    "the whole photo, with its borders extended. around the object: the smallest crop that holds the "
                    "object and its margin.",
                ),
                io.Int.Input(
                    "margin",
                    default=20,
                    min=0,
                    max=1000,
                    tooltip="Room around the object on each side, in percent of its longer side, as far as the photo "
                    "allows. Higher: a smaller object with more of its surroundings.",
                ),
                io.Int.Input(
                    "multiple",
                    default=8,
                    min=1,
                    max=256,
                    tooltip="Width and height are rounded to a multiple of this many pixels. VAEs need 8.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The crop at its new size, for VAE Encode."),
                io.Mask.Output(
                    display_name="mask",
                    tooltip="The mask in the crop; without a mask, all that the photo covers.",
                ),
                PlaceType.Output(display_name="place", tooltip="The crop box, for Paste Back."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @override
    def execute(cls, image, width, height, mode, margin, multiple, mask=None, like=None) -> io.NodeOutput:
        check_numbers(FIT, width=width, height=height, margin=margin, multiple=multiple)
        check_choice(FIT, "mode", mode, MODES)
        check_image(FIT, "image", image)
        if like is not None:
            check_image(FIT, "like", like)
        photo = size_of(image)
        size = to_multiple((height, width) if like is None else size_of(like), multiple)
        messages: list[str] = []
        masks = torch.ones(1, *photo) if mask is None else masks_of_photo(masks_of(FIT, "mask", mask), photo, messages)
        target = None if mask is None else bounding_frame(masks.amax(0))
        if target is None and mode == OBJECT:
            fault = "it is not wired." if mask is None else "it is empty."
            raise BadInput(FIT, "mask", fault, "Mark the object in white, or choose another mode.")
        if target is None and mask is not None:
            messages.append("Warning: the mask is empty.")
        if mask is not None and len(masks) in (1, len(image)):
            for k, picture in enumerate(image):
                check_marks_an_object(
                    FIT, "mask", picture[..., :3].movedim(-1, 0).float().cpu(), masks[k % len(masks)], 1.5 / 255
                )
        frame = frame_of(mode, photo, size, target, margin)
        if mode == OBJECT and not fits(frame.size, photo):
            messages.append("Warning: no crop of this shape inside the photo holds the whole object, so it is padded.")
        parts = cut_masks(masks, frame, size)
        if target is not None and not (parts >= 0.5).any():
            messages.append("Warning: the object is outside the crop. Set mode to: around the object.")
        messages.append(f"{words(frame.size)} of {words(photo)} pixels, scaled to {words(size)}.")
        told = show(FIT, cls.hidden.unique_id, messages)
        pictures = cut_pictures(image.float().cpu(), frame, size)
        return io.NodeOutput(for_host(pictures), for_host(parts), Place(photo, frame, size), ui=told)


class PnPMixPasteBack(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return schema(
            node_id="PnPMixPasteBack",
            search_aliases=["composite", "stitch", "crop and stitch", "uncrop", "paste", "keep original pixels"],
            display_name=PASTE,
            category=CATEGORY,
            description="Pastes the result into the original. Pixels outside the expanded mask are bit-identical.",
            inputs=[
                io.Image.Input("original", tooltip="The photo at its own size, before Fit Picture."),
                io.Image.Input("image", tooltip="The result, from VAE Decode."),
                io.Mask.Input(
                    "mask",
                    tooltip="What to paste: mask of the Mask Noise Mixer or of Fit Picture, or a mask of the original "
                    "photo. Several masks are joined; as many masks as images go one to each.",
                ),
                io.Int.Input(
                    "expand",
                    default=6,
                    min=0,
                    max=512,
                    tooltip="Grows the mask on each side, in pixels of the original, so that no rim of the old object "
                    "remains.",
                ),
                io.Int.Input(
                    "feather",
                    default=4,
                    min=0,
                    max=512,
                    tooltip="Width of the soft border, in pixels of the original, inside the expanded mask and at most "
                    "expand.",
                ),
                PlaceType.Input(
                    "place",
                    optional=True,
                    tooltip="From Fit Picture, if the result is a crop of the original. Without it the result covers "
                    "the whole photo.",
                ),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The original photo with the result in it.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @override
    def execute(cls, original, image, mask, expand, feather, place=None) -> io.NodeOutput:
        check_numbers(PASTE, expand=expand, feather=feather)
        for name, pictures in (("original", original), ("image", image)):
            check_image(PASTE, name, pictures)
        count = max(len(original), len(image))
        if not {len(original), len(image)} <= {1, count}:
            fault = f"it is a batch of {len(image)}, original one of {len(original)}."
            raise BadInput(PASTE, "image", fault, "Wire as many pictures, or one.")
        place = place_of(original, image, place)
        messages: list[str] = []
        masks = objects_in_frame(masks_of(PASTE, "mask", mask), place, messages)
        if len(masks) != count:
            masks = masks.any(0).expand(count, -1, -1)
        if not masks.any((1, 2)).all():
            messages.append("Warning: a mask is empty, so its image is unchanged.")

        rows, columns = overlap(place.frame, place.photo)
        results, changed = [], 0
        for k, objects in enumerate(masks):
            comfy.model_management.throw_exception_if_processing_interrupted()
            picture, part = (x[k % len(x)].float().cpu() for x in (original, image))  # one may serve for all
            weights = fill_weights(objects.float(), expand, feather)
            part = picture_in_place(part[..., :3], place.frame, place.photo)
            results.append(paste(picture, part, weights, rows, columns))
            changed += int((weights > 0).sum())
        messages.append(f"Changed {changed / (count * place.photo[0] * place.photo[1]):.1%} of the image.")
        told = show(PASTE, cls.hidden.unique_id, messages)
        return io.NodeOutput(for_host(torch.stack(results)), ui=told)


def size_of(images: Tensor) -> Size:
    """Returns height and width of images (B, H, W, C) or masks (B, H, W)."""
    height, width = images.shape[1:3]
    return height, width


def words(size: Size) -> str:
    """Formats a size as width x height."""
    return f"{size[1]} x {size[0]}"


def masks_of_photo(masks: Tensor, photo: Size, messages: list[str]) -> Tensor:
    """Returns masks (n, h, w) at the photo's size; empty ones may have any size, as Load Image gives 64 x 64 then."""
    size = size_of(masks)
    if not (masks >= 0.5).any():
        return torch.zeros(len(masks), *photo)
    if not same_shape(size, photo):
        fault = f"it is {words(size)} and the image {words(photo)}, which has another aspect ratio."
        raise BadInput(FIT, "mask", fault, "Wire the mask of this image.")
    if size != photo:
        messages.append(f"Warning: mask resized from {words(size)} to {words(photo)}.")
    return torch.stack([to_image_size(x, *photo) for x in masks])


def frame_of(mode: str, photo: Size, size: Size, target: Frame | None, margin: int) -> Frame:
    """Returns the crop box of a mode; `margin` is in percent of the object's longer side."""
    if mode == CROP:
        return crop_frame(photo, size, target)
    if mode == PAD or target is None:
        return pad_frame(photo, size)
    return object_frame(photo, size, target, round(margin / 100 * max(target.size)))


def place_of(original: Tensor, image: Tensor, place: Place | None) -> Place:
    """Returns where the image belongs in the original: everywhere, unless Fit Picture says otherwise."""
    photo, size = size_of(original), size_of(image)
    if place is None:
        if not same_shape(size, photo):
            fault = f"it is {words(size)} and the original {words(photo)}, which has another aspect ratio."
            raise BadInput(PASTE, "image", fault, "Wire place from the Fit Picture of this photo.")
        return Place(photo, whole(photo), size)
    if photo != place.photo:
        fault = f"it is {words(photo)}, but place comes from a photo of {words(place.photo)}."
        raise BadInput(PASTE, "original", fault, "Wire the photo that went into Fit Picture.")
    if not same_shape(size, place.size):
        fault = f"it is {words(size)}, but place has a crop of {words(place.size)}, which has another aspect ratio."
        raise BadInput(PASTE, "image", fault, "Wire the result that was made from this crop.")
    return place


def objects_in_frame(masks: Tensor, place: Place, messages: list[str]) -> Tensor:
    """Returns binary masks (n, h, w) of the photo's pixels in the crop box, from masks of the crop or of the photo."""
    size, (rows, columns) = size_of(masks), overlap(place.frame, place.photo)
    if size == place.photo != place.size:
        return masks[:, rows, columns] >= 0.5
    if not (masks >= 0.5).any():
        return torch.zeros(len(masks), rows.stop - rows.start, columns.stop - columns.start, dtype=torch.bool)
    if not same_shape(size, place.size):
        fault = f"it is {words(size)} and the result {words(place.size)}, which has another aspect ratio."
        raise BadInput(PASTE, "mask", fault, "Wire a mask of the result, or of the original at its own size.")
    if size != place.size:
        messages.append(f"Warning: mask resized from {words(size)} to {words(place.size)}.")
    return torch.stack([mask_in_place(x, place.frame, place.photo) >= 0.5 for x in masks])


NODES = [PnPMixFitPicture, PnPMixPasteBack]
