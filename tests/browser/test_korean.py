"""In Korean: what the pack itself writes on the page, what its nodes say, and its templates."""

import pytest

from editor import Editor
from sayings import said_by_templates
from workflow_files import TEMPLATES, read

SHOWN = """() => {
    const graphs = [app.graph, ...app.graph.subgraphs.values()], nodes = graphs.flatMap((graph) => graph.nodes);
    const slots = nodes.flatMap((node) => node.subgraph ? [...node.inputs, ...node.outputs] : []);
    const notes = nodes.filter((node) => node.type === "MarkdownNote").flatMap((node) => node.widgets[0].value);
    const titled = [...graphs.flatMap((graph) => graph.groups), ...nodes];
    return [...titled.map((x) => x.title), ...slots.map((x) => x.label), ...notes.flatMap((x) => x.split("\\n"))];
}"""
TOLD = "id => app.graph.getNodeById(id).widgets.find((x) => x.name === '$$node-text-preview')?.value"


@pytest.fixture(scope="module", autouse=True)
def korean(shared_editor: Editor):
    shared_editor.speak("ko")
    yield
    shared_editor.speak("en")


def test_panels_and_help(editor: Editor):
    picker = editor.add("PnPMixBackgroundPicker")
    editor.look_at(picker)
    editor.select(picker)
    editor.page.get_by_text("그래프를 실행하면 후보가 여기에 나타납니다.").wait_for()
    editor.page.get_by_test_id("info-button").click()
    editor.page.locator(".node-help-content").get_by_role("heading", name="배경 고르기", exact=True).wait_for()


def test_what_stops_a_run_and_what_nodes_tell_of_it(editor: Editor):
    picture, fit, shown = editor.add("EmptyImage"), editor.add("PnPMixFitPicture"), editor.add("PreviewImage")
    editor.connect(picture, 0, fit, "image")
    editor.connect(fit, 0, shown, "images")
    choose = "([id, mode]) => (app.graph.getNodeById(id).widgets.find((x) => x.name === 'mode').value = mode)"
    editor.page.evaluate(choose, [fit, "around the object"])
    editor.run()
    editor.page.wait_for_timeout(300)  # older editors show a dialog of their own too
    editor.close_dialogs()
    message = editor.page.get_by_role("alert").filter(has_text="그림 맞추기")
    assert message.locator("p").all_inner_texts() == [
        "그림 맞추기, 입력 '마스크': 연결되지 않았습니다. 물체를 흰색으로 표시하거나 다른 방식을 고르세요."
    ]
    editor.page.evaluate(choose, [fit, "crop"])
    editor.run()
    assert editor.page.evaluate(TOLD, fit) == "512 x 512 픽셀 가운데 512 x 512, 512 x 512(으)로 맞춤."


def test_templates(editor: Editor):
    """Titles, notes and the names of what subgraphs take and give."""
    for name in TEMPLATES:
        editor.load(read(name))
        assert not said_by_templates() & set(editor.page.evaluate(SHOWN)), name
