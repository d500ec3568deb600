"""Grounding DINO's weights (SwinT OGC) from groundingdino-py to transformers' GroundingDinoForObjectDetection."""

import copy
import re
from collections.abc import Iterator

from torch import Tensor
from transformers import BertConfig, GroundingDinoConfig, GroundingDinoForObjectDetection, SwinConfig

# Published checkpoints carry these, and neither model reads them.
UNUSED = re.compile(r"label_enc\.|bert\.pooler\.|bert\.embeddings\.position_ids$")

# Beginning of a name here and there, then what to substitute in the rest of it; the first beginning that fits counts.
# "There" is how the checkpoints on the Hub have it, which from_pretrained reads in every version of transformers:
# the names of the modules themselves changed with 5.
RULES = [
    (
        r"backbone\.0\.",
        "model.backbone.conv_encoder.model.",
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
    (r"bert\.", "model.text_backbone.", {}),
    (r"bbox_embed\.", "bbox_embed.", {}),
]


def renamed(name: str) -> str:
    """Takes a name in groundingdino-py, returns the one on the Hub."""
    for beginning, replacement, substitutions in RULES:
        if match := re.match(beginning, name):
            rest = name[match.end() :]
            for pattern, substitute in substitutions.items():
                rest = re.sub(pattern, substitute, rest)
            return match.expand(replacement) + rest
    raise KeyError(name)


def converted(state_dict: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Takes groundingdino-py's state dict; yields names on the Hub and weights, query, key and value apart."""
    for name, weight in state_dict.items():
        if UNUSED.match(name):
            continue
        name = renamed(name)
        if joint := re.fullmatch(r"(.+\.)(?:qkv\.|in_proj_)(weight|bias)", name):
            for part, piece in zip(("query", "key", "value"), weight.chunk(3), strict=True):
                yield f"{joint[1]}{part}.{joint[2]}", piece
        else:
            yield name, weight


def hugging_face_dino(state_dict: dict[str, Tensor], bert_config: BertConfig) -> GroundingDinoForObjectDetection:
    """Takes the state dict of groundingdino-py's GroundingDINO and the configuration of its BERT; returns transformers'
    model with these weights, in eval mode and partly on the same memory. Raises if a weight lacks its counterpart.

    The two differ in three points. transformers takes tokens 101, 102, 1012 and 1029 for [CLS], [SEP], "." and "?"
    whatever the tokenizer says. Its decoder clamps boxes to 1e-5 … 1 - 1e-5, groundingdino-py's to 1e-3 … 1 - 1e-3,
    which shows where pictures reach 400 pixels or are padded: there, places at the edge have their boxes at 1. And
    groundingdino-py mixes up the text masks of captions that differ within a batch.
    """
    swin = SwinConfig(embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7, out_indices=[2, 3, 4])
    config = GroundingDinoConfig(backbone_config=swin, text_config=copy.deepcopy(bert_config))
    model, report = GroundingDinoForObjectDetection.from_pretrained(
        None, config=config, state_dict=dict(converted(state_dict)), output_loading_info=True
    )
    if any(report.values()):
        raise ValueError(f"not converted: {report}")
    return model.eval()
