"""ComfyUI, once for all tests of this folder. Where there is none, they are skipped, and the last lines say so."""

import os

import pytest

from comfy_host import COMFYUI, Capture, Given, boot


@pytest.fixture(scope="session", autouse=True)
def comfyui(tmp_path_factory):
    if COMFYUI is None:
        pytest.skip("no ComfyUI: set COMFYUI_DIR")
    where = os.getcwd()
    boot(tmp_path_factory.mktemp("comfyui"), "--cpu")
    yield
    os.chdir(where)
    Given.values, Capture.values = {}, {}
