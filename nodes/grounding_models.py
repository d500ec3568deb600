"""The models behind Grounded Mask: Grounding DINO and Segment Anything."""

import contextlib
import os
from collections.abc import Iterator

import comfy.model_management
import folder_paths
import torch
from comfy_api.latest import io
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary
from typing_extensions import override

from .checks import BadInput
from .loading import load_weights, patcher_of
from .types import CATEGORY, DetectorType, SegmenterType, schema

BERT = "bert-base-uncased"


class PnPMixGroundingDinoLoader(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return schema(
            node_id="PnPMixGroundingDinoLoader",
            search_aliases=["grounding dino", "grounded sam", "detector"],
            display_name="Load Grounding DINO",
            category=CATEGORY,
            description="Loads the detector that finds objects by words.",
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=folder_paths.get_filename_list("grounding-dino"),
                    tooltip="A Swin-T or Swin-B checkpoint in models/grounding-dino. Swin-B finds more and is slower. "
                    "The words need the tokenizer of bert-base-uncased in models/bert-base-uncased.",
                )
            ],
            outputs=[DetectorType.Output(display_name="detector", tooltip="For Grounded Mask.")],
        )

    @classmethod
    @override
    def execute(cls, model_name) -> io.NodeOutput:
        # imported here: the packages take seconds, and other nodes work without them
        from ..pnpmix.grounding import build_grounding_dino, config_of, has_text_encoder, plain_names

        node = "Load Grounding DINO"
        weights = plain_names(load_weights(node, "grounding-dino", model_name))
        try:
            config_of(weights)  # before a text encoder is asked for in vain
            detector = build_grounding_dino(weights, *text_encoder(untrained=has_text_encoder(weights)))
        except ValueError as error:
            remedy = "Use groundingdino_swint_ogc or groundingdino_swinb_cogcoor, and the files of bert-base-uncased."
            raise BadInput(node, "model_name", f"{model_name}: {error}", remedy) from error
        return io.NodeOutput(patcher_of(detector))


def text_encoder(untrained: bool) -> tuple:
    """transformers' BertModel, `untrained` where a checkpoint brings the weights, and its tokenizer."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = bert_folder()
    try:
        if untrained:
            bert = BertModel(BertConfig.from_pretrained(folder, local_files_only=True), add_pooling_layer=False)
        else:
            bert = BertModel.from_pretrained(folder, local_files_only=True, add_pooling_layer=False)
        return bert, AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        fault = f"the text encoder in {folder} does not load ({error})."
        remedy = f"Download {BERT} from Hugging Face again."
        raise BadInput("Load Grounding DINO", "model_name", fault, remedy) from error


def bert_folders() -> Iterator[str]:
    """models/bert-base-uncased, then the same in a Hugging Face cache; nothing is downloaded."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    yield from folder_paths.get_folder_paths(BERT)
    for repository in (BERT, f"google-bert/{BERT}"):
        with contextlib.suppress(LocalEntryNotFoundError):
            yield snapshot_download(repository, local_files_only=True)


def bert_folder() -> str:
    """The first folder that has the words and the settings of the text encoder."""
    for folder in bert_folders():
        has_words = any(os.path.isfile(os.path.join(folder, name)) for name in ("tokenizer.json", "vocab.txt"))
        if has_words and os.path.isfile(os.path.join(folder, "config.json")):
            return folder
    raise BadInput(
        "Load Grounding DINO",
        "model_name",
        "the tokenizer of its words is missing.",
        f"Put config.json, tokenizer.json, tokenizer_config.json and vocab.txt of {BERT} (huggingface.co/google-bert/"
        f"{BERT}) into {folder_paths.get_folder_paths(BERT)[0]}.",
    )


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
        from ..pnpmix.segmentation import build_sam

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
        from ..pnpmix.segmentation import embed_image, masks_in_boxes

        device = self.patcher.load_device
        # ViT-H in half precision at 1024 x 1024 takes about 3 GB beside its weights
        comfy.model_management.load_models_gpu([self.patcher], memory_required=3 * 1024**3, force_full_load=True)
        known = self.embeddings.setdefault(images, {})
        if index not in known:
            known[index] = embed_image(self.sam, images[index, ..., :3].to(device)).cpu()
        return masks_in_boxes(self.sam, known[index].to(device), boxes.to(device), images.shape[1:3]).cpu()
