"""Model files are found where people keep them, read without running anything in them, and refused with a remedy."""

import json
import os
import pickle
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import spandrel
import torch
from pnpmix.vision.dino_weights import build_grounding_dino, hub_layout, read_text_encoder
from segment_anything import sam_model_registry
from spandrel.architectures.LaMa import LaMa

from comfy_host import Graph, pack_module, refused
from detection_models import randomise, read_bert_folder, write_bert_folder
from published_dino import CONFIGS, PublishedDino


@pytest.fixture(scope="module")
def folders(comfyui) -> dict[str, Path]:
    import folder_paths

    names = ("grounding-dino", "sams", "inpaint", "bert-base-uncased")
    folders = {name: Path(folder_paths.get_folder_paths(name)[0]) for name in names}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    write_bert_folder(folders["bert-base-uncased"])
    return folders


@pytest.fixture(scope="module")
def dino_weights(folders) -> dict[str, torch.Tensor]:
    """The real Swin-T architecture with a small BERT."""
    return randomise(PublishedDino(CONFIGS[96], *read_bert_folder(folders["bert-base-uncased"])), 0).state_dict()


@pytest.fixture(scope="module")
def dino(folders, dino_weights) -> dict[str, torch.Tensor]:
    """The same as the network that runs has it."""
    text_encoder = read_text_encoder(folders["bert-base-uncased"])
    return build_grounding_dino(hub_layout(dino_weights), *text_encoder).state_dict()


@pytest.fixture(scope="module")
def lama() -> LaMa:
    """The real architecture with random weights."""
    torch.manual_seed(0)
    return LaMa(in_nc=4, out_nc=3).eval()


def load(node: str, file: object):
    graph = Graph()
    return graph.run(model=graph.add(node, model_name=graph.given(file)))["model"]


def stops(node: str, file: object, *words: str) -> None:
    with refused(*words):
        load(node, file)


def save_safetensors(weights: dict[str, torch.Tensor], path: Path) -> None:
    """Each name with a copy of its own, which the format wants."""
    safetensors.torch.save_file({name: x.clone() for name, x in weights.items()}, path)


