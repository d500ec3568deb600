"""Background Picker shows its candidates; a click or an arrow key chooses, and the graph goes on from there."""

import random

import numpy as np
import pytest
from PIL import Image

from editor import Editor


@pytest.fixture
def picker(editor: Editor) -> int:
    """Three candidates that no other test has drawn, and a file for the one that is picked."""
    scene = editor.add("PnPMixDemoScene", 20, 50, seed=random.randrange(2**31), control_after_generate="fixed")
    two, three = (editor.add("ImageBatch", 320, y) for y in (50, 250))
    picker, save = editor.add("PnPMixBackgroundPicker", 560, 50), editor.add("SaveImage", 900, 50)
    for origin, output, target, name in (
        (scene, 0, two, "image1"),
        (scene, 1, two, "image2"),
        (two, 0, three, "image1"),
        (scene, 2, three, "image2"),
        (three, 0, picker, "images"),
        (picker, 0, save, "images"),
    ):
        editor.connect(origin, output, target, name)
    return picker


def candidates(editor: Editor):
    return editor.page.get_by_role("radiogroup", name="Candidates").get_by_role("radio")


def chosen(editor: Editor) -> list[int]:
    pictures = candidates(editor)
    return [k for k in range(pictures.count()) if pictures.nth(k).get_attribute("aria-checked") == "true"]


def saved_picture(editor: Editor, entry: dict) -> np.ndarray:
    ((file,),) = (output["images"] for output in entry["outputs"].values() if "images" in output)
    return np.asarray(Image.open(editor.server.base / file["type"] / file["filename"]))


def cached(entry: dict) -> list[str]:
    return next(message["nodes"] for kind, message in entry["status"]["messages"] if kind == "execution_cached")


def test_a_click_chooses_and_only_what_follows_runs_again(editor, picker):
    first = editor.run()
    candidates(editor).nth(2).wait_for()
    assert candidates(editor).count() == 3 and chosen(editor) == [0]
    for k in range(3):
        assert candidates(editor).nth(k).locator("img").evaluate("x => x.decode().then(() => x.naturalWidth)") == 64

    candidates(editor).nth(1).click()
    assert chosen(editor) == [1] and editor.widget(picker, "index") == 1
    second = editor.run()
    assert not np.array_equal(saved_picture(editor, first), saved_picture(editor, second))
    assert len(cached(second)) == 3, "the candidates are not made again"


def test_arrow_keys_choose_and_undo_takes_it_back(editor, picker):
    editor.run()
    candidates(editor).nth(0).focus()
    changes = "app.extensionManager.workflow.activeWorkflow.changeTracker.undoQueue.length"
    for key in ("ArrowRight", "ArrowDown"):
        before = editor.page.evaluate(changes)
        editor.page.keyboard.press(key)
        editor.wait_until(f"count => {changes} > count", before)
    editor.page.keyboard.press("ArrowDown")  # there is no fourth
    assert chosen(editor) == [2] and editor.widget(picker, "index") == 2
    assert candidates(editor).nth(2).evaluate("button => button === document.activeElement")
    editor.page.keyboard.press("Control+z")
    editor.wait_until(f"app.graph.getNodeById({picker})?.widgets[0].value === 1")
    candidates(editor).nth(2).wait_for()
    assert chosen(editor) == [1]


def test_the_choice_is_saved_and_nothing_else(editor, picker):
    editor.run()
    candidates(editor).nth(2).click()
    (saved,) = [node for node in editor.graph()["nodes"] if node["id"] == picker]
    assert saved["widgets_values"] == [2]
    editor.load(editor.graph())
    assert editor.widget(picker, "index") == 2
    editor.run()
    assert chosen(editor) == [2]
    assert candidates(editor).count() == 3, "shown again although nothing had to run again"


def test_candidates_come_back_with_their_tab(editor, picker):
    # older editors forget a run that ends before they hear that it was queued, so it waits behind another
    picture = dict(width=1024, height=1024, batch_size=1, color=random.randrange(2**24))
    editor.server.queue(
        {
            "1": {"class_type": "EmptyImage", "inputs": picture},
            "2": {"class_type": "ImageBlur", "inputs": {"image": ["1", 0], "blur_radius": 31, "sigma": 10.0}},
            "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
        }
    )
    editor.run()
    candidates(editor).nth(1).click()
    editor.to_another_tab_and_back()
    candidates(editor).nth(2).wait_for()
    assert chosen(editor) == [1]


def test_another_node_may_choose(editor, picker):
    """Wired by a picker that has two pictures, of which it chose the second."""
    (link,) = [link for link in editor.graph()["links"] if link[3] == picker]
    other = editor.add("PnPMixBackgroundPicker", 560, 450, index=1)
    editor.connect(link[1], 0, other, "images")
    editor.connect(other, 1, picker, "index")
    editor.run()
    groups = editor.page.get_by_role("radiogroup", name="Candidates")
    candidates(editor).nth(5).wait_for()
    for k, may_click in enumerate((False, True)):
        pictures = groups.nth(k).get_by_role("radio")
        assert pictures.nth(1).get_attribute("aria-checked") == "true"
        assert pictures.nth(1).is_enabled() == may_click
