"""Pictures and masks of no pixels or of no numbers, names that no file takes, and more photos than anybody meant."""

import html
import json
import os
import re
from pathlib import Path

import pytest
import torch
from pnpmix.metrics.statistics import Measured

from comfy_host import PACK, Graph, pack_module, refused
from learned_concepts import Vae, learn, photos
from small_models import LAYOUTS, comfy_model, small_clip

pytestmark = pytest.mark.oldest
PICTURE, MASK = torch.rand(1, 16, 24, 3), torch.ones(1, 16, 24)
NODES = {
    "PnPMixFitPicture": (
        dict(image=PICTURE, mask=MASK, like=PICTURE),
        dict(width=16, height=16, mode="crop", margin=0, multiple=8),
    ),
    "PnPMixPasteBack": (dict(original=PICTURE, image=PICTURE, mask=MASK), dict(expand=0, feather=0)),
    "PnPMixBackgroundKept": (dict(images=PICTURE, original=PICTURE, mask=MASK * 0), {}),
    "PnPMixInpaintBackground": (dict(image=PICTURE, mask=MASK), dict(expand=0, feather=0)),
    "PnPMixImageSimilarity": (dict(images=PICTURE, references=PICTURE, mask=MASK, reference_mask=MASK), {}),
    "PnPMixBackgroundPicker": (dict(images=PICTURE), dict(index=0)),
}
BAD = {
    "no pictures": lambda x: x[:0],
    "no rows": lambda x: x[:, :0],
    "no columns": lambda x: x[:, :, :0],
    "NaN": lambda x: x * torch.nan,
    "one infinity": lambda x: torch.where(torch.arange(x.numel()).reshape(x.shape) == 5, torch.inf, x),
    "a single number": lambda x: x.flatten()[0],
    "a row": lambda x: x.flatten(),
    "complex": lambda x: x * 1j,
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("node, name", [(node, name) for node, (given, _) in NODES.items() for name in given])
def test_pictures_and_masks_that_are_none(node, name, kind):
    given, settings = NODES[node]
    graph = Graph()
    link = graph.add(node, **settings, **{key: BAD[kind](x) if key == name else x for key, x in given.items()})
    with refused(f"input '{name}'"):
        graph.run(x=link)


def plot(names: str, *scores):
    graph = Graph()
    link = graph.add(
        "PnPMixScorePlot", names=names, **{f"scores{k}": x for k, x in zip(("", "_2"), scores, strict=False)}
    )
    return graph.run(picture=link, table=[link[0], 1])


def measured(*values: float, name: str = "SSIM"):
    return [Measured(name, values)]


@pytest.mark.parametrize("scores", [[[]], [measured()], [[], measured()], [measured(0.5), measured()]])
def test_a_plot_of_no_values(scores):
    with refused("Score Plot, input 'scores'", "no values"):
        plot("", *scores)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_plot_of_no_numbers(value):
    with refused("Score Plot, input 'scores'", "NaN"):
        plot("", measured(0.5, value))


def test_names_in_a_plot():
    """Of any length, and with signs that end a cell of a table."""
    shown = plot("n" * 3000 + "\na | b", measured(0.5, 0.25, name="x" * 3000 + " | y"))
    assert shown["picture"].shape[2] == 800
    assert r"| a \| b | 0.250 |" in shown["table"]
    assert all(line.replace(r"\|", "").count("|") == 3 for line in shown["table"].splitlines())
    assert plot("only in another", [], measured(0.5))["table"]
    with refused("Score Plot, input 'names'", "divide evenly"):
        plot("\n".join(map(str, range(10**6))), measured(0.5))
    with refused("Score Plot, input 'names'", "half of a character"):
        plot("a\ud800", measured(0.5))


class Counting(Vae):
    """Notes how much memory pictures take while the first and the last one are encoded, and may stop the run."""

    def __init__(self, cancel_at: int = 0):
        self.count, self.cancel_at = 0, cancel_at

    def encode(self, pixels):
        import comfy.model_management

        self.count += 1
        if self.count == self.cancel_at:
            comfy.model_management.interrupt_current_processing()
        return super().encode(pixels)


@pytest.fixture(scope="module")
def case():
    return comfy_model(LAYOUTS["SD 1.x"]), small_clip("SD 1.x")


def test_many_photos_take_no_memory_in_pixels(case):
    """Of each a view at a time, and of all together as many as of twenty photos."""
    training = pack_module("latexblend.training")
    settings = pack_module("latexblend.samplers").Settings("dog", 1, 1e-3, 64, 0, 0, True, 1.0, "fp32")
    for count, expected in ((3, 60), (20, 400), (400, 400)):
        vae, given = Counting(), training.photos_of("images", [torch.rand(1, 64, 64, 3).expand(count, 64, 64, 3)])
        views = training.views_of(given, settings)
        assert next(views)[0].shape == (3, 64, 64) and iter(views) is views, "made when it is asked for"
        latents, masks = training.encode_views(vae, given, settings)
        assert vae.count == expected and latents.shape == (expected, 4, 8, 8) and masks.shape == (expected, 1, 8, 8)


def test_cancel_is_heard_before_the_next_photo_is_encoded(case):
    vae, graph = Counting(cancel_at=2), Graph()
    link = learn(graph, *case, images=photos(400), class_images=photos(3))
    next(x for x in graph.prompt.values() if x["class_type"] == "PnPMixTrainConcept")["inputs"]["vae"] = graph.given(
        vae
    )
    with pytest.raises(Exception, match=""):  # how hosts report it differs
        graph.run(learned=link)
    assert vae.count == 2


@pytest.mark.parametrize("field", ["name", "noun"])
@pytest.mark.parametrize("text", ["a\ud800b", "a\x00b", "n" * 400], ids=["half", "control", "long"])
def test_a_name_that_no_file_takes_is_refused_before_hours_of_learning(case, field, text):
    graph = Graph()
    with refused(f"Train Concept, input '{field}'"):
        graph.run(learned=learn(graph, *case, **{field: text}))


def test_half_a_character_in_a_concepts_name_leaves_the_server_running():
    """In the log such a message ends the thread that runs graphs."""
    graph = Graph()
    link = graph.add(
        "PnPMixConcept",
        latent={"samples": torch.zeros(1, 4, 8, 8)},
        mask=torch.zeros(1, 64, 64),
        seed=1,
        name="a\ud800",
    )
    with refused(r"Concept 'a\ud800', input 'mask'") as _:
        graph.run(x=link)


def test_what_a_node_shows_can_be_written(monkeypatch):
    import server

    shown = []
    monkeypatch.setattr(
        server.PromptServer.instance, "send_progress_text", lambda text, node_id, sid=None: shown.append(text.encode())
    )
    pack_module("common.messages").show("Blend", "1", ["Warning: 'a\ud800'"])
    assert shown == [rb"Warning: 'a\ud800'"]


def test_messages_leave_for_the_editor_in_one_place_where_html_becomes_text(monkeypatch):
    import server

    shown = []
    monkeypatch.setattr(server.PromptServer.instance, "send_progress_text", lambda text, node_id: shown.append(text))
    said = "Warning: '<b>' & [[[words|https://x]]]"
    told = pack_module("common.messages").show("Blend", "1", [said])
    assert html.unescape(*shown) == said and not re.search(r"<|\[\[", *shown)
    assert told == {"messages": [f"Blend: {said}"]}, "for programs, which read words"
    senders = [x.name for x in (PACK / "nodes").rglob("*.py") if "send_progress_text" in x.read_text(encoding="utf-8")]
    assert senders == ["messages.py"]


def test_no_list_has_a_name_that_is_html():
    """Older editors put the entries of a list into the page as they are."""
    import folder_paths
    import nodes

    kinds = {
        "PnPMixLoadConcept": folder_paths.get_folder_paths("concepts")[0],
        "PnPMixConceptLora": folder_paths.get_folder_paths("loras")[0],
        "PnPMixInpaintModelLoader": folder_paths.get_folder_paths("inpaint")[0],
        "PnPMixSamLoader": folder_paths.get_folder_paths("sams")[0],
        "PnPMixGroundingDinoLoader": folder_paths.get_folder_paths("grounding-dino")[0],
        "PnPMixLoadInversion": os.path.join(folder_paths.get_output_directory(), "inversions"),
    }
    made = [Path(folder, f"{name}.safetensors") for folder in kinds.values() for name in ("<b>", "plain file")]
    try:
        for file in made:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        for kind in kinds:
            inputs = json.dumps(nodes.NODE_CLASS_MAPPINGS[kind].INPUT_TYPES()["required"])
            assert "plain file.safetensors" in inputs and "<b>" not in inputs, kind
    finally:
        for file in made:
            file.unlink(missing_ok=True)
