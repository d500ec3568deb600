"""Detectors and segmenters for tests: the real architectures with random weights, and one that sees what it is told."""

import json
import re
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

# the ids of bert-base-uncased, because transformers' own Grounding DINO has them built in
SPECIAL = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
WORDS = ["a", "the", "dog", "cat", "red", "cup", "##s", "astronaut", "spoon"]


def write_bert_folder(folder: Path, **config) -> Path:
    """models/bert-base-uncased with a few words and a small encoder."""
    vocabulary = [SPECIAL.get(i, f"[unused{i}]") for i in range(1030)] + WORDS
    settings = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128) | config
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": len(vocabulary)} | settings))
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    return folder


def read_bert_folder(folder: Path):
    """The untrained encoder and the tokenizer."""
    import transformers

    bert = transformers.BertModel(transformers.BertConfig.from_pretrained(folder), add_pooling_layer=False)
    return bert, transformers.BertTokenizerFast.from_pretrained(folder, local_files_only=True)


@torch.no_grad()
def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Random weights everywhere, also where training starts from zero; activations and boxes stay in range."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if "bbox_embed" in name and ".layers.2." in name:
            values *= 0.02  # as trained ones, they move a box a little
        elif name.endswith("bias"):
            values *= 0.05
        else:
            values = values * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 1 + 0.1 * values
        parameter.copy_(values)
    return model.eval().requires_grad_(False)


class Made(TorchDispatchMode):
    """Counts the numbers that are drawn at random, on any device but meta."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        name = function.overloadpacket.__name__
        if re.match("normal|uniform|rand|trunc|erfinv", name) and not result.is_meta:
            self.numbers += result.numel()
        return result


def small_sam(seed: int = 0) -> nn.Module:
    """SAM with a small image encoder that looks at 256 pixels instead of 1024."""
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    torch.manual_seed(seed)
    sam = Sam(
        ImageEncoderViT(img_size=256, embed_dim=32, depth=2, num_heads=2, out_chans=256, use_rel_pos=True),
        PromptEncoder(embed_dim=256, image_embedding_size=(16, 16), input_image_size=(256, 256), mask_in_chans=16),
        MaskDecoder(
            transformer_dim=256, transformer=TwoWayTransformer(depth=2, embedding_dim=256, num_heads=8, mlp_dim=64)
        ),
    )
    return sam.eval().requires_grad_(False)


class ToldDetector(nn.Module):
    """Gives the logits and boxes that a test made, in the place of Grounding DINO's network."""

    def __init__(self, tokenizer, seen: list[list[tuple[dict[str, float], tuple[float, float, float, float]]]]):
        """For each picture looked at: boxes as (score of each word, box in 0..1 as left, top, right, bottom)."""
        super().__init__()
        self.tokenizer, self.seen, self.looks = tokenizer, seen, 0
        self.weight = nn.Parameter(torch.zeros(1), requires_grad=False)

    def features(self, pixels: Tensor) -> list[Tensor]:
        assert pixels.shape[:2] == (1, 3) and min(pixels.shape[2:]) <= 800 and max(pixels.shape[2:]) <= 1333
        assert pixels.dtype == torch.float32 and pixels.device == self.weight.device
        self.looks += 1
        return [torch.tensor(self.looks - 1)]

    def forward(self, features: list[Tensor], ids: Tensor) -> tuple[Tensor, Tensor]:
        objects, ids = self.seen[int(features[0]) % len(self.seen)], ids[0].tolist()
        logits, boxes = torch.full((1, 900, 256), -torch.inf), torch.full((1, 900, 4), 0.5)
        logits[..., : len(ids)] = -9.0
        for query, (words, (left, top, right, bottom)) in enumerate(objects):
            boxes[0, query] = torch.tensor([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top])
            for word, score in words.items():
                token = self.tokenizer.convert_tokens_to_ids(word)
                if token in ids:  # what the prompt does not ask for is not seen
                    logits[0, query, ids.index(token)] = torch.logit(torch.tensor(score))
        return logits, boxes
