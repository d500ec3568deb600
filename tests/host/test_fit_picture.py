"""Fit Picture and Paste Back in a graph: a photo of any size comes back, all pixels outside the masks as they were."""

import pytest
import skimage
import torch
import torch.nn.functional as F
from pnpmix.masks import grow
from pnpmix.vision.framing import bounding_frame

from comfy_host import Graph, output, refused
from mixer_graph import chain, invert, mixer
from pictures import HEIGHT, WIDTH, latent
from small_models import LAYOUTS, comfy_model


def photo(name: str = "coffee") -> torch.Tensor:
    """(1, 400, 600, 3), or another of scikit-image's."""
    return torch.from_numpy(getattr(skimage.data, name)())[None].float() / 255


def disc(size: tuple[int, int], row: int, column: int, radius: int) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    return (((y - row) ** 2 + (x - column) ** 2) < radius**2).float()[None]


def fit(image, mask=None, **settings) -> dict:
    """What Fit Picture gives: image, mask and place."""
    graph = Graph()
    settings = dict(width=128, height=128, mode="around the object", margin=20, multiple=8) | settings
    fitted = graph.add("PnPMixFitPicture", image=image, mask=mask, **settings)
    return graph.run(image=fitted, mask=output(fitted, 1), place=output(fitted, 2))


def paste(original, image, mask, **settings) -> torch.Tensor:
    graph = Graph()
    settings = dict(expand=6, feather=4) | settings
    pasted = graph.add("PnPMixPasteBack", original=original, image=image, mask=mask, **settings)
    return graph.run(image=pasted)["image"]


def redrawn(image: torch.Tensor) -> torch.Tensor:
    """A finished picture that has no value of the one before."""
    return (image + 0.3) % 1


