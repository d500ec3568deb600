"""The shipped graph on files as people have them, in the real server: photos in, picture out."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import skimage
import torch
from PIL import Image

from comfy_host import COMFYUI, DEVICE, PACK
from oracle import relative_error
from server_process import Server
from workflow_files import DEFAULT, SIDE, graphs, read, to_api

SIZE = 128
# one at a time: each of them takes about 8 GB
pytestmark = pytest.mark.xdist_group("full-size models")
LAYOUTS = [pytest.param("SD15", marks=pytest.mark.oldest), pytest.param("SD20", marks=pytest.mark.newest)]


def save_pictures(folder: Path) -> dict[str, np.ndarray]:
    """The files that the workflow's note asks for, and a mask of what each object of the photo covers."""
    photo = skimage.data.astronaut()
    red, _, blue = (photo[..., i].astype(int) for i in range(3))
    row, column = np.mgrid[:512, :512]
    warm = red - blue
    pictures = {
        "background.png": photo,
        "suit.png": largest((warm > 60) & (red > 120) & (row > 230)),
        "head.png": largest((warm > 25) & (row < 190) & (column > 140) & (column < 310)),
        "middle.png": np.pad(np.ones((64, 64), bool), 32),
        "my_dog.png": skimage.data.coffee()[:, 100:500],
        "my_cat.png": skimage.data.chelsea()[:, 75:375],
    }
    for name, picture in pictures.items():
        Image.fromarray(picture.astype(np.uint8) * (255 if picture.dtype == bool else 1)).save(folder / name)
    return pictures


def largest(mask: np.ndarray) -> np.ndarray:
    labels = skimage.measure.label(skimage.morphology.closing(mask, skimage.morphology.disk(5)))
    return labels == np.bincount(labels.flat)[1:].argmax() + 1


@pytest.fixture(scope="module")
def server(request, tmp_path_factory):
    """A server with full-size models of random weights."""
    base = tmp_path_factory.mktemp(request.param)
    # where people with several programs keep their models
    elsewhere = base / "extra_model_paths.yaml"
    elsewhere.write_text(f"elsewhere:\n  base_path: {base}\n  sams: segmenters\n")
    variables = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}  # all cores
    shutil.copytree(PACK / "tests" / "data" / "text_encoder", base / "custom_nodes" / "text_encoder")
    server = Server(base, "--extra-model-paths-config", str(elsewhere), environment=variables)
    try:
        write = [sys.executable, PACK / "tests" / "tools" / "write_checkpoint.py", request.param]
        environment = os.environ | {"COMFYUI_DIR": str(COMFYUI)}
        subprocess.run([*write, base / "models"], check=True, env=environment)
        if request.param != "FLUX":
            write = [sys.executable, PACK / "tests" / "tools" / "write_detection_models.py"]
            subprocess.run([*write, base / "models", base / "segmenters"], check=True)
        server.wait_for_pack()
        yield server
    finally:
        server.stop()
        shutil.rmtree(base / "models")  # gigabytes


def saved(server: Server, outputs: dict, node: str, kind: str) -> Path:
    (file,) = outputs[node][kind]
    return server.base / "output" / file["subfolder"] / file["filename"]


def picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(np.float32) / 255


def small_two_concept_graph() -> tuple[dict, dict]:
    """The shipped workflow as the editor would send it, at 128 × 128 with 3 steps; its nodes' ids by class.

    Thresholds are 0, since what random weights see is arbitrary, and so are their masks: those are not grown. They may
    see every word in one place, so the second concept goes where the first does not.
    """
    prompt, ids = to_api(read("pnp_mix_two_concepts")), {}
    settings = {
        "CheckpointLoaderSimple": {"ckpt_name": "random.safetensors"},
        "ImageScale": {"width": SIZE, "height": SIZE},
        "PnPMixDDPMInvert": {"steps": 4, "skip_steps": 1},
        "PnPMixGroundedMask": {"box_threshold": 0.0, "text_threshold": 0.0},
        "PnPMixInpaintBackground": {"expand": 0},
    }
    for node_id, node in prompt.items():
        node["inputs"] |= settings.get(node["class_type"], {})
        ids.setdefault(node["class_type"], node_id)
    second = [node["inputs"] for node in prompt.values() if node["class_type"] == "PnPMixConcept"][-1]
    prompt["elsewhere"] = {"class_type": "InvertMask", "inputs": {"mask": second["mask"]}}
    second["mask"] = ["elsewhere", 0]
    return prompt, ids


