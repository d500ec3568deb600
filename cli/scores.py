"""The measures of an evaluation: what each of them is, and its value for one picture."""

import io
import json
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from demo.measures import measure
from demo.scenes import random_blend
from PIL import Image, ImageOps
from pnpmix.metrics.background import lpips, lpips_network, psnr, ssim
from torch import Tensor, nn

from . import graphs
from .jobs import BY_COUNT, Job, template_text
from .pictures import Content, Sent, sent
from .server import Server
from .tasks import pictures_of


class Column(NamedTuple):
    title: str
    says: str
    more_is_better: bool = True
    digits: int = 3


# In the order of the report's table
COLUMNS = {
    "clip_i": Column(
        "CLIP-I",
        "cosine of the CLIP embeddings of each thing, cut out by its mask, and of its references; where a reference is "
        "the picture that was blended, of the object in it alone",
    ),
    "dino": Column("DINO", "the same with DINOv2"),
    "clip_t": Column(
        "CLIP-T",
        "cosine of the CLIP embeddings of the picture and of the prompt. CustomConcept101's published text score is "
        "2.5 times such a cosine",
    ),
    "segsim": Column(
        "SegSim",
        "Concept Conductor's measure: the cosine of each concept's references and of the most similar thing of its "
        "kind in the picture; 0 where none is found",
    ),
    "fidelity": Column(
        "fidelity",
        "in CLIP's place, since the scenes are drawn and no encoder knows them: how far the colours and textures of "
        "each thing are those of its concept, measured on pixels, 0 to 1",
    ),
    "leakage": Column("leakage", "share of a thing's pixels that have a colour of another concept", False),
    "seam_error": Column("seam error", "mean difference round the things' borders, of 255", False, 1),
    "shape_kept": Column("shape kept", "intersection over union of the things' outlines before and after", True, 2),
    "psnr": Column("PSNR, dB", "of the background, outside the masks; 100 where not a pixel changed", True, 1),
    "ssim": Column("SSIM", "of the background, outside the masks"),
    "lpips": Column("LPIPS", "of the background, outside the masks; where its package is installed", False),
    "seconds": Column(
        "seconds",
        "from the graph to the picture. ComfyUI keeps what a row shares with the one before it on the same task: "
        "loaded models, and the inversion where the steps are the same, so the first of such rows pays for it",
        False,
        1,
    ),
    "memory": Column(
        "memory, GB", "the most that torch held on the GPU meanwhile; on a CPU, ComfyUI's process", False, 2
    ),
}


class Encoders(NamedTuple):
    """Files in ComfyUI's models; "" for none."""

    clip_vision: str = ""
    dino: str = ""
    clip_text: str = ""
    segsim: bool = False

    def measures(self) -> set[str]:
        """Those that they allow."""
        known = {"clip_i": self.clip_vision, "dino": self.dino, "clip_t": self.clip_vision and self.clip_text}
        return {name for name, file in known.items() if file} | ({"segsim"} if self.segsim else set())


def read_picture(content: bytes | Path, size: tuple[int, int] | None = None) -> Tensor:
    """(H, W, 3) in 0..1, upright, of the (width, height) if one is given."""
    source = Image.open(io.BytesIO(content) if isinstance(content, bytes) else content)
    image = ImageOps.exif_transpose(source).convert("RGB")
    if size is not None and image.size != size:
        image = image.resize(size, Image.Resampling.NEAREST)
    return torch.from_numpy(np.asarray(image, np.float32) / 255)


def of_background(job: Job, result: Tensor) -> dict[str, float]:
    """Nothing for a measure that the masks leave no room for."""
    scene, size = read_picture(job.scene), (result.shape[1], result.shape[0])
    masks = torch.stack([read_picture(path, size)[..., 0] for path in job.masks]).amax(0)
    values = {}
    functions = {"psnr": psnr, "ssim": ssim}
    if network() is not None:
        functions["lpips"] = partial(lpips, network())
    for name, function in functions.items():
        try:
            values[name] = function(result, scene, masks)
        except ValueError:
            continue
    return values


@cache
def network() -> nn.Module | None:
    """LPIPS's, where its package and the weights are."""
    try:
        return lpips_network()
    except FileNotFoundError:
        return None


