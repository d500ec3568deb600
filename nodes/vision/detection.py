"""Load Grounding DINO: the detector behind Grounded Mask."""

import contextlib
import os
from collections.abc import Iterator

import folder_paths
from comfy_api.latest import io
from typing_extensions import override

from ..host.checks import BadInput
from ..host.loading import BERT, load_weights, patcher_of
from ..host.types import CATEGORY, DetectorType, schema


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
        from ...pnpmix.vision.detection import build_grounding_dino, config_of, has_text_encoder, plain_names

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


NODES = [PnPMixGroundingDinoLoader]