def large_photo(scene: torch.Tensor, masks: torch.Tensor, row: int, column: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A photo of 4000 x 3000 with the (1, h, w, 3) scene in it, and the masks (n, h, w) at their places there."""
    image = F.interpolate(photo("astronaut").movedim(-1, 1), size=(3000, 4000)).movedim(1, -1).clone()
    rows, columns = slice(row, row + scene.shape[1]), slice(column, column + scene.shape[2])
    image[:, rows, columns] = scene
    moved = torch.zeros(len(masks), 3000, 4000)
    moved[:, rows, columns] = masks
    return image, moved


def far_from(masks: torch.Tensor, pixels: int) -> torch.Tensor:
    """Binary (H, W): more than `pixels` from all of the (n, H, W) masks."""
    mask = masks.amax(0)
    outside, (rows, columns) = mask == 0, bounding_frame(mask)
    near = tuple(slice(max(start - pixels, 0), stop + pixels) for start, stop in (rows, columns))
    outside[near] = grow(mask[near][None], pixels)[0] == 0
    return outside


def test_three_small_objects_of_a_large_photo_are_blended_and_every_other_pixel_is_the_photos():
    """Cut out, blended by the demo model, decoded, put back: with nothing but the mixer's own mask and place."""
    graph = Graph()
    scene = graph.add("PnPMixDemoScene", seed=5, concepts=3)
    drawn = graph.run(scene=scene, words=output(scene, 7), **{f"mask {k}": output(scene, 4 + k) for k in range(3)})
    enlarged = [x.repeat_interleave(6, 1).repeat_interleave(6, 2) for x in (drawn["scene"], *map(drawn.get, MASKS))]
    image, masks = large_photo(enlarged[0], torch.cat(enlarged[1:]), 1700, 2900)
    fitted = fit(image, masks, width=64, height=64, margin=5)

    graph = Graph()
    model = graph.add("PnPMixDemoModel")
    clip, vae = output(model, 1), output(model, 2)
    scene = graph.add("PnPMixDemoScene", seed=5, concepts=3)
    prompts = {
        "positive": graph.add("CLIPTextEncode", clip=clip, text=drawn["words"]),
        "negative": graph.add("CLIPTextEncode", clip=clip, text=""),
    }
    latent = graph.add("VAEEncode", pixels=fitted["image"], vae=vae)
    inversion = invert(graph, model, latent=latent, steps=8, skip_steps=3, **prompts)
    concepts = None
    for k in range(3):
        own = graph.add("VAEEncode", pixels=output(scene, 1 + k), vae=vae)
        mask = fitted["mask"][k : k + 1]
        concepts = graph.add("PnPMixConcept", latent=own, mask=mask, concepts=concepts, seed=1 + k, name="")
    mixed = mixer(graph, model, inversion, concepts, **prompts)
    finished = graph.add("VAEDecode", samples=mixed, vae=vae)
    place = graph.given(fitted["place"])
    pasted = graph.add(
        "PnPMixPasteBack", original=image, image=finished, mask=output(mixed, 2), expand=6, feather=4, place=place
    )
    result = graph.run(image=pasted)["image"]

    assert result.shape == image.shape == (1, 3000, 4000, 3)
    scale = fitted["place"].frame.size[0] / 64
    assert scale < 8, "the objects fill the frame"
    cell = round(2 * scale) + 1  # the mixer's mask is one of whole latent cells
    outside = far_from(masks, 6 + cell)
    assert torch.equal(result[0, outside], image[0, outside])
    change = (result - image)[0].abs().amax(-1)
    assert all(change[mask > 0.5].mean() > 0.05 for mask in masks)


MASKS = [f"mask {k}" for k in range(3)]


def test_large_photo_keeps_every_pixel_outside_the_grown_masks():
    """With the masks as they lie on the photo, or as Fit Picture gave them."""
    size = (3000, 4000)
    masks = torch.cat([disc(size, 2300, 500, 40), disc(size, 2450, 900, 60), disc(size, 2200, 1100, 25)])
    image, _ = large_photo(photo("chelsea"), torch.zeros(1, 300, 451), 100, 100)
    fitted = fit(image, masks, width=512, height=512)
    assert fitted["image"].shape == (1, 512, 512, 3) and fitted["mask"].shape == (3, 512, 512)
    for mask, pixel in ((masks, 0), (fitted["mask"], 2)):  # the masks' outlines move by less than one of the part
        result = paste(image, redrawn(fitted["image"]), mask, place=fitted["place"])
        unlike = (result != image)[0].any(-1)
        assert not unlike[far_from(masks, 6 + pixel)].any()
        assert unlike[masks.amax(0) > 0].float().mean() > 0.99


def test_object_in_the_part_is_the_photos_and_as_large_as_it_can_be():
    image, mask = photo(), disc((400, 600), 300, 450, 40)
    fitted = fit(image, mask, width=256, height=128, margin=0)
    assert fitted["place"] == ((400, 600), ((261, 340), (371, 529)), (128, 256))
    assert fitted["image"].shape == (1, 128, 256, 3)
    assert (fitted["mask"][0] >= 0.5).any(1).all(), "from the first row to the last"
    cut = F.interpolate(image[:, 261:340, 371:529].movedim(-1, 1), size=(128, 256), mode="bicubic").movedim(1, -1)
    assert (fitted["image"] - cut).abs().mean() < 0.01


@pytest.mark.parametrize("mode", ["crop", "pad", "around the object"])
def test_part_that_nothing_was_done_to_gives_the_photo_back(mode):
    """Almost, where it was scaled; the mask covers everything."""
    image, mask = photo(), disc((400, 600), 200, 300, 100)
    fitted = fit(image, mask, mode=mode, width=512, height=512)
    result = paste(image, fitted["image"], torch.ones(1, 400, 600), place=fitted["place"])
    assert (result - image).abs().mean() < 0.01
    shifted = image.roll(1, 2)
    assert (result - image).abs().mean() < 0.5 * (shifted - image).abs().mean()


def test_crop_shows_the_object_where_the_middle_would_not():
    image, mask = photo(), disc((400, 600), 200, 560, 30)
    assert fit(image, mask, mode="crop")["place"].frame == ((0, 400), (200, 600))
    assert fit(image, mode="crop")["place"].frame == ((0, 400), (100, 500))


def test_without_a_mask_it_is_all_that_is_of_the_photo():
    fitted = fit(photo(), mode="pad", width=600, height=600)
    assert (fitted["mask"][0, 100:500] == 1).all() and fitted["mask"].sum() == 400 * 600


def test_size_is_that_of_another_picture_and_rounded_to_the_multiple():
    image = photo()
    assert fit(image, mode="crop", like=torch.rand(2, 241, 190, 3))["image"].shape == (1, 240, 192, 3)
    assert fit(image, mode="crop", width=500, height=40, multiple=64)["image"].shape == (1, 64, 512, 3)
    assert fit(image, mode="crop", like=torch.rand(1, 1, 1, 3))["image"].shape == (1, 8, 8, 3)


def test_without_place_the_picture_is_all_of_the_original():
    image, mask = photo(), disc((400, 600), 200, 300, 50)
    outside = grow(mask, 6)[0] == 0
    half = F.interpolate(image.movedim(-1, 1), size=(200, 300), mode="area").movedim(1, -1)
    for finished in (redrawn(image), redrawn(half)):
        result = paste(image, finished, mask)
        assert torch.equal(result[0, outside], image[0, outside])
        assert (result - image)[0, mask[0] > 0].abs().mean() > 0.2


def test_border_between_old_and_new_is_as_wide_as_feather():
    image = torch.zeros(1, 40, 60, 3)
    mask = torch.zeros(1, 40, 60)
    mask[:, :, :20] = 1
    row = paste(image, torch.ones_like(image), mask, expand=6, feather=3)[0, 20, :, 0]
    assert row[:23].eq(1).all() and row[26:].eq(0).all()
    assert row[23:26].tolist() == pytest.approx([0.75, 0.5, 0.25])
    assert paste(image, torch.ones_like(image), mask, expand=0, feather=4)[0, 20, :, 0].tolist() == [1] * 20 + [0] * 40


def test_batch_is_cut_alike_and_pasted_one_by_one():
    images = torch.cat([photo("chelsea"), photo("chelsea").flip(2)])
    masks = torch.cat([disc((300, 451), 100, 100, 20), disc((300, 451), 200, 300, 30)])
    fitted = fit(images, masks)
    assert fitted["image"].shape[0] == fitted["mask"].shape[0] == 2
    assert torch.equal(fitted["image"][1:], fit(images[1:], masks)["image"])
    finished = redrawn(fitted["image"])
    pairs = paste(images, finished, fitted["mask"], place=fitted["place"])
    alone = paste(images[1:], finished[1:], fitted["mask"][1:], place=fitted["place"])
    assert torch.equal(pairs[1:], alone)
    tries = paste(images[:1], finished, fitted["mask"], place=fitted["place"])
    assert len(tries) == 2 and torch.equal(tries[:1], pairs[:1]), "two tries for one original"
    joined = paste(images[:1], finished[:1], masks, place=fitted["place"])
    assert torch.equal(joined, paste(images[:1], finished[:1], masks.amax(0, keepdim=True), place=fitted["place"]))


def test_batches_of_different_length_are_refused():
    three, mask = torch.rand(3, 16, 16, 3), torch.ones(1, 16, 16)
    with refused("Paste Back, input 'image'", "batch of 2", "one of 3"):
        paste(three, three[:2], mask)


def test_alpha_moves_with_the_picture_and_the_originals_is_kept():
    image, mask = torch.cat([photo(), torch.rand(1, 400, 600, 1)], -1), disc((400, 600), 150, 130, 40)
    fitted = fit(image, mask)
    assert fitted["image"].shape == (1, 128, 128, 4)
    for finished in (redrawn(fitted["image"]), redrawn(fitted["image"][..., :3])):
        result = paste(image, finished, mask, place=fitted["place"])
        assert torch.equal(result[..., 3], image[..., 3])
        assert not torch.equal(result[..., :3], image[..., :3])
    assert paste(image[..., :3], redrawn(fitted["image"]), mask, place=fitted["place"]).shape == (1, 400, 600, 3)


@pytest.mark.parametrize("mode", ["crop", "pad", "around the object"])
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1)])
def test_photo_of_one_pixel(size, mode):
    image, mask = torch.rand(1, *size, 3), torch.ones(1, *size)
    fitted = fit(image, mask, mode=mode)
    result = paste(image, fitted["image"], mask, place=fitted["place"])
    assert result.shape == image.shape and fitted["image"].isfinite().all()


