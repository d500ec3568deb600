"""Grounding DINO's weights, in either of the layouts that people have, in transformers' network.

The published files (groundingdino_swint_ogc.pth, groundingdino_swinb_cogcoor.pth) and those on the Hub (such as
IDEA-Research/grounding-dino-tiny) hold the same weights under other names. Tests compare this network with the one that
the published files were made for. The two differ in one point: transformers' decoder clamps boxes to 1e-5 … 1 - 1e-5,
the other to 1e-3 … 1 - 1e-3, so places at the very edge of a picture may start from boxes a thousandth wider.
"""

import copy
import os
import re
from typing import Annotated

import torch
from pydantic import BaseModel, Field
from torch import Tensor
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    SwinConfig,
)

from .detection import MAX_TOKENS, GroundingDino

SWINS = {  # by the width of the first stage
    96: dict(embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7),
    128: dict(embed_dim=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32], window_size=12),
}
DECODER_LAYERS = 6
MAX_SETTINGS = 1024**2  # bytes of a config.json
# beginnings of names on the Hub
SWIN, TEXT_ENCODER = "model.backbone.conv_encoder.model.", "model.text_backbone."
STEM = SWIN + "embeddings.patch_embeddings.projection.weight"
UNUSED = re.compile(r"label_enc\.|\.pooler\.|\.position_ids$")  # in the files, and read by nobody
# [CLS], ".", "?" and [SEP] of bert-base-uncased, which transformers' network has built in
SPECIAL_TOKENS = [101, 1012, 1029, 102]

# Beginning of a name in the published files and on the Hub, then what to substitute in the rest of it; the first
# beginning that fits counts. from_pretrained reads the names of the Hub in every version of transformers: those of the
# modules themselves changed with version 5.
RULES = [
    (
        r"backbone\.0\.",
        SWIN,
        {
            r"^layers": "encoder.layers",
            r"^patch_embed\.proj": "embeddings.patch_embeddings.projection",
            r"^patch_embed\.norm": "embeddings.norm",
            r"^norm1": "hidden_states_norms.stage2",
            r"^norm2": "hidden_states_norms.stage3",
            r"^norm3": "hidden_states_norms.stage4",
            r"\.norm1": ".layernorm_before",
            r"\.norm2": ".layernorm_after",
            r"\.attn\.(qkv|relative_position)": r".attention.self.\1",
            r"\.attn\.proj": ".attention.output.dense",
            r"\.mlp\.fc1": ".intermediate.dense",
            r"\.mlp\.fc2": ".output.dense",
        },
    ),
    (
        r"transformer\.encoder\.layers\.(\d+)\.",
        r"model.encoder.layers.\1.deformable_layer.",
        {"^norm1": "self_attn_layer_norm", "^norm2": "final_layer_norm", "^linear": "fc"},
    ),
    (
        r"transformer\.encoder\.text_layers\.(\d+)\.",
        r"model.encoder.layers.\1.text_enhancer_layer.",
        {"^norm1": "layer_norm_before", "^norm2": "layer_norm_after", "^linear": "fc"},
    ),
    (
        r"transformer\.encoder\.fusion_layers\.(\d+)\.",
        r"model.encoder.layers.\1.fusion_layer.",
        {
            "^gamma_v": "vision_param",
            "^gamma_l": "text_param",
            "^layer_norm_v": "layer_norm_vision",
            "^layer_norm_l": "layer_norm_text",
            "v_proj": "vision_proj",
            "l_proj": "text_proj",
        },
    ),
    (
        r"transformer\.decoder\.layers\.(\d+)\.",
        r"model.decoder.layers.\1.",
        {
            "^norm1": "encoder_attn_layer_norm",
            "^norm2": "self_attn_layer_norm",
            "^norm3": "final_layer_norm",
            "^cross_attn": "encoder_attn",
            "^ca_text": "encoder_attn_text",
            "^catext_norm": "encoder_attn_text_layer_norm",
            "^linear": "fc",
        },
    ),
    (r"transformer\.decoder\.", "model.decoder.", {"^norm": "layer_norm", "^ref_point_head": "reference_points_head"}),
    (r"transformer\.", "model.", {"^tgt_embed": "query_position_embeddings", "^enc_out_bbox": "encoder_output_bbox"}),
    (r"input_proj\.", "model.input_proj_vision.", {}),
    (r"feat_map\.", "model.text_projection.", {}),
    (r"bert\.", TEXT_ENCODER, {}),
    (r"bbox_embed\.", "bbox_embed.", {}),
]


