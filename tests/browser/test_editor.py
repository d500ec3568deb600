"""The pack in the editor: its nodes are found, explained and wired, its graphs load, and what is wrong is said."""

import re

import pytest

from comfy_host import PACK
from editor import Editor
from workflow_files import read

NODES = {path.stem: path.read_text(encoding="utf-8") for path in sorted((PACK / "js" / "docs").glob("*.md"))}
DEMO = "try_it_without_downloads"


@pytest.mark.parametrize("kind", NODES)
def test_node_comes_from_the_search_box_with_its_help(editor: Editor, kind):
    """The help page is the one of js/docs, with every input of the node and pictures that load."""
    page, title = editor.page, NODES[kind].splitlines()[0].removeprefix("# ")
    editor.add_from_search(title, 500, 300)
    (node,) = editor.graph()["nodes"]
    assert node["type"] == kind

    editor.look_at(node["id"])
    editor.select(node["id"])
    page.get_by_test_id("info-button").click()
    help_page = page.locator(".node-help-content")
    help_page.get_by_role("heading", name=title, exact=True).wait_for()
    text = help_page.inner_text()
    for name in editor.inputs(kind):
        assert re.search(rf"\b{name}\b", text), name
    for picture in help_page.locator("img").all():
        assert picture.evaluate("x => x.decode().then(() => x.naturalWidth)") > 0


WORDS = {
    "inversion": ["DDPM Invert", "Save Inversion", "Load Inversion"],
    "grounded sam": ["Grounded Mask", "Load SAM", "Load Grounding DINO"],
    "multi concept": ["Concept", "Mask Noise Mixer"],
    "multi subject": ["Concept", "Mask Noise Mixer"],
    "face": ["Concept", "Guided Appearance Attention"],
    "identity": ["Concept"],
    "ip adapter": ["Concept", "Guided Appearance Attention"],
    "swap object": ["Concept", "Mask Noise Mixer"],
    "replace object": ["Concept", "Mask Noise Mixer"],
    "regional prompt": ["Mask Noise Mixer"],
    "composite": ["Mask Noise Mixer"],
    "product placement": ["Concept"],
    "character consistency": ["Concept", "Conductor"],
    "regional lora": ["Conductor"],
    "sam": ["Load SAM"],
    "pick image": ["Background Picker"],
    "background": ["Background Picker", "Background Dilution++", "Inpaint Background"],
}


@pytest.mark.parametrize("words", WORDS)
def test_search_finds_the_nodes_by_the_words_that_people_use(editor: Editor, words):
    expected = WORDS[words]
    if "search_aliases" not in editor.server.get("/object_info/PnPMixSampler")["PnPMixSampler"]:
        expected = [title for title in expected if words in title.lower()]  # older editors know names alone
    if expected:
        found = editor.search(words)
        for title in expected:
            found.filter(has=editor.page.get_by_text(title, exact=True)).first.wait_for()
        editor.add_from_search(expected[0], 500, 300)


def essence(workflow: dict, like: dict | None = None) -> dict:
    """What a graph computes: nodes, links and values; those alone that `like` has, which may be from before others."""
    links = {link[0]: tuple(map(str, link[1:4])) for link in workflow["links"]}
    known = {str(node["id"]): node.get("widgets_values") or [] for node in (like or workflow)["nodes"]}
    return {
        str(node["id"]): (
            node["type"],
            node.get("title"),
            (node.get("widgets_values") or [])[: len(known[str(node["id"])])],
            {i["name"]: links[i["link"]] for i in node["inputs"] if i.get("link") is not None},
        )
        for node in workflow["nodes"]
    }


def test_a_graph_wired_by_hand_survives_a_reload(editor: Editor):
    scene, model = editor.add("PnPMixDemoScene", 100, 100), editor.add("PnPMixDemoModel", 100, 500)
    encode, concept = editor.add("VAEEncode", 450, 420), editor.add("PnPMixConcept", 700, 250)
    editor.drag_link(scene, 1, encode, "pixels")
    editor.drag_link(model, 2, encode, "vae")
    editor.drag_link(encode, 0, concept, "latent")
    editor.drag_link(scene, 4, concept, "mask")
    before = essence(editor.graph())
    wired = {"latent": (str(encode), "0", str(concept)), "mask": (str(scene), "4", str(concept))}
    assert before[str(concept)][3] == wired

    editor.page.wait_for_timeout(1500)  # the editor keeps the graph of a page that closes a little later
    editor.open()
    editor.wait_until("app.graph.nodes.length === 4")
    assert essence(editor.graph()) == before


def test_a_missing_model_is_named(editor: Editor):
    editor.load(read("pnp_mix_two_concepts"), dismiss=False)
    said = editor.complaint("groundingdino_swint_ogc.pth")
    assert "v2-1_512-ema-pruned.safetensors" in said


def broken_demo(break_it) -> dict:
    """The demo with the picture as its only output, few steps, and something wrong in it."""
    workflow = read(DEMO)
    for node in workflow["nodes"]:
        if node["type"] in ("PreviewImage", "MaskPreview"):
            node["mode"] = 2  # muted
        if node["type"] == "PnPMixDDPMInvert":  # it may run before the fault is found
            node["widgets_values"][:2] = 2, 1
    break_it(workflow, {node["id"]: node for node in workflow["nodes"]})
    return workflow


def remove_an_input(workflow: dict, nodes: dict) -> None:
    (mixer,) = [node for node in nodes.values() if node["type"] == "PnPMixSampler"]
    (chain,) = [i for i in mixer["inputs"] if i["name"] == "concepts"]
    place = mixer["inputs"].index(chain)
    mixer["inputs"].remove(chain)
    links = [link for link in workflow["links"] if link[0] != chain["link"]]
    workflow["links"] = [[*x[:4], x[4] - 1, *x[5:]] if x[3] == mixer["id"] and x[4] > place else x for x in links]


def unknown_choice(workflow: dict, nodes: dict) -> None:
    (dilution,) = [node for node in nodes.values() if node["type"] == "PnPMixDilution"]
    dilution["widgets_values"][2] = "sideways"


def concepts_in_a_loop(workflow: dict, nodes: dict) -> None:
    first, last = (node for node in nodes.values() if node["type"] == "PnPMixConcept")
    (place,) = [k for k, i in enumerate(first["inputs"]) if i["name"] == "concepts"]
    workflow["last_link_id"] += 1
    link = workflow["last_link_id"]
    first["inputs"][place]["link"] = link
    last["outputs"][0]["links"].append(link)
    workflow["links"].append([link, last["id"], 0, first["id"], place, "PNPMIX_CONCEPTS"])


@pytest.mark.parametrize(
    "break_it, words",
    [
        (remove_an_input, ["required input is missing: concepts", "missing a required input: concepts"]),
        (
            unknown_choice,
            ["'sideways' is none of scaled, blended", "value sideways for background dilution++"],
        ),
        (concepts_in_a_loop, ["prompt outputs failed validation", "circular node connection"]),
    ],
)
def test_a_broken_graph_gets_a_message_and_no_traceback(editor: Editor, break_it, words):
    """Older and newer editors word it differently."""
    editor.load(broken_demo(break_it))
    editor.press_queue()
    assert "traceback" not in editor.complaint(*words)
    editor.errors.clear()  # the editor notes the refusal in the console
