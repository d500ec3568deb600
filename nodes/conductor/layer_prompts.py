"""A prompt for each cross-attention layer, as in ED-LoRA (arXiv 2305.18292) and P+ (arXiv 2303.09522)."""

import copy

import comfy.hooks
import torch
from comfy.sd1_clip import SDTokenizer
from einops import rearrange, repeat
from torch import Tensor

from .layers import here, layer_numbers

PLACEHOLDER = "pnpmix"  # before the number of a token, which in the file may look like anything


class LayerPrompts(comfy.hooks.TransformerOptionsHook):
    """A hook that gives each cross-attention layer its own prompt, of those that its conditioning concatenates."""

    def __init__(self, layers: int = 1):
        super().__init__(transformers_dict={}, hook_scope=comfy.hooks.EnumHookScope.HookedOnly)
        self.layers = layers

    def clone(self):
        clone = super().clone()
        clone.layers = self.layers
        return clone

    def on_apply_hooks(self, model, transformer_options):
        numbers = layer_numbers(model.model.diffusion_model)

        def choose(query: Tensor, key: Tensor, value: Tensor, extra: dict) -> tuple[Tensor, Tensor, Tensor]:
            own = rearrange(key, "b (layers tokens) width -> layers b tokens width", layers=self.layers)
            own = own[numbers[here(extra)]]
            return query, own, own

        transformer_options.setdefault("patches", {}).setdefault("attn2_patch", []).append(choose)


def with_placeholders(text: str, tokens: list[str]) -> str:
    """Replaces the tokens by ComfyUI embeddings, the longest first, since one may be the beginning of another."""
    for number in sorted(range(len(tokens)), key=lambda i: -len(tokens[i])):
        text = text.replace(tokens[number], f" embedding:{PLACEHOLDER}{number} ")
    return text


def tokenizer_with(tokenizer, embeddings: list[dict[str, Tensor]]):
    """Returns a copy of the tokenizer that knows the tokens by their placeholders.

    Args:
        embeddings: of each token, its row for the text encoders "l" and "g".
    """
    result = copy.copy(tokenizer)
    for name, encoder in encoders_of(tokenizer).items():
        known = {f"{PLACEHOLDER}{i}": x[encoder] for i, x in enumerate(embeddings)}
        setattr(result, name, _with_embeddings(getattr(tokenizer, name), known))
    return result


def encoders_of(tokenizer) -> dict[str, str]:
    """Returns the parts that read embeddings, and the text encoder "l" or "g" of each, as ED-LoRA files name them."""
    parts = {name: part for name, part in vars(tokenizer).items() if isinstance(part, SDTokenizer)}
    return {name: "g" if part.embedding_key == "clip_g" else "l" for name, part in parts.items()}


def token_widths(clip) -> dict[str, int]:
    """Returns the width of a token for each text encoder that reads tokens of an ED-LoRA."""
    return {
        encoder: getattr(clip.cond_stage_model, name).transformer.get_input_embeddings().weight.shape[1]
        for name, encoder in encoders_of(clip.tokenizer).items()
    }


def _with_embeddings(part: SDTokenizer, known: dict[str, Tensor]) -> SDTokenizer:
    part = copy.copy(part)
    usual, part.embedding_directory = part._try_get_embedding, part.embedding_directory or []

    def find(text: str):
        name, _, leftover = text.partition(" ")
        if name in known:
            return (known[name], leftover) if len(usual("none")) == 2 else (known[name], name, leftover)
        return usual(text)

    part._try_get_embedding = find
    return part


def encode_for_each_layer(clip, text: str, tokens: dict[str, dict[str, Tensor]], layers: int) -> list:
    """Returns a CONDITIONING that concatenates a prompt for each layer; pooled is the first layer's."""
    clip, names = clip.clone(), list(tokens)
    tokenizer, text = clip.tokenizer, with_placeholders(text, names)
    conds = []
    for layer in range(layers):
        clip.tokenizer = tokenizer_with(
            tokenizer, [{encoder: x[layer] for encoder, x in tokens[name].items()} for name in names]
        )
        conds.append(clip.encode_from_tokens_scheduled(clip.tokenize(text)))
    (_, options), *_ = conds[0]
    return [[torch.cat([cond[0][0] for cond in conds], 1), options]]


def same_length(positive: list, negative: list, layers: int) -> tuple[list, list]:
    """Repeats both, each layer by itself, to a common length, since ComfyUI concatenates them in a batch."""
    lengths = [x[0][0].shape[1] // layers for x in (positive, negative)]
    longest = torch.lcm(*(torch.tensor(x) for x in lengths)).item()
    positive, negative = (
        _repeated(x, layers, longest // own) for x, own in zip((positive, negative), lengths, strict=True)
    )
    return positive, negative


def _repeated(conditioning: list, layers: int, times: int) -> list:
    ((cond, options),) = conditioning
    return [
        [repeat(cond, "b (layers tokens) width -> b (layers times tokens) width", layers=layers, times=times), options]
    ]
