"""From boxes to masks: Segment Anything (arXiv 2304.02643), as the package segment_anything has it."""

import torch
import torch.nn.functional as F
from segment_anything import SamPredictor, sam_model_registry
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor

from ..batching import in_groups

VARIANTS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}  # by the width of the image encoder

MAX_BOXES = 16  # in one call of the mask decoder, which keeps several pictures of 1024 x 1024 for each


def build_sam(state_dict: dict[str, Tensor]) -> Sam:
    """Returns the ViT-B, ViT-L or ViT-H model that the checkpoint holds.

    Raises:
        ValueError: the checkpoint is of another kind.
    """
    position = state_dict.get("image_encoder.pos_embed")
    if position is None or position.ndim != 4 or position.shape[-1] not in VARIANTS:
        raise ValueError("it is not a Segment Anything model with a ViT-B, ViT-L or ViT-H image encoder.")
    with torch.device("meta"):  # no weights are made up, only to be replaced
        sam = sam_model_registry[VARIANTS[position.shape[-1]]]().requires_grad_(False)
    weights = {name: state_dict[name].float() for name in sam.state_dict() if name in state_dict}  # SAM-HQ has more
    try:
        missing, _ = sam.load_state_dict(weights, strict=False, assign=True)
    except RuntimeError as error:
        raise ValueError(str(error).splitlines()[1].strip()) from error
    if missing:
        raise ValueError(f"{len(missing)} weights are missing, such as '{missing[0]}'.")
    return sam.eval()


def network_size(sam: Sam, size: tuple[int, ...]) -> tuple[int, int]:
    """Returns height and width in which SAM sees an image of this size: the longer side is 1024 pixels."""
    return ResizeLongestSide.get_preprocess_shape(*size, sam.image_encoder.img_size)


def embed_image(sam: Sam, image: Tensor) -> Tensor:
    """Encodes an image (H, W, 3) in 0..1 to (1, 256, 64, 64), in the precision of the image encoder's weights."""
    # the package's own apply_image_torch takes batch and channels for height and width
    size = network_size(sam, (image.shape[0], image.shape[1]))
    pixels = 255 * F.interpolate(image.movedim(-1, 0)[None], size=size, mode="bilinear", antialias=True)
    return sam.image_encoder(sam.preprocess(pixels).to(sam.image_encoder.pos_embed.dtype))


def masks_in_boxes(sam: Sam, embedding: Tensor, boxes: Tensor, size: tuple[int, ...]) -> Tensor:
    """Outlines the object in each box.

    Args:
        embedding: of the image, see `embed_image`.
        boxes: (n, 4) left, top, right, bottom in image pixels.
        size: height and width of the image.

    Returns:
        (n, height, width) in {0, 1}.
    """
    predictor = SamPredictor(sam)
    predictor.features, predictor.original_size, predictor.is_image_set = embedding.float(), size, True
    predictor.input_size = network_size(sam, size)
    boxes = predictor.transform.apply_boxes_torch(boxes, size).to(embedding.device)

    def masks(group: slice) -> Tensor:
        return predictor.predict_torch(None, None, boxes[group], multimask_output=False)[0][:, 0].float()

    return in_groups(masks, len(boxes), MAX_BOXES)[0]
