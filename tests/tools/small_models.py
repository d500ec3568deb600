"""Small UNets with random weights, once as ComfyUI's MODEL and once as diffusers' UNet2DConditionModel."""

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

CONTEXT = 48  # width of the prompt embedding
POOLED = 32  # width of the pooled prompt embedding of the SDXL layout


@dataclass(frozen=True)
class Layout:
    """What distinguishes the model families, at a fraction of their width."""

    config: str  # class in comfy.supported_models
    model_type: str  # in comfy.model_base.ModelType
    diffusers: dict
    comfy: dict
    seed: int = 0


def _levels(depths: list[int], heads: list[int], linear: bool) -> dict:
    """Arguments of UNet2DConditionModel for a UNet of 32 channels and up."""
    return dict(
        sample_size=16,
        block_out_channels=[32 * 2 ** min(i, 2) for i in range(len(depths))],
        down_block_types=["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        up_block_types=["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)],
        transformer_layers_per_block=[max(depth, 1) for depth in depths],
        attention_head_dim=heads,  # diffusers' old name for their number
        cross_attention_dim=CONTEXT,
        use_linear_projection=linear,
    )


def _comfy(depths: list[int], linear: bool, heads: int, head_channels: int, adm: int | None = None) -> dict:
    return dict(
        image_size=32,
        in_channels=4,
        out_channels=4,
        model_channels=32,
        num_res_blocks=[2] * len(depths),
        channel_mult=[2 ** min(i, 2) for i in range(len(depths))],
        transformer_depth=[depth for depth in depths for _ in range(2)],
        transformer_depth_output=[depth for depth in depths for _ in range(3)],
        transformer_depth_middle=depths[-1] or 1,
        context_dim=CONTEXT,
        use_spatial_transformer=True,
        use_linear_in_transformer=linear,
        num_heads=heads,
        num_head_channels=head_channels,
        adm_in_channels=adm,
        num_classes="sequential" if adm else None,
        legacy=False,
        dtype=torch.float32,
    )


_SDXL_ADM = POOLED + 6 * 256
LAYOUTS = {
    "SD 1.x": Layout("SD15", "EPS", _levels([1, 1, 1, 0], [8] * 4, False), _comfy([1, 1, 1, 0], False, 8, -1)),
    "SD 2.x eps": Layout("SD20", "EPS", _levels([1, 1, 1, 0], [2, 4, 8, 8], True), _comfy([1, 1, 1, 0], True, -1, 16)),
    "SD 2.x v": Layout(
        "SD20", "V_PREDICTION", _levels([1, 1, 1, 0], [2, 4, 8, 8], True), _comfy([1, 1, 1, 0], True, -1, 16)
    ),
    "SDXL": Layout(
        "SDXL",
        "EPS",
        _levels([0, 2, 3], [2, 4, 8], True)
        | dict(
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=_SDXL_ADM,
        ),
        _comfy([0, 2, 3], True, -1, 16, _SDXL_ADM),
    ),
}


def diffusers_unet(layout: Layout) -> UNet2DConditionModel:
    torch.manual_seed(layout.seed)
    unet = UNet2DConditionModel(**layout.diffusers).eval().requires_grad_(False)
    for parameter in unet.parameters():  # norms and biases start as constants, which would hide mistakes
        parameter += 0.05 * torch.randn_like(parameter)
    return unet


def comfy_model(layout: Layout, unet: UNet2DConditionModel | None = None):
    """A ModelPatcher on the CPU with the weights of `unet`."""
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models
    import comfy.utils

    config = getattr(comfy.supported_models, layout.config)(layout.comfy)
    config.unet_config.update(layout.comfy)
    base = comfy.model_base.SDXL if layout.config == "SDXL" else comfy.model_base.BaseModel
    model = base(config, model_type=comfy.model_base.ModelType[layout.model_type])
    weights = (unet or diffusers_unet(layout)).state_dict()
    names = comfy.utils.unet_to_diffusers(config.unet_config)
    state_dict = {name: weights.pop(theirs) for theirs, name in names.items() if theirs in weights}
    assert not weights, f"not carried over: {list(weights)}"
    model.diffusion_model.load_state_dict(state_dict)
    model.eval().requires_grad_(False)
    device = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)


