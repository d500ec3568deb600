"""Load Demo Model and Demo Scene: try the pack without downloads."""

import dataclasses
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import torch
from comfy.ldm.flux.model import FluxParams
from comfy_api.latest import io, ui
from comfy_execution.graph import ExecutionBlocker
from einops import repeat
from typing_extensions import override

from ..demo import concepts as demo_concepts
from ..demo import loras as demo_loras
from ..demo import model as demo
from ..demo.own_things import more_photos
from ..demo.scenes import MAX_THINGS, draw_concepts, draw_scene, random_blend
from .common.checks import BadInput, check_choice, check_numbers
from .common.file_lists import SHIPPED
from .common.types import DEMO_CATEGORY, EXPERT, schema

NETWORKS = {"unet": demo.WEIGHTS, "flow": demo.FLOW_WEIGHTS}
SHIPPED |= {"loras": ("demo model: ", demo_loras.FOLDER), "concepts": ("demo model: ", demo_concepts.FOLDER)}
WORDS = ", ".join((*demo.COLORS, *demo.TEXTURES, *demo.NOUNS))


class PnPMixDemoModel(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return schema(
            node_id="PnPMixDemoModel",
            search_aliases=["demo", "tiny model", "pnp-mix"],
            display_name="Load Demo Model",
            category=DEMO_CATEGORY,
            description="A tiny bundled diffusion model of drawn scenes, instead of Load Checkpoint. Its images have "
            "64 × 64 pixels.",
            inputs=[
                io.Combo.Input(
                    "network",
                    optional=True,
                    options=list(NETWORKS),
                    default="unet",
                    tooltip="unet: like Stable Diffusion 2. flow: a smaller transformer like Flux, less trained.",
                )
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The network."),
                io.Clip.Output(display_name="clip", tooltip=f"For CLIP Text Encode. Its words: {WORDS}."),
                io.Vae.Output(display_name="vae", tooltip="For VAE Encode and VAE Decode. It is lossless."),
            ],
        )

    @classmethod
    @override
    def execute(cls, network="unet") -> io.NodeOutput:
        check_choice("Load Demo Model", "network", network, list(NETWORKS))
        weights = demo.load_weights(NETWORKS[network])
        cpu = torch.device("cpu")  # where a table of 16 kB is read soonest, and no host streams it
        target = comfy.supported_models_base.ClipTarget(DemoTokenizer, DemoTextEncoder)
        clip = comfy.sd.CLIP(target, model_options={"load_device": cpu, "offload_device": cpu})
        clip.cond_stage_model.load_sd(comfy.utils.state_dict_prefix_replace(weights, {"words.": ""}, filter_keys=True))
        load, prefix = (load_unet, "unet.") if network == "unet" else (load_transformer, "transformer.")
        own = comfy.utils.state_dict_prefix_replace(weights, {prefix: ""}, filter_keys=True)
        return io.NodeOutput(load(own), clip, DemoVAE())


class PnPMixDemoScene(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        numbers = range(1, MAX_THINGS + 1)
        return schema(
            node_id="PnPMixDemoScene",
            shows_result=True,
            search_aliases=["demo", "example pictures", "pnp-mix"],
            display_name="Demo Scene",
            category=DEMO_CATEGORY,
            description="Draws a scene and concepts for the demo model, 64 × 64 pixels, with exact masks and a prompt, "
            "and shows them enlarged.",
            inputs=[
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Another seed: another scene and other concepts.",
                ),
                io.Int.Input(
                    "concepts",
                    default=2,
                    min=1,
                    max=MAX_THINGS,
                    tooltip="Number of objects in the scene; each has a concept. More: a fuller scene.",
                ),
                io.Int.Input(
                    "photos",
                    optional=True,
                    default=1,
                    min=1,
                    max=20,
                    tooltip="Number of images of each concept, in different places, as a batch. 5: for Train Concept.",
                    **EXPERT,
                ),
            ],
            outputs=[
                io.Image.Output(display_name="background", tooltip="The scene image."),
                *(
                    io.Image.Output(display_name=f"concept {k}", tooltip=f"The concept that replaces object {k}.")
                    for k in numbers
                ),
                *(io.Mask.Output(display_name=f"mask {k}", tooltip=f"Target mask of object {k}.") for k in numbers),
                io.String.Output(display_name="prompt", tooltip="A prompt for the scene, in the demo model's words."),
                *(
                    io.Mask.Output(display_name=f"object mask {k}", tooltip=f"Object mask of concept {k}.")
                    for k in numbers
                ),
            ],
        )

    @classmethod
    @override
    def execute(cls, seed, concepts, photos=1) -> io.NodeOutput:
        check_numbers("Demo Scene", seed=seed, concepts=concepts, photos=photos)
        task = random_blend(seed, concepts)
        background, masks = draw_scene(task.scene)
        fault = BadInput("Demo Scene", "concepts", f"it is {concepts}, and a further one is wired.", "Raise it.")
        missing = [ExecutionBlocker(str(fault))] * (MAX_THINGS - concepts)
        pictures, own_masks = (torch.stack(list(x))[:, None] for x in draw_concepts(task))
        if photos > 1:
            others = [more_photos(concept.things[0], photos - 1, [seed, k]) for k, concept in enumerate(task.concepts)]
            pictures, own_masks = (
                torch.cat([first, torch.stack(more)], 1)
                for first, more in zip((pictures, own_masks), zip(*others, strict=True), strict=True)
            )
        return io.NodeOutput(
            background[None],
            *pictures,
            *missing,
            *masks[:, None],
            *missing,
            task.scene.nouns(),
            *own_masks,
            *missing,
            ui=ui.PreviewImage(enlarged(torch.cat([background[None], *pictures]))),
        )


def enlarged(pictures):
    """Enlarges pictures four times: the editor shows one of 64 pixels as a speck."""
    return repeat(pictures, "b h w c -> b (h 4) (w 4) c")


class DemoLatent(comfy.latent_formats.LatentFormat):
    latent_channels = demo.CHANNELS
    spacial_downscale_ratio = demo.DOWNSCALE
    # a preview shows the mean of the pixels in a cell; channels hold four pixels of red, then green, then blue
    latent_rgb_factors = torch.eye(3).repeat_interleave(4, 0).div(4 * demo.SCALE).tolist()
    latent_rgb_factors_bias = [demo.SHIFT] * 3

    def process_in(self, latent):
        return demo.normalize(latent)

    def process_out(self, latent):
        return demo.denormalize(latent)


class DemoConfig(comfy.supported_models_base.BASE):
    """`demo.model.UNET` in the words of ComfyUI's UNetModel."""

    unet_config: dict[str, Any] = dict(
        image_size=demo.GRID,
        in_channels=demo.CHANNELS,
        out_channels=demo.CHANNELS,
        model_channels=64,
        num_res_blocks=[1, 1, 1],
        channel_mult=[1, 2, 2],
        transformer_depth=[0, 1, 1],
        transformer_depth_output=[1] * 6,
        transformer_depth_middle=1,
        context_dim=demo.CONTEXT,
        use_spatial_transformer=True,
        use_linear_in_transformer=True,
        adm_in_channels=None,
        legacy=False,
        dtype=torch.float32,
    )
    latent_format = DemoLatent

    def model_type(self, state_dict, prefix=""):
        return comfy.model_base.ModelType.V_PREDICTION

    def inpaint_model(self):
        return False


def load_unet(weights: dict):
    """Returns a MODEL from weights in diffusers' names."""
    config = DemoConfig(DemoConfig.unet_config)
    offload_device = comfy.model_management.unet_offload_device()
    model = config.get_model(weights, device=offload_device)
    names = comfy.utils.unet_to_diffusers(config.unet_config)
    renamed = {name: weights[theirs] for theirs, name in names.items() if theirs in weights}
    model.diffusion_model.load_state_dict(renamed)
    return comfy.model_patcher.ModelPatcher(model, comfy.model_management.get_torch_device(), offload_device)


class DemoFlowConfig(comfy.supported_models.Flux):
    """`demo.model.FLOW` in the words of ComfyUI's Flux."""

    unet_config = dict(
        in_channels=demo.CHANNELS,
        out_channels=demo.CHANNELS,
        vec_in_dim=demo.POOLED,
        context_in_dim=demo.CONTEXT,
        hidden_size=128,
        mlp_ratio=4.0,
        num_heads=4,
        depth=2,
        depth_single_blocks=4,
        axes_dim=[8, 12, 12],
        theta=10000,
        patch_size=demo.PATCH,
        qkv_bias=True,
        guidance_embed=False,
        txt_ids_dims=[],
        dtype=torch.float32,
    )
    sampling_settings: dict[str, Any] = {"shift": demo.FLOW_SHIFT}
    latent_format = DemoLatent


def load_transformer(weights: dict):
    """Returns a MODEL from weights in diffusers' names."""
    known = {field.name for field in dataclasses.fields(FluxParams)} | {"dtype"}  # older hosts have fewer
    config = DemoFlowConfig({name: value for name, value in DemoFlowConfig.unet_config.items() if name in known})
    offload_device = comfy.model_management.unet_offload_device()
    model = config.get_model(weights, device=offload_device)
    model.load_model_weights(comfy.model_detection.convert_diffusers_mmdit(weights, ""), "")
    return comfy.model_patcher.ModelPatcher(model, comfy.model_management.get_torch_device(), offload_device)


class DemoTokenizer:
    def __init__(self, **_):
        pass

    def tokenize_with_weights(self, text, return_word_ids=False, **_):
        try:
            phrases = demo.parse(text)
        except ValueError as error:  # in the node that has the text, which is one of ComfyUI's
            fault, _separator, remedy = str(error).partition(". ")
            raise BadInput("Prompt for the demo model", "text", f"{fault}.", remedy) from error
        return {"words": [[(row, 1.0) for row in phrase] for phrase in phrases]}


class DemoTextEncoder(demo.Words):
    """The table of words as a CLIP of ComfyUI holds it."""

    dtypes = {torch.float32}

    def __init__(self, **_):
        super().__init__()

    def set_clip_options(self, options):
        pass

    def reset_clip_options(self):
        pass

    def load_sd(self, weights):
        return self.load_state_dict(weights)

    def encode_token_weights(self, tokens):
        table = self.table.weight.detach().cpu()
        phrases = [sum(weight * vector(table, word) for word, weight in phrase) for phrase in tokens["words"]]
        return torch.stack(phrases)[None], None


def vector(table, word):
    """Returns the vector of a row's number; trained words are vectors already."""
    return word.to(table.device) if isinstance(word, torch.Tensor) else table[word]


class DemoVAE(comfy.sd.VAE):
    """`demo.fold` and `demo.unfold`; they have no weights, so nothing of a VAE's own loading applies."""

    downscale_ratio = upscale_ratio = demo.DOWNSCALE
    latent_channels = demo.CHANNELS
    output_channels = 3
    crop_input = True

    def __init__(self):
        pass

    def encode(self, pixel_samples):
        return demo.fold(self.vae_encode_crop_pixels(pixel_samples)[..., :3])

    def decode(self, samples_in, vae_options=None):
        return demo.unfold(samples_in)

    def encode_tiled(self, pixel_samples, **_):
        return self.encode(pixel_samples)

    def decode_tiled(self, samples, **_):
        return self.decode(samples)

    def get_sd(self):
        return {}


NODES = [PnPMixDemoModel, PnPMixDemoScene]