@pytest.mark.parametrize("mask", [torch.zeros(1, 400, 600), torch.zeros(1, 64, 64)], ids=["its size", "Load Image's"])
def test_empty_mask_stops_what_needs_an_object_and_else_warns(mask, messages):
    image = photo()
    with refused("Fit Picture, input 'mask': it is empty.", "Mark the object in white", "another mode"):
        fit(image, mask)
    fitted = fit(image, mask, mode="crop")
    assert messages().count("the mask is empty") == 2, "on the node and in the log"
    assert fitted["mask"].shape == (1, 128, 128) and not fitted["mask"].any()
    assert fitted["place"].frame == ((0, 400), (100, 500))
    assert torch.equal(paste(image, redrawn(fitted["image"]), mask, place=fitted["place"]), image)
    assert "a mask is empty, so its image is unchanged" in messages()


def test_around_an_object_without_a_mask_is_refused():
    with refused("Fit Picture, input 'mask': it is not wired."):
        fit(photo())


def test_mask_of_another_shape_is_refused_and_of_another_scale_is_not(messages):
    image, mask = photo(), disc((400, 600), 150, 130, 40)
    half = disc((200, 300), 75, 65, 20)
    with refused("Fit Picture, input 'mask'", "300 x 300", "600 x 400", "another aspect ratio"):
        fit(image, disc((300, 300), 75, 65, 20))
    frame, scaled = fit(image, mask)["place"].frame, fit(image, half)["place"].frame
    assert messages().count("mask resized from 300 x 200 to 600 x 400") == 2
    assert max(abs(a - b) for x, y in zip(frame, scaled, strict=True) for a, b in zip(x, y, strict=True)) <= 2
    with refused("Paste Back, input 'mask'", "300 x 300", "600 x 400", "another aspect ratio"):
        paste(image, image, disc((300, 300), 75, 65, 20))
    changed, expected = ((paste(image, redrawn(image), x) != image).any(-1) for x in (half, mask))
    assert (changed & expected).sum() > 0.95 * (changed | expected).sum()


