"""Writes full-size models with random weights: python write_checkpoint.py SD15|SD20|FLUX FOLDER.

In the layout of the files people have, half precision, below a folder `models`: of SD a checkpoint with UNet, text
encoder and VAE; of Flux.1 a diffusion model of full width, but with two blocks of 57, and its VAE. Runs in a process of
its own, so that its gigabytes are gone when it is done.
"""

import sys
from pathlib import Path

import safetensors.torch
import torch

import packages  # noqa: F401
from comfy_host import COMFYUI

VAE = dict(
    double_z=True,
    z_channels=4,
    resolution=256,
    in_channels=3,
    out_ch=3,
    ch=128,
    ch_mult=[1, 2, 4, 4],
    num_res_blocks=2,
    attn_resolutions=[],
    dropout=0.0,
)


def fill(tensors: dict, generator: torch.Generator) -> dict:
    """Random weights of a size that keeps activations in range."""

    def values(name: str, shape: torch.Size) -> torch.Tensor:
        if len(shape) < 2:
            return torch.ones(shape) if name.endswith(("weight", "scale")) else torch.zeros(shape)
        fan_in = shape[1:].numel() if "embedding" not in name else 2000
        return torch.randn(shape, generator=generator) * fan_in**-0.5

    return {name: values(name, tensor.shape).half() for name, tensor in tensors.items()}


def save(tensors: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def write_flux(models: Path) -> None:
    import comfy.ldm.flux.model
    import comfy.ldm.models.autoencoder
    import comfy.ops
    from benchmarks.unets import LAYOUTS, known_of_flux

    flux = known_of_flux(LAYOUTS["flux"][1] | dict(depth=1, depth_single_blocks=1))
    meta, generator = torch.device("meta"), torch.Generator().manual_seed(0)
    operations = comfy.ops.disable_weight_init
    network = comfy.ldm.flux.model.Flux(device=meta, dtype=torch.float16, operations=operations, **flux)
    with meta:
        vae = comfy.ldm.models.autoencoder.AutoencoderKL(ddconfig=VAE | {"z_channels": 16}, embed_dim=16)
    own = {name: x for name, x in vae.state_dict().items() if "quant_conv" not in name}  # which Flux's VAE lacks
    save(fill(network.state_dict(), generator), models / "diffusion_models" / "random.safetensors")
    save(fill(own, generator), models / "vae" / "random.safetensors")


def write(config: str, models: Path) -> None:
    import comfy.ldm.models.autoencoder
    import comfy.ops
    import comfy.sd1_clip
    import comfy.supported_models
    import comfy.text_encoders.sd2_clip
    from benchmarks.unets import LAYOUTS
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    family = getattr(comfy.supported_models, config)
    text_encoder = {"SD15": comfy.sd1_clip.SD1ClipModel, "SD20": comfy.text_encoders.sd2_clip.SD2ClipModel}[config]
    unet_config = LAYOUTS["sd21"][1] | family.unet_config | family.unet_extra_config
    for other in ("use_temporal_attention", "attn_precision"):
        unet_config.pop(other, None)

    meta, generator = torch.device("meta"), torch.Generator().manual_seed(0)
    unet = UNetModel(**unet_config, device=meta, dtype=torch.float16, operations=comfy.ops.disable_weight_init)
    with meta:
        vae = comfy.ldm.models.autoencoder.AutoencoderKL(ddconfig=VAE, embed_dim=4)
    clip = fill(text_encoder(device=meta, dtype=torch.float16).state_dict(), generator)
    saving = family(unet_config)
    state_dict = {
        **saving.process_unet_state_dict_for_saving(fill(unet.state_dict(), generator)),
        **saving.process_clip_state_dict_for_saving(clip),
        **saving.process_vae_state_dict_for_saving(fill(vae.state_dict(), generator)),
    }
    save(state_dict, models / "checkpoints" / "random.safetensors")


if __name__ == "__main__":
    sys.path.insert(0, str(COMFYUI))
    config, models = sys.argv[1:]
    sys.argv = ["main.py", "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    write_flux(Path(models)) if config == "FLUX" else write(config, Path(models))
