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
