"""What the templates' files are, where they come from, and the nodes that load them."""

from collections.abc import Callable
from typing import NamedTuple

from graph_files import Graph, Node, Output, Subgraph
from workflow_files import graphs

PICTURE = "example.png"  # which every ComfyUI has, until people choose their own
DEMO_SEED = 18  # of Demo Scene; its picture is among the best of 50 seeds
FILES, YOURS, RESULT = "#5b7083", "#3f8f5f", "#8a6d3b"  # what a group's color says
SD, SDXL = 512, 1024  # sides of the part that the model works on, in pixels
FINDERS = {
    "words": [("detector", "PNPMIX_DETECTOR"), ("segmenter", "PNPMIX_SEGMENTER")],
    "sam3": [("SAM 3", "MODEL"), ("SAM 3 text encoder", "CLIP")],
}


def download(name: str, folder: str, url: str) -> dict:
    return {"name": name, "url": url, "directory": folder}


FACE = "https://huggingface.co/"
CHECKPOINTS = {
    SD: download(
        "v1-5-pruned-emaonly-fp16.safetensors",
        "checkpoints",
        FACE + "Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/v1-5-pruned-emaonly-fp16.safetensors",
    ),
    SDXL: download(
        "sd_xl_base_1.0.safetensors",
        "checkpoints",
        FACE + "stabilityai/stable-diffusion-xl-base-1.0/resolve/main/sd_xl_base_1.0.safetensors",
    ),
}
DINO = download(
    "groundingdino_swint_ogc.pth",
    "grounding-dino",
    FACE + "ShilongLiu/GroundingDINO/resolve/main/groundingdino_swint_ogc.pth",
)
SAM = download(
    "sam_vit_b_01ec64.pth",
    "sams",
    FACE + "ybelkada/segment-anything/resolve/main/checkpoints/sam_vit_b_01ec64.pth",
)
SAM3 = download(
    "sam3.1_multiplex_fp16.safetensors",
    "checkpoints",
    FACE + "Comfy-Org/sam3.1/resolve/main/checkpoints/sam3.1_multiplex_fp16.safetensors",
)


def loaders(side: int, finder: str) -> list[tuple[str, tuple[str, str, dict]]]:
    """(what it is, (node, its input, the file))"""
    files = [("checkpoint", ("CheckpointLoaderSimple", "ckpt_name", CHECKPOINTS[side]))]
    if finder == "sam3":
        return [*files, ("SAM 3", ("CheckpointLoaderSimple", "ckpt_name", SAM3))]
    dino = ("Grounding DINO", ("PnPMixGroundingDinoLoader", "model_name", DINO))
    return [*files, dino, ("SAM", ("PnPMixSamLoader", "model_name", SAM))]


def add_finding(
    graph: Graph, title: str, picture: Output, words, finder: list[Output], several: bool = False
) -> Output:
    """Adds what finds objects by words; returns their mask. several: a batch, a mask for each of the words in order."""
    if finder[0].kind == "MODEL":  # SAM 3 and its text encoder
        asked = graph.add("CLIPTextEncode", "Object to find", text=words, clip=finder[1])[0]
        return graph.add(
            "SAM3_Detect", title, image=picture, model=finder[0], conditioning=asked, individual_masks=several
        )[0]
    pick = "in order" if several else "best"
    found_by = dict(detector=finder[0], segmenter=finder[1])
    return graph.add("PnPMixGroundedMask", title, image=picture, prompt=words, pick=pick, **found_by)[0]


class Kind(NamedTuple):
    """Where a template for PnP-MIX is another than that of a plain SD or SDXL checkpoint."""

    name: str = ""  # behind the heading of its note
    side: int = SD
    load: Callable[[Subgraph], list[Output]] | None = None  # adds loaders; model, clip and vae. None: a checkpoint
    listed: str = ""  # the files, for the note
    inversion: dict = {"steps": 50, "skip_steps": 16, "cfg": 1.0}  # no loss in fidelity, half the inversion's time
    guidance: tuple[float, float] | None = None  # of the inversion and of the mixer, as Flux takes it
    hints: str = ""


PLAIN = Kind()
UNTRIED = "These settings are a starting point: this template has not been run with these weights yet."


def asked(graph: Subgraph, label: str, kind: str, name: str, file: dict, **inputs) -> list[Output]:
    """A loader whose file is a widget of the subgraph; all that it gives."""
    widget = graph.input(label, "COMBO", file["name"])
    node = graph.add(kind, properties={"models": [file]}, **{name: widget}, **inputs)
    return [node[slot] for slot in range(len(node.data["outputs"]))]


def add_loaders(graph: Subgraph, files: list[tuple[str, tuple[str, str, dict]]]) -> list[Output]:
    """Adds the loaders of `loaders`, each with a widget of the subgraph; returns all that they load."""
    return [output for label, loader in files for output in asked(graph, label, *loader)]


def model_files(info: dict, number: int, side: int, finder: str, kind: Kind = PLAIN) -> Subgraph:
    """All loaders in one node. number: of the subgraph in its file."""
    graph = Subgraph(info, graphs.FILES, number)
    own, finding = kind.load(graph) if kind.load else [], loaders(side, finder)[bool(kind.load) :]
    names = ["model", "clip", "vae", *(name for name, _ in FINDERS[finder])]
    for name, output in zip(names, [*own, *add_loaders(graph, finding)], strict=False):  # of SAM 3's checkpoint no VAE
        graph.output(name, output)
    return graph


