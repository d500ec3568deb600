"""ComfyUI, once for all tests of this folder. Where there is none, they are skipped, and the last lines say so."""

import logging
import os

import pytest

from comfy_host import COMFYUI, DEVICE, Capture, Given, boot
from server_process import Server
from small_models import LAYOUTS, comfy_model, diffusers_unet, small_clip


@pytest.fixture(scope="session", autouse=True)
def comfyui(tmp_path_factory):
    if COMFYUI is None:
        pytest.skip("no ComfyUI: set COMFYUI_DIR")
    where = os.getcwd()
    boot(tmp_path_factory.mktemp("comfyui"), *DEVICE)
    yield
    os.chdir(where)
    Given.values, Capture.values = {}, {}


@pytest.fixture
def messages(monkeypatch, caplog):
    """What the last node that ran shows in the editor and in the log."""
    import server

    shown = []
    monkeypatch.setattr(
        server.PromptServer.instance, "send_progress_text", lambda text, node_id, sid=None: shown.append(text)
    )
    caplog.set_level(logging.WARNING)

    def told() -> str:
        said = [x.getMessage() for x in caplog.records]
        return shown[-1] + "".join(x for x in said if "memory leak" not in x)  # the host's, of what other tests left

    return told


@pytest.fixture(scope="module")
def unet():
    """The smallest SD 1.x, of diffusers; in ComfyUI it is `model`."""
    return diffusers_unet(LAYOUTS["SD 1.x"])


@pytest.fixture(scope="module")
def model(unet):
    return comfy_model(LAYOUTS["SD 1.x"], unet)


@pytest.fixture(scope="module")
def clip():
    return small_clip("SD 1.x")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """models/loras"""
    import folder_paths

    _, endings = folder_paths.folder_names_and_paths["loras"]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], endings))
    return tmp_path


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A ComfyUI for the tests of the command line, of which one runs at a time: it takes ten seconds to start."""
    base = tmp_path_factory.mktemp("server")
    server = Server(base)
    for name in ("mine.safetensors", "other.safetensors"):
        (base / "models" / "checkpoints" / name).touch()
    try:
        server.wait_for_pack()
        yield server
    finally:
        server.stop()
