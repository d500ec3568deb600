"""What is wrong is said where people look, in full, and with what to do."""

import random

import pytest

from editor import RENDERINGS, Editor
from workflow_files import read


def demo_without_an_object_mask() -> dict:
    """The demo with AdaIN, which needs a mask that the second Concept does not get; few steps, a seed of its own."""
    workflow = read("try_it_without_downloads")
    kinds = {node["type"]: node for node in workflow["nodes"]}  # the last of each
    kinds["PnPMixAppearance"]["widgets_values"][4] = True
    kinds["PnPMixDDPMInvert"]["widgets_values"][:2] = 2, 1
    kinds["PnPMixConcept"]["widgets_values"][0] = random.randrange(2**31)
    (mask,) = [i for i in kinds["PnPMixConcept"]["inputs"] if i["name"] == "object_mask"]
    workflow["links"] = [link for link in workflow["links"] if link[0] != mask["link"]]
    mask["link"] = None
    return workflow


def stopped(editor: Editor):
    """What the pack shows after a run that stopped."""
    editor.run()
    editor.page.wait_for_timeout(300)  # older editors show a dialog of their own too
    editor.close_dialogs()
    return editor.page.get_by_role("alert").filter(has_text="object_mask")


IN_VIEW = """() => {
    const [node] = Object.values(app.canvas.selected_nodes);
    const [x, y] = app.canvasPosToClientPos([node.pos[0] + node.size[0] / 2, node.pos[1] + node.size[1] / 2]);
    return x > 0 && y > 0 && x < window.innerWidth && y < window.innerHeight;
}"""


def selected(editor: Editor) -> list[str]:
    return editor.page.evaluate("Object.values(app.canvas.selected_nodes).map((node) => node.title)")


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_what_stops_a_run_is_said_in_full_with_a_way_to_the_node_at_fault(editor: Editor, rendering):
    editor.render(rendering)
    workflow = demo_without_an_object_mask()
    editor.load(workflow)
    message = stopped(editor)
    assert message.locator("p").all_inner_texts() == [
        "Concept 'Concept 2', input 'object_mask': it is not wired, and adain of Guided Appearance Attention is on. "
        "Wire the mask of the object in your picture, or switch adain off."
    ]
    message.get_by_role("button", name="Go to the node").click()
    assert selected(editor) == ["Concept 2"]
    editor.wait_until("app.canvas.ds.scale > 0.6")

    (appearance,) = [node["id"] for node in workflow["nodes"] if node["type"] == "PnPMixAppearance"]
    editor.page.evaluate("id => (app.graph.getNodeById(id).widgets[4].value = false)", appearance)
    editor.run()
    assert not message.is_visible(), "it is gone with the next run"


def test_the_way_to_the_node_at_fault_leads_into_a_subgraph(editor: Editor):
    workflow = demo_without_an_object_mask()
    editor.load(workflow)
    concepts = [node["id"] for node in workflow["nodes"] if node["type"] == "PnPMixConcept"]
    editor.page.evaluate("ids => app.canvas.selectItems(ids.map((id) => app.graph.getNodeById(id)))", concepts)
    editor.command("Comfy.Graph.ConvertToSubgraph")
    stopped(editor).get_by_role("button", name="Go to the node").click()
    assert selected(editor) == ["Concept 2"]
    assert editor.page.evaluate("app.canvas.graph.nodes.map((node) => node.type)") == ["PnPMixConcept"] * 2
    editor.page.wait_for_timeout(700)
    assert editor.page.evaluate(IN_VIEW)


@pytest.mark.parametrize("far", [(6000, 4000), (-9000, 300)])
def test_the_way_back_out_of_a_subgraph_leads_to_the_node_too(editor: Editor, far):
    workflow = demo_without_an_object_mask()
    editor.load(workflow)
    (scene,), (concept, _) = (
        [node["id"] for node in workflow["nodes"] if node["type"] == kind]
        for kind in ("PnPMixDemoScene", "PnPMixConcept")
    )
    editor.page.evaluate(
        """([scene, concept, far]) => {
            app.graph.getNodeById(concept).pos = far;
            app.graph.nodes.filter((node) => node.type === "PnPMixConcept").forEach((node) => (node.pos = far));
            app.canvas.selectItems([app.graph.getNodeById(scene)]);
        }""",
        [scene, concept, far],
    )
    editor.command("Comfy.Graph.ConvertToSubgraph")
    message = stopped(editor)
    editor.page.evaluate("app.canvas.setGraph([...app.graph.subgraphs.values()][0])")
    editor.page.wait_for_timeout(500)
    message.get_by_role("button", name="Go to the node").click()
    editor.page.wait_for_timeout(700)
    assert selected(editor) == ["Concept 2"] and editor.page.evaluate(IN_VIEW)


def test_a_word_that_the_demo_model_does_not_know_is_said_where_it_stands(editor: Editor):
    """In a node of ComfyUI, which is the one to go to."""
    model, shown = editor.add("PnPMixDemoModel", 0), editor.add("PreviewAny", 800)
    text = editor.add("CLIPTextEncode", 350, text="a dragon")
    editor.connect(model, 1, text, "clip")
    editor.connect(text, 0, shown, "source")
    editor.run()
    editor.page.wait_for_timeout(300)
    editor.close_dialogs()
    message = editor.page.get_by_role("alert").filter(has_text="dragon")
    message.wait_for(timeout=2000)
    assert "the word 'dragon'. Use its words: " in message.inner_text()
    message.get_by_role("button", name="Go to the node").click()
    assert editor.page.evaluate("Object.keys(app.canvas.selected_nodes).map(Number)") == [text]


def test_an_output_of_demo_scene_that_is_empty_says_so(editor: Editor):
    scene, shown = editor.add("PnPMixDemoScene"), editor.add("PreviewImage", 800)
    editor.connect(scene, 3, shown, "images")
    editor.run()
    editor.page.wait_for_timeout(300)
    editor.close_dialogs()
    message = editor.page.get_by_role("alert").filter(has_text="Demo Scene")
    assert message.locator("p").all_inner_texts() == [
        "Demo Scene, input 'concepts': it is 2, and a further one is wired. Raise it."
    ]


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_a_loader_without_its_file_says_which_fit_and_where_they_go_until_one_is_there(editor: Editor, rendering):
    editor.render(rendering)
    folder = editor.server.base / "models" / "inpaint"
    assert folder.is_dir(), "made at the start"
    editor.add("PnPMixInpaintModelLoader")
    note = editor.page.locator(".pnpmix-files")
    note.get_by_text("Put one of these into models/inpaint").wait_for()
    file = note.get_by_role("link", name="big-lama.pt")
    assert file.get_attribute("href").startswith("https://") and file.get_attribute("target") == "_blank"
    try:
        (folder / "big-lama.pt").touch()
        editor.page.keyboard.press("r")
        file.wait_for(state="detached")
    finally:
        (folder / "big-lama.pt").unlink()
        editor.page.keyboard.press("r")
