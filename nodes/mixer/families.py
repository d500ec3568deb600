"""The transformers that the mixer supports, and where an image's tokens are in them."""

from typing import Any, NamedTuple

from torch import Tensor, nn

from ...pnpmix.schedule import NoisePath
from ..common.checks import BadInput

DEPTHS = [19, 38]  # of Flux.1, double and single blocks
VITAL = {0, 1, 17, 18} | {19 + i for i in (6, 9, 34, 35, 37)}  # of these (arXiv 2411.14430)


class Family(NamedTuple):
    blocks: tuple[str, ...]  # the network's lists of blocks in which text and picture share an attention, in order
    positions: str | None  # its module that makes rotary positions
    width: str = "hidden_size"  # its attribute that says how many channels a token has
    behind_text: bool = False  # whether the longer the prompt is, the farther away the picture lies
    image_alone: bool = False  # whether blocks may have a second attention, of the picture's tokens alone
    vital: frozenset[int] = frozenset()  # blocks that the look depends on most
    scales_positions: bool = False  # whether it does what ComfyUI's ScaleROPE asks for


FLUX = Family(("double_blocks", "single_blocks"), "pe_embedder")
# by the exact classes of ComfyUI's model_base and of its network: a subclass may do anything
FAMILIES = {
    ("Flux", "Flux"): FLUX._replace(vital=frozenset(VITAL), scales_positions=True),
    ("Flux2", "Flux"): FLUX._replace(scales_positions=True),
    ("Chroma", "Chroma"): FLUX,
    ("SD3", "OpenAISignatureMMDITWrapper"): Family(("joint_blocks",), None, image_alone=True),
    ("QwenImage", "QwenImageTransformer2DModel"): Family(("transformer_blocks",), "pe_embedder", "inner_dim"),
    ("Lumina2", "NextDiT"): Family(
        ("layers",), "rope_embedder", "dim", behind_text=True, scales_positions=True
    ),  # Z-Image too
    ("HunyuanImage21", "HunyuanVideo"): FLUX,
}


class Tokens(NamedTuple):
    """The tokens of one model call."""

    grid: tuple[int, int]  # rows and columns of the picture's tokens
    start: int  # where they begin among all tokens
    total: int

    @property
    def image(self) -> slice:
        """The image's tokens among all."""
        return slice(self.start, self.start + self.grid[0] * self.grid[1])


def family_of(base) -> Family | None:
    """Returns the family of a model_base; None for a UNet and for unsupported models."""
    return FAMILIES.get((type(base).__name__, type(base.diffusion_model).__name__))


def noise_path(sampling) -> NoisePath:
    """Returns the noise path of a model_sampling, by how it adds noise."""

    def path(sigma: Tensor) -> tuple[Tensor, Tensor]:
        nothing, everything = sigma.new_zeros(sigma.shape), sigma.new_ones(sigma.shape)
        return sampling.noise_scaling(sigma, nothing, everything), sampling.noise_scaling(sigma, everything, nothing)

    return path


def is_flow(path: NoisePath) -> bool:
    """Tells whether images are interpolated to noise, of whatever strength."""
    sigma = Tensor([0.25, 0.5, 0.75])
    a, b = path(sigma)
    return bool((a - (1 - sigma)).abs().max() < 1e-6 and (b / sigma - b[0] / sigma[0]).abs().max() < 1e-6 and b[0] > 0)


def has_frames(model) -> bool:
    """Tells whether the model's latents are videos, of which an image is a single frame: (B, C, 1, H, W)."""
    return model.get_model_object("latent_format").latent_dimensions == 3


def reads_one_level(model) -> bool:
    """Tells whether it reads the noise level of the first row for all rows: MeanFlow models also read the next one."""
    return getattr(model.model.diffusion_model, "time_r_in", None) is not None


def patch_size(network: nn.Module) -> int:
    """Returns how many positions of the latent grid a token is wide."""
    size: Any = network.patch_size
    return size if isinstance(size, int) else size[-1]


def token_grid(network: nn.Module, latent_grid: tuple[int, ...]) -> tuple[int, int]:
    """Returns rows and columns of tokens; the latent is padded to whole ones."""
    height, width = (-(-side // patch_size(network)) for side in latent_grid)
    return height, width


def tokens_of(network: nn.Module, x: Tensor, context: Tensor, conds: dict) -> Tokens:
    """Returns where the image is in the attention of a call.

    Args:
        x: (B, C, H, W) or (B, C, 1, H, W).
        context: (B, tokens, channels) of the prompt.
        conds: the other conditionings of the call, by ComfyUI's names.
    """
    grid = token_grid(network, x.shape[-2:])
    count, text = grid[0] * grid[1], context.shape[1]
    if getattr(network, "byt5_in", None) is not None and conds.get("txt_byt5") is not None:
        text += conds["txt_byt5"].shape[1]
    if type(network).__name__ == "NextDiT" and not hasattr(network, "pad_tokens_multiple"):
        text = conds["num_tokens"]  # older hosts leave a prompt's padding out
    multiple = getattr(network, "pad_tokens_multiple", None) or 1
    text, padded = (-(-tokens // multiple) * multiple for tokens in (text, count))
    # in older hosts HunyuanImage's picture comes first
    flipped = any(getattr(block, "flipped_img_txt", False) for block in getattr(network, "double_blocks", [])[:1])
    return Tokens(grid, 0 if flipped else text, text + padded)


def joint_blocks(network: nn.Module, family: Family) -> int:
    """Returns how many blocks have an attention of text and image."""
    return sum(len(getattr(network, name)) for name in family.blocks)


def guided_blocks(node: str, model, layers: str) -> set[int] | None:
    """Returns which blocks read the concepts; None: all.

    Raises:
        BadInput: this model has no such choice.
    """
    family = family_of(model.model)
    if layers == "vital" and (family is None or not family.vital):
        fault = "'vital' layers are known of Flux.1 alone."
        raise BadInput(node, "layers", fault, "Choose all or decoder.")
    if family is None or layers == "all":
        return None
    network = model.model.diffusion_model
    if layers == "vital" and [len(getattr(network, name)) for name in family.blocks] != DEPTHS:
        found = " + ".join(str(len(getattr(network, name))) for name in family.blocks)
        fault = f"'vital' layers are known of Flux.1's 19 + 38 blocks, and this model has {found}."
        raise BadInput(node, "layers", fault, "Choose all or decoder.")
    count = joint_blocks(network, family)
    return set(family.vital) if layers == "vital" else set(range(count // 2, count))
