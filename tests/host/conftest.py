"""ComfyUI, once for all tests of this folder. Where there is none, they are skipped, and the last lines say so."""

import logging
import os

import pytest

from comfy_host import COMFYUI, DEVICE, Capture, Given, boot


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
