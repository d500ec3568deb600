"""Inpaint Background in a graph: objects go, everything else comes back bit by bit, odd masks are told of."""

import sys

import pytest
import skimage
import spandrel
import torch
from pnpmix.masks import grow
from spandrel.architectures.LaMa import LaMa

from comfy_host import Graph, GraphError, refused


def photo(name: str = "coffee") -> torch.Tensor:
    return torch.from_numpy(getattr(skimage.data, name)())[None].float() / 255


def disc(size: tuple[int, int], row: int, column: int, radius: int) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    return (((y - row) ** 2 + (x - column) ** 2) < radius**2).float()[None]


def run(image, mask, inpaint_model=None, **settings) -> torch.Tensor:
    graph = Graph()
    settings = dict(expand=8, feather=4) | settings
    return graph.run(
        image=graph.add("PnPMixInpaintBackground", image=image, mask=mask, inpaint_model=inpaint_model, **settings)
    )["image"]


@pytest.fixture(scope="module")
def lama(comfyui):
    """What Load Inpaint Model gives, with random weights."""
    torch.manual_seed(0)
    return spandrel.ModelLoader().load_from_state_dict(LaMa(in_nc=4, out_nc=3).state_dict()).eval()


@pytest.mark.parametrize("method", ["built in", "model"])
@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea"])
def test_outside_the_grown_mask_nothing_changes(lama, name, method):
    image = photo(name)
    mask = disc(image.shape[1:3], 150, 130, 40)
    result = run(image, mask, lama if method == "model" else None)
    outside = grow(mask, 8)[0] == 0
    assert torch.equal(result[:, outside], image[:, outside])
    assert (result[:, mask[0] > 0] - image[:, mask[0] > 0]).abs().mean() > 0.02
    assert result.min() >= 0 and result.max() <= 1


def test_without_growing_only_the_mask_changes(lama):
    image = photo()
    mask = disc(image.shape[1:3], 150, 130, 40)
    changed = (run(image, mask, expand=0, feather=0) != image).any(-1)[0]
    assert (changed <= (mask[0] > 0)).all()


@pytest.mark.parametrize("size", [(16, 16), (37, 51), (8, 200), (203, 97)])
def test_model_takes_any_size(lama, size):
    """Padded for the model, and the padding is gone again."""
    image, mask = torch.rand(1, *size, 3), torch.zeros(1, *size)
    mask[0, 3:5, 3:5] = 1
    result = run(image, mask, lama, expand=1, feather=0)
    assert result.shape == image.shape
    assert torch.equal(result[:, 6:], image[:, 6:])


def test_model_sees_what_spandrel_would_show_it(lama):
    """One crop that is the whole picture: the node's fill is the descriptor's output."""
    image = torch.rand(1, 96, 96, 3)
    mask = disc((96, 96), 48, 48, 20)
    with torch.inference_mode():
        expected = lama(image.movedim(-1, 1).to(lama.device), mask[None].to(lama.device)).movedim(1, -1).cpu()
    result = run(image, mask, lama, expand=0, feather=0)
    assert torch.allclose(result, expected, atol=1e-5)


def test_several_masks_are_joined():
    image = photo()
    size = image.shape[1:3]
    masks = torch.cat([disc(size, 100, 100, 20), disc(size, 250, 400, 30)])
    assert torch.equal(run(image, masks), run(image, masks.amax(0, keepdim=True)))


def test_a_batch_of_pictures_with_a_mask_for_each_or_one_for_all():
    images = torch.cat([photo("chelsea"), photo("chelsea").flip(2)])
    masks = torch.cat([disc((300, 451), 100, 100, 20), disc((300, 451), 200, 300, 30)])
    pairs, shared = run(images, masks), run(images, masks[:1])
    for k in range(2):
        assert torch.equal(pairs[k], run(images[k : k + 1], masks[k : k + 1])[0])
        assert torch.equal(shared[k], run(images[k : k + 1], masks[:1])[0])