def of_drawing(job: Job, result: Tensor) -> dict[str, float]:
    """Of a task that `drawn.draw_jobs` drew: it knows what a perfect result shows."""
    values = measure(random_blend(job.seed, len(job.things)), result)._asdict()
    return {name: value for name, value in values.items() if name in COLUMNS}


def by_encoders(job: Job, result: Path, encoders: Encoders, server: Server) -> dict[str, float]:
    """By the pack's own score nodes, in the ComfyUI that holds the encoders.

    Raises:
        JobFailed: a file is not there, or a node raised.
    """
    prompt: dict = {}
    files: dict[str, Sent] = {}
    shown: dict[str, list[list[str]]] = {}  # measure → for each thing, the nodes that show its values

    def load(path: Path, content: Content = "picture") -> list:
        return graphs.add(prompt, "LoadImage", image=sent(files, path, content))

    def load_mask(path: Path) -> list:
        link = load(path, "mask")
        graphs.load_mask(prompt[link[0]], prompt[link[0]]["inputs"]["image"])
        return link

    def show(kind: str, **inputs) -> str:
        score = graphs.add(prompt, kind, **inputs)
        return graphs.add(prompt, "PreviewAny", source=score)[0]

    finished = load(result)
    vision = {"clip_i": encoders.clip_vision, "dino": encoders.dino}
    loaded = {name: graphs.add(prompt, "CLIPVisionLoader", clip_name=file) for name, file in vision.items() if file}
    for name, encoder in loaded.items():
        shown[name] = []
        for mask, pairs in zip(job.masks, references(job), strict=True):
            compared = dict(images=finished, mask=load_mask(mask), encoder=encoder)
            shown[name].append(
                [
                    show(
                        "PnPMixImageSimilarity",
                        references=load(path),
                        **compared,
                        **({"reference_mask": load_mask(own)} if own else {}),
                    )
                    for path, own in pairs
                ]
            )
    if "clip_t" in encoders.measures():
        clip = graphs.add(prompt, "CLIPLoader", clip_name=encoders.clip_text, type="stable_diffusion")
        text = dict(text=job.prompt, clip=clip, encoder=loaded["clip_i"], images=finished)
        shown["clip_t"] = [[show("PnPMixTextSimilarity", **text)]]
    if encoders.segsim:
        shown["segsim"] = [[show("PnPMixSegSim", **segsim_inputs(prompt, job, load, loaded), images=finished)]]
    if not shown:
        return {}
    server.check_files(prompt)
    for name, file in files.items():
        server.send(name, file)
    outputs = server.run(prompt, None)

    def mean(nodes: list[str]) -> float:
        return sum(float(outputs[node]["text"][0]) for node in nodes) / len(nodes)

    return {name: sum(map(mean, things)) / len(things) for name, things in shown.items()}


def segsim_inputs(prompt: dict, job: Job, load, loaded: dict[str, list]) -> dict:
    """What SegSim needs beside the pictures; the files are the template's."""
    template = graphs.to_api(json.loads(template_text(BY_COUNT[len(job.things)])))
    kinds = {"detector": "PnPMixGroundingDinoLoader", "segmenter": "PnPMixSamLoader"}
    files = {node["class_type"]: node["inputs"] for node in template.values() if node["class_type"] in kinds.values()}
    inputs = {name: graphs.add(prompt, kind, **files[kind]) for name, kind in kinds.items()}
    concepts: dict = {}
    for word, pairs in zip(job.words, references(job), strict=True):
        batch, *others = (load(path) for path, _ in pairs)
        for other in others:
            batch = graphs.add(prompt, "ImageBatch", image1=batch, image2=other)
        concepts = {"concepts": graphs.add(prompt, "PnPMixSegSimConcept", images=batch, prompt=word, **concepts)}
    encoder = loaded.get("dino") or loaded["clip_i"]
    return {**inputs, "references": concepts["concepts"], "encoder": encoder}


def references(job: Job) -> Iterator[list[tuple[Path, Path | None]]]:
    """For each thing its references, and the mask of the object in the one that was blended."""
    for k, thing in enumerate(job.things):
        own = job.object_masks[k]
        paths = pictures_of(job.references[k]) if job.references else [thing]
        yield [(path, own if path.resolve() == thing.resolve() else None) for path in paths]