def save_painted(folder: Path, pictures: dict[str, np.ndarray]) -> None:
    """dog.png and cat.png: the photo with its left or right half painted, as the mask editor saves it."""
    for noun, columns in {"dog": slice(0, 256), "cat": slice(256, 512)}.items():
        painted = np.dstack([pictures["background.png"], np.full((512, 512), 255, np.uint8)])
        painted[100:400, columns, 3] = 0
        Image.fromarray(painted).save(folder / f"{noun}.png")


def template_with_given_masks(side: int = SIZE, name: str = DEFAULT) -> tuple[dict, dict]:
    """A template as the editor would send it, its part of the photo `side` pixels wide, with 3 steps and with masks
    from files in the place of Grounded Mask; its nodes' ids by title, or else by class."""
    prompt, ids = to_api(read(name)), {}
    settings = {"CheckpointLoaderSimple": {"ckpt_name": "random.safetensors"}}
    settings |= {"UNETLoader": {"unet_name": "random.safetensors"}, "VAELoader": {"vae_name": "random.safetensors"}}
    settings["PnPMixDDPMInvert"] = {"steps": 4, "skip_steps": 1}
    pictures = {"Your photo": "background.png", "Your picture 1": "my_dog.png", "Your picture 2": "my_cat.png"}
    (finder,) = (x for x, node in prompt.items() if node["_meta"]["title"] == graphs.IN_SCENE)
    graphs.load_masks(prompt, finder, ["suit.png", "head.png"])
    for node_id, node in prompt.items():
        kind, title = node["class_type"], node["_meta"]["title"]
        node["inputs"] |= settings.get(kind, {})
        if kind == "LoadImage":
            node["inputs"]["image"] = pictures[title]
        if kind == "PnPMixGroundedMask":
            graphs.load_mask(node, "middle.png")
        if title == SIDE:
            node["inputs"]["value"] = side
        ids.setdefault(title or kind, node_id)
        ids.setdefault(kind, node_id)
    unused = ("PnPMixGroundingDinoLoader", "PnPMixSamLoader")
    return {key: node for key, node in prompt.items() if node["class_type"] not in unused}, ids


def save_image(link: list, prefix: str) -> dict:
    return {"class_type": "SaveImage", "inputs": {"images": link, "filename_prefix": prefix}}


def save_latent(link: list, prefix: str) -> dict:
    return {"class_type": "SaveLatent", "inputs": {"samples": link, "filename_prefix": prefix}}


