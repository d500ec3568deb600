"""From words to boxes: Grounding DINO (arXiv 2303.05499), as transformers has it."""

import re
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_convert, nms

from .drawing import Found

MAX_TOKENS = 256
SAME_OBJECT = 0.8  # intersection over union of two boxes round one object
PART = 0.8  # share of a box that lies in another one, from which on it is a part of the same object
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class SeenBefore(nn.Module):
    """Replaces a network's backbone: returns the feature maps that were computed before."""

    features: list[Tensor] | None = None

    def forward(self, pixels: Tensor, **_) -> SimpleNamespace:
        return SimpleNamespace(feature_maps=self.features)


class GroundingDino(nn.Module):
    """transformers' network, split behind its backbone, whose features of an image serve any text."""

    def __init__(self, network, tokenizer):
        """Takes the backbone out of `network`, a GroundingDinoForObjectDetection."""
        super().__init__()
        self.seen = SeenBefore()
        self.tokenizer, self.network = tokenizer, network
        encoder = network.model.backbone.conv_encoder
        self.backbone, encoder.model = encoder.model, self.seen

    def features(self, pixels: Tensor) -> list[Tensor]:
        """Returns the feature map (1, C, h', w') of each scale of an image (1, 3, h, w)."""
        return list(self.backbone(pixels).feature_maps)

    def forward(self, features: list[Tensor], ids: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits (1, queries, tokens) and boxes (1, queries, 4), as center and size in 0..1.

        Args:
            features: of the image.
            ids: (1, tokens).
        """
        self.seen.features = features
        try:
            # of the picture itself the rest of the network only asks that none of it is padding
            found = self.network(pixel_values=features[0].new_zeros(1, 3, 1, 1), input_ids=ids)
        finally:
            self.seen.features = None
        return found.logits, found.pred_boxes


def split_phrases(prompt: str) -> list[str]:
    """Splits a prompt into its phrases: 'A dog. red cup .' → ['a dog', 'red cup']."""
    phrases = (" ".join(phrase.split()) for phrase in re.split(r"[.?]", prompt.lower()))
    return [phrase for phrase in phrases if phrase]


def tokenize(tokenizer, phrases: list[str]) -> tuple[list[int], list[int]]:
    """Returns the token ids of the caption "a dog . red cup .", and the phrase that each belongs to (-1: none)."""
    ids, dot = tokenizer(" . ".join(phrases) + " .")["input_ids"], tokenizer.convert_tokens_to_ids(".")
    phrase, owners = 0, []
    for index, token in enumerate(ids):
        owners.append(-1 if token == dot or index in (0, len(ids) - 1) else phrase)
        phrase += token == dot
    return ids, owners


def network_input(image: Tensor) -> Tensor:
    """Resizes and normalizes an image (H, W, 3) in 0..1 to (1, 3, h, w): 800 pixels, the longer side at most 1333."""
    sides = image.shape[:2]
    scale = min(800 / min(sides), 1333 / max(sides))
    size = [max(1, round(side * scale)) for side in sides]
    x = F.interpolate(image.movedim(-1, 0)[None], size=size, mode="bilinear", antialias=True).clamp(0, 1)
    return (x - x.new_tensor(MEAN).view(3, 1, 1)) / x.new_tensor(STD).view(3, 1, 1)


def look(model: GroundingDino, image: Tensor) -> list[Tensor]:
    """Returns the features of an image (H, W, 3) in 0..1, which do not depend on the text."""
    return model.features(network_input(image))


def detect(
    model: GroundingDino, features: list[Tensor], ids: list[int], size: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Returns scores (queries, tokens) in 0..1 and boxes (queries, 4) in image pixels.

    Args:
        features: of the image, see `look`.
        ids: of the words, see `tokenize`.
        size: height and width of the image.
    """
    logits, boxes = model(features, torch.tensor([ids], device=features[0].device))
    boxes = box_convert(boxes[0].float(), "cxcywh", "xyxy").clamp(0, 1)
    height, width = size
    return logits[0].float().sigmoid().cpu(), boxes.cpu() * torch.tensor([width, height] * 2)


def found_objects(
    scores: Tensor, boxes: Tensor, tokenizer, phrases: list[str], box_threshold: float, text_threshold: float
) -> tuple[list[Found], list[float]]:
    """Returns the objects among what `detect` returned, from left to right, each once.

    A box belongs to the phrase of its best token. It counts if that token is above `box_threshold` and at least
    one token of the phrase is above `text_threshold`; those tokens are the words it is labeled with.

    Returns:
        the objects, and the best score of each phrase over all boxes.
    """
    token_ids, phrase_of_token = tokenize(tokenizer, phrases)
    ids, owners, scores = torch.tensor(token_ids), torch.tensor(phrase_of_token), scores[:, : len(token_ids)]
    of_phrase = torch.stack([scores.where(owners == k, 0).amax(1) for k in range(len(phrases))], 1)  # (queries, n)
    score, phrase = of_phrase.max(1)
    words = (owners == phrase[:, None]) & (scores > text_threshold)
    solid = (boxes[:, 2:] > boxes[:, :2]).all(1)
    kept = ((score > box_threshold) & words.any(1) & solid).nonzero()[:, 0]
    kept = kept[nms(boxes[kept], score[kept], SAME_OBJECT)]
    from_left = sorted(kept.tolist(), key=lambda i: (boxes[i, 0] + boxes[i, 2]).item())
    objects = [
        Found(tokenizer.decode(ids[words[i]].tolist()), score[i].item(), boxes[i], int(phrase[i])) for i in from_left
    ]
    return objects, of_phrase.amax(0).tolist()


def in_order_of(named: list[int], objects: list[Found]) -> list[Found | None]:
    """Returns the best object of each phrase, in the prompt's order.

    A phrase that is named n times gets its n best, from left to right. A box inside a better one is a part of that
    object and does not count.

    Args:
        named: the phrase of each place in the prompt, as `Found` counts them.
        objects: from left to right.

    Returns:
        as many as `named`, with None where no object is left.
    """
    waiting = {}
    for k in set(named):
        chosen: list[Found] = []
        for found in sorted((x for x in objects if x.named == k), key=lambda x: -x.score):
            if len(chosen) < named.count(k) and all(part_in(found.box, x.box) < PART for x in chosen):
                chosen.append(found)
        waiting[k] = [found for found in objects if any(found is x for x in chosen)]
    return [waiting[k].pop(0) if waiting[k] else None for k in named]


def part_in(box: Tensor, other: Tensor) -> float:
    """Returns the share 0..1 of the smaller of two boxes that lies in the larger one."""
    sides = torch.minimum(box[2:], other[2:]) - torch.maximum(box[:2], other[:2])
    areas = [(x[2:] - x[:2]).prod() for x in (box, other)]
    return (sides.clamp(min=0).prod() / min(areas)).item()