def hub_name(name: str) -> str | None:
    """Returns the Hub's name of a published one; None for weights that the network does not use."""
    for beginning, replacement, substitutions in RULES:
        if match := re.match(beginning, name):
            rest = name[match.end() :]
            for pattern, substitute in substitutions.items():
                rest = re.sub(pattern, substitute, rest)
            return match.expand(replacement) + rest
    return None


def published_to_hub(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Converts the published layout to that of the Hub, where query, key and value are separate.

    Raises:
        ValueError: a joint weight cannot be split in three.
    """
    renamed = {}
    for published, weight in weights.items():
        name = hub_name(published)
        if name and (joint := re.fullmatch(r"(.+\.)(?:qkv\.|in_proj_)(weight|bias)", name)):
            if weight.ndim == 0 or len(weight) % 3:
                raise ValueError(f"'{published}' has shape {tuple(weight.shape)}.")
            for part, piece in zip(("query", "key", "value"), weight.chunk(3), strict=True):
                renamed[f"{joint[1]}{part}.{joint[2]}"] = piece
        elif name:
            renamed[name] = weight
    return renamed


def hub_layout(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights of a checkpoint under the names of the Hub, whichever layout it has.

    Raises:
        ValueError: it is of another kind.
    """
    # training on several GPUs leaves "module." before each name
    weights = {name.removeprefix("module."): x for name, x in state_dict.items() if not UNUSED.search(name)}
    if "backbone.0.patch_embed.proj.weight" in weights:
        weights = published_to_hub(weights)
    stem = weights.get(STEM)
    if stem is None or stem.ndim != 4 or stem.shape[0] not in SWINS:
        raise ValueError("it is not a Grounding DINO with a Swin-T or Swin-B backbone.")
    return weights | shared_box_heads(weights) | window_indices(SWINS[stem.shape[0]])


def shared_box_heads(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the one box head under each of its names: some files store it once, others for each layer."""
    shared: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if match := re.fullmatch(r"(?:model\.decoder\.)?bbox_embed\.\d+\.(.+)", name):
            places = (f"{owner}bbox_embed.{k}." for owner in ("", "model.decoder.") for k in range(DECODER_LAYERS))
            shared |= {place + match[1]: weight for place in places}
    return shared


def window_indices(swin: dict) -> dict[str, Tensor]:
    """Returns which entry of the bias table belongs to two places of a window: (w², w²) for each block.

    They follow from the window's size. Indices of a file could point outside the table.
    """
    size = swin["window_size"]
    y, x = (grid.flatten() for grid in torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij"))
    index = (y[:, None] - y + size - 1) * (2 * size - 1) + x[:, None] - x + size - 1
    blocks = [(i, j) for i, depth in enumerate(swin["depths"]) for j in range(depth)]
    return {f"{SWIN}encoder.layers.{i}.blocks.{j}.attention.self.relative_position_index": index for i, j in blocks}


def has_text_encoder(weights: dict[str, Tensor]) -> bool:
    """Tells whether a checkpoint brings the weights of its BERT."""
    return any(name.startswith(TEXT_ENCODER) for name in weights)


class Settings(BaseModel):
    """What of a BERT's config.json decides how large it is: several times bert-large at most."""

    vocab_size: Annotated[int, Field(ge=1, le=10**6)] = 1
    hidden_size: Annotated[int, Field(ge=1, le=4096)] = 1
    num_hidden_layers: Annotated[int, Field(ge=1, le=100)] = 1
    num_attention_heads: Annotated[int, Field(ge=1, le=256)] = 1
    intermediate_size: Annotated[int, Field(ge=1, le=20_000)] = 1
    max_position_embeddings: Annotated[int, Field(ge=1, le=100_000)] = 1
    type_vocab_size: Annotated[int, Field(ge=1, le=100)] = 1


def read_text_encoder(folder: str | os.PathLike) -> tuple[BertConfig, BertTokenizerFast]:
    """Reads the settings and the tokenizer of a folder of bert-base-uncased, of which vocab.txt is enough.

    Raises:
        Exception: of almost any kind, where the files are damaged, or their words would be misread.
    """
    # not AutoTokenizer: a folder could name a class of its own, or ask for its code to be run
    tokenizer = BertTokenizerFast.from_pretrained(folder, local_files_only=True)
    if tokenizer(".?")["input_ids"] != SPECIAL_TOKENS:
        raise ValueError("its numbers for [CLS], [SEP], '.' and '?' are not those of bert-base-uncased")
    settings = os.path.join(folder, "config.json")
    has_settings = os.path.isfile(settings)
    if has_settings:
        with open(settings, "rb") as file:
            Settings.model_validate_json(file.read(MAX_SETTINGS))
    # transformers' defaults are the settings of bert-base-uncased
    config = BertConfig.from_pretrained(folder, local_files_only=True) if has_settings else BertConfig()
    if len(tokenizer) > config.vocab_size:
        raise ValueError(f"its tokenizer has {len(tokenizer)} words, its settings say {config.vocab_size}")
    if config.max_position_embeddings < MAX_TOKENS:
        raise ValueError(f"it reads {config.max_position_embeddings} tokens instead of {MAX_TOKENS}")
    with torch.device("meta"):
        BertModel(config, add_pooling_layer=False)  # settings that make no sense raise here, and cost nothing
    return config, tokenizer


def text_encoder_weights(folder: str | os.PathLike) -> dict[str, Tensor]:
    """Returns the weights in a folder of BERT, for a checkpoint that has none."""
    bert = BertModel.from_pretrained(folder, local_files_only=True, add_pooling_layer=False)
    return {TEXT_ENCODER + name: weight for name, weight in bert.state_dict().items()}


def build_grounding_dino(weights: dict[str, Tensor], text_config: BertConfig, tokenizer) -> GroundingDino:
    """Builds the Swin-T or Swin-B model that the checkpoint holds. Nothing is downloaded.

    Args:
        weights: see `hub_layout`, with those of the text encoder.
        text_config, tokenizer: see `read_text_encoder`.

    Raises:
        ValueError: the checkpoint is incomplete, or of another text encoder.
    """
    swin = SwinConfig(**SWINS[weights[STEM].shape[0]], out_indices=[2, 3, 4])
    config = GroundingDinoConfig(
        backbone_config=swin, text_config=copy.deepcopy(text_config), decoder_layers=DECODER_LAYERS
    )
    network, report = GroundingDinoForObjectDetection.from_pretrained(
        None,
        config=config,
        state_dict={name: x.float() if x.is_floating_point() else x for name, x in weights.items()},
        local_files_only=True,
        ignore_mismatched_sizes=True,  # so that the report names them
        output_loading_info=True,
    )
    # names alone in some versions, names and shapes in others
    if odd := sorted(entry if isinstance(entry, str) else entry[0] for entry in report["mismatched_keys"]):
        raise ValueError(f"'{odd[0]}' has another shape than in Grounding DINO with this text encoder.")
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{len(missing)} weights are missing, such as '{missing[0]}'.")
    return GroundingDino(network, tokenizer).eval().requires_grad_(False)