SMALLEST = dict(
    image_size=32,
    in_channels=4,
    out_channels=4,
    model_channels=32,
    num_res_blocks=[1],
    channel_mult=[1],
    transformer_depth=[1],
    transformer_depth_output=[1, 0],
    transformer_depth_middle=-2,
    context_dim=CONTEXT,
    use_spatial_transformer=True,
    num_heads=2,
    num_head_channels=-1,
    adm_in_channels=None,
    legacy=False,
    dtype=torch.float32,
)


def smallest_model(**changes):
    """A ModelPatcher of a UNet with one transformer block each in the encoder and in the decoder."""
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    settings = SMALLEST | changes
    config = comfy.supported_models.SD15(settings)
    config.unet_config.update(settings)
    base = comfy.model_base.BaseModel(config)
    generator = torch.Generator().manual_seed(0)
    for weight in base.diffusion_model.requires_grad_(False).parameters():
        scale = weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.1
        weight.copy_(scale * torch.randn(weight.shape, generator=generator) + (weight.ndim == 1))
    device = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(base.eval(), load_device=device, offload_device=device)


def as_on_a_gpu(_, *arguments, **options):
    """PyTorch's attention, which torch.compile can trace (an optimized_attention_override)."""
    from comfy.ldm.modules.attention import attention_pytorch

    return attention_pytorch(*arguments, **{name: options[name] for name in options if name != "transformer_options"})


def conditioning(seed: int, tokens: int = 7) -> list:
    """A CONDITIONING of random tokens."""
    generator = torch.Generator().manual_seed(1000 + seed)
    tokens = torch.randn(1, tokens, CONTEXT, generator=generator)
    return [[tokens, {"pooled_output": torch.randn(1, POOLED, generator=generator)}]]


def small_clip(layout: str, seed: int = 5):
    """A CLIP with ComfyUI's tokenizers and text encoders, of CONTEXT numbers a token and random weights."""
    import comfy.sd
    import comfy.sd1_clip
    import comfy.sdxl_clip
    import comfy.supported_models_base
    import comfy.text_encoders.sd2_clip as sd2

    widths = {"SDXL": {"l": CONTEXT - POOLED, "g": POOLED}, "SD 2": {"h": CONTEXT}}.get(layout[:4], {"l": CONTEXT})
    parts = {
        "SDXL": (comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel),
        "SD 2": (sd2.SD2Tokenizer, sd2.SD2ClipModel),
        "SD 1": (comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel),
    }[layout[:4]]
    sizes = dict(num_attention_heads=2, num_hidden_layers=3)
    options = {
        f"clip_{name}_model_config": sizes | dict(hidden_size=width, intermediate_size=2 * width, projection_dim=width)
        for name, width in widths.items()
    }
    device = torch.device("cpu")
    options |= {"load_device": device, "offload_device": device, "initial_device": device, "dtype": torch.float32}
    clip = comfy.sd.CLIP(comfy.supported_models_base.ClipTarget(*parts), model_options=options)
    generator = torch.Generator().manual_seed(seed)
    for parameter in clip.cond_stage_model.parameters():
        parameter.requires_grad_(False)
        if parameter.ndim:
            scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.1
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator) + (parameter.ndim == 1))
    return clip


def save_lora(file: str, layer: str, columns: int) -> None:
    """A LoRA of one layer with 32 rows, in models/loras."""
    import folder_paths
    import safetensors.torch

    generator, name = torch.Generator().manual_seed(0), f"lora_unet_{layer}"
    weights = {
        f"{name}.lora_down.weight": torch.randn(4, columns, generator=generator),
        f"{name}.lora_up.weight": torch.randn(32, 4, generator=generator),
    }
    folder = Path(folder_paths.get_folder_paths("loras")[0])
    folder.mkdir(exist_ok=True)
    safetensors.torch.save_file(weights, folder / file)


def small_control_net():
    """A ControlNet for SD 1.x."""
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.ops

    torch.manual_seed(3)
    only_in_unet = ("out_channels", "transformer_depth_output")
    settings = {key: value for key, value in LAYOUTS["SD 1.x"].comfy.items() if key not in only_in_unet}
    net = comfy.cldm.cldm.ControlNet(**settings, hint_channels=3, operations=comfy.ops.disable_weight_init)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    device = torch.device("cpu")
    return comfy.controlnet.ControlNet(net.eval().requires_grad_(False), load_device=device)