@pytest.mark.oldest
@pytest.mark.parametrize("server", ["FLUX"], indirect=True, scope="module")
def test_two_things_with_flux_at_full_width(server):
    """Its template, with a stand-in for the text encoders alone, which have 10 GB."""
    pictures = save_pictures(server.base / "input")
    prompt, ids = template_with_given_masks(name="Replace two objects with a transformer")
    prompt[ids["DualCLIPLoader"]] = {"class_type": "TestTextEncoder", "inputs": {"width": 4096, "pooled": 768}}
    background = prompt[ids["PnPMixDDPMInvert"]]["inputs"]["latent"]
    prompt |= {
        "mixed": save_latent([ids["PnPMixSampler"], 0], "mixed"),
        "background": save_latent(background, "background"),
        "changed": {"class_type": "MaskToImage", "inputs": {"mask": [ids["PnPMixSampler"], 2]}},
        "mask": save_image(["changed", 0], "mask"),
    }
    outputs = server.run(prompt)
    mixed, before = (
        safetensors.torch.load_file(saved(server, outputs, node, "latents"))["latent_tensor"]
        for node in ("mixed", "background")
    )
    cells = (picture(saved(server, outputs, "mask", "images"))[..., 0] > 0).reshape(SIZE // 8, 8, SIZE // 8, 8)
    outside, inside = torch.from_numpy(~cells.any((1, 3))), torch.from_numpy(cells.all((1, 3)))
    assert mixed.shape == (1, 16, SIZE // 8, SIZE // 8) and outside.sum() > 50 and inside.sum() > 20
    assert relative_error(mixed[..., outside], before[..., outside]) < 1e-5
    assert relative_error(mixed[..., inside], before[..., inside]) > 0.05
    finished = picture(saved(server, outputs, ids["SaveImage"], "images"))
    assert finished.shape == pictures["background.png"].shape


# scope: tests of one checkpoint follow each other and share its server
@pytest.mark.parametrize("server", LAYOUTS, indirect=True, scope="module")
def test_two_things_from_photos_to_picture(server):
    pictures = save_pictures(server.base / "input")
    prompt, ids = template_with_given_masks()
    background = prompt[ids["PnPMixDDPMInvert"]]["inputs"]["latent"]
    changed = {"class_type": "MaskToImage", "inputs": {"mask": [ids["PnPMixSampler"], 2]}}
    prompt |= {
        "mixed": save_latent([ids["PnPMixSampler"], 0], "mixed"),
        "background": save_latent(background, "background"),
        "changed": changed,
        "mask": save_image(["changed", 0], "mask"),
    }
    outputs = server.run(prompt)

    # the latent, which the method answers for: exact outside both masks, another inside
    mixed, background_latent = (
        safetensors.torch.load_file(saved(server, outputs, node, "latents"))["latent_tensor"]
        for node in ("mixed", "background")
    )
    mask = picture(saved(server, outputs, "mask", "images"))[..., 0] > 0
    assert mask.shape == (SIZE, SIZE), "the part round the things"
    cells = mask.reshape(SIZE // 8, 8, SIZE // 8, 8)
    outside, inside = torch.from_numpy(~cells.any((1, 3))), torch.from_numpy(cells.all((1, 3)))
    assert outside.sum() > 50 and inside.sum() > 20
    assert relative_error(mixed[..., outside], background_latent[..., outside]) < 1e-5
    assert relative_error(mixed[..., inside], background_latent[..., inside]) > 0.05

    # the picture: the whole photo, with its own pixels outside the masks, which are grown, and coarser in the part
    finished = picture(saved(server, outputs, ids["SaveImage"], "images"))
    photo, objects = pictures["background.png"].astype(np.float32) / 255, pictures["suit.png"] | pictures["head.png"]
    assert finished.shape == photo.shape == (512, 512, 3)
    away = ~skimage.morphology.dilation(objects, np.ones((97, 97)))
    assert away.sum() > 10000
    assert np.array_equal(finished[away], photo[away])
    assert np.abs(finished - photo)[~away].mean() > 0.05

    # with both patches bypassed and the inversion's own guidance every branch predicts what the background does:
    # the part is the photo's through the VAE, inside the masks too
    prompt, ids = template_with_given_masks()
    cfg = prompt[ids["PnPMixDDPMInvert"]]["inputs"]["cfg"]
    prompt[ids["PnPMixSampler"]]["inputs"] |= {"model": [ids["CheckpointLoaderSimple"], 0], "cfg": cfg}
    decoded = prompt[ids["PnPMixPasteBack"]]["inputs"]["image"]
    prompt |= {
        "decode": {
            "class_type": "VAEDecode",
            "inputs": {"samples": background, "vae": [ids["CheckpointLoaderSimple"], 2]},
        },
        "round trip": save_image(["decode", 0], "round trip"),
        "unchanged": save_image(decoded, "unchanged"),
    }
    outputs = server.run(prompt)
    unchanged, round_trip = (picture(saved(server, outputs, node, "images")) for node in ("unchanged", "round trip"))
    assert round_trip.std() > 0.05
    difference = np.abs(unchanged - round_trip)
    # a GPU's half precision rounds rows of one call differently from those of another
    assert difference.max() <= 2 / 255 if DEVICE else difference.mean() <= 2 / 255


@pytest.mark.parametrize("server", LAYOUTS, indirect=True, scope="module")
def test_checkpoints_and_the_demo_model_stand_in_for_each_other(server):
    save_pictures(server.base / "input")
    few_steps = {"steps": 4, "skip_steps": 1}

    prompt = to_api(read("try_it_without_downloads"))
    (demo,) = (node_id for node_id, node in prompt.items() if node["class_type"] == "PnPMixDemoModel")
    prompt[demo] = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "random.safetensors"}}
    ids = {node["class_type"]: node_id for node_id, node in prompt.items()}
    prompt[ids["PnPMixDDPMInvert"]]["inputs"] |= few_steps
    outputs = server.run(prompt)
    assert picture(saved(server, outputs, ids["SaveImage"], "images")).shape == (512, 512, 3)

    prompt, ids = template_with_given_masks(side=64)
    prompt[ids["CheckpointLoaderSimple"]] = {"class_type": "PnPMixDemoModel", "inputs": {}}
    for node in prompt.values():
        if node["class_type"] == "CLIPTextEncode":
            node["inputs"]["text"] = "a cup and a fish in the room"
    outputs = server.run(prompt)
    assert picture(saved(server, outputs, ids["SaveImage"], "images")).shape == (512, 512, 3)


@pytest.mark.parametrize("server", LAYOUTS[:1], indirect=True, scope="module")
def test_two_things_learned_from_photos_to_a_picture_with_both(server):
    """The templates as the editor would send them, at 128 × 128, with 3 steps of learning and 1 or 2 of sampling."""
    save_painted(server.base / "input", save_pictures(server.base / "input"))
    settings = {
        "CheckpointLoaderSimple": {"ckpt_name": "random.safetensors"},
        "PnPMixTrainConcept": {"resolution": SIZE, "augment": False, "dtype": "fp32"},
        "PnPMixBlend": {"start_percent": 0.0},
        "KSampler": {"steps": 1},
        "EmptyLatentImage": {"width": SIZE, "height": SIZE},
    }

    def template(name: str, **own: dict) -> tuple[dict, dict]:
        prompt = to_api(read(name))
        for node in prompt.values():
            node["inputs"] |= settings.get(node["class_type"], {}) | own.get(node["class_type"], {})
        return prompt, {node["class_type"]: node_id for node_id, node in prompt.items()}

    def offered() -> list[str]:
        """By Load Concept, once it is asked again."""
        node = server.get("/object_info/PnPMixLoadConcept")["PnPMixLoadConcept"]
        kind, *options = node["input"]["required"]["file"]
        return kind if isinstance(kind, list) else options[0]["options"]

    for noun, steps in (("dog", 3), ("cat", 1)):
        own = {
            "LoadImage": {"image": f"my_{noun}.png"},
            "PnPMixTrainConcept": {"noun": noun, "steps": steps},
            "PnPMixSaveConcept": {"filename_prefix": noun},
            "PnPMixBlend": {"text": f"a photo of a {noun}"},
        }
        prompt, ids = template("Train a concept", **own)
        outputs = server.run(prompt)
        assert picture(saved(server, outputs, ids["SaveImage"], "images")).shape == (SIZE, SIZE, 3)
    files = [f"{noun}_00001_.safetensors" for noun in ("dog", "cat")]
    assert set(files) <= set(offered()), "after R"
    for file in files:
        path = server.base / "models/concepts" / file
        assert path.stat().st_size < 200_000
        learned = safetensors.torch.load_file(path)
        assert len(learned) == 2 * 16 and all(torch.isfinite(x).all() for x in learned.values())

    prompt, ids = template("Blend trained concepts", KSampler={"steps": 2})
    assert [x["inputs"]["file"] for x in prompt.values() if x["class_type"] == "PnPMixLoadConcept"] == files
    for node in prompt.values():
        if node["class_type"] == "LoadImage":
            node["inputs"]["image"] = node["_meta"]["title"].split()[-1] + ".png"
    blended = picture(saved(server, server.run(prompt), ids["SaveImage"], "images"))
    for node in prompt.values():
        if node["class_type"] == "PnPMixBlendConcept":
            node["inputs"]["strength"] = 0.0
    plain = picture(saved(server, server.run(prompt), ids["SaveImage"], "images"))
    assert blended.shape == plain.shape == (SIZE, SIZE, 3) and np.isfinite(blended).all()
    assert np.abs(blended - plain).mean() > 0.005


@pytest.mark.parametrize("server", LAYOUTS[1:], indirect=True, scope="module")
def test_masks_from_words_on_a_photo(server):
    """The graph as shipped, and a batch, with the real architectures of Grounding DINO and SAM."""
    pictures = save_pictures(server.base / "input")
    prompt, ids = small_two_concept_graph()
    found = [node_id for node_id, node in prompt.items() if node["class_type"] == "PnPMixGroundedMask"]
    for k, node_id in enumerate(found):
        prompt |= mask_pictures(node_id, f"dog and cat {k}")
    outputs = server.run(prompt)
    assert picture(saved(server, outputs, ids["SaveImage"], "images")).shape == (SIZE, SIZE, 3)
    for k in range(2):
        mask, rest = (picture(saved(server, outputs, f"{x} dog and cat {k}", "images")) for x in ("mask", "background"))
        assert mask.shape == (SIZE, SIZE, 3)
        assert set(np.unique(mask)) == {0, 1}
        assert np.array_equal(rest, 1 - mask)
    previews = [outputs[x]["images"][0] for x, node in prompt.items() if node["class_type"] == "PreviewImage"]
    shown = [picture(server.base / "temp" / x["filename"]) for x in previews]
    assert len(shown) == 3 and all(x.shape == (SIZE, SIZE, 3) for x in shown)

    # a batch of two pictures, wide ones because they are quick
    detection = ("PnPMixGroundingDinoLoader", "PnPMixSamLoader")
    loaders = {node_id: node for node_id, node in prompt.items() if node["class_type"] in detection}
    for name in ("background", "my_dog"):
        strip = pictures[f"{name}.png"][100:150, :400]
        Image.fromarray(strip).save(server.base / "input" / f"strip_{name}.png")
    prompt = loaders | {
        "a": {"class_type": "LoadImage", "inputs": {"image": "strip_background.png"}},
        "b": {"class_type": "LoadImage", "inputs": {"image": "strip_my_dog.png"}},
        "batch": {"class_type": "ImageBatch", "inputs": {"image1": ["a", 0], "image2": ["b", 0]}},
        "found": {
            "class_type": "PnPMixGroundedMask",
            "inputs": {
                **prompt[found[0]]["inputs"],
                "image": ["batch", 0],
                "prompt": "astronaut . red cup",
            },
        },
        "preview": save_image(["found", 2], "preview"),
        **mask_pictures("found", "batch"),
    }
    outputs = server.run(prompt)
    for node in ("mask batch", "background batch", "preview"):
        files = [picture(server.base / "output" / x["filename"]) for x in outputs[node]["images"]]
        assert [x.shape for x in files] == [(50, 400, 3)] * 2
    difference = np.abs(files[0] - pictures["background.png"][100:150, :400] / 255).max(-1) > 0.05
    assert difference.mean() > 0.05, "boxes, words and masks are drawn"


def mask_pictures(node_id: str, name: str) -> dict:
    """Nodes that save the mask and the background of a Grounded Mask."""
    nodes = {}
    for index, output in enumerate(("mask", "background")):
        nodes[f"image {output} {name}"] = {"class_type": "MaskToImage", "inputs": {"mask": [node_id, index]}}
        nodes[f"{output} {name}"] = save_image([f"image {output} {name}", 0], f"{output} {name}")
    return nodes


def random_lora(seed: int) -> dict[str, torch.Tensor]:
    """For the decoder's attention of SD 1.5 and the text encoder's, as trainers save it."""
    generator = torch.Generator().manual_seed(seed)
    layers = {"lora_te_text_model_encoder_layers_0_self_attn_q_proj": 768}
    for level, width in ((1, 1280), (2, 640), (3, 320)):
        for number in range(3):
            block = f"lora_unet_up_blocks_{level}_attentions_{number}_transformer_blocks_0_"
            layers |= {f"{block}{name}": width for name in ("attn1_to_q", "attn1_to_out_0", "attn2_to_out_0")}
    lora = {}
    for name, width in layers.items():
        lora[f"{name}.lora_up.weight"] = torch.randn(width, 4, generator=generator)
        lora[f"{name}.lora_down.weight"] = torch.randn(4, width, generator=generator) / width**0.5
    return lora


@pytest.mark.parametrize("server", LAYOUTS[:1], indirect=True, scope="module")
def test_two_lora_concepts_in_a_new_picture(server):
    """The template with painted masks as the editor would send it, at 128 × 128 with 2 steps."""
    save_painted(server.base / "input", save_pictures(server.base / "input"))
    (server.base / "models" / "loras").mkdir(exist_ok=True)
    for k, noun in enumerate(("dog", "cat")):
        safetensors.torch.save_file(random_lora(k), server.base / "models" / "loras" / f"your_{noun}.safetensors")
    settings = {
        "CheckpointLoaderSimple": {"ckpt_name": "random.safetensors"},
        "ImageScale": {"width": SIZE, "height": SIZE},
        "EmptyLatentImage": {"width": SIZE, "height": SIZE},
        "PnPMixLayoutReference": {"steps": 2},
        "PnPMixMaskRefinement": {"updates": 1, "restarts": 2},
        "PnPMixConductor": {"steps": 2},
    }
    shown = []
    for strength in (0.7, 0.0):
        prompt = to_api(read("Two LoRAs in one picture"))
        ids, nouns = {node["class_type"]: node_id for node_id, node in prompt.items()}, iter(("dog", "cat"))
        for node in prompt.values():
            node["inputs"] |= settings.get(node["class_type"], {})
            if node["class_type"] == "LoadImage":
                node["inputs"]["image"] = "background.png"
            if node["class_type"] == "PnPMixGroundedMask":
                node |= {"class_type": "LoadImageMask"}
                node["inputs"] = {"image": f"{next(nouns)}.png", "channel": "alpha"}
            if node["class_type"] == "PnPMixConceptLora":
                node["inputs"]["strength"] = strength
        prompt["latent"] = save_latent([ids["PnPMixConductor"], 0], "conducted")
        outputs = server.run(prompt)
        finished = picture(saved(server, outputs, ids["SaveImage"], "images"))
        assert finished.shape == (SIZE, SIZE, 3) and finished.std() > 0.02
        shown.append(safetensors.torch.load_file(saved(server, outputs, "latent", "latents"))["latent_tensor"])
    change = (shown[0] - shown[1]).abs().mean((0, 1))
    assert change[4:12].mean() > change[[0, 15]].mean() > 0, "the LoRAs act where their masks are"