@pytest.mark.parametrize("color", [0.0, 1.0, 0.4])
def test_the_mask_of_what_is_transparent_in_a_cut_out_is_refused(color):
    """Load Image's mask is 1 - alpha, and what stood under the transparency is one color."""
    mask = disc((400, 600), 200, 300, 120)
    cut_out = photo() * mask[..., None] + color * (1 - mask[..., None])
    with refused("Fit Picture", "'mask'", "one flat color", "Invert Mask"):
        fit(cut_out, 1 - mask)
    assert fit(cut_out, mask)["mask"].max() == 1


def test_what_an_editor_painted_black_is_refused_and_a_plain_object_is_not():
    mask = disc((400, 600), 200, 300, 120)
    with refused("Fit Picture", "'mask'", "one flat color"):
        fit(photo() * (1 - mask[..., None]), mask)
    red = torch.tensor([0.8, 0.1, 0.1])
    fit(photo() * (1 - mask[..., None]) + red * mask[..., None], mask)


def test_an_object_that_the_part_has_no_pixel_for_is_told_the_way_out(messages):
    fit(photo(), disc((400, 600), 200, 300, 1), mode="crop", width=8, height=8)
    assert "around the object" in messages()


def test_object_at_the_border_is_not_cut():
    image, mask = photo(), disc((400, 600), 390, 595, 40)
    fitted = fit(image, mask, margin=50)
    assert fitted["place"].frame.rows[1] == 400 and fitted["place"].frame.columns[1] == 600
    result = paste(image, redrawn(fitted["image"]), fitted["mask"], place=fitted["place"])
    assert (result != image).any(-1)[0, -1, -1]


