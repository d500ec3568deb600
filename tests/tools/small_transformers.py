"""Small transformers of every family, with random weights, as ComfyUI's MODEL, and what is known of each."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from comfy_host import COMFYUI

CONTEXT, POOLED = 48, 24  # widths of a prompt's tokens and of its pooled embedding


@dataclass(frozen=True)
class Small:
    """A family at a fraction of its width."""

    config: str  # class in comfy.supported_models
    network: dict  # arguments of its network
    module: str  # of comfy.ldm, where the network's own parameters are listed
    channels: int = 16
    ratio: int = 8  # pixels to a latent cell
    patch: int = 2  # latent cells to a token
    text: Callable[[int], int] = lambda tokens: tokens  # tokens of a prompt → of the joint attention
    padded: Callable[[int], int] = lambda tokens: tokens  # tokens of a picture → of the joint attention
    axes: tuple[int, ...] | None = (4, 6, 6)  # channels of the rotary positions, of which the last two or those before
    theta: float = 10000.0
    row_axis: int = 1  # which of these axes is the rows'
    behind_text: bool = False  # whether the first axis counts the prompt's tokens, and then the picture
    frames: bool = False
    masked: bool = False  # whether prompts come with a mask of their padding
    image_alone: bool = False  # whether some blocks have a second attention, of the picture alone
    scales_positions: bool = False  # whether it does what ComfyUI's ScaleROPE asks for


def up_to_32(tokens: int) -> int:
    return -(-tokens // 32) * 32


_FLUX = dict(
    in_channels=16,
    out_channels=16,
    vec_in_dim=POOLED,
    context_in_dim=CONTEXT,
    hidden_size=64,
    mlp_ratio=4.0,
    num_heads=4,
    depth=2,
    depth_single_blocks=2,
    axes_dim=[4, 6, 6],
    theta=10000,
    patch_size=2,
    qkv_bias=True,
    guidance_embed=True,
    txt_ids_dims=[],
)
_LUMINA = dict(
    patch_size=2,
    in_channels=16,
    dim=64,
    n_layers=4,
    n_refiner_layers=1,
    n_heads=4,
    n_kv_heads=4,
    multiple_of=16,
    ffn_dim_multiplier=1.0,
    qk_norm=True,
    cap_feat_dim=CONTEXT,
    axes_dims=[4, 6, 6],
    axes_lens=[300, 64, 64],
)
_HUNYUAN = dict(
    in_channels=64,
    out_channels=64,
    vec_in_dim=None,
    context_in_dim=CONTEXT,
    hidden_size=64,
    mlp_ratio=4.0,
    num_heads=4,
    depth=2,
    depth_single_blocks=2,
    axes_dim=[8, 8],
    theta=256,
    patch_size=[1, 1],
    qkv_bias=True,
    guidance_embed=False,
    byt5=False,
    meanflow=False,
    use_cond_type_embedding=False,
    vision_in_dim=None,
    meanflow_sum=False,
)
FAMILIES = {
    "Flux.1": Small("Flux", _FLUX, "flux.model.FluxParams", scales_positions=True),
    "Flux.2": Small(
        "Flux2",
        _FLUX
        | dict(
            in_channels=128,
            out_channels=128,
            vec_in_dim=None,
            axes_dim=[4] * 4,
            theta=2000,
            patch_size=1,
            qkv_bias=False,
            txt_ids_dims=[3],
            global_modulation=True,
            mlp_silu_act=True,
            ops_bias=False,
        ),
        "flux.model.FluxParams",
        channels=128,
        ratio=16,
        patch=1,
        text=lambda tokens: max(tokens, 512),
        axes=(4,) * 4,
        theta=2000.0,
        scales_positions=True,
    ),
    "Chroma": Small(
        "Chroma",
        _FLUX | dict(in_channels=64, out_channels=64, in_dim=64, out_dim=64, hidden_dim=64, n_layers=2),
        "chroma.model.ChromaParams",
    ),
    "Qwen-Image": Small(
        "QwenImage",
        dict(
            in_channels=64,
            num_layers=4,
            attention_head_dim=16,
            num_attention_heads=4,
            joint_attention_dim=CONTEXT,
            pooled_projection_dim=POOLED,
            axes_dims_rope=(4, 6, 6),
        ),
        "qwen_image.model.QwenImageTransformer2DModel",
        frames=True,
    ),
    "Lumina 2": Small("Lumina2", _LUMINA, "lumina.model.NextDiT", behind_text=True, masked=True, scales_positions=True),
    "Z-Image": Small(
        "ZImage",
        _LUMINA
        | dict(dim=256, n_heads=16, n_kv_heads=16, n_layers=2)
        | dict(z_image_modulation=True, time_scale=1000.0, pad_tokens_multiple=32),
        "lumina.model.NextDiT",
        behind_text=True,
        scales_positions=True,
        text=up_to_32,
        padded=up_to_32,
    ),
    "SD 3.5": Small(
        "SD3",
        dict(
            input_size=None,
            in_channels=16,
            patch_size=2,
            depth=4,
            adm_in_channels=POOLED,
            context_embedder_config={
                "target": "torch.nn.Linear",
                "params": {"in_features": CONTEXT, "out_features": 256},
            },
            num_patches=256,
            pos_embed_max_size=16,
            qk_norm="rms",
            x_block_self_attn_layers=[0, 2],
        ),
        "modules.diffusionmodules.mmdit.MMDiT",
        axes=None,
        image_alone=True,
    ),
    "HunyuanImage": Small(
        "HunyuanImage21",
        _HUNYUAN,
        "hunyuan_video.model.HunyuanVideoParams",
        channels=64,
        ratio=32,
        patch=1,
        axes=(8, 8),
        theta=256.0,
        row_axis=0,
    ),
}


def available() -> list[str]:
    """Those that this ComfyUI has, told from its text: tests are listed before it starts."""
    if COMFYUI is None:
        return list(FAMILIES)
    text = (COMFYUI / "comfy" / "supported_models.py").read_text(encoding="utf-8")
    return [name for name, small in FAMILIES.items() if f"class {small.config}(" in text]


def picture_comes_first(name: str) -> bool:
    """Among the tokens of the joint attention: in HunyuanImage of ComfyUI 0.3."""
    import comfyui_version

    return name == "HunyuanImage" and comfyui_version.__version__.startswith("0.3.")


def known_arguments(small: Small) -> dict:
    """Older hosts do not know all of them."""
    import importlib

    module, name = f"comfy.ldm.{small.module}".rsplit(".", 1)
    known = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    return {key: value for key, value in small.network.items() if key in known}


def small_transformer(name: str, seed: int = 0, **changed):
    """A ModelPatcher on the CPU; `changed` are arguments of the network."""
    import comfy.model_patcher
    import comfy.supported_models

    small, device = FAMILIES[name], torch.device("cpu")
    arguments = known_arguments(small) | changed
    config = getattr(comfy.supported_models, small.config)(arguments)
    config.unet_config = arguments | dict(dtype=torch.float32)
    model = config.get_model({}, "", device)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, x in model.diffusion_model.named_parameters():
            noise = torch.randn(x.shape, generator=generator)
            if x.ndim > 1:
                x.copy_(noise / math.sqrt(x[0].numel()))
            else:  # norms start as ones, biases as zeros, which would hide mistakes
                x.copy_(0.1 * noise + (0 if parameter_name.endswith("bias") else 1))
        if getattr(model.diffusion_model, "pos_embed", None) is not None:
            model.diffusion_model.pos_embed.normal_(generator=generator)
    return comfy.model_patcher.ModelPatcher(
        model.eval().requires_grad_(False), load_device=device, offload_device=device
    )


def conditioning(name: str, seed: int, tokens: int = 7, **options) -> list:
    """A CONDITIONING of random tokens, as the family's text encoder gives it."""
    if FAMILIES[name].masked:
        options["attention_mask"] = torch.ones(1, tokens, dtype=torch.long)
    generator = torch.Generator().manual_seed(1000 + seed)
    prompt = torch.randn(1, tokens, CONTEXT, generator=generator)
    return [[prompt, {"pooled_output": torch.randn(1, POOLED, generator=generator), **options}]]
