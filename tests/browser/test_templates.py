"""The templates in the editor: they open from the shelf as they were written, on one screen, and run."""

import re
from itertools import combinations

import pytest

from editor import Editor
from workflow_files import (
    BLUEPRINTS,
    OLD_WORKFLOWS,
    SHOWN,
    START,
    TEMPLATES,
    graphs,
    levels,
    links,
    read,
    subgraphs,
    to_api,
)

SAM3, APP = "Replace two objects", "Replace two objects as an app.app"
# Of the nodes and groups: left, top, right and bottom in pixels of the canvas
BOXES = """(() => {
    const { scale, offset } = app.canvas.ds;
    const boxes = [...app.graph.nodes.map((x) => x.boundingRect ?? x.getBounding()),
        ...app.graph.groups.map((x) => x._bounding)];
    return boxes.map(([x, y, width, height]) => [x, y, x + width, y + height])
        .map((box) => box.map((x, i) => Math.round(scale * (x + offset[i % 2]))));
})()"""
# As if it had run, of every node that shows pictures
SHOW_PICTURES = """kinds => app.graph.nodes.filter((node) => kinds.includes(node.type)).forEach((node) => {
    const images = [{ filename: "example.png", subfolder: "", type: "input" }], id = String(node.id);
    app.api.dispatchCustomEvent("executed", { node: id, display_node: id, prompt_id: "", output: { images } });
})"""
WINDOW = "[app.canvas.canvas.clientWidth, app.canvas.canvas.clientHeight]"
SAYS = "[role=dialog]:visible, [data-testid=error-overlay]:visible, .p-toast-message"
LEAVE_APP = "Comfy.ToggleLinear"
KNOWS_APPS = f"app.extensionManager.command.commands.some((x) => x.id === '{LEAVE_APP}')"


def essence(workflow: dict, like: dict) -> list:
    """What a graph computes, level by level: nodes, links and values; of inputs those alone that `like` has, which may
    be from before others."""
    names = {key: x["name"] for key, x in subgraphs(workflow).items()}
    result = []
    for level, model in zip(levels(workflow), levels(like), strict=True):
        wired, known = links(level), {str(node["id"]): node for node in model["nodes"]}
        assert {str(node["id"]) for node in level["nodes"]} == set(known)
        result.append(
            {
                str(node["id"]): (
                    names.get(node["type"], node["type"]),
                    node.get("title") or names.get(node["type"]),
                    own_values(node, wired)[: len(known[str(node["id"])].get("widgets_values") or [])],
                    {i["name"]: tuple(map(str, wired[i["link"]][:2])) for i in node["inputs"] if i.get("link")},
                )
                for node in level["nodes"]
            }
        )
    return result


def own_values(node: dict, wired: dict) -> list:
    """The values of a node, none where a widget of its subgraph says one: of two such subgraphs older editors keep the
    last one's here, and send each its own."""
    said = any(i.get("widget") and i.get("link") and str(wired[i["link"]][0]) == "-10" for i in node["inputs"])
    return [] if said else node.get("widgets_values") or []


def known_here(editor: Editor) -> list[str]:
    """The templates whose nodes this ComfyUI has."""
    return [name for name in TEMPLATES if name != SAM3 or editor.knows("SAM3_Detect")]


def test_every_template_opens_from_the_shelf_as_it_was_written(editor: Editor):
    """Readable, all of it on the screen, and nothing covers anything, also once it has run."""
    for name in known_here(editor):
        editor.page.evaluate("app.graph.clear()")
        editor.open_template(name)
        written = read(name)
        assert essence(editor.graph(), written) == essence(written, written), name
        if name == APP and editor.page.evaluate(KNOWS_APPS):
            editor.command(LEAVE_APP)
        scale = editor.page.evaluate("app.canvas.ds.scale")
        assert scale >= 0.6, name
        width, height = editor.page.evaluate(WINDOW)
        editor.page.evaluate(SHOW_PICTURES, [*SHOWN, "PnPMixDemoScene"])
        editor.page.wait_for_timeout(500)
        boxes = editor.page.evaluate(BOXES)
        for left, top, right, bottom in boxes:
            assert left > 0 and top > 0 and right < width and bottom < height, name
        nodes = zip(written["nodes"], boxes, strict=False)
        for (node, (left, top, right, bottom)), (other, box) in combinations(nodes, 2):
            apart = right <= box[0] or box[2] <= left or bottom <= box[1] or box[3] <= top
            assert apart, (name, node.get("title"), other.get("title"))


