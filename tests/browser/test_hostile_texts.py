"""What comes from files, folders and tables is text in the editor, never HTML, whichever way it gets there."""

import itertools
import json

import pytest
import safetensors.torch
import torch

from comfy_host import PACK
from editor import RENDERINGS, Editor

# What runs, what opens another page, and what newer editors make a link of
HTML = "<img src=x onerror=reached=1><a href=#reached>words</a>[[words|https://reached.example]]"
NAME = "<img src=x onerror=reached=1>"  # for files, in whose names there is no /
# newer editors make a link of a plain address too
REACHED = """() => [window.reached, document.querySelector("img[src=x], a[href*='#reached']"),
    [...document.querySelectorAll("a[href*=reached]")].find((x) => !x.textContent.startsWith("https:"))]"""
NUMBER = itertools.count()  # a file that no other test has read: the server keeps what it knows
TOLD = "id => app.graph.getNodeById(id).widgets.find((x) => x.name === '$$node-text-preview')?.value"

MIDDLE_OF_LIST = """(id) => {
    const node = app.graph.getNodeById(id), combo = node.widgets.find(({ type }) => type === "combo");
    return app.canvasPosToClientPos([node.pos[0] + node.size[0] / 2, node.pos[1] + combo.last_y + 10]);
}"""


@pytest.fixture
def files(server):
    """Writes files below the server's models; they are gone after the test."""
    written = []

    def write(folder: str, entries: dict, name: str = "", **metadata: str) -> str:
        name = f"{name or f'odd {next(NUMBER)}'}.safetensors"
        written.append(server.base / "models" / folder / name)
        written[-1].parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(entries, written[-1], metadata)
        return name

    yield write
    for file in written:
        file.unlink()


def lora(**others) -> dict:
    """A LoRA of the demo model, and other entries."""
    (file, *_) = sorted((PACK / "demo").rglob("loras/*.safetensors"))
    return safetensors.torch.load_file(file) | others


def add_lora(editor: Editor, name: str) -> int:
    """The node that reads a LoRA, what it needs, and one that shows its result as text."""
    editor.page.evaluate("app.refreshComboInNodes()")
    model, shown = editor.add("PnPMixDemoModel", 0), editor.add("PreviewAny", 800)
    node = editor.add("PnPMixConceptLora", 350, lora_name=name, text="red heart")
    editor.connect(model, 1, node, "clip")
    editor.connect(node, 0, shown, "source")
    return node


def assert_is_text(editor: Editor) -> None:
    editor.page.wait_for_timeout(300)
    assert not any(editor.page.evaluate(REACHED))


@pytest.mark.parametrize("language", ["en", "ko"])
@pytest.mark.parametrize("rendering", RENDERINGS)
def test_what_a_node_tells_of_its_run(editor: Editor, files, rendering, language):
    file = files("loras", lora(**{HTML: torch.zeros(1)}))
    if language != "en":
        editor.speak(language)
    try:
        editor.render(rendering)
        node = add_lora(editor, file)
        editor.look_at(node)
        assert editor.run()["status"]["status_str"] == "success"
        editor.wait_until(f"!!({TOLD})({node})")
        editor.page.get_by_text(HTML).first.wait_for()  # newer editors also list it in a panel
        assert_is_text(editor)
    finally:
        if language != "en":
            editor.speak("en")


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_what_stops_a_run(editor: Editor, files, rendering):
    file = files("loras", lora(**{f"{HTML}.alpha": torch.zeros(2)}))
    editor.render(rendering)
    add_lora(editor, file)
    editor.run()
    assert HTML in editor.complaint(file)
    assert HTML in editor.page.get_by_role("alert").filter(has_text=file).inner_text()
    assert_is_text(editor)


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_what_is_refused_before_a_run(editor: Editor, rendering):
    editor.render(rendering)
    concept, shown = editor.add("PnPMixLoadConcept", file=NAME), editor.add("PreviewAny", 800)
    editor.connect(concept, 1, shown, "source")
    editor.press_queue()
    editor.complaint("load concept")
    assert_is_text(editor)
    assert all("400" in error or "rompt" in error for error in editor.errors), "the server's refusal"
    editor.errors.clear()


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_results_that_are_texts(editor: Editor, server, files, rendering):
    (file, *_) = sorted((PACK / "demo").rglob("concepts/*.safetensors"))
    with safetensors.safe_open(file, "pt") as content:
        ((key, about),) = content.metadata().items()
    about = json.dumps(json.loads(about) | {"noun": HTML, "name": HTML})
    odd = files("concepts", safetensors.torch.load_file(file), **{key: about})
    editor.render(rendering)
    editor.page.evaluate("app.refreshComboInNodes()")
    concept, shown = editor.add("PnPMixLoadConcept", file=odd), editor.add("PreviewAny", 800)
    editor.connect(concept, 1, shown, "source")
    assert editor.run()["outputs"][str(shown)]["text"] == [HTML]
    editor.look_at(shown)
    assert_is_text(editor)


# in classic rendering of older editors a list is a menu of HTML
@pytest.mark.parametrize("kind", ["PnPMixLoadConcept", "PnPMixInpaintModelLoader"])
def test_names_of_files_in_lists(editor: Editor, files, kind):
    for folder in ("concepts", "inpaint"):
        files(folder, {"x": torch.zeros(1)}, NAME)
        files(folder, {"x": torch.zeros(1)}, "plain")
    editor.page.evaluate("app.refreshComboInNodes()")
    node = editor.add(kind)
    editor.look_at(node)
    editor.page.wait_for_timeout(300)
    editor.page.mouse.click(*editor.page.evaluate(MIDDLE_OF_LIST, node))
    editor.page.get_by_role("menuitem", name="plain.safetensors").wait_for()
    assert_is_text(editor)
    editor.page.keyboard.press("Escape")
