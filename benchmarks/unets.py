"""Models with random weights for the benchmarks: small UNets, and the full size of SD 1.5, SD 2.1, SDXL and Flux.1."""

import torch

_COMMON = dict(
    image_size=32,
    in_channels=4,
    out_channels=4,
    use_spatial_transformer=True,
    use_linear_in_transformer=True,
    num_heads=-1,
    legacy=False,
)
_SD = dict(
    num_res_blocks=[2] * 4,
    channel_mult=[1, 2, 4, 4],
    transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
    transformer_depth_output=[1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    transformer_depth_middle=1,
    adm_in_channels=None,
)
_SDXL = dict(
    num_res_blocks=[2] * 3,
    channel_mult=[1, 2, 4],
    transformer_depth=[0, 0, 2, 2, 10, 10],
    transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10],
    transformer_depth_middle=10,
    adm_in_channels=2816,
    num_classes="sequential",
)
_FLUX = dict(
    image_model="flux",
    in_channels=16,
    out_channels=16,
    vec_in_dim=768,
    context_in_dim=4096,
    hidden_size=3072,
    mlp_ratio=4.0,
    num_heads=24,
    depth=19,
    depth_single_blocks=38,
    axes_dim=[16, 56, 56],
    theta=10000,
    patch_size=2,
    qkv_bias=True,
    guidance_embed=True,
    txt_ids_dims=[],
)
# name → class in comfy.supported_models, and its network
LAYOUTS = {
    "small": ("SD20", _COMMON | _SD | dict(model_channels=64, num_head_channels=32, context_dim=64)),
    "narrow sdxl": ("SDXL", _COMMON | _SDXL | dict(model_channels=32, num_head_channels=32, context_dim=64)),
    "sd15": (
        "SD15",
        _COMMON
        | _SD
        | dict(model_channels=320, num_heads=8, num_head_channels=-1, context_dim=768, use_linear_in_transformer=False),
    ),
    "sd21": ("SD20", _COMMON | _SD | dict(model_channels=320, num_head_channels=64, context_dim=1024)),
    "sdxl": ("SDXL", _COMMON | _SDXL | dict(model_channels=320, num_head_channels=64, context_dim=2048)),
    "flux": ("Flux", _FLUX),
}


def known_of_flux(network: dict) -> dict:
    """Returns those of a Flux's parameters that this ComfyUI knows; older ones have fewer."""
    from comfy.ldm.flux.model import FluxParams

    return {name: x for name, x in network.items() if name in FluxParams.__dataclass_fields__ or name == "image_model"}


def random_model(layout: str, dtype: torch.dtype, device: torch.device):
    """Returns a ModelPatcher of one of LAYOUTS, with weights that keep activations in range."""
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    name, unet = LAYOUTS[layout]
    unet = known_of_flux(unet) if name == "Flux" else unet
    config = getattr(comfy.supported_models, name)(dict(unet))
    config.unet_config.update(unet)
    config.set_inference_dtype(dtype, None)
    base = getattr(comfy.model_base, name, comfy.model_base.BaseModel)
    torch.manual_seed(0)
    model = base(config, device=device)
    for parameter in model.diffusion_model.parameters():
        if parameter.ndim < 2:
            parameter.data.zero_()
        else:
            parameter.data.normal_(std=parameter[0].numel() ** -0.5)
    for module in model.diffusion_model.modules():
        if type(module).__name__ in ("GroupNorm", "LayerNorm", "RMSNorm"):
            scale = getattr(module, "weight", getattr(module, "scale", None))
            if scale is not None:
                scale.data.fill_(1)
    model.eval().requires_grad_(False)
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)


def random_prompt(layout: str, seed: int) -> list:
    """Returns a CONDITIONING of as many random tokens as a short prompt has."""
    generator, own = torch.Generator().manual_seed(seed), LAYOUTS[layout][1]
    count, width, pooled = (256, own["context_in_dim"], 768) if layout == "flux" else (77, own["context_dim"], 1280)
    tokens = torch.randn(1, count, width, generator=generator)
    return [[tokens, {"pooled_output": torch.randn(1, pooled, generator=generator), "guidance": 3.5}]]
