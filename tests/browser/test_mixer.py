"""While the mixer runs, its node shows where each concept goes and what its branches look like."""

import random

import pytest

from editor import RENDERINGS, Editor
from workflow_files import read

ORANGE, SKY_BLUE = "rgb(230, 159, 0)", "rgb(86, 180, 233)"


def quick_demo(names: tuple[str, str] = ("heart", "star"), steps: int = 3) -> dict:
    """The template that needs no files, with few steps and a seed that no other test has run."""
    workflow = read("try_it_without_downloads")
    concepts = [node for node in workflow["nodes"] if node["type"] == "PnPMixConcept"]
    for node, name in zip(concepts, names, strict=True):
        node["widgets_values"] = [random.randrange(2**31), name]
    (invert,) = [node for node in workflow["nodes"] if node["type"] == "PnPMixDDPMInvert"]
    invert["widgets_values"][:2] = steps, 1
    return workflow


def ids(workflow: dict, kind: str) -> list[int]:
    return [node["id"] for node in workflow["nodes"] if node["type"] == kind]


@pytest.fixture
def previews(editor: Editor):
    """(node id, width / height) of every preview that the server sends."""
    editor.page.evaluate(
        """() => {
            window.previews = [];
            window.note = ({ detail: { blob, displayNodeId } }) => createImageBitmap(blob).then(
                ({ width, height }) => previews.push([Number(displayNodeId), Math.round((10 * width) / height) / 10]));
            app.api.addEventListener("b_preview_with_metadata", note);
        }"""
    )
    yield lambda: editor.page.evaluate("previews")
    editor.page.evaluate("app.api.removeEventListener('b_preview_with_metadata', note)")


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_the_demo_shows_masks_branches_and_the_finished_picture(editor: Editor, previews, rendering):
    editor.render(rendering)
    workflow = quick_demo(steps=9)
    editor.load(workflow)
    (mixer,), (save,) = (ids(workflow, x) for x in ("PnPMixSampler", "SaveImage"))
    editor.look_at(mixer)
    before = editor.graph()
    entry = editor.run()
    assert entry["status"]["status_str"] == "success"

    panel = editor.page.locator(".pnpmix-overlay")
    overlay = panel.get_by_role("img", name="The masks over the scene")
    assert overlay.is_visible() and overlay.bounding_box()["height"] > 40
    assert overlay.evaluate("x => x.decode().then(() => [x.naturalWidth, x.naturalHeight])") == [64, 64]
    branches = panel.get_by_role("listitem")
    assert branches.all_inner_texts() == ["picture", "heart", "star"]
    colors = [x.evaluate("x => getComputedStyle(x).borderTopColor") for x in branches.all()[1:]]
    assert colors == [ORANGE, SKY_BLUE]
    assert panel.get_by_role("paragraph").count() == 0, "nothing overlaps"

    swatches = editor.page.locator(".pnpmix-color div").all()
    assert [x.evaluate("x => getComputedStyle(x).backgroundColor") for x in swatches] == [ORANGE, SKY_BLUE]
    of_mixer = [shape for node, shape in previews() if node == mixer]
    assert len(of_mixer) >= 6 and set(of_mixer) == {3.0}, "the picture and two branches side by side"

    (file,) = entry["outputs"][str(save)]["images"]
    assert (editor.server.base / "output" / file["filename"]).is_file()
    editor.look_at(save)
    editor.wait_until(f"app.nodeOutputs[{save}]?.images.length === 1")
    assert widgets(editor.graph()) == widgets(before), "what is shown is not saved"


def widgets(workflow: dict) -> dict:
    kinds = ("PnPMixSampler", "PnPMixConcept")
    return {node["id"]: node["widgets_values"] for node in workflow["nodes"] if node["type"] in kinds}


def test_custom_sampling_shows_the_masks_and_previews_the_result(editor: Editor, previews):
    workflow = quick_demo(steps=9)
    editor.load(workflow)
    nodes = {node["id"]: node for node in editor.graph()["nodes"]}
    (mixer,) = ids(workflow, "PnPMixSampler")
    custom, noise, split = (editor.add(x) for x in ("PnPMixCustomSampler", "DisableNoise", "PnPMixSplitResult"))
    sampler = editor.add("SamplerCustomAdvanced")
    for _, origin, slot, target, to, _ in editor.graph()["links"]:
        if target == mixer:
            editor.connect(origin, slot, custom, nodes[mixer]["inputs"][to]["name"])
        if origin == mixer:
            editor.connect(split, slot, target, nodes[target]["inputs"][to]["name"])
    editor.connect(noise, 0, sampler, "noise")
    for slot, name in enumerate(("guider", "sampler", "sigmas", "latent_image")):
        editor.connect(custom, slot, sampler, name)
    editor.connect(sampler, 0, split, "latent")
    editor.connect(custom, 0, split, "guider")
    editor.look_at(custom)
    entry = editor.run()
    assert entry["status"]["status_str"] == "success"
    assert editor.page.locator(".pnpmix-overlay li").all_inner_texts() == ["heart", "star"]
    assert editor.page.locator(".pnpmix-color div").count() == 2
    of_sampler = [shape for node, shape in previews() if node == sampler]
    assert len(of_sampler) >= 6 and set(of_sampler) == {1.0}