def test_gray_mask_of_a_jpeg_is_made_black_and_white():
    image = photo()
    clean = disc(image.shape[1:3], 150, 130, 40)
    noise = 0.04 * torch.rand(clean.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(run(image, (clean - noise).abs()), run(image, clean))


def test_mask_of_another_size_is_resized_and_said_so(messages):
    image = photo()
    small = disc((200, 300), 75, 65, 20)
    result = run(image, small)
    assert messages().count("mask resized from 300 x 200 to 600 x 400") == 2, "on the node and in the log"
    filled, expected = ((x != image).any(-1) for x in (result, run(image, disc((400, 600), 150, 130, 40))))
    assert (filled & expected).sum() > 0.95 * (filled | expected).sum()


def test_empty_mask_gives_the_picture_back_and_warns(messages):
    image = photo()
    assert torch.equal(run(image, torch.zeros(1, 400, 600)), image)
    assert messages().count("a mask is empty") == 2


def test_a_plain_run_tells_how_much_was_removed(messages):
    run(photo(), disc((400, 600), 150, 130, 40))
    assert messages() == "Removed 2.1% of the image."


@pytest.mark.parametrize("expand", [0, 8])
def test_mask_that_leaves_nothing_to_fill_from(expand):
    image, mask = torch.rand(1, 60, 60, 3), torch.ones(1, 60, 60)
    mask[:, :expand, :expand] = 0
    with refused("Inpaint Background, input 'mask'", f"{expand} pixels", "whole image", "lower expand"):
        run(image, mask, expand=expand)


def test_mask_of_one_pixel():
    image, mask = photo(), torch.zeros(1, 400, 600)
    mask[0, 200, 300] = 1
    changed = (run(image, mask, expand=0) != image).any(-1).nonzero().tolist()
    assert changed == [[0, 200, 300]]


def test_alpha_channel_is_kept():
    image = torch.cat([photo(), torch.rand(1, 400, 600, 1)], -1)
    mask = disc((400, 600), 150, 130, 40)
    result = run(image, mask)
    assert torch.equal(result[..., 3], image[..., 3])
    assert torch.equal(result[..., :3], run(image[..., :3], mask))


def test_photo_of_eight_megapixels(lama):
    image = torch.nn.functional.interpolate(photo().movedim(-1, 1), size=(2448, 3264)).movedim(1, -1)
    mask = disc((2448, 3264), 1200, 1600, 60)
    for model in (None, lama):
        result = run(image, mask, model)
        outside = grow(mask, 8)[0] == 0
        assert torch.equal(result[:, outside], image[:, outside])


def test_gray_picture_is_refused():
    with refused("Inpaint Background, input 'image': it has 1 channels"):
        run(photo()[..., :1], disc((400, 600), 150, 130, 40))


@pytest.mark.parametrize("shape", [(0, 64, 64, 3), (64, 64, 3)])
def test_what_holds_no_picture_is_refused(shape):
    with refused("Inpaint Background, input 'image'", f"it has shape {shape}"):
        run(torch.rand(shape), torch.ones(1, 64, 64))


def test_a_batch_of_no_masks_is_refused():
    with refused("Inpaint Background, input 'mask'", "(0, 64, 64)"):
        run(torch.rand(1, 64, 64, 3), torch.ones(0, 64, 64))


@pytest.mark.parametrize("method", ["built in", "model"])
def test_cancel_ends_the_work_on_a_picture(lama, method, monkeypatch):
    """Pressed while the one picture is filled: the executor asks a few times before."""
    import comfy.model_management as management

    asked, ask = [], management.throw_exception_if_processing_interrupted

    def press_cancel():
        asked.append(True)
        if len(asked) == 20:
            management.interrupt_current_processing()
        ask()

    monkeypatch.setattr(management, "throw_exception_if_processing_interrupted", press_cancel)
    with pytest.raises(GraphError, match="execution_interrupted"):
        run(torch.rand(1, 32, 64, 3), disc((32, 64), 16, 16, 8), lama if method == "model" else None)
    assert len(asked) == 20


@pytest.mark.parametrize("method", ["built in", "model"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_half_precision_pictures_come_back_as_the_host_keeps_them(lama, method, dtype, monkeypatch):
    """As with --fp16-intermediates, which older hosts do not have; and from another pack, without it."""
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management, "intermediate_dtype", lambda: dtype, raising=False)
    image, mask = photo("chelsea")[:, :96, :96].half(), disc((96, 96), 40, 40, 9)
    model = lama if method == "model" else None
    result = run(image, mask, model)
    assert result.dtype == dtype
    outside = grow(mask, 8)[0] == 0
    assert torch.equal(result[:, outside], image[:, outside].to(dtype))
    assert torch.allclose(result.float(), run(image.float(), mask, model).float(), atol=1e-3)


@pytest.fixture
def card_without_memory(lama, monkeypatch):
    """A host that keeps weights off its graphics card (--novram); whatever is put on this card is lost."""
    import comfy.model_management as management
    from comfy.model_patcher import ModelPatcher

    on_card = ModelPatcher(lama.model, torch.device("meta"), torch.device("cpu"))
    monkeypatch.setattr(lama, "patcher", on_card, raising=False)  # other tests have theirs back

    monkeypatch.setattr(management, "vram_state", management.VRAMState.NO_VRAM)
    monkeypatch.setattr(management, "get_torch_device", lambda: torch.device("meta"))
    free = 10**9
    monkeypatch.setattr(
        management, "get_free_memory", lambda _=None, torch_free_too=False: (free, free) if torch_free_too else free
    )


def test_model_runs_where_the_host_keeps_its_weights(lama, card_without_memory):
    other = spandrel.ModelLoader().load_from_state_dict(lama.model.state_dict()).eval()
    image, mask = photo("chelsea")[:, :96, :96], disc((96, 96), 40, 40, 9)
    result = run(image, mask, other)
    assert other.patcher.load_device.type == "meta"
    assert torch.equal(result, run(image, mask, lama))


def test_the_host_hears_of_it_when_another_pack_took_the_model_off_the_card(lama, card_without_memory):
    other = spandrel.ModelLoader().load_from_state_dict(lama.model.state_dict()).eval()
    image, mask = photo("chelsea")[:, :96, :96], disc((96, 96), 40, 40, 9)
    run(image, mask, other)
    other.model.model_loaded_weight_memory = other.patcher.model_size()  # in the host's books it is on the card
    run(image, mask, other)
    assert other.patcher.loaded_size() == 0


@pytest.mark.parametrize("fault", ["missing", "broken"])
def test_without_spandrel_only_the_loader_is_missing(fault, comfyui, monkeypatch):
    import nodes

    pack = sys.modules[nodes.NODE_CLASS_MAPPINGS["PnPMixDemoModel"].__module__.split(".nodes.")[0]]
    for name in ("inpainting", "inpaint_model"):
        monkeypatch.delitem(sys.modules, f"{pack.__name__}.nodes.vision.{name}")
    for name in [name for name in sys.modules if name.split(".")[0] == "spandrel"]:
        monkeypatch.delitem(sys.modules, name)
    if fault == "missing":
        monkeypatch.setitem(sys.modules, "spandrel", None)
        assert pack.nodes_of("vision.inpaint_model") == []
    else:
        monkeypatch.setitem(sys.modules, "spandrel.util", None)
        (loader,) = pack.nodes_of("vision.inpaint_model")
        with pytest.raises(Exception, match="Load Inpaint Model.*package spandrel does not load"):
            loader.execute("big-lama.pt")
    (node,) = pack.nodes_of("vision.inpainting")
    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "PnPMixInpaintBackground", node)
    image, mask = torch.rand(1, 64, 64, 3), disc((64, 64), 32, 32, 8)
    assert not torch.equal(run(image, mask), image)
    assert "spandrel" not in sys.modules or fault == "missing"


def test_model_from_another_pack_works(lama):
    """comfyui-inpaint-nodes hands over spandrel's descriptor without a patcher; its nodes can take ours."""
    other = spandrel.ModelLoader().load_from_state_dict(lama.model.state_dict()).eval()
    image, mask = photo("chelsea"), disc((300, 451), 100, 100, 20)
    assert torch.allclose(run(image, mask, other), run(image, mask, lama), atol=1e-5)
