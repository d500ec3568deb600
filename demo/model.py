"""The demo models: a lossless latent space, a table of words, and the layout of two networks.

These are a UNet as in SD 2 that predicts v, and a transformer as in Flux that predicts the velocity of a rectified
flow.
"""

import math
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from .scenes import COLORS, PLACES, SHAPES, TEXTURES

WEIGHTS = Path(__file__).parent / "weights.safetensors"
FLOW_WEIGHTS = Path(__file__).parent / "flow.safetensors"
CHANNELS = 12  # of a latent: 2 x 2 pixels of 3 colors
GRID = 32  # cells of a latent, across and down
DOWNSCALE = 2  # pixels to a cell
SHIFT, SCALE = 0.3, 2.2  # bring latents to mean 0 and standard deviation 1, roughly
CONTEXT = 128  # width of the prompt embedding
PHRASES = 4  # in a prompt: three things and a place
TIMESTEPS, BETA_START, BETA_END = 1000, 0.00085, 0.012  # Stable Diffusion's schedule

UNET = dict(  # arguments of diffusers' UNet2DConditionModel
    sample_size=GRID,
    in_channels=CHANNELS,
    out_channels=CHANNELS,
    layers_per_block=1,
    block_out_channels=[64, 128, 128],
    down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    up_block_types=["CrossAttnUpBlock2D"] * 3,
    attention_head_dim=[1, 2, 2],  # diffusers' old name for their number
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
    num_attention_heads=4,
    joint_attention_dim=CONTEXT,
    pooled_projection_dim=POOLED,
    axes_dims_rope=(8, 12, 12),
)


def fold(images: Tensor) -> Tensor:
    """Encodes (B, H, W, 3) pictures in 0..1 → (B, 12, H/2, W/2) latents in -1..1; nothing is lost."""
    return F.pixel_unshuffle(images.movedim(-1, 1) * 2 - 1, DOWNSCALE)


def unfold(latents: Tensor) -> Tensor:
    """Inverts `fold`, and limits the pictures to 0..1."""
    return (F.pixel_shuffle(latents, DOWNSCALE).movedim(1, -1) / 2 + 0.5).clamp(0, 1)


def normalize(latents: Tensor) -> Tensor:
    """Returns a latent as the UNet sees it."""
    return (latents - SHIFT) * SCALE


def denormalize(latents: Tensor) -> Tensor:
    """Inverts `normalize`."""
    return latents / SCALE + SHIFT


FILLERS = ("a", "an", "the", "and", "in", "on", "at", "with", "of", "photo", "fancy", "detailed", "close-up")
NOUNS = (*SHAPES, *PLACES)
# One row of the table each; the first and the second color of a thing are different words.
VOCABULARY = ("", *(f"{color} {i}" for i in (1, 2) for color in COLORS), *TEXTURES, *NOUNS)


def parse(prompt: str) -> list[list[int]]:
    """Rows of the vocabulary for each of four phrases, which are empty words where the prompt has fewer.

    A phrase ends with a thing or a place.

    Raises:
        ValueError: a word is unknown, or there are too many of them.
    """
    phrases: list[list[int]] = []
    phrase: list[int] = []
    colors = 0
    for word in prompt.lower().replace(",", " ").replace(".", " ").split():
        if word in FILLERS:
            continue
        if word not in (*COLORS, *TEXTURES, *NOUNS):
            known = ", ".join((*COLORS, *TEXTURES, *NOUNS))
            raise ValueError(f"The demo model does not know the word '{word}'. Use its words: {known}.")
        if word in COLORS:
            colors += 1
            if colors > 2:
                raise ValueError(f"Demo prompt: '{word}' is the third color of one thing. Give it one or two.")
            word = f"{word} {colors}"
        phrase.append(VOCABULARY.index(word))
        if word in NOUNS:
            phrases.append(phrase)
            phrase, colors = [], 0
    if phrase:
        phrases.append(phrase)
    if len(phrases) > PHRASES:
        raise ValueError(f"Demo prompt: {len(phrases)} things and places are too many. Name up to {PHRASES}.")
    return phrases + [[0]] * (PHRASES - len(phrases))


class Words(nn.Module):
    """Text encoder: each phrase becomes the sum of its words' rows."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(len(VOCABULARY), CONTEXT)

    def forward(self, prompts: list[str]) -> Tensor:
        """Returns (B, 4, 128) embeddings; places without a phrase hold the row of the empty word."""
        counts = torch.zeros(len(prompts), PHRASES, len(VOCABULARY))
        for i, prompt in enumerate(prompts):
            for phrase, rows in enumerate(parse(prompt)):
                counts[i, phrase] = F.one_hot(torch.tensor(rows), len(VOCABULARY)).sum(0)
        return counts.to(self.table.weight) @ self.table.weight


def flow_level(t: Tensor) -> Tensor:
    """Returns the noise level of a share 0..1 of the whole schedule."""
    return 1 / (1 + math.exp(-FLOW_SHIFT) * (1 / t - 1))


def alphas_cumprod() -> Tensor:
    """Returns the (1000,) float64 alphas_cumprod of Stable Diffusion's "scaled linear" schedule."""
    betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, TIMESTEPS, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)


def load_weights(path: Path) -> dict[str, Tensor]:
    """Returns weights in float32: of the network ("unet." or "transformer.", in diffusers' names) and table ("words.").

    Raises:
        ValueError: the file is missing or damaged.
    """
    try:
        return {name: tensor.float() for name, tensor in safetensors.torch.load_file(path).items()}
    except (OSError, SafetensorError) as error:
        fault = f"{path} is missing, damaged or cut short ({error})."
        raise ValueError(f"{fault} Get it again, with git checkout.") from error
