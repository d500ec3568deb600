"""The demo models: a table of words, and the layout of two networks.

These are a UNet as in SD that predicts v, and a transformer as in Flux that predicts the velocity of a rectified flow.
"""

import math

import torch
from torch import Tensor, nn

from .autoencoder import CHANNELS
from .scenes import COLORS, FINISHES, KINDS, PATTERNS, TABLES

GRID = 32  # cells of a latent, across and down
CONTEXT = 128  # width of the prompt embedding
TIMESTEPS, BETA_START, BETA_END = 1000, 0.00085, 0.012  # Stable Diffusion's schedule

UNET = dict(  # arguments of diffusers' UNet2DConditionModel
    sample_size=GRID,
    in_channels=CHANNELS,
    out_channels=CHANNELS,
    layers_per_block=1,
    block_out_channels=[96, 160, 224],
    down_block_types=["CrossAttnDownBlock2D"] * 3,
    up_block_types=["CrossAttnUpBlock2D"] * 3,
    attention_head_dim=[3, 5, 7],  # diffusers' old name for their number; each has 32 channels
    cross_attention_dim=CONTEXT,
    use_linear_projection=True,
)

PATCH = 2  # latent cells to a token of the transformer, across and down
POOLED = 8  # width of Flux's second prompt embedding, of which the demo has none
FLOW_SHIFT = 1.15  # of the noise levels towards the noisy end, as Flux has it

FLOW = dict(  # arguments of diffusers' FluxTransformer2DModel
    in_channels=CHANNELS * PATCH**2,
    num_layers=2,
    num_single_layers=4,
    attention_head_dim=32,
    num_attention_heads=6,
    joint_attention_dim=CONTEXT,
    pooled_projection_dim=POOLED,
    axes_dims_rope=(8, 12, 12),
)

FILLERS = ("a", "an", "the", "and", "in", "on", "at", "with", "of", "photo", "fancy", "detailed", "close-up")
NOUNS = (*KINDS, "table", "wall")
START, END = "<start>", "<end>"
WORDS = (*dict.fromkeys((*COLORS, *PATTERNS, *FINISHES, *TABLES, *NOUNS)),)  # "plain" is a pattern and a table
VOCABULARY = (END, START, *WORDS)  # one row of the table each; the end also fills what is left
TOKENS = 24  # in a prompt, start and end among them


def tokenize(prompt: str) -> list[int]:
    """Rows of the vocabulary for the start and each word of the prompt.

    Raises:
        ValueError: a word is unknown, or there are too many of them.
    """
    words = [word for word in prompt.lower().replace(",", " ").replace(".", " ").split() if word not in FILLERS]
    unknown = next((word for word in words if word not in WORDS), None)
    if unknown is not None:
        raise ValueError(f"The demo model does not know the word '{unknown}'. Use its words: {', '.join(WORDS)}.")
    if len(words) > TOKENS - 2:
        raise ValueError(f"Demo prompt: {len(words)} words are too many. Use up to {TOKENS - 2}.")
    return [VOCABULARY.index(word) for word in (START, *words)]


def padded(tokens: list[int]) -> list[int]:
    return tokens + [VOCABULARY.index(END)] * (TOKENS - len(tokens))


class Words(nn.Module):
    """Text encoder: a phrase ends with a noun, and each of its words also tells the words before it in the phrase."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(len(VOCABULARY), CONTEXT)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embeds tokens: (B, T) rows of the vocabulary → (B, T, 128)."""
        return contextual(self.table(tokens), *kinds_of(tokens))


def kinds_of(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Tells of each token (B, T) whether it is a word, and whether it ends a phrase."""
    nouns = torch.tensor([VOCABULARY.index(noun) for noun in NOUNS], device=tokens.device)
    return tokens > VOCABULARY.index(START), torch.isin(tokens, nouns)


def contextual(vectors: Tensor, is_word: Tensor, is_noun: Tensor) -> Tensor:
    """Adds to each of the words' vectors (B, T, C) the sum of its phrase up to it."""
    phrase = is_noun.long().cumsum(1) - is_noun.long()
    same = (phrase[:, :, None] == phrase[:, None]) & is_word[:, :, None] & is_word[:, None]
    return vectors + same.tril().to(vectors) @ vectors


def flow_level(t: Tensor) -> Tensor:
    """Returns the noise level of a share 0..1 of the whole schedule."""
    return 1 / (1 + math.exp(-FLOW_SHIFT) * (1 / t - 1))


def alphas_cumprod() -> Tensor:
    """Returns the (1000,) float64 alphas_cumprod of Stable Diffusion's "scaled linear" schedule."""
    betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, TIMESTEPS, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)
