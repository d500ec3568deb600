"""The templates for flow-matching transformers; write_workflows.py writes them with the others."""

from collections.abc import Callable

from graph_files import Output, Subgraph
from template_models import FACE, UNTRIED, Kind, asked, download, listed

SETTINGS = {  # of nodes in the Blend graph, by their widgets' places: steps, skip_steps, cfg and scheduler
    "PnPMixDDPMInvert": {0: 16, 1: 5, 2: 1.0, 5: "simple"},
}


def flow_demo(template: dict, note: str) -> dict:
    """The demo's template with the transformer in the UNet's place."""
    for node in template["nodes"]:
        if node["type"] == "PnPMixDemoModel":
            node["widgets_values"] = ["flow"]
        if node["type"] == "MarkdownNote":
            node["widgets_values"] = [note]
    for graph in template["definitions"]["subgraphs"]:
        for node in graph["nodes"]:
            for place, value in SETTINGS.get(node["type"], {}).items():
                node["widgets_values"][place] = value
    return template


def flow_note() -> str:
    return """# A transformer, without downloads

Press **Run**. This is **1 Try it without downloads** with a small transformer like Flux, which is included in the \
pack, instead of the UNet.

- Flow-matching models need the *scheduler* simple in **DDPM Invert**, and fewer *steps*.
- Transformers use positional embeddings, so each **Concept** needs its *object_mask*: *position* target of **Guided \
Appearance Attention** moves your object to the target mask. Set it to *kept* to see the difference.

This model was trained less than the UNet of template 1, so shapes and patterns are rougher. It knows the same words.
"""


# --- With your own photos

SPLIT = "resolve/main/split_files/"
FLUX_VAE = download("ae.safetensors", "vae", f"{FACE}Comfy-Org/z_image_turbo/{SPLIT}vae/ae.safetensors")
FLUX = [
    download(
        "flux1-dev.safetensors", "diffusion_models", FACE + "Comfy-Org/flux1-dev/resolve/main/flux1-dev.safetensors"
    ),
    *(
        download(name, "text_encoders", f"{FACE}comfyanonymous/flux_text_encoders/resolve/main/{name}")
        for name in ("clip_l.safetensors", "t5xxl_fp16.safetensors")
    ),
    FLUX_VAE,
]
QWEN_IMAGE = [
    download(name, folder, f"{FACE}Comfy-Org/Qwen-Image_ComfyUI/{SPLIT}{folder}/{name}")
    for folder, name in (
        ("diffusion_models", "qwen_image_fp8_e4m3fn.safetensors"),
        ("text_encoders", "qwen_2.5_vl_7b_fp8_scaled.safetensors"),
        ("vae", "qwen_image_vae.safetensors"),
    )
]
Z_IMAGE = [
    download(
        "z_image_bf16.safetensors",
        "diffusion_models",
        f"{FACE}Comfy-Org/z_image/{SPLIT}diffusion_models/z_image_bf16.safetensors",
    ),
    download(
        "qwen_3_4b.safetensors",
        "text_encoders",
        f"{FACE}Comfy-Org/z_image_turbo/{SPLIT}text_encoders/qwen_3_4b.safetensors",
    ),
    FLUX_VAE,
]
STEPS = {"steps": 28, "skip_steps": 9, "scheduler": "simple"}
HINTS = f"""- **DDPM Invert** uses 28 steps, of which 9 are skipped, and the *scheduler* simple. {UNTRIED}
"""


def load_flux(graph: Subgraph) -> list[Output]:
    network, *encoders, vae = FLUX
    model = asked(graph, "diffusion model", "UNETLoader", "unet_name", network)
    names = {f"clip_name{k}": graph.input(f"text encoder {k}", "COMBO", x["name"]) for k, x in enumerate(encoders, 1)}
    clip = graph.add("DualCLIPLoader", properties={"models": encoders}, type="flux", **names)
    return [*model, clip[0], *asked(graph, "VAE", "VAELoader", "vae_name", vae)]


def with_one_encoder(files: list[dict], kind: str, shift: float) -> Callable[[Subgraph], list[Output]]:
    """shift: of the noise levels, as ComfyUI's own templates for the model have it."""

    def load(graph: Subgraph) -> list[Output]:
        network, encoder, vae = files
        (model,) = asked(graph, "diffusion model", "UNETLoader", "unet_name", network)
        clip = asked(graph, "text encoder", "CLIPLoader", "clip_name", encoder, type=kind)
        shifted = graph.add("ModelSamplingAuraFlow", model=model, shift=shift)
        return [shifted[0], *clip, *asked(graph, "VAE", "VAELoader", "vae_name", vae)]

    return load


FLOW_KINDS = {
    "Flow 2 Two things with Flux.1 dev": Kind(
        " with Flux.1 dev",
        1024,
        load_flux,
        listed(*FLUX),
        STEPS | {"cfg": 1.0},
        (1.0, 3.5),
        HINTS + "- Flux.1 dev uses distilled guidance: the two **FluxGuidance** nodes set 1 for the inversion and "
        "3.5 for the mixer. Keep *cfg* at 1.\n",
    ),
    "Flow 3 Two things with Qwen-Image": Kind(
        " with Qwen-Image",
        1024,
        with_one_encoder(QWEN_IMAGE, "qwen_image", 3.1),
        listed(*QWEN_IMAGE),
        STEPS,
        hints=HINTS,
    ),
    "Flow 4 Two things with Z-Image": Kind(
        " with Z-Image",
        1024,
        with_one_encoder(Z_IMAGE, "lumina2", 3.0),
        listed(*Z_IMAGE),
        STEPS,
        hints=HINTS + "- Z-Image needs a newer ComfyUI than 0.3.64.\n",
    ),
}
