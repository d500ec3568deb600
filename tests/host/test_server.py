"""The shipped graph on files as people have them, in the real server: photos in, picture out."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import skimage
import torch
from PIL import Image

from comfy_host import COMFYUI, PACK
from reference import relative_error
from workflow_files import read, to_api

SIZE = 128
# one at a time: each of them takes about 8 GB
pytestmark = pytest.mark.xdist_group("full-size models")


class Server:
    """ComfyUI as a user starts it, with its own folder of models, pictures and custom nodes."""

    def __init__(self, base: Path):
        self.base, self.log = base, base / "server.log"
        for name in ("custom_nodes", "models/checkpoints", "input", "output", "user", "temp"):
            (base / name).mkdir(parents=True)
        (base / "custom_nodes" / "pnp-mix").symlink_to(PACK)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "main.py", "--cpu", "--port", str(port), "--base-directory", str(base)]
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=COMFYUI, stdout=log, stderr=log, env=environment)
        self.wait(lambda: self.get("/object_info/PnPMixSampler"), 120)

    def get(self, path: str):
        try:
            with urllib.request.urlopen(self.url + path, timeout=30) as answer:
                return json.load(answer)
        except (urllib.error.URLError, ConnectionError):
            return None

    def wait(self, question, seconds: float):
        """The first answer that is not empty."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()
            if answer := question():
                return answer
            time.sleep(0.5)
        raise TimeoutError(self.log.read_text())

    def run(self, prompt: dict) -> dict:
        """Queues a graph and returns the outputs of its nodes."""
        request = urllib.request.Request(self.url + "/prompt", json.dumps({"prompt": prompt}).encode())
        with urllib.request.urlopen(request, timeout=30) as answer:
            prompt_id = json.load(answer)["prompt_id"]
        entry = self.wait(lambda: (self.get(f"/history/{prompt_id}") or {}).get(prompt_id), 600)
        assert entry["status"]["status_str"] == "success", entry["status"]
        return entry["outputs"]

    def stop(self):
        self.process.terminate()
        self.process.wait(30)


def save_pictures(folder: Path) -> dict[str, np.ndarray]:
    """The files that the workflow's note asks for: a photo, what its objects cover, and two pictures more."""
    photo = skimage.data.astronaut()
    red, _, blue = (photo[..., i].astype(int) for i in range(3))
    row, column = np.mgrid[:512, :512]
    warm = red - blue
    suit = largest((warm > 60) & (red > 120) & (row > 230))
    head = largest((warm > 25) & (row < 190) & (column > 140) & (column < 310))
    emptied = photo.copy()
    emptied[suit | head] = photo[:100, 330:].reshape(-1, 3).mean(0)  # the grey wall
    pictures = {
        "background.png": photo,
        "background_empty.png": emptied,
        "background_dog_mask.png": suit,
        "background_cat_mask.png": head,
        "my_dog.png": skimage.data.coffee(),
        "my_cat.png": skimage.data.chelsea(),
    }
    for name, picture in pictures.items():
        Image.fromarray(picture.astype(np.uint8) * (255 if picture.dtype == bool else 1)).save(folder / name)
    return pictures


def largest(mask: np.ndarray) -> np.ndarray:
    labels = skimage.measure.label(skimage.morphology.closing(mask, skimage.morphology.disk(5)))
    return labels == np.bincount(labels.flat)[1:].argmax() + 1


@pytest.fixture(params=["SD20", "SD15"])
def server(request, tmp_path):
    """A server with a full-size checkpoint of random weights."""
    server = Server(tmp_path)
    try:
        path = tmp_path / "models/checkpoints/random.safetensors"
        writer = [sys.executable, PACK / "tests" / "write_checkpoint.py", request.param, path]
        subprocess.run(writer, check=True, env=os.environ | {"COMFYUI_DIR": str(COMFYUI)})
        yield server
    finally:
        server.stop()


