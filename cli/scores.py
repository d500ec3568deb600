"""The measures of an evaluation: what each of them is, and its value for one result."""

import io
from collections.abc import Callable, Iterator
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
from .jobs import TEMPLATE
from .pictures import Content, InputFile, add_file
from .server import Server
from .tasks import CompleteTask, images_of
from .work import read_template


class Column(NamedTuple):
    """A measure in the page's tables."""

    title: str
    says: str
    more_is_better: bool = True
    digits: int = 3


# In the order of the report's table
COLUMNS = {
    "clip_i": Column("CLIP-I", "cosine of CLIP embeddings: of an object, cut out by its mask, and of its references; "
                     "where a reference is the concept image itself, of the object in it alone"),
    "dino": Column("DINO", "the same with DINOv2"),
    "clip_t": Column("CLIP-T", "cosine of the CLIP embeddings of the result and of the prompt. CustomConcept101's "
                     "published text score is 2.5 times such a cosine"),
    "segsim": Column("SegSim", "Concept Conductor's measure: the cosine of each concept's references and of the most "
                     "similar object of its kind in the result; 0 where none is found"),
    "fidelity": Column("fidelity", "instead of CLIP, since the scenes are drawn and no encoder knows them: how far the "
                       "colors and textures of each object are those of its concept, measured on pixels, 0 to 1"),
    "leakage": Column("leakage", "share of an object's pixels that have a color of another concept", False),
    "seam_error": Column("seam error", "mean difference around the objects' borders, of 255", False, 1),
    "shape_kept": Column("shape kept", "intersection over union of the objects' outlines before and after", True, 2),
    "psnr": Column("PSNR, dB", "of the background, outside the masks; 100 where no pixel changed", True, 1),
    "ssim": Column("SSIM", "of the background, outside the masks"),
    "lpips": Column("LPIPS", "of the background, outside the masks; where its package is installed", False),
    "seconds": Column("seconds", "from graph to result. ComfyUI caches what a row shares with the one before it on "
                      "the same task: loaded models, and the inversion where the steps are the same, so the first of "
                      "such rows pays for it", False, 1),
    "memory": Column("memory, GB", "the most that torch held on the GPU meanwhile; on a CPU, ComfyUI's", False, 2),
}  # fmt: skip


class Encoders(NamedTuple):
    """Files in ComfyUI's models; "" for none."""

    clip_vision: str = ""
    dino: str = ""
    clip_text: str = ""
    segsim: bool = False

    def measures(self) -> set[str]:
        """Returns the names of the measures that they allow."""
        known = {"clip_i": self.clip_vision, "dino": self.dino, "clip_t": self.clip_vision and self.clip_text}
        return {name for name, file in known.items() if file} | ({"segsim"} if self.segsim else set())


def read_image(content: bytes | Path, size: tuple[int, int] | None = None) -> Tensor:
    """Returns an image (H, W, 3) in 0..1, upright, of the (width, height) if one is given."""
    source = Image.open(io.BytesIO(content) if isinstance(content, bytes) else content)
    image = ImageOps.exif_transpose(source).convert("RGB")
    if size is not None and image.size != size:
        image = image.resize(size, Image.Resampling.NEAREST)
    return torch.from_numpy(np.asarray(image, np.float32) / 255)


def of_background(task: CompleteTask, result: Tensor) -> dict[str, float]:
    """Returns what the background scores; nothing for a measure that the masks leave no room for."""
    scene, size = read_image(task.scene), (result.shape[1], result.shape[0])
    masks = torch.stack([read_image(path, size)[..., 0] for path in task.target_masks]).amax(0)
    functions: dict[str, Callable[[Tensor, Tensor, Tensor], float]] = {"psnr": psnr, "ssim": ssim}
    if (loaded := network()) is not None:
        functions["lpips"] = partial(lpips, loaded)
    values = {}
    for name, function in functions.items():
        try:
            values[name] = function(result, scene, masks)
        except ValueError:
            continue
    return values


@cache
def network() -> nn.Module | None:
    """Returns LPIPS's network; None where its package or the weights are missing."""
    try:
        return lpips_network()
    except FileNotFoundError:
        return None


