"""Small CLIP, SigLIP and DINOv2 with random weights, once as ComfyUI holds them and once as transformers does."""

import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

SIDE, WIDTH = 56, 64  # image pixels, and numbers of an embedding
_SIZES = dict(hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4)
_PICTURE = dict(image_size=SIDE, patch_size=14, num_channels=3)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIGLIP_MEAN = SIGLIP_STD = (0.5, 0.5, 0.5)
DINO_MEAN, DINO_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DINO_SIDE = 518  # which ComfyUI has built in


@torch.no_grad()
def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Large enough weights that different pictures have different embeddings."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        values = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(values * (parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3))
    return model.eval().requires_grad_(False)


def clip_model(projection: int = WIDTH) -> transformers.CLIPModel:
    """Text and pictures in one space of WIDTH numbers."""
    text = dict(**_SIZES, vocab_size=49408, max_position_embeddings=77, bos_token_id=49406, eos_token_id=49407)
    config = transformers.CLIPConfig(text_config=text, vision_config=_SIZES | _PICTURE, projection_dim=projection)
    return randomised(transformers.CLIPModel(config))


def siglip_model() -> transformers.SiglipVisionModel:
    config = transformers.SiglipVisionConfig(**_SIZES, **_PICTURE, vision_use_head=False)
    return randomised(transformers.SiglipVisionModel(config))


def dino_model() -> transformers.Dinov2Model:
    config = transformers.Dinov2Config(**_SIZES | dict(mlp_ratio=4), image_size=DINO_SIDE, patch_size=14)
    return randomised(transformers.Dinov2Model(config))


def clip_vision(model: nn.Module, folder: Path, **changes):
    """ComfyUI's CLIP_VISION with the weights of one of these."""
    import comfy.clip_vision

    kind = model.config.model_type
    config = _SIZES | _PICTURE | dict(model_type="clip_vision_model", hidden_act="quick_gelu", projection_dim=WIDTH)
    if "siglip" in kind:
        config |= dict(model_type="siglip_vision_model", hidden_act="gelu_pytorch_tanh")
        config |= dict(image_mean=SIGLIP_MEAN, image_std=SIGLIP_STD)
        del config["projection_dim"]
    elif "dino" in kind:
        config |= dict(model_type="dinov2", image_size=DINO_SIDE, layer_norm_eps=1e-6, use_swiglu_ffn=False)
        config |= dict(image_mean=DINO_MEAN, image_std=DINO_STD)
    path = folder / "config.json"
    path.write_text(json.dumps(config | changes))
    encoder = comfy.clip_vision.ClipVisionModel(str(path))
    missing, _ = encoder.load_sd(published(model, folder))
    assert not missing, missing
    return encoder


def published(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    """Its weights, named as in the files that people have, whatever they are called inside this transformers."""
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    if "siglip" in model.config.model_type and not any(name.startswith("vision_model.") for name in weights):
        return {f"vision_model.{name}": x for name, x in weights.items()}
    return weights


def clip_text(model: transformers.CLIPModel, folder: Path, projection: bool = True):
    """ComfyUI's CLIP with the weights of its text encoder, of the kind that Load CLIP makes of such a file."""
    import comfy.sd
    import comfy.sd1_clip
    import comfy.supported_models_base

    target = comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel)
    small = dict(_SIZES, hidden_act="quick_gelu", max_position_embeddings=77)
    clip = comfy.sd.CLIP(target, model_options={"clip_l_model_config": small})
    weights = {name: x for name, x in published(model, folder).items() if name.startswith("text_")}
    missing, _ = clip.load_sd({name: x for name, x in weights.items() if projection or "projection" not in name})
    assert missing == ([] if projection else ["text_projection.weight"])
    return clip


def seen(pictures: Tensor, mean, std) -> Tensor:
    """(n, SIDE, SIDE, 3) in 0..1 of whole 255ths → what transformers' networks take."""
    return ((pictures - torch.tensor(mean)) / torch.tensor(std)).movedim(-1, 1)
