"""Load SAM: the segmenter behind Grounded Mask."""

import comfy.model_management
import folder_paths
import torch
from comfy_api.latest import io
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary
from typing_extensions import override

from ..host.checks import BadInput
from ..host.loading import load_weights, patcher_of
from ..host.types import CATEGORY, SegmenterType, schema


class PnPMixSamLoader(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return schema(
            node_id="PnPMixSamLoader",
            search_aliases=["segment anything", "grounded sam", "sam model"],
            display_name="Load SAM",
            category=CATEGORY,
            description="Loads Segment Anything, which outlines the object in a box.",
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=folder_paths.get_filename_list("sams"),
                    tooltip="A ViT-B, ViT-L or ViT-H checkpoint in models/sams. Larger: finer outlines, more memory.",
                )
            ],
            outputs=[SegmenterType.Output(display_name="segmenter", tooltip="For Grounded Mask.")],
        )

    @classmethod
    @override
    def execute(cls, model_name) -> io.NodeOutput:
        from ...pnpmix.vision.segmentation import build_sam

        node = "Load SAM"
        weights = load_weights(node, "sams", model_name)
        try:
            sam = build_sam(weights)
        except ValueError as error:
            remedy = "Use sam_vit_b_01ec64, sam_vit_l_0b3195 or sam_vit_h_4b8939."
            raise BadInput(node, "model_name", f"{model_name}: {error}", remedy) from error
        return io.NodeOutput(Segmenter(sam))


class Segmenter:
    """PNPMIX_SEGMENTER: SAM, and the embeddings of the images that it has seen, as long as those live."""

    def __init__(self, sam):
        self.sam = sam
        if comfy.model_management.should_use_fp16(comfy.model_management.get_torch_device()):
            sam.image_encoder.half()  # all but 1 % of the weights; the rest is quick in float32
        self.patcher = patcher_of(torch.nn.Sequential(sam))  # Sam.device cannot be set, which ModelPatcher does
        self.embeddings = WeakTensorKeyDictionary()  # image batch → {index: embedding}

    def masks(self, images: Tensor, index: int, boxes: Tensor) -> Tensor:
        """(n, H, W) masks of the objects in the (n, 4) boxes of one image of the batch."""
        from ...pnpmix.vision.segmentation import embed_image, masks_in_boxes

        device = self.patcher.load_device
        # ViT-H in half precision at 1024 x 1024 takes about 3 GB beside its weights
        comfy.model_management.load_models_gpu([self.patcher], memory_required=3 * 1024**3, force_full_load=True)
        known = self.embeddings.setdefault(images, {})
        if index not in known:
            known[index] = embed_image(self.sam, images[index, ..., :3].to(device)).cpu()
        return masks_in_boxes(self.sam, known[index].to(device), boxes.to(device), images.shape[1:3]).cpu()


NODES = [PnPMixSamLoader]