def saved(server: Server, outputs: dict, node: str, kind: str) -> Path:
    (file,) = outputs[node][kind]
    return server.base / "output" / file["subfolder"] / file["filename"]


def picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(np.float32) / 255


def small_two_concept_graph() -> tuple[dict, dict]:
    """The shipped workflow as the editor would send it, at 128 × 128 with 3 steps; its nodes' ids by class."""
    prompt, ids = to_api(read("pnp_mix_two_concepts")), {}
    settings = {
        "CheckpointLoaderSimple": {"ckpt_name": "random.safetensors"},
        "ImageScale": {"width": SIZE, "height": SIZE},
        "PnPMixDDPMInvert": {"steps": 4, "skip_steps": 1},
    }
    for node_id, node in prompt.items():
        node["inputs"] |= settings.get(node["class_type"], {})
        ids.setdefault(node["class_type"], node_id)
    return prompt, ids


def save_image(link: list, prefix: str) -> dict:
    return {"class_type": "SaveImage", "inputs": {"images": link, "filename_prefix": prefix}}


def save_latent(link: list, prefix: str) -> dict:
    return {"class_type": "SaveLatent", "inputs": {"samples": link, "filename_prefix": prefix}}


def test_two_concepts_from_photos_to_picture(server):
    pictures = save_pictures(server.base / "input")
    prompt, ids = small_two_concept_graph()
    background = prompt[ids["PnPMixDDPMInvert"]]["inputs"]["latent"]
    prompt |= {
        "mixed": save_latent([ids["PnPMixSampler"], 0], "mixed"),
        "background": save_latent(background, "background"),
        "photo": save_image(prompt[background[0]]["inputs"]["pixels"], "photo"),
    }
    outputs = server.run(prompt)

    # the latent, which the method answers for: exact outside both masks, another inside
    mixed, background_latent = (
        safetensors.torch.load_file(saved(server, outputs, node, "latents"))["latent_tensor"]
        for node in ("mixed", "background")
    )
    objects = pictures["background_dog_mask.png"] | pictures["background_cat_mask.png"]
    cells = objects.reshape(SIZE // 8, 32, SIZE // 8, 32)
    outside, inside = torch.from_numpy(~cells.any((1, 3))), torch.from_numpy(cells.all((1, 3)))
    assert outside.sum() > 100 and inside.sum() > 20
    assert relative_error(mixed[..., outside], background_latent[..., outside]) < 1e-5
    assert relative_error(mixed[..., inside], background_latent[..., inside]) > 0.05

    # the picture: the photo's own pixels outside the masks (grown by 6 pixels and feathered by 4)
    finished = picture(saved(server, outputs, ids["SaveImage"], "images"))
    photo = picture(saved(server, outputs, "photo", "images"))
    assert finished.shape == (SIZE, SIZE, 3)
    away = ~skimage.morphology.dilation(objects, np.ones((97, 97)))[2::4, 2::4]
    assert away.sum() > 1000
    assert np.array_equal(finished[away], photo[away])
    assert np.abs(finished - photo)[~away].mean() > 0.05

    # with both patches bypassed and the inversion's own guidance every branch predicts what the background does:
    # the picture is the photo through the VAE, inside the masks too
    prompt, ids = small_two_concept_graph()
    prompt[ids["PnPMixSampler"]]["inputs"] |= {"model": [ids["CheckpointLoaderSimple"], 0], "cfg": 3.5}
    prompt |= {
        "decode": {
            "class_type": "VAEDecode",
            "inputs": {"samples": background, "vae": [ids["CheckpointLoaderSimple"], 2]},
        },
        "round trip": save_image(["decode", 0], "round trip"),
        "unchanged": save_image([ids["VAEDecode"], 0], "unchanged"),
    }
    outputs = server.run(prompt)
    unchanged, round_trip = (picture(saved(server, outputs, node, "images")) for node in ("unchanged", "round trip"))
    assert round_trip.std() > 0.05
    assert np.abs(unchanged - round_trip).max() <= 2 / 255