def test_a_concept_without_a_name_is_called_by_its_title(editor: Editor):
    editor.load(quick_demo(names=("", "star")))
    editor.run()
    assert editor.page.locator(".pnpmix-overlay li").all_inner_texts() == ["picture", "Concept 1", "star"]


def test_a_bypassed_concept_has_no_color(editor: Editor):
    workflow = quick_demo()
    editor.load(workflow)
    branches, swatches = (editor.page.locator(x) for x in (".pnpmix-overlay li", ".pnpmix-color div"))
    editor.run()
    assert swatches.count() == 2
    editor.page.evaluate("id => (app.graph.getNodeById(id).mode = 4)", ids(workflow, "PnPMixConcept")[0])
    editor.run()
    assert branches.all_inner_texts() == ["picture", "star"]
    assert swatches.all_text_contents() == ["star"]


@pytest.mark.newest  # the oldest one tells the editor nothing of what it did not run
def test_a_run_that_finds_everything_done_shows_it_on_a_new_page_too(editor: Editor):
    workflow = quick_demo()
    editor.load(workflow)
    editor.run()
    editor.open()
    editor.load(workflow)
    entry = editor.run()
    (cached,) = (message["nodes"] for kind, message in entry["status"]["messages"] if kind == "execution_cached")
    assert str(ids(workflow, "PnPMixSampler")[0]) in cached
    branches = editor.page.locator(".pnpmix-overlay li")
    branches.nth(2).wait_for()
    assert branches.all_inner_texts() == ["picture", "heart", "star"]
    assert editor.page.locator(".pnpmix-color div").count() == 2


def test_it_warns_where_concepts_overlap(editor: Editor):
    workflow = quick_demo()
    editor.load(workflow)
    (scene,), concepts = (ids(workflow, x) for x in ("PnPMixDemoScene", "PnPMixConcept"))
    larger = editor.add("GrowMask", 300, expand=6, tapered_corners=True)
    editor.connect(scene, 4, larger, "mask")
    editor.connect(larger, 0, concepts[1], "mask")
    editor.run()
    warning = editor.page.locator(".pnpmix-overlay").get_by_role("paragraph")
    assert warning.inner_text() == "heart and star overlap: 100 % of the smaller mask."


def test_names_are_text_and_nothing_else(editor: Editor):
    name = "<img src=x onerror=alert(1)>"
    editor.load(quick_demo(names=(name, "star")))
    editor.run()
    assert editor.page.locator(".pnpmix-overlay li").all_inner_texts() == ["picture", name, "star"]


def test_what_it_shows_comes_back_with_its_tab_and_after_undo(editor: Editor):
    editor.load(quick_demo())
    branches, swatches = (editor.page.locator(x) for x in (".pnpmix-overlay li", ".pnpmix-color div"))
    editor.run()
    editor.to_another_tab_and_back()
    branches.nth(2).wait_for()
    assert branches.all_inner_texts() == ["picture", "heart", "star"] and swatches.count() == 2

    editor.add("PreviewImage")
    editor.page.mouse.click(1200, 700)  # the editor notes a change when the mouse is released
    editor.page.keyboard.press("Control+z")
    editor.wait_until("!app.graph.nodes.some((node) => node.type === 'PreviewImage' && !node.inputs[0].link)")
    branches.nth(2).wait_for()
    assert swatches.count() == 2


def test_what_it_shows_goes_into_a_subgraph_with_its_nodes(editor: Editor):
    workflow = quick_demo()
    editor.load(workflow)
    editor.run()
    inner = [*ids(workflow, "PnPMixSampler"), *ids(workflow, "PnPMixConcept")]
    editor.page.evaluate("ids => app.canvas.selectItems(ids.map((id) => app.graph.getNodeById(id)))", inner)
    editor.command("Comfy.Graph.ConvertToSubgraph")
    shown = """app.graph.nodes.find((node) => node.subgraph).subgraph.nodes
        .map((node) => node.widgets.at(-1).element.textContent).sort()"""
    assert editor.page.evaluate(shown) == ["heart", "pictureheartstar", "star"]


def test_it_finds_its_nodes_in_a_subgraph(editor: Editor):
    workflow = quick_demo()
    editor.load(workflow)
    inner = [*ids(workflow, "PnPMixSampler"), *ids(workflow, "PnPMixConcept")]
    editor.page.evaluate("ids => app.canvas.selectItems(ids.map((id) => app.graph.getNodeById(id)))", inner)
    editor.command("Comfy.Graph.ConvertToSubgraph")
    editor.run()
    shown = """app.graph.nodes.find((node) => node.subgraph).subgraph.nodes
        .find((node) => node.type === "PnPMixSampler").widgets.at(-1).element.textContent === "pictureheartstar\""""
    assert editor.page.evaluate(shown)
    editor.to_another_tab_and_back()
    editor.wait_until(shown)