def same_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(x.cpu(), weights[name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize("file", ["swint_ogc.pth", "folder/swint_ogc.safetensors", "grounding-dino-tiny.safetensors"])
def test_grounding_dino(folders, dino_weights, dino, file):
    """As published, as others share it, and as the Hub has it."""
    path = folders["grounding-dino"] / file
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".pth":
        torch.save({"model": {f"module.{name}": x for name, x in dino_weights.items()}}, path)
    else:
        save_safetensors(hub_layout(dino_weights) if "tiny" in file else dino_weights, path)
    assert same_weights(load("PnPMixGroundingDinoLoader", file).model, dino)
    path.unlink()


def test_two_prompts_share_one_look_of_the_real_network(folders, dino_weights):
    """The loaded detector in a graph; the words still decide what is found."""
    save_safetensors(dino_weights, folders["grounding-dino"] / "d.safetensors")
    detector, looks = load("PnPMixGroundingDinoLoader", "d.safetensors"), []
    detector.model.backbone.register_forward_hook(lambda *_: looks.append(1))
    picture, scores = torch.rand(1, 20, 600, 3), []  # the quickest: just enough places for the 900 queries
    with torch.inference_mode():
        for ids in ([101, 1030, 1012, 102], [101, 1034, 1035, 1012, 102], [101, 1030, 1012, 102]):
            scores.append(detector.scores_and_boxes(picture, 0, ids))
    assert len(looks) == 1
    assert all(torch.equal(x, y) for x, y in zip(scores[0], scores[2], strict=True)), "kept as it was"
    assert not torch.allclose(scores[0][1], scores[1][1])


def test_sam(folders):
    weights = sam_model_registry["vit_b"]().state_dict()
    for folder in ("sams", "grounding-dino"):
        torch.save(weights, folders[folder] / "sam_vit_b.pth")
    segmenter = load("PnPMixSamLoader", "sam_vit_b.pth")
    assert same_weights(segmenter.model, weights)
    assert segmenter.patcher.model_size() == sum(x.nbytes for x in weights.values())
    stops("PnPMixGroundingDinoLoader", "sam_vit_b.pth", "not a Grounding DINO")
    for folder in ("sams", "grounding-dino"):
        (folders[folder] / "sam_vit_b.pth").unlink()


@pytest.mark.parametrize("kind", ["big-lama.pt", "lama.safetensors", "lama.pth"])
def test_lama(folders, lama, kind):
    """TorchScript archive, as the community shares it, and plain tensors."""
    path, weights = folders["inpaint"] / kind, lama.state_dict()
    if kind.endswith(".pt"):
        torch.jit.trace(lama, (torch.rand(1, 3, 64, 64), torch.ones(1, 1, 64, 64))).save(path)
    elif kind.endswith(".pth"):
        torch.save(
            {"state_dict": {name.replace("model.model", "generator.model"): x for name, x in weights.items()}}, path
        )
    else:
        safetensors.torch.save_file(weights, path)
    descriptor = load("PnPMixInpaintModelLoader", kind)
    assert isinstance(descriptor, spandrel.MaskedImageModelDescriptor)
    assert descriptor.architecture.id == "LaMa"
    assert same_weights(descriptor.model, weights)
    path.unlink()


LOADERS = {
    "PnPMixGroundingDinoLoader": "grounding-dino",
    "PnPMixSamLoader": "sams",
    "PnPMixInpaintModelLoader": "inpaint",
}


class Attack:
    def __reduce__(self):
        return os.mkdir, ("attacked",)


@pytest.mark.parametrize("node, folder", LOADERS.items())
def test_damaged_and_foreign_files(folders, node, folder, tmp_path):
    place = folders[folder]
    for suffix in (".pth", ".pt", ".safetensors"):
        (place / f"text{suffix}").write_text("This is no model. " * 100)
        stops(node, f"text{suffix}", f"text{suffix}", "damaged", "Download it again")
        (place / f"empty{suffix}").touch()
        stops(node, f"empty{suffix}", f"empty{suffix}", "damaged", "Download it again")
    torch.save({"weight": torch.rand(100, 100)}, place / "whole.pth")
    (place / "short.pth").write_bytes((place / "whole.pth").read_bytes()[:-2000])
    stops(node, "short.pth", "short.pth", "damaged", "Download it again")
    stops(node, "whole.pth", "whole.pth", "Use ")
    torch.save(torch.rand(3), place / "tensor.pth")
    stops(node, "tensor.pth", "tensor.pth", "damaged", "Download it again")
    (place / "attack.pth").write_bytes(pickle.dumps({"weight": Attack()}))
    stops(node, "attack.pth", "attack.pth", "damaged", "Download it again")
    assert not Path("attacked").exists()
    shutil.rmtree(place)
    place.mkdir()


STEMS = {"sams": "image_encoder.pos_embed", "grounding-dino": "backbone.0.patch_embed.proj.weight"}


@pytest.mark.parametrize("node, folder", list(LOADERS.items())[:2])
def test_odd_checkpoints(folders, node, folder):
    stem, picture = STEMS[folder], torch.zeros(96, 3, 4, 4)
    odd = {
        "integer keys": {0: picture, 1: picture, stem: torch.zeros(1)},
        "only integer keys": {0: picture, 1: picture},
        "a scalar": {stem: torch.tensor(96.0), "other": picture},
        "no tensors": {stem: 96, "other": None},
        "nested": {"model": {"state_dict": {"model": {stem: 96, "other": picture}}}},
        "a list": [picture],
        "nothing": {},
    }
    for name, checkpoint in odd.items():
        torch.save(checkpoint, folders[folder] / f"{name}.pth")
        stops(node, f"{name}.pth", "input 'model_name'", f"{name}.pth")
    no_numbers = {
        "repeated": (torch.zeros(1).expand(96, 3, 4, 4), "no plain tensor"),
        "not a number": (picture * torch.nan, "NaN or infinity"),
    }
    for name, (x, fault) in no_numbers.items():
        torch.save({stem: x, "other": picture}, folders[folder] / f"{name}.pth")
        stops(node, f"{name}.pth", "input 'model_name'", stem, fault)
    strange = {
        "_rebuild_sparse_tensor": picture.to_sparse(),
        "_rebuild_meta_tensor": picture.to("meta"),
        "ComplexFloatStorage": picture * 1j,
    }
    for what, x in strange.items():
        torch.save({stem: x, "other": picture}, folders[folder] / "none.pth")
        stops(node, "none.pth", "input 'model_name'", what)
    shutil.rmtree(folders[folder])
    folders[folder].mkdir()


@pytest.mark.parametrize("node", LOADERS)
@pytest.mark.parametrize("file", ["absent.pth", "../checkpoints/x.safetensors"])
def test_files_outside_the_list(folders, node, file):
    (folders["sams"].parent / "checkpoints").mkdir(exist_ok=True)
    (folders["sams"].parent / "checkpoints" / "x.safetensors").touch()
    stops(node, file, "not in")


@pytest.mark.parametrize("node", LOADERS)
@pytest.mark.parametrize("name, fault", [(None, "no file is chosen"), (["lama.pt"], "not in"), ("a\0b.pt", "not in")])
def test_names_that_are_none(folders, node, name, fault):
    stops(node, name, "model_name", fault)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no such files")
@pytest.mark.parametrize("node, folder", LOADERS.items())
def test_what_is_no_file_is_never_opened(folders, node, folder):
    """A pipe would hold the server until somebody writes into it."""
    os.mkfifo(folders[folder] / "pipe.pth")
    (folders[folder] / "folder.pth").mkdir()
    (folders[folder] / "device.pth").symlink_to("/dev/zero")
    for name in ("pipe.pth", "device.pth"):
        stops(node, name, name, "is no file")
    stops(node, "folder.pth", "folder.pth", "not in")
    shutil.rmtree(folders[folder])
    folders[folder].mkdir()


KEY = "model.model.1.ffc.convl2l.weight"
ODD = {
    "is no plain tensor": {"one number as a terabyte": torch.zeros(1).expand(500_000, 500_000)},
    "it holds torch._utils": {
        "sparse": torch.eye(3).to_sparse(),
        "without data": torch.empty(10**9, device="meta"),
    },
    "no known architecture": {"scalar": torch.tensor(1.0), "another shape": torch.rand(64, 4, 3, 3)},
}


@pytest.mark.parametrize("kind, fault", [(kind, fault) for fault, kinds in ODD.items() for kind in kinds])
def test_odd_tensors_in_a_checkpoint(folders, lama, kind, fault):
    torch.save(lama.state_dict() | {KEY: ODD[fault][kind]}, folders["inpaint"] / "odd.pth")
    stops("PnPMixInpaintModelLoader", "odd.pth", fault, "odd.pth")
    (folders["inpaint"] / "odd.pth").unlink()


@pytest.mark.parametrize(
    "weights", [{1: torch.rand(3)}, {"a": 1, "b": "text"}, {}, {"model.model.99999999999.weight": torch.rand(3)}]
)
def test_checkpoints_without_weights_of_an_inpainting_model(folders, weights):
    torch.save(weights, folders["inpaint"] / "odd.pth")
    stops("PnPMixInpaintModelLoader", "odd.pth", "no known architecture", "Use big-lama.pt")
    (folders["inpaint"] / "odd.pth").unlink()


def test_names_that_are_numbers_are_passed_over(folders, lama):
    torch.save(lama.state_dict() | {7: torch.rand(3), "step": 7}, folders["inpaint"] / "numbered.pth")
    assert same_weights(load("PnPMixInpaintModelLoader", "numbered.pth").model, lama.state_dict())
    (folders["inpaint"] / "numbered.pth").unlink()


def test_a_compressed_checkpoint_is_refused(folders):
    """A file of 5 KB that takes a gigabyte."""
    torch.save({"weight": torch.zeros(10**6)}, folders["inpaint"] / "plain.pth")
    with (
        zipfile.ZipFile(folders["inpaint"] / "plain.pth") as plain,
        zipfile.ZipFile(folders["inpaint"] / "small.pth", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for name in plain.namelist():
            small.writestr(name, plain.read(name))
    stops("PnPMixInpaintModelLoader", "small.pth", "damaged", "Download it again")
    stops("PnPMixInpaintModelLoader", "plain.pth", "no known architecture")
    for name in ("plain.pth", "small.pth"):
        (folders["inpaint"] / name).unlink()


def test_no_checkpoint_is_given_to_torch(folders, lama, monkeypatch):
    """torch.load ran code whatever it was told, before 2.6 (CVE-2025-32434), and makes tensors of any size still."""
    torch.save(lama.state_dict(), folders["inpaint"] / "lama.pth")
    monkeypatch.setattr(torch, "load", None)
    load("PnPMixInpaintModelLoader", "lama.pth")
    (folders["inpaint"] / "lama.pth").unlink()


@pytest.mark.parametrize(
    "node, folder, known",
    [
        ("PnPMixGroundingDinoLoader", "grounding-dino", "groundingdino_swint_ogc.pth"),
        ("PnPMixSamLoader", "sams", "sam_vit_b_01ec64.pth"),
        ("PnPMixInpaintModelLoader", "inpaint", "big-lama.pt"),
    ],
)
def test_a_missing_file_is_named_with_those_that_fit_and_where_they_go(folders, node, folder, known):
    stops(node, "mine.pth", f"'mine.pth' is not in models/{folder}", f"{known}: https://", str(folders[folder]))


def test_folders_are_made_unless_the_files_are_elsewhere_or_the_disk_is_read_only(comfyui, tmp_path, monkeypatch):
    import folder_paths

    (loading,) = (module for name, module in sys.modules.items() if name.endswith("nodes.common.loading"))
    elsewhere, models = tmp_path / "elsewhere", tmp_path / "models"
    elsewhere.mkdir()
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {"sams": ([str(elsewhere)], {".pth"})})
    monkeypatch.setattr(folder_paths, "models_dir", str(models))
    loading.register_folders()
    assert sorted(path.name for path in models.iterdir()) == [
        "bert-base-uncased",
        "concepts",
        "grounding-dino",
        "inpaint",
    ]
    monkeypatch.setattr(folder_paths, "models_dir", str(elsewhere / "file" / "models"))
    (elsewhere / "file").touch()  # nothing can be made in it
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {})
    loading.register_folders()


def test_archive_cut_short(folders):
    path = folders["inpaint"] / "big-lama.pt"
    torch.jit.trace(torch.nn.Linear(200, 200), torch.rand(1, 200)).save(path)
    whole, middle = path.read_bytes(), path.stat().st_size // 2
    path.write_bytes(whole[:middle])
    stops("PnPMixInpaintModelLoader", "big-lama.pt", "damaged", "Download it again")
    path.write_bytes(whole[:middle] + bytes(64) + whole[middle + 64 :])
    stops("PnPMixInpaintModelLoader", "big-lama.pt", "damaged", "Download it again")
    path.write_bytes(whole)
    stops("PnPMixInpaintModelLoader", "big-lama.pt", "no known architecture", "Use big-lama.pt")
    path.unlink()


def test_an_upscaler_is_no_inpainting_model(folders):
    from spandrel.architectures.SPAN import SPAN

    torch.save(SPAN(num_in_ch=3, num_out_ch=3, upscale=2).state_dict(), folders["inpaint"] / "upscaler.pth")
    stops("PnPMixInpaintModelLoader", "upscaler.pth", "SPAN", "not an inpainting model", "big-lama.pt")
    (folders["inpaint"] / "upscaler.pth").unlink()


def test_text_encoder_of_another_size(folders, dino_weights):
    save_safetensors(dino_weights, folders["grounding-dino"] / "d.safetensors")
    write_bert_folder(folders["bert-base-uncased"], hidden_size=32)
    stops("PnPMixGroundingDinoLoader", "d.safetensors", "text_backbone", "shape", "bert-base-uncased")
    write_bert_folder(folders["bert-base-uncased"])
    assert load("PnPMixGroundingDinoLoader", "d.safetensors")


PAGE = "<!DOCTYPE html><html><body>Sign in to download this file.</body></html>"
TOKENIZER_OF_ANOTHER = '{"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 0}}}'


BROKEN = {
    "vocab.txt": {
        "page": PAGE,
        "empty": "",
        "binary": "\xff\x00" * 100,
        "other words": "\n".join(f"word{i}" for i in range(1039)),
    },
    "tokenizer.json": {"page": PAGE, "empty": "", "list": "[]", "of another": TOKENIZER_OF_ANOTHER},
    "tokenizer_config.json": {"page": PAGE, "list": "[1, 2]", "types": '{"model_max_length": "long", "cls_token": 5}'},
    "config.json": {
        "page": PAGE,
        "empty": "",
        "cut": "{",
        "list": "[]",
        "nothing": "{}",
        "another": '{"model_type": "t5"}',
        "text": '{"hidden_size": "64"}',
        "null": '{"vocab_size": null}',
        "negative": '{"vocab_size": 1039, "hidden_size": -64}',
        "heads": '{"vocab_size": 1039, "num_attention_heads": 7}',
        "unknown": '{"vocab_size": 1039, "hidden_act": "rm"}',
    },
}


@pytest.mark.parametrize("file, kind", [(file, kind) for file, kinds in BROKEN.items() for kind in kinds])
def test_broken_text_encoder(folders, dino_weights, file, kind):
    """A web page saved in place of a file, nothing, another kind, settings of the wrong type."""
    bert, detector = folders["bert-base-uncased"], folders["grounding-dino"] / "d.safetensors"
    if not detector.exists():
        save_safetensors(dino_weights, detector)
    (bert / file).write_text(BROKEN[file][kind], encoding="latin-1")
    stops("PnPMixGroundingDinoLoader", "d.safetensors", "Load Grounding DINO, input 'model_name'", "bert-base-uncased")
    shutil.rmtree(bert)
    write_bert_folder(bert)


def test_text_encoder_that_asks_for_its_code_to_be_run(folders, dino_weights, dino):
    """It is read as data, like any other, and nobody is asked."""
    bert, detector = folders["bert-base-uncased"], folders["grounding-dino"] / "d.safetensors"
    if not detector.exists():
        save_safetensors(dino_weights, detector)
    (bert / "evil.py").write_text("from pathlib import Path\nPath('attacked').mkdir()\nclass Evil: pass")
    classes = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    config = json.loads((bert / "config.json").read_text()) | {"auto_map": classes}
    (bert / "config.json").write_text(json.dumps(config))
    (bert / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Evil", "auto_map": classes}))
    assert same_weights(load("PnPMixGroundingDinoLoader", "d.safetensors").model, dino)
    assert not Path("attacked").exists()
    shutil.rmtree(bert)
    write_bert_folder(bert)


def test_text_encoder_from_a_hugging_face_cache_or_with_the_packs_vocabulary(
    folders, dino_weights, dino, tmp_path, monkeypatch
):
    save_safetensors(dino_weights, folders["grounding-dino"] / "d.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    shutil.rmtree(folders["bert-base-uncased"])
    config, tokenizer = read_text_encoder(pack_module("vision.detection").bert_folder())
    assert config.vocab_size == len(tokenizer) == 30522
    assert tokenizer("a dog . mugs .")["input_ids"] == [101, 1037, 3899, 1012, 14757, 2015, 1012, 102]
    (tmp_path / "models--google-bert--bert-base-uncased" / "refs").mkdir(parents=True)
    (tmp_path / "models--google-bert--bert-base-uncased" / "refs" / "main").write_text("0" * 40)
    snapshot = tmp_path / "models--google-bert--bert-base-uncased" / "snapshots" / ("0" * 40)
    write_bert_folder(snapshot)
    assert same_weights(load("PnPMixGroundingDinoLoader", "d.safetensors").model, dino)
    write_bert_folder(folders["bert-base-uncased"])