def enlarged(graph: Graph, picture: Output, times: int = 8) -> Output:
    """Adds a node that enlarges a picture of the demo."""
    return graph.add("ImageScaleBy", "Enlarge", image=picture, upscale_method="nearest-exact", scale_by=times)[0]


def add_results(graph: Graph, mixed: Node, x: int, wide: int) -> Node:
    """Adds a node that saves the finished picture, which it returns, and one that shows the pictures on the way."""
    save = graph.add("SaveImage", "Finished picture", [x, 0], [wide, 360], images=mixed[0], filename_prefix="PnP-MIX")
    shown = graph.add("PreviewImage", "Look inside", [x, 410], [wide, 300], images=mixed[1])
    graph.group("Finished picture", RESULT, save, shown)
    return save


def listed(*files: dict, **more: str) -> str:
    """Lines of a note. more: what is said behind a file, by the start of its name."""
    return "\n".join(
        f"- **{file['name']}** in models/{file['directory']}: [download]({file['url']})"
        + "".join(words for start, words in more.items() if file["name"].startswith(start))
        for file in files
    )


# --- A transformer

SPLIT = "resolve/main/split_files/"
FLUX_FILES = [
    download(
        "flux1-dev.safetensors", "diffusion_models", FACE + "Comfy-Org/flux1-dev/resolve/main/flux1-dev.safetensors"
    ),
    *(
        download(name, "text_encoders", f"{FACE}comfyanonymous/flux_text_encoders/resolve/main/{name}")
        for name in ("clip_l.safetensors", "t5xxl_fp16.safetensors")
    ),
    download("ae.safetensors", "vae", f"{FACE}Comfy-Org/z_image_turbo/{SPLIT}vae/ae.safetensors"),
]
QWEN, Z_IMAGE = (f"[{name}]({FACE}Comfy-Org/{repository}/tree/main/split_files)" for name, repository in (
    ("Qwen-Image", "Qwen-Image_ComfyUI"), ("Z-Image", "z_image")
))  # fmt: skip


def load_flux(graph: Subgraph) -> list[Output]:
    network, *encoders, vae = FLUX_FILES
    model = asked(graph, "diffusion model", "UNETLoader", "unet_name", network)
    names = {f"clip_name{k}": graph.input(f"text encoder {k}", "COMBO", x["name"]) for k, x in enumerate(encoders, 1)}
    clip = graph.add("DualCLIPLoader", properties={"models": encoders}, type="flux", **names)
    return [*model, clip[0], *asked(graph, "VAE", "VAELoader", "vae_name", vae)]


FLUX = Kind(
    ", with a transformer",
    SDXL,
    load_flux,
    listed(*FLUX_FILES),
    {"steps": 28, "skip_steps": 9, "cfg": 1.0, "scheduler": "simple"},
    (1.0, 3.5),
    f"""- **DDPM Invert** uses 28 steps, of which 9 are skipped, and the *scheduler* simple. {UNTRIED}
- Flux.1 dev uses distilled guidance: the two **FluxGuidance** nodes set 1 for the inversion and 3.5 for the mixer. \
Keep *cfg* at 1.
- {QWEN} and {Z_IMAGE}: in **Model files** replace **DualCLIPLoader** by **Load CLIP** with *type* qwen_image or \
lumina2, and add **ModelSamplingAuraFlow** with *shift* 3.1 or 3. Bypass both **FluxGuidance** nodes and set *cfg* of \
**DDPM Invert** to 3.5.
""",
)


# --- Few steps

LIGHTNING_LORA = download(
    "sdxl_lightning_4step_lora.safetensors",
    "loras",
    FACE + "ByteDance/SDXL-Lightning/resolve/main/sdxl_lightning_4step_lora.safetensors",
)


def load_lightning(graph: Subgraph) -> list[Output]:
    model, clip, vae = asked(graph, "checkpoint", "CheckpointLoaderSimple", "ckpt_name", CHECKPOINTS[SDXL])
    faster = asked(graph, "LoRA", "LoraLoaderModelOnly", "lora_name", LIGHTNING_LORA, model=model, strength_model=1.0)
    return [*faster, clip, vae]


LIGHTNING = Kind(
    ", in 4 steps",
    SDXL,
    load_lightning,
    listed(CHECKPOINTS[SDXL], LIGHTNING_LORA, sd_xl="; any SDXL checkpoint works"),
    {"steps": 4, "skip_steps": 1, "cfg": 1.0, "scheduler": "sgm_uniform"},
    hints=f"""- Made for such a LoRA: 4 steps, of which 1 is skipped, sgm_uniform and *cfg* 1 in **DDPM Invert**. \
{UNTRIED}
- For finer results: *steps* 8, *skip_steps* 2. Without the LoRA: *steps* 50, *skip_steps* 16, ddim_uniform.
- With SD 1.5 use [LCM LoRA]({FACE}latent-consistency/lcm-lora-sdv1-5) and a working size of 512 pixels.
""",
)
