"""A text encoder for tests through the server: each word has random numbers of its own."""

import zlib

import torch


class TextEncoder:
    def __init__(self, width: int, pooled: int):
        self.width, self.pooled = width, pooled

    def tokenize(self, text: str, **_) -> list[str]:
        return ["", *text.split()]

    def encode_from_tokens_scheduled(self, tokens: list[str], **_) -> list:
        numbers = [self.numbers(word, self.width) for word in tokens]
        return [[torch.stack(numbers)[None], {"pooled_output": self.numbers(" ".join(tokens), self.pooled)[None]}]]

    def numbers(self, word: str, count: int) -> torch.Tensor:
        return torch.randn(count, generator=torch.Generator().manual_seed(zlib.crc32(word.encode())))


class TestTextEncoder:
    RETURN_TYPES, FUNCTION, CATEGORY = ("CLIP",), "load", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"width": ("INT", {"max": 10000}), "pooled": ("INT", {"max": 10000})}}

    def load(self, width, pooled):
        return (TextEncoder(width, pooled),)


NODE_CLASS_MAPPINGS = {"TestTextEncoder": TestTextEncoder}
