"""What comes from files, folders and tables is text in the editor, never HTML, whichever way it gets there."""

import pytest
import safetensors.torch
import torch

from comfy_host import PACK
from editor import RENDERINGS, Editor

# What runs, what opens another page, and what newer editors make a link of
HTML = "<img src=x onerror=reached=1><a href=#reached>words</a>[[words|https://reached.example]]"
NAME = "<img src=x onerror=reached=1>"  # for files, in whose names there is no /
REACHED = "() => [window.reached ?? 0, document.querySelectorAll('img[src=x], a[href*=reached]').length]"
TOLD = "id => app.graph.getNodeById(id).widgets.find((x) => x.name === '$$node-text-preview')?.value"

MIDDLE_OF_LIST = """(id) => {
    const node = app.graph.getNodeById(id), combo = node.widgets.find(({ type }) => type === "combo");
    return app.canvasPosToClientPos([node.pos[0] + node.size[0] / 2, node.pos[1] + combo.last_y + 10]);
}"""


@pytest.fixture
def files(server):
    """Writes files below the server's models; they are gone after the test."""
    written = []

    def write(path: str, entries: dict, **metadata: str):
        file = server.base / "models" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(entries, file, metadata)
        written.append(file)

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
    assert editor.page.evaluate(REACHED) == [0, 0]


@pytest.mark.parametrize("language", ["en", "ko"])
@pytest.mark.parametrize("rendering", RENDERINGS)
def test_what_a_node_tells_of_its_run(editor: Editor, files, rendering, language):
    files("loras/odd.safetensors", lora(**{HTML: torch.zeros(1)}))
    if language != "en":
        editor.speak(language)
    try:
        editor.render(rendering)
        node = add_lora(editor, "odd.safetensors")
        editor.look_at(node)
        assert editor.run()["status"]["status_str"] == "success"
        editor.wait_until(f"!!({TOLD})({node})")
        editor.page.get_by_text(HTML).wait_for()
        assert_is_text(editor)
    finally:
        if language != "en":
            editor.speak("en")


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_what_stops_a_run(editor: Editor, files, rendering):
    files("loras/odd.safetensors", lora(**{f"{HTML}.alpha": torch.zeros(2)}))
    editor.render(rendering)
    add_lora(editor, "odd.safetensors")
    editor.run()
    assert HTML in editor.complaint("odd.safetensors")
    assert HTML in editor.page.get_by_role("alert").filter(has_text="odd.safetensors").inner_text()
    assert_is_text(editor)


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_what_is_refused_before_a_run(editor: Editor, rendering):
    editor.render(rendering)
    concept, shown = editor.add("PnPMixLoadConcept", file=NAME), editor.add("PreviewAny", 800)
    editor.connect(concept, 1, shown, "source")
    editor.press_queue()
    assert NAME in editor.complaint("load concept", NAME)
    assert_is_text(editor)


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_results_that_are_texts(editor: Editor, server, files, rendering):
    (file, *_) = sorted((PACK / "demo").rglob("concepts/*.safetensors"))
    content, metadata = safetensors.torch.load_file(file), metadata_of(file)
    files("concepts/odd.safetensors", content, **metadata | {"noun": HTML, "name": HTML})
    editor.render(rendering)
    editor.page.evaluate("app.refreshComboInNodes()")
    concept, shown = editor.add("PnPMixLoadConcept", file="odd.safetensors"), editor.add("PreviewAny", 800)
    editor.connect(concept, 1, shown, "source")
    assert editor.run()["outputs"][str(shown)]["text"] == [HTML]
    editor.look_at(shown)
    assert_is_text(editor)


def metadata_of(file) -> dict[str, str]:
    with safetensors.safe_open(file, "pt") as content:
        return content.metadata()


# in classic rendering of older editors a list is a menu of HTML
@pytest.mark.parametrize("kind", ["PnPMixLoadConcept", "PnPMixConceptLora", "PnPMixInpaintModelLoader"])
def test_names_of_files_in_lists(editor: Editor, files, kind):
    for folder in ("concepts", "loras", "inpaint"):
        files(f"{folder}/{NAME}.safetensors", {"x": torch.zeros(1)})
        files(f"{folder}/plain.safetensors", {"x": torch.zeros(1)})
    editor.page.evaluate("app.refreshComboInNodes()")
    node = editor.add(kind)
    editor.look_at(node)
    editor.page.wait_for_timeout(300)
    editor.page.mouse.click(*editor.page.evaluate(MIDDLE_OF_LIST, node))
    editor.page.get_by_role("menuitem", name="plain.safetensors").wait_for()
    assert_is_text(editor)
    editor.page.keyboard.press("Escape")
