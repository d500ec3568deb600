"""Load Grounding DINO: the detector behind Grounded Mask."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import comfy.model_management
import folder_paths
import torch
from comfy_api.latest import io
from pydantic import ValidationError
from torch import Tensor
from typing_extensions import override

from ...pnpmix.files.texts import first_fault
from ..common.checks import BadInput
from ..common.loading import BERT, MAX_SAID, file_input, importing, load_weights, needs, validate_file
from ..common.types import MASKS_CATEGORY, DetectorType, schema
from .picture_model import PictureModel

needs("transformers")
NODE = "Load Grounding DINO"


class PnPMixGroundingDinoLoader(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return schema(
            node_id="PnPMixGroundingDinoLoader",
            search_aliases=["grounding dino", "grounded sam", "detector"],
            display_name=NODE,
            category=MASKS_CATEGORY,
            description="Loads Grounding DINO, which detects objects by text.",
            inputs=[
                file_input(
                    "grounding-dino",
                    tooltip="A Swin-T or Swin-B checkpoint in models/grounding-dino. Swin-B finds more and is slower.",
                )
            ],
            outputs=[DetectorType.Output(display_name="detector", tooltip="For Grounded Mask.")],
        )

    @classmethod
    @override
    def validate_inputs(cls, model_name):
        return validate_file(NODE, "grounding-dino", model_name)

    @classmethod
    @override
    def execute(cls, model_name) -> io.NodeOutput:
        with importing("transformers", NODE):
            from ...pnpmix.vision.dino_weights import (
                build_grounding_dino,
                has_text_encoder,
                hub_layout,
                read_text_encoder,
                text_encoder_weights,
            )

        folder = bert_folder()
        try:
            weights = hub_layout(load_weights(NODE, "grounding-dino", model_name))
            config, tokenizer = read_bert(read_text_encoder, folder)
            if not has_text_encoder(weights):
                weights |= read_bert(text_encoder_weights, folder)
            detector = build_grounding_dino(weights, config, tokenizer)
        except BadInput:
            raise
        except Exception as error:  # of weights of other shapes transformers raises almost anything
            remedy = f"Use groundingdino_swint_ogc or groundingdino_swinb_cogcoor, with the vocabulary of {BERT}."
            raise BadInput(NODE, "model_name", f"{model_name}: {error}"[:MAX_SAID], remedy) from error
        return io.NodeOutput(Detector(detector))


class Detector(PictureModel):
    """PNPMIX_DETECTOR: Grounding DINO."""

    def scores_and_boxes(self, images: Tensor, index: int, ids: list[int]) -> tuple[Tensor, Tensor]:
        """Returns scores and boxes of these words in one image of the batch, see `pnpmix.vision.detection.detect`."""
        from ...pnpmix.vision.detection import detect, look

        device = self.load(2 * 1024**3)
        # parts of the network compute in float32 whatever their input, so its weights stay float32
        half = comfy.model_management.is_device_cuda(device) and comfy.model_management.should_use_fp16(device)
        with torch.autocast("cuda", dtype=torch.float16) if half else contextlib.nullcontext():
            features = self.encoding(images, index, lambda picture: look(self.model, picture), device)
            return detect(self.model, features, ids, tuple(images.shape[1:3]))


def read_bert(read: Callable, folder: str):
    """Returns read(folder).

    Raises:
        BadInput: the files are damaged.
    """
    try:
        return read(folder)
    except Exception as error:  # transformers, the tokenizer and Python raise almost anything then
        what = first_fault(error) if isinstance(error, ValidationError) else f"{type(error).__name__}: {error}"
        fault = f"the text encoder in {folder} does not load ({what[:MAX_SAID]})."
        remedy = f"Download the files of {BERT} again, or remove that folder: the pack has its vocabulary."
        raise BadInput(NODE, "model_name", fault, remedy) from error


def bert_folders() -> Iterator[str]:
    """Yields models/bert-base-uncased, the same in a Hugging Face cache, and the pack's vocabulary."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    yield from folder_paths.get_folder_paths(BERT)
    for repository in (BERT, f"google-bert/{BERT}"):
        with contextlib.suppress(LocalEntryNotFoundError):
            yield snapshot_download(repository, local_files_only=True)  # nothing is downloaded
    yield str(Path(__file__).parents[2] / "pnpmix" / "vision" / BERT)


def bert_folder() -> str:
    """Returns the first folder that has the vocabulary of the text encoder."""
    has_vocabulary = (
        folder
        for folder in bert_folders()
        if any(os.path.isfile(os.path.join(folder, name)) for name in ("tokenizer.json", "vocab.txt"))
    )
    return next(has_vocabulary)


NODES = [PnPMixGroundingDinoLoader]