def of_drawing(task: CompleteTask, result: Tensor) -> dict[str, float]:
    """Returns the scores of a task that `drawn.draw_jobs` drew: it knows what a perfect result shows."""
    values = measure(random_blend(task.seed, len(task.concepts)), result)._asdict()
    return {name: value for name, value in values.items() if name in COLUMNS}


def by_encoders(task: CompleteTask, result: Path, encoders: Encoders, server: Server) -> dict[str, float]:
    """Returns the scores of the pack's own nodes, in the ComfyUI that has the encoders.

    Raises:
        JobFailed: a file is not there, or a node raised.
    """
    prompt: dict = {}
    files: dict[str, InputFile] = {}
    shown: dict[str, list[list[str]]] = {}  # measure → for each object, the nodes that show its values

    def load(path: Path, content: Content = "picture") -> list:
        return graphs.add(prompt, "LoadImage", image=add_file(files, path, content))

    def load_mask(path: Path) -> list:
        link = load(path, "mask")
        graphs.load_mask(prompt[link[0]], prompt[link[0]]["inputs"]["image"])
        return link

    def show(kind: str, **inputs) -> str:
        return graphs.add(prompt, "PreviewAny", source=graphs.add(prompt, kind, **inputs))[0]

    images = load(result)
    vision = {"clip_i": encoders.clip_vision, "dino": encoders.dino}
    loaded = {name: graphs.add(prompt, "CLIPVisionLoader", clip_name=file) for name, file in vision.items() if file}
    for name, encoder in loaded.items():
        shown[name] = []
        for mask, pairs in zip(task.target_masks, references(task), strict=True):
            compared, nodes = dict(images=images, mask=load_mask(mask), encoder=encoder), []
            for path, object_mask in pairs:
                own = {"reference_mask": load_mask(object_mask)} if object_mask else {}
                nodes.append(show("PnPMixImageSimilarity", references=load(path), **compared, **own))
            shown[name].append(nodes)
    if "clip_t" in encoders.measures():
        clip = graphs.add(prompt, "CLIPLoader", clip_name=encoders.clip_text, type="stable_diffusion")
        text = dict(text=task.prompt, clip=clip, encoder=loaded["clip_i"], images=images)
        shown["clip_t"] = [[show("PnPMixTextSimilarity", **text)]]
    if encoders.segsim:
        shown["segsim"] = [[show("PnPMixSegSim", **segsim_inputs(prompt, task, load, loaded), images=images)]]
    if not shown:
        return {}
    outputs = server.run(prompt, files)

    def mean(nodes: list[str]) -> float:
        return sum(float(outputs[node]["text"][0]) for node in nodes) / len(nodes)

    return {name: sum(map(mean, objects)) / len(objects) for name, objects in shown.items()}


def segsim_inputs(prompt: dict, task: CompleteTask, load, loaded: dict[str, list]) -> dict:
    """Returns what SegSim needs besides the results; Grounding DINO and SAM are the template's."""
    template = graphs.to_api(read_template(TEMPLATE))
    kinds = {"detector": "PnPMixGroundingDinoLoader", "segmenter": "PnPMixSamLoader"}
    files = {node["class_type"]: node["inputs"] for node in template.values() if node["class_type"] in kinds.values()}
    inputs = {name: graphs.add(prompt, kind, **files[kind]) for name, kind in kinds.items()}
    concepts: dict = {}
    for word, pairs in zip(task.objects, references(task), strict=True):
        batch, *others = (load(path) for path, _ in pairs)
        for other in others:
            batch = graphs.add(prompt, "ImageBatch", image1=batch, image2=other)
        concepts = {"concepts": graphs.add(prompt, "PnPMixSegSimConcept", images=batch, prompt=word, **concepts)}
    encoder = loaded.get("dino") or loaded["clip_i"]
    return {**inputs, "references": concepts["concepts"], "encoder": encoder}


def references(task: CompleteTask) -> Iterator[list[tuple[Path, Path | None]]]:
    """Yields for each concept its references, with the object mask of the one that is the concept image."""
    for k, concept in enumerate(task.concepts):
        paths = images_of(task.references[k]) if task.references else [concept]
        yield [(path, task.object_masks[k] if path.resolve() == concept.resolve() else None) for path in paths]
