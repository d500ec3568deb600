"""ComfyUI's own server and editor, once for all tests of this folder, in a browser for each file."""

import importlib.util
import json
import os
import runpy
from pathlib import Path

import pytest
from PIL import Image

from comfy_host import COMFYUI, PACK
from server_process import Server

if COMFYUI is None:
    MISSING = "no ComfyUI: set COMFYUI_DIR"
elif importlib.util.find_spec("playwright") is None:
    MISSING = "no playwright: install requirements-dev.txt"
else:
    MISSING = None

# Nothing of a first visit
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.InstalledVersion": "1.27.10",
    "Comfy.Release.Status": "what's new seen",
    "Comfy.Minimap.Visible": False,
    "Comfy.NodeSearchBoxImpl": "default",
}
EMPTY = {"last_node_id": 0, "last_link_id": 0, "nodes": [], "links": [], "groups": [], "version": 0.4}
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


class Skipped(pytest.Module):
    """A file of tests that cannot be imported here."""

    def collect(self):
        pytest.skip(MISSING)


def pytest_pycollect_makemodule(module_path, parent):
    return Skipped.from_parent(parent, path=module_path) if MISSING else None


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("browser"))  # one server for all of them


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("editor")
    user = base / "user" / "default"
    (user / "workflows").mkdir(parents=True)
    (user / "subgraphs").mkdir()
    (user / "user.css").touch()
    (user / "comfy.templates.json").write_text("[]")
    (user / "comfy.settings.json").write_text(json.dumps(SETTINGS))
    (base / "input").mkdir()
    for name in ("example", "background", "my_dog", "my_cat", "my_cup"):  # of the templates, earlier ones too
        Image.new("RGB", (8, 8)).save(base / "input" / f"{name}.png")
    server = Server(base, "--preview-method", "auto", environment=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        server.wait_for_pack()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def shared_editor(server):
    """The browser lives for one file: while it does, no other test of the process could use asyncio."""
    from playwright.sync_api import sync_playwright

    from editor import Editor

    installed = runpy.run_path(str(PACK / "run.py"))["find_browser"]()  # without one, Playwright's own
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=installed, args=ARGUMENTS)
        editor = Editor(browser.new_page(viewport={"width": 1280, "height": 800}), server)
        editor.open()
        yield editor
        browser.close()


@pytest.fixture
def editor(shared_editor):
    """An editor with an empty graph; the test fails if the browser's console shows an error."""
    shared_editor.render("classic")
    shared_editor.errors.clear()
    shared_editor.load(EMPTY)
    shared_editor.page.evaluate("app.canvas.ds.reset()")  # wherever the last test looked
    yield shared_editor
    assert not shared_editor.errors
