"""Model files: found in ComfyUI's folders, read as data, placed by ComfyUI's model management."""

import contextlib
import importlib.util
import itertools
import os
import sys
from collections.abc import Iterator

import comfy.model_management
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from pydantic import ValidationError
from torch import Tensor

from ...pnpmix.files.tensors import described, is_plain, read_file
from ...pnpmix.files.texts import first_fault
from .checks import BadInput
from .file_lists import model_files, path_of, validate

MAX_SAID = 300  # characters of what is wrong with a file
MODEL_FILES = {".pth", ".pt", ".ckpt", ".safetensors"}
BERT = "bert-base-uncased"
# Where people get the files that fit
KNOWN_FILES = {
    "grounding-dino": {
        "groundingdino_swint_ogc.pth": "https://huggingface.co/ShilongLiu/GroundingDINO/resolve/main/groundingdino_swint_ogc.pth",
        "groundingdino_swinb_cogcoor.pth": "https://huggingface.co/ShilongLiu/GroundingDINO/resolve/main/groundingdino_swinb_cogcoor.pth",
    },
    "sams": {
        "sam_vit_b_01ec64.pth": "https://huggingface.co/ybelkada/segment-anything/resolve/main/checkpoints/sam_vit_b_01ec64.pth",
        "sam_vit_l_0b3195.pth": "https://huggingface.co/ybelkada/segment-anything/resolve/main/checkpoints/sam_vit_l_0b3195.pth",
        "sam_vit_h_4b8939.pth": "https://huggingface.co/ybelkada/segment-anything/resolve/main/checkpoints/sam_vit_h_4b8939.pth",
    },
    "inpaint": {
        "big-lama.pt": "https://github.com/Sanster/models/releases/download/add_big_lama/big-lama.pt",
    },
}
CONCEPTS = "concepts"
FOLDERS = {
    "grounding-dino": MODEL_FILES,
    "sams": MODEL_FILES,
    "inpaint": MODEL_FILES,
    CONCEPTS: {".safetensors", ".pt", ".bin"},
    BERT: set(),
}


def register_folders() -> None:
    """Registers models/<name>, after the places that extra_model_paths.yaml or another pack gave it.

    It is made where there is none of them yet, so that people see where their files go.
    """
    for name, extensions in FOLDERS.items():
        folder_paths.add_model_folder_path(name, os.path.join(folder_paths.models_dir, name))
        paths, others = folder_paths.folder_names_and_paths[name]
        folder_paths.folder_names_and_paths[name] = (paths, set(others) | extensions)
        if not any(map(os.path.isdir, paths)):
            with contextlib.suppress(OSError):  # on a disk that is read-only
                os.makedirs(paths[-1])


def file_input(folder: str, tooltip: str) -> io.Combo.Input:
    """Returns the input 'model_name', with the known files for js/model_files.js to show where one is missing."""
    known = {"folder": f"models/{folder}", "files": KNOWN_FILES[folder]}
    names = model_files(folder).names
    choice = io.Combo.Input("model_name", options=names, tooltip=tooltip)
    choice.extra_dict = {"pnpmix_known": known}  # an argument only of newer hosts
    return choice


def validate_file(node: str, folder: str, file: str | None) -> bool | str:
    """Returns what `validate_inputs` does: True, or a message with the files that fit."""
    return validate(node, "model_name", file, model_files(folder, known=KNOWN_FILES[folder]))


def load_weights(node: str, folder: str, file: str) -> dict[str, Tensor]:
    """Returns the tensors of a checkpoint that the input 'model_name' names; no code in it is executed."""
    path = path_of(node, "model_name", file, model_files(folder, known=KNOWN_FILES[folder]))
    with reading(node, "model_name", path, "Download it again, as its authors published it."):
        weights = dictionary_in(read_file(path), "state_dict", "model", lone=True)
        weights = {name: x for name, x in weights.items() if isinstance(name, str) and isinstance(x, Tensor)}
        for name, x in weights.items():
            if x.is_floating_point() or x.is_complex() or not is_plain(x):
                described(x, name)
    return weights


