"""Background Picker shows its candidates; a click or an arrow key chooses, and the graph goes on from there."""

import random

import numpy as np
import pytest
from PIL import Image

from editor import IS_NEWER, RENDERINGS, Editor


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


def show_nine(editor: Editor, picker: int) -> None:
    (link,) = [link for link in editor.graph()["links"] if link[3] == picker]
    repeat = editor.add("RepeatImageBatch", 320, 450, amount=3)
    editor.connect(link[1], 0, repeat, "image")
    editor.connect(repeat, 0, picker, "images")
    editor.look_at(picker)
    editor.run()
    candidates(editor).nth(8).wait_for()


def sizes(editor: Editor) -> list[tuple[int, int]]:
    """Width and height of each picture on the screen."""
    boxes = candidates(editor).evaluate_all("all => all.map((x) => x.getBoundingClientRect().toJSON())")
    return [(round(box["width"]), round(box["height"])) for box in boxes]


def candidates(editor: Editor):
    return editor.page.get_by_role("radiogroup", name="Candidates").get_by_role("radio")


def chosen(editor: Editor) -> list[int]:
    pictures = candidates(editor)
    return [k for k in range(pictures.count()) if pictures.nth(k).get_attribute("aria-checked") == "true"]


def saved_picture(editor: Editor, entry: dict) -> np.ndarray:
    images = [file for output in entry["outputs"].values() for file in output.get("images", [])]
    (file,) = [file for file in images if file["type"] == "output"]
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


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_many_candidates_stay_whole_and_scroll_until_the_node_has_room_for_all(editor, picker, rendering):
    editor.render(rendering)
    size = "([id]) => [...app.graph.getNodeById(id).size]"
    before = editor.page.evaluate(size, [picker])
    show_nine(editor, picker)
    assert editor.page.evaluate(size, [picker]) == pytest.approx(before, abs=25), "room for its title or label at most"
    editor.wait_until("document.querySelector('.pnpmix-candidates img').naturalWidth === 64")
    small = sizes(editor)
    assert all(width >= 96 and abs(width - height) <= 1 for width, height in small), small

    candidates(editor).nth(0).focus()
    pictures = editor.page.get_by_role("radiogroup", name="Candidates")
    pictures.hover(position={"x": 50, "y": 50})
    editor.page.mouse.wheel(0, 400)
    editor.wait_until("document.querySelector('.pnpmix-candidates [role=radiogroup]').scrollTop > 100")
    assert editor.page.evaluate("app.canvas.ds.scale") == 1, "the canvas stays where it is"

    editor.resize(picker, 600, 640)
    editor.wait_until(
        """() => {
            const list = document.querySelector(".pnpmix-candidates [role=radiogroup]");
            return list.clientHeight > 400 && list.scrollHeight <= list.clientHeight;
        }"""
    )
    large = sizes(editor)
    assert large[0][0] > small[0][0] + 20 and abs(large[0][0] - large[0][1]) <= 1, (small, large)


def test_the_keyboard_goes_on_choosing_after_a_run(editor, picker):
    show_nine(editor, picker)
    candidates(editor).nth(0).focus()
    for _ in range(5):
        editor.page.keyboard.press("ArrowRight")
    editor.run(keys="Control+Enter")
    assert candidates(editor).nth(5).evaluate("button => button === document.activeElement")
    editor.page.keyboard.press("ArrowRight")
    assert chosen(editor) == [6] and editor.widget(picker, "index") == 6
    editor.wait_until(
        """() => {
            const shown = document.activeElement.getBoundingClientRect();
            const box = document.querySelector(".pnpmix-candidates").getBoundingClientRect();
            return box.top <= shown.top && shown.bottom <= box.bottom + 1;
        }"""
    )


@pytest.mark.newest
@pytest.mark.skipif(not IS_NEWER, reason="editors of this age have no panel of properties")
@pytest.mark.parametrize("rendering", RENDERINGS)
def test_the_panel_of_properties_lists_inputs_alone_and_leaves_the_pictures_on_the_node(editor, picker, rendering):
    editor.render(rendering)
    panel = editor.show_properties(True)
    try:
        show_nine(editor, picker)
        editor.select(picker)
        panel.get_by_text("index", exact=True).wait_for()
        assert panel.get_by_text("candidates").count() == 0
        editor.resize(picker, 420, 350)
        editor.wait_until("document.querySelector('.pnpmix-candidates').clientWidth > 380")
        assert candidates(editor).count() == 9

        editor.page.evaluate("id => app.canvas.selectItems([app.graph.getNodeById(id)])", picker)
        editor.command("Comfy.Graph.ConvertToSubgraph")
        editor.select(editor.page.evaluate("Number(app.graph.nodes.find((node) => node.subgraph).id)"))
        panel.get_by_text("Advanced Inputs").click()
        panel.get_by_text("index", exact=True).wait_for()
        assert panel.get_by_text("candidates").count() == 0
    finally:
        editor.show_properties(False)