def test_a_template_complains_of_nothing_but_model_files(editor: Editor):
    for name in known_here(editor):
        editor.load(read(name), dismiss=False)
        editor.page.wait_for_timeout(700)
        said = " ".join(editor.page.locator(SAYS).all_inner_texts())
        assert not re.search(r"node types|missing node|failed|alert|example\.png", said, re.IGNORECASE), (name, said)
        assert name != START or not said, "the demo needs no files"
        editor.close_dialogs()


def test_graphs_that_people_have_saved_still_open(editor: Editor):
    for name in OLD_WORKFLOWS:
        editor.load(read(name))
        assert essence(editor.graph(), read(name)) == essence(read(name), read(name)), name


def test_the_editor_sends_what_the_tests_of_the_templates_send(editor: Editor):
    """So what they see of a template holds for one that is queued in the editor."""
    for name in known_here(editor):
        editor.load(read(name))
        sent = editor.page.evaluate("app.graphToPrompt().then((x) => x.output)")
        expected = to_api(read(name))
        assert sent.keys() == expected.keys(), name
        for key, node in expected.items():
            inputs = {x: value for x, value in sent[key]["inputs"].items() if x in node["inputs"]}
            assert (sent[key]["class_type"], inputs) == (node["class_type"], node["inputs"]), (name, key)


def test_the_demo_runs_and_shows_large_pictures(editor: Editor):
    workflow = read(START)
    (blend,) = [x for x in subgraphs(workflow).values() if x["name"] == "Replace objects"]
    (invert,) = [node for node in blend["nodes"] if node["type"] == "PnPMixDDPMInvert"]
    invert["widgets_values"][:2] = 12, 4
    graphs.set_widget(graphs.titled(workflow, "Replace objects"), "skipped steps", 4)
    editor.load(workflow)
    entry = editor.run()
    assert entry["status"]["status_str"] == "success"
    (save,), (shown,) = ([n["id"] for n in workflow["nodes"] if n["type"] == x] for x in ("SaveImage", "PreviewImage"))
    assert len(entry["outputs"][str(shown)]["images"]) == 4, "scene, clean plate and two reference latents"
    editor.wait_until(f"app.graph.getNodeById({save}).imgs?.[0]?.naturalWidth === 512")
    boxes = editor.page.evaluate(BOXES)[: len(workflow["nodes"])]
    for (left, top, right, bottom), other in combinations(boxes, 2):
        apart = right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
        assert apart, "what it shows covers no other node"


@pytest.mark.newest
def test_the_app_shows_pictures_words_seed_and_result(editor: Editor):
    if not editor.page.evaluate(KNOWS_APPS):
        pytest.skip("this editor is older than apps")
    editor.load(read(APP))
    app = editor.page.get_by_test_id("linear-widgets")
    shown = ["Your photo", "Your picture 1", "Your picture 2", "objects to replace", "Your object 1", "prompt", "seed"]
    for words in shown:
        app.get_by_text(words, exact=True).first.wait_for()
    editor.command(LEAVE_APP)


@pytest.mark.newest
def test_blueprints_are_found_by_the_search(editor: Editor):
    if not editor.server.get("/global_subgraphs"):
        pytest.skip("this ComfyUI is older than blueprints")
    found = editor.search("with PnP-MIX")
    for name in BLUEPRINTS:
        found.filter(has_text=name).first.wait_for()