def dictionary_in(content: object, *names: str, lone: bool = False) -> dict:
    """Returns the dictionary in a file, or under one of these names in it, or, if `lone`, its only entry.

    Raises:
        ValueError: there is none.
    """
    while isinstance(content, dict):
        inner = next((content[name] for name in names if name in content), None)
        if inner is None and lone and len(content) == 1:
            (inner,) = content.values()
        if not isinstance(inner, dict):
            return content
        content = inner
    raise ValueError(f"it holds a {type(content).__name__}, a dictionary was expected")


@contextlib.contextmanager
def reading(node: str, name: str, path: str, remedy: str) -> Iterator[None]:
    """Wraps the reading of a file from others, and the checks of what it holds.

    Raises:
        BadInput: of this input, with what the file should hold.
    """
    file = os.path.basename(path)
    try:
        yield
    except BadInput:
        raise
    except OSError as error:
        fault = f"{file} cannot be read ({error.strerror or error})."
        raise BadInput(node, name, fault, "Press R, and choose another.") from None
    except Exception as error:  # damage makes the readers of other packages raise almost anything
        what = first_fault(error) if isinstance(error, ValidationError) else str(error)
        said = what if isinstance(error, ValueError) and what else f"{type(error).__name__}: {what}"
        fault = f"{file} is damaged, cut short or of another kind ({said[:MAX_SAID]})."
        raise BadInput(node, name, fault, remedy) from None  # the log shows it, whose words may be none that it takes


def patcher_of(model: torch.nn.Module) -> ModelPatcher:
    """Returns a ModelPatcher for a network of another package."""
    management = comfy.model_management
    return ModelPatcher(model, management.get_torch_device(), management.unet_offload_device())


def resident(node: str, patcher: ModelPatcher, name: str = "model") -> ModelPatcher:
    """Returns the same model, read again, with weights that stay where the host loads them.

    Newer hosts stream weights to a GPU in a way that knows neither gradients nor LoRAs as hooks.
    """
    if not getattr(patcher, "is_dynamic", bool)():
        return patcher
    if patcher.cached_patcher_init is None:
        fault = "its weights are streamed to the GPU, and its loader does not tell how to read them again."
        raise BadInput(node, name, fault, "Use ComfyUI's own loader, or start ComfyUI with --disable-dynamic-vram.")
    own = patcher.clone(disable_dynamic=True)
    own.parent = None  # they have no weights in common, as the host takes it of a clone and what it was made from
    return own


def resident_clip(node: str, clip):
    """Returns the same of a CLIP."""
    patcher = resident(node, clip.patcher, "clip")
    if patcher is clip.patcher:
        return clip
    own = clip.clone()
    own.patcher, own.cond_stage_model = patcher, patcher.model
    return own


def load_where_it_runs(patcher: ModelPatcher, memory: int) -> torch.device:
    """Has the host load a network of another package, and returns its device.

    The host's own layers fetch weights that it leaves on the CPU (--novram, or half of them where room is short) when
    they need them. Others cannot, so such a network runs where its weights are, all of them in one place.

    Args:
        memory: what the network needs beside its weights, in bytes.
    """
    comfy.model_management.load_models_gpu([patcher], memory_required=memory, force_full_load=True)
    places = {x.device for x in itertools.chain(patcher.model.parameters(), patcher.model.buffers())}
    if len(places) == 1:
        return places.pop()
    patcher.detach()  # brings all of it back
    return patcher.offload_device


def needs(package: str) -> None:
    """Leaves out the file that calls it where a package is missing.

    Without importing it, which can take seconds. One that is there and broken is found out by `importing`.
    """
    module = package.replace("-", "_")
    if sys.modules.get(module) is None and importlib.util.find_spec(module) is None:
        raise ImportError(f"the package {package} is missing. Install it with: {pip_install(package)}")


@contextlib.contextmanager
def importing(package: str, node: str) -> Iterator[None]:
    """Wraps an import that needs the package.

    Raises:
        BadInput: the package is broken.
    """
    try:
        yield
    except Exception as error:  # whatever its own imports raise
        fault = f"the package {package} does not load ({type(error).__name__}: {error})."
        remedy = f"Repair it with: {pip_install('--force-reinstall --no-deps ' + package)}"
        raise BadInput(node, "model_name", fault, remedy) from error


def pip_install(what: str) -> str:
    """Returns the command that installs a package into this Python."""
    return f'"{sys.executable}" -m pip install {what}'
