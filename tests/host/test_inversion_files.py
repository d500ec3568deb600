"""Inversions survive in files, and only whole and fitting ones come back."""

from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

from comfy_host import Graph, GraphError
from mixer_graph import chain, invert, mixer
from pictures import HEIGHT, latent
from small_models import LAYOUTS, comfy_model


@pytest.fixture(scope="module")
def model():
    return comfy_model(LAYOUTS["SD 1.x"])


@pytest.fixture
def folder():
    import folder_paths

    folder = Path(folder_paths.get_output_directory(), "inversions")
    folder.mkdir(exist_ok=True)
    yield folder
    for path in folder.rglob("*.safetensors"):
        path.unlink()


def save(model, prefix: str, **inputs):
    graph = Graph()
    inversion = invert(graph, model, **inputs)
    graph.add("PnPMixSaveInversion", inversion=inversion, filename_prefix=prefix)
    return graph.run(inversion=inversion)["inversion"]


def load(name: str):
    graph = Graph()
    return graph.run(inversion=graph.add("PnPMixLoadInversion", file=name))["inversion"]


def test_what_was_saved_comes_back(model, folder):
    made = save(model, "street", seed=2**64 - 1)
    assert [path.name for path in folder.iterdir()] == ["street_00001_.safetensors"]
    loaded = load("street_00001_.safetensors")
    for name, tensor in made.inversion._asdict().items():
        same = loaded.inversion._asdict()[name]
        assert torch.equal(same, tensor) if name != "seed" else same == tensor
    assert (loaded.family, loaded.settings) == (made.family, made.settings)

    with safetensors.safe_open(folder / "street_00001_.safetensors", "pt") as file:
        settings = file.metadata()
    assert settings["seed"] == str(2**64 - 1)
    assert (settings["steps"], settings["skip_steps"], settings["cfg"]) == ("10", "4", "3.5")
    assert (settings["scheduler"], settings["family"]) == ("ddim_uniform", "SD15 EPS")


def test_a_loaded_inversion_gives_the_same_picture(model, folder):
    made = save(model, "street")
    results = []
    for inversion in (made, load("street_00001_.safetensors")):
        graph = Graph()
        results.append(graph.run(latent=mixer(graph, model, inversion, chain(graph, 2)))["latent"]["samples"])
    assert torch.equal(*results)


def test_names_are_counted_and_may_have_folders(model, folder):
    for _ in range(2):
        save(model, "city/street")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors"))
    assert names == ["city/street_00001_.safetensors", "city/street_00002_.safetensors"]
    assert load("city/street_00002_.safetensors").family == "SD15 EPS"


@pytest.mark.parametrize("prefix", ["../escaped", "/tmp/escaped", "a/../../escaped"])
def test_no_name_leaves_the_folder(model, folder, prefix):
    with pytest.raises(GraphError, match="Save Inversion, input 'filename_prefix'"):
        save(model, prefix)
    assert not list(folder.parent.rglob("escaped*"))


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "missing.safetensors", ""])
def test_no_other_file_is_read(folder, name):
    safetensors.torch.save_file({"x": torch.zeros(1)}, folder.parent / "secret.safetensors")
    with pytest.raises(GraphError, match="Load Inversion, input 'file'.*Save an inversion"):
        load(name)


def test_no_other_file_is_read_through_a_link(folder):
    safetensors.torch.save_file({"x": torch.zeros(1)}, folder.parent / "secret.safetensors")
    graph = Graph()
    with pytest.raises(GraphError, match="Load Inversion, input 'file'"):
        graph.run(inversion=graph.add("PnPMixLoadInversion", file=graph.given(Path("../secret.safetensors"))))


def test_damaged_and_foreign_files(model, folder):
    save(model, "street")
    whole = (folder / "street_00001_.safetensors").read_bytes()
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        (folder / "cut.safetensors").write_bytes(whole[:length])
        with pytest.raises(GraphError, match="'file': cut.safetensors is damaged or cut short.*Make it again"):
            load("cut.safetensors")

    safetensors.torch.save_file({"x": torch.zeros(1)}, folder / "lora.safetensors")
    with pytest.raises(GraphError, match="lora.safetensors is not an inversion"):
        load("lora.safetensors")

    with safetensors.safe_open(folder / "street_00001_.safetensors", "pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    for change in ({"eps": tensors["eps"][1:].clone()}, {"eps": tensors["eps"] * float("nan")}):
        safetensors.torch.save_file(tensors | change, folder / "odd.safetensors", metadata)
        with pytest.raises(GraphError, match="odd.safetensors holds shapes or values that do not fit"):
            load("odd.safetensors")
    safetensors.torch.save_file(tensors, folder / "odd.safetensors", {**metadata, "seed": "x"})
    with pytest.raises(GraphError, match="odd.safetensors is not an inversion"):
        load("odd.safetensors")


def test_a_file_for_another_shape_or_family_is_refused_by_the_mixer(model, folder):
    save(model, "small", latent={"samples": latent(0, HEIGHT, 64)})
    graph = Graph()
    loaded = graph.add("PnPMixLoadInversion", file="small_00001_.safetensors")
    with pytest.raises(GraphError, match="not that of the inversion"):
        graph.run(latent=mixer(graph, model, loaded, chain(graph, 1)))
    graph = Graph()
    loaded = graph.add("PnPMixLoadInversion", file="small_00001_.safetensors")
    with pytest.raises(GraphError, match="another family"):
        graph.run(latent=mixer(graph, comfy_model(LAYOUTS["SD 2.x eps"]), loaded, chain(graph, 1)))
