"""Load SAM: the segmenter behind Grounded Mask."""

import comfy.model_management
from comfy_api.latest import io
from torch import Tensor
from typing_extensions import override

from ..common.checks import BadInput
from ..common.loading import file_input, importing, load_weights, needs, validate_file
from ..common.types import MASKS_CATEGORY, SegmenterType, schema
from .picture_model import PictureModel

needs("segment-anything")
NODE = "Load SAM"


class PnPMixSamLoader(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return schema(
            node_id="PnPMixSamLoader",
            search_aliases=["sam", "segment anything", "grounded sam", "sam model"],
            display_name=NODE,
            category=MASKS_CATEGORY,
            description="Loads Segment Anything, which outlines the object in a box.",
            inputs=[
                file_input(
                    "sams",
                    tooltip="A ViT-B, ViT-L or ViT-H checkpoint in models/sams. Larger: finer outlines, more memory.",
                )
            ],
            outputs=[SegmenterType.Output(display_name="segmenter", tooltip="For Grounded Mask.")],
        )

    @classmethod
    @override
    def validate_inputs(cls, model_name):
        return validate_file(NODE, "sams", model_name)

    @classmethod
    @override
    def execute(cls, model_name) -> io.NodeOutput:
        with importing("segment-anything", NODE):
            from ...pnpmix.vision.segmentation import build_sam

        weights = load_weights(NODE, "sams", model_name)
        try:
            sam = build_sam(weights)
        except ValueError as error:
            remedy = "Use sam_vit_b_01ec64, sam_vit_l_0b3195 or sam_vit_h_4b8939."
            raise BadInput(NODE, "model_name", f"{model_name}: {error}", remedy) from error
        return io.NodeOutput(Segmenter(sam))


class Segmenter(PictureModel):
    """PNPMIX_SEGMENTER: SAM."""

    def __init__(self, sam):
        if comfy.model_management.should_use_fp16(comfy.model_management.get_torch_device()):
            sam.image_encoder.half()  # all but 1 % of the weights; the rest is quick in float32
        super().__init__(sam)

    def masks(self, images: Tensor, index: int, boxes: Tensor) -> Tensor:
        """Returns masks (n, H, W) of the objects in the boxes (n, 4) of one image of the batch."""
        from ...pnpmix.vision.segmentation import embed_image, masks_in_boxes

        device = self.load(3 * 1024**3)  # of ViT-H in half precision at 1024 x 1024
        (embedding,) = self.encoding(images, index, lambda picture: [embed_image(self.model, picture)], device)
        return masks_in_boxes(self.model, embedding, boxes.to(device), tuple(images.shape[1:3])).cpu()


NODES = [PnPMixSamLoader]