def test_object_larger_than_any_frame_is_padded_and_said_so(messages):
    image, mask = photo(), torch.zeros(1, 400, 600)
    mask[:, 100:300, 50:550] = 1
    fitted = fit(image, mask, margin=0)
    assert fitted["place"].frame.size == (500, 500)
    assert "so it is padded" in messages()
    assert fitted["mask"].sum() == pytest.approx(200 / 500 * 128**2, rel=0.01), "nothing of it is cut off"
    result = paste(image, redrawn(fitted["image"]), fitted["mask"], place=fitted["place"])
    outside = grow(mask, 8)[0] == 0
    assert torch.equal(result[0, outside], image[0, outside])


def test_what_does_not_belong_together_is_refused():
    image, mask = photo(), disc((400, 600), 150, 130, 40)
    fitted = fit(image, mask, width=192)
    with refused("Paste Back, input 'original'", "192 x 128", "600 x 400", "that went into Fit Picture"):
        paste(fitted["image"], fitted["image"], mask, place=fitted["place"])
    with refused("Paste Back, input 'image'", "600 x 600", "192 x 128", "made from this crop"):
        paste(image, torch.rand(1, 600, 600, 3), mask, place=fitted["place"])
    with refused("Paste Back, input 'image'", "128 x 128", "600 x 400", "Wire place"):
        paste(image, torch.rand(1, 128, 128, 3), mask)
    for gray in (dict(original=image[..., :1], image=image), dict(original=image, image=image[..., :1])):
        with refused("Paste Back, input", "1 channels"):
            paste(**gray, mask=mask)
    with refused("Fit Picture, input 'image': it has 1 channels"):
        fit(image[..., :1], mask)
    with refused("mode", "'sideways'", "crop"):
        fit(image, mask, mode="sideways")


def test_half_pictures_come_back_as_this_comfyui_has_them(monkeypatch):
    """Newer hosts can keep pictures in half precision."""
    import comfy.model_management
    from comfy.cli_args import args

    monkeypatch.setattr(args, "fp16_intermediates", True, raising=False)
    kind = torch.float16 if hasattr(comfy.model_management, "intermediate_dtype") else torch.float32
    image, mask = photo().half(), disc((400, 600), 150, 130, 40).half()
    fitted = fit(image, mask)
    assert fitted["image"].dtype == fitted["mask"].dtype == kind
    result = paste(image, redrawn(fitted["image"]), fitted["mask"], place=fitted["place"])
    outside = grow(mask.float(), 8)[0] == 0
    assert result.dtype == kind and torch.equal(result[0, outside], image[0, outside].to(kind))


def test_nodes_say_what_they_did(messages):
    image, mask = photo(), disc((400, 600), 200, 300, 50)
    fitted = fit(image, mask, margin=0)
    assert messages() == "99 x 99 of 600 x 400 pixels, scaled to 128 x 128."
    paste(image, fitted["image"], mask, place=fitted["place"], expand=0)
    assert messages() == f"Changed {mask.mean():.1%} of the image."


@pytest.mark.parametrize("feather", [0, 5])
def test_mixer_tells_every_pixel_that_may_have_changed(feather):
    model, graph = comfy_model(LAYOUTS["SD 1.x"]), Graph()
    mixed = mixer(graph, model, invert(graph, model), chain(graph, 2), feather=feather)
    results = graph.run(latent=mixed, mask=output(mixed, 2))
    assert results["mask"].shape == (1, HEIGHT, WIDTH)
    changed = results["mask"].reshape(HEIGHT // 8, 8, WIDTH // 8, 8).movedim(2, 1).flatten(2)
    assert torch.equal(changed.amin(-1), changed.amax(-1)), "whole cells"
    # scaled for the model and back, an unchanged latent is rounded
    differs = ((results["latent"]["samples"] - latent(0)).abs() > 1e-5)[0].any(0)
    assert not differs[changed[..., 0] == 0].any()
    assert changed[..., 0].mean() < (1.2 if feather == 0 else 2) * differs.float().mean(), "and not the whole picture"
