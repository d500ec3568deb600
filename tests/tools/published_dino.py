"""Grounding DINO as the published checkpoints are laid out: the network of the package groundingdino-py.

The oracle of detection, and what writes such checkpoints. The pack itself does not use the package.
"""

from types import SimpleNamespace

import torch
from groundingdino.config import GroundingDINO_SwinB_cfg, GroundingDINO_SwinT_OGC
from groundingdino.models.GroundingDINO.backbone import build_backbone
from groundingdino.models.GroundingDINO.groundingdino import GroundingDINO
from groundingdino.models.GroundingDINO.transformer import build_transformer
from groundingdino.models.GroundingDINO.utils import MLP, ContrastiveEmbed
from torch import Tensor, nn

CONFIGS = {96: GroundingDINO_SwinT_OGC, 128: GroundingDINO_SwinB_cfg}  # by the width of Swin's first stage
MAX_TOKENS = 256


class TextEncoder(nn.Module):
    """BERT over phrases that do not see each other.

    In place of the package's BertModelWarper, which calls methods that transformers 5 no longer has. Only what
    every version has is used: embeddings, encoder, and an additive attention mask.
    """

    def __init__(self, bert: nn.Module):
        super().__init__()
        self.config, self.embeddings, self.encoder = bert.config, bert.embeddings, bert.encoder

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None, position_ids: Tensor
    ) -> dict[str, Tensor]:
        """(b, L) ids, (b, L, L) whether a token sees another → last_hidden_state (b, L, C)."""
        x = self.embeddings(input_ids=input_ids, token_type_ids=token_type_ids, position_ids=position_ids)
        hidden_from = torch.zeros_like(attention_mask, dtype=x.dtype)
        hidden_from.masked_fill_(~attention_mask, torch.finfo(x.dtype).min)
        return {"last_hidden_state": self.encoder(x, attention_mask=hidden_from[:, None])[0]}


class PublishedDino(GroundingDINO):
    """The package's model, put together here because its own constructor downloads BERT and wraps it."""

    def __init__(self, config, bert: nn.Module, tokenizer):
        nn.Module.__init__(self)
        # gradient checkpoints are for training, and warn without gradients
        config = SimpleNamespace(**vars(config) | {"use_checkpoint": False, "use_transformer_ckpt": False})
        width = config.hidden_dim
        self.max_text_len, self.sub_sentence_present = MAX_TOKENS, config.sub_sentence_present
        self.tokenizer, self.bert = tokenizer, TextEncoder(bert)
        self.specical_tokens = tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]", ".", "?"])  # the package's spelling
        self.feat_map = nn.Linear(bert.config.hidden_size, width)

        self.num_feature_levels = config.num_feature_levels
        self.backbone, self.transformer = build_backbone(config), build_transformer(config)
        channels = self.backbone.num_channels
        convolutions = [nn.Conv2d(c, width, 1) for c in channels] + [nn.Conv2d(channels[-1], width, 3, 2, 1)]
        self.input_proj = nn.ModuleList(nn.Sequential(conv, nn.GroupNorm(32, width)) for conv in convolutions)

        box_head, similarity = MLP(width, width, 4, 3), ContrastiveEmbed(MAX_TOKENS)
        self.bbox_embed = nn.ModuleList([box_head] * config.dec_layers)
        self.class_embed = nn.ModuleList([similarity] * config.dec_layers)
        self.transformer.decoder.bbox_embed, self.transformer.decoder.class_embed = self.bbox_embed, self.class_embed
        self.transformer.enc_out_bbox_embed = MLP(width, width, 4, 3)
        self.transformer.enc_out_class_embed = ContrastiveEmbed(MAX_TOKENS)
