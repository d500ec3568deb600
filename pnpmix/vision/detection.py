"""From words to boxes: Grounding DINO (arXiv 2303.05499), as the package groundingdino has it."""

import re
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from groundingdino.config import GroundingDINO_SwinB_cfg, GroundingDINO_SwinT_OGC
from groundingdino.models.GroundingDINO.backbone import build_backbone
from groundingdino.models.GroundingDINO.groundingdino import GroundingDINO
from groundingdino.models.GroundingDINO.transformer import build_transformer
from groundingdino.models.GroundingDINO.utils import MLP, ContrastiveEmbed
from torch import Tensor, nn
from torchvision.ops import box_convert, nms

from .drawing import Found

CONFIGS = {96: GroundingDINO_SwinT_OGC, 128: GroundingDINO_SwinB_cfg}  # by the width of Swin's first stage
MAX_TOKENS = 256
SAME_OBJECT = 0.8  # intersection over union of two boxes round one object
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class TextEncoder(nn.Module):
    """BERT over phrases that do not see each other.

    In place of the package's BertModelWarper, which calls methods that transformers 5 no longer has. Only what
    every version has is used: embeddings, encoder, and an additive attention mask.
    """

    def __init__(self, bert):
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


class GroundingDino(GroundingDINO):
    """The package's model, put together here because its own constructor downloads BERT and wraps it."""

    def __init__(self, config, bert, tokenizer):
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


def plain_names(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as training on several GPUs left them → the model's own."""
    return {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}


def has_text_encoder(state_dict: dict[str, Tensor]) -> bool:
    return any(name.startswith("bert.") for name in state_dict)


def config_of(state_dict: dict[str, Tensor]):
    """The settings that belong to a checkpoint.

    Raises:
        ValueError: it is of another kind.
    """
    stem = state_dict.get("backbone.0.patch_embed.proj.weight")
    if stem is None or stem.shape[0] not in CONFIGS:
        raise ValueError("it is no Grounding DINO with a Swin-T or Swin-B backbone.")
    return CONFIGS[stem.shape[0]]


def build_grounding_dino(state_dict: dict[str, Tensor], bert: nn.Module, tokenizer) -> GroundingDino:
    """The Swin-T or Swin-B model that the checkpoint holds.

    Args:
        state_dict: see `plain_names`.
        bert: transformers' BertModel. The checkpoint's own text encoder, which every published one has, replaces its
            weights.
    Raises:
        ValueError: the checkpoint is of another kind, incomplete, or of another text encoder.
    """
    model = GroundingDino(config_of(state_dict), bert, tokenizer)
    own = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in state_dict.items():
        if name in own and own[name].shape != tensor.shape:
            raise ValueError(f"'{name}' has shape {tuple(tensor.shape)} instead of {tuple(own[name].shape)}.")
    # some files keep a tensor that several layers share once, others once for each
    found = {own[name].data_ptr() for name in state_dict if name in own}
    optional = () if has_text_encoder(state_dict) else ("bert.",)
    missing = [x for x, value in own.items() if value.data_ptr() not in found and not x.startswith(optional)]
    if missing:
        raise ValueError(f"{len(missing)} weights are missing, such as '{missing[0]}'.")
    model.load_state_dict(state_dict, strict=False)
    return model.eval().requires_grad_(False)


def split_phrases(prompt: str) -> list[str]:
    """'A dog. red cup .' → ['a dog', 'red cup']."""
    phrases = (" ".join(phrase.split()) for phrase in re.split(r"[.?]", prompt.lower()))
    return [phrase for phrase in phrases if phrase]


def tokenize(tokenizer, phrases: list[str]) -> tuple[str, list[int], list[int]]:
    """The caption, its token ids, and the phrase that each token belongs to (-1: none)."""
    caption = " . ".join(phrases) + " ."
    ids, dot = tokenizer(caption)["input_ids"], tokenizer.convert_tokens_to_ids(".")
    phrase, owners = 0, []
    for index, token in enumerate(ids):
        owners.append(-1 if token == dot or index in (0, len(ids) - 1) else phrase)
        phrase += token == dot
    return caption, ids, owners


def network_input(image: Tensor) -> Tensor:
    """(H, W, 3) in 0..1 → (1, 3, h, w) normalised, the shorter side 800 pixels, the longer at most 1333."""
    sides = image.shape[:2]
    scale = min(800 / min(sides), 1333 / max(sides))
    size = [max(1, round(side * scale)) for side in sides]
    x = F.interpolate(image.movedim(-1, 0)[None], size=size, mode="bilinear", antialias=True).clamp(0, 1)
    return (x - x.new_tensor(MEAN).view(3, 1, 1)) / x.new_tensor(STD).view(3, 1, 1)


def detect(model: GroundingDino, image: Tensor, caption: str) -> tuple[Tensor, Tensor]:
    """(H, W, 3) in 0..1 → scores (queries, tokens) in 0..1 and boxes (queries, 4) in image pixels."""
    height, width = image.shape[:2]
    prediction = model(network_input(image), captions=[caption])
    boxes = box_convert(prediction["pred_boxes"][0].float(), "cxcywh", "xyxy").clamp(0, 1)
    return prediction["pred_logits"][0].float().sigmoid().cpu(), boxes.cpu() * torch.tensor([width, height] * 2)


def found_objects(
    scores: Tensor, boxes: Tensor, tokenizer, phrases: list[str], box_threshold: float, text_threshold: float
) -> tuple[list[Found], list[float]]:
    """What `detect` saw, from left to right, each object once.

    A box belongs to the phrase of its best token. It counts if that token is above `box_threshold` and at least
    one token of the phrase is above `text_threshold`; those tokens are the words it is labelled with.

    Returns:
        the objects, and the best score of each phrase over all boxes.
    """
    _, token_ids, phrase_of_token = tokenize(tokenizer, phrases)
    ids, owners, scores = torch.tensor(token_ids), torch.tensor(phrase_of_token), scores[:, : len(token_ids)]
    of_phrase = torch.stack([scores.where(owners == k, 0).amax(1) for k in range(len(phrases))], 1)  # (queries, n)
    score, phrase = of_phrase.max(1)
    words = (owners == phrase[:, None]) & (scores > text_threshold)
    solid = (boxes[:, 2:] > boxes[:, :2]).all(1)
    kept = ((score > box_threshold) & words.any(1) & solid).nonzero()[:, 0]
    kept = kept[nms(boxes[kept], score[kept], SAME_OBJECT)]
    from_left = sorted(kept.tolist(), key=lambda i: (boxes[i, 0] + boxes[i, 2]).item())
    objects = [Found(tokenizer.decode(ids[words[i]].tolist()), score[i].item(), boxes[i]) for i in from_left]
    return objects, of_phrase.amax(0).tolist()
