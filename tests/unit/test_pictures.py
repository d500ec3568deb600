"""Whatever file a person has, ComfyUI gets the same upright picture of 8 bits, and its colors stay what they are."""

import io
import sys

import numpy as np
import pytest
from cli.errors import JobFailed
from cli.pictures import (
    InputFile,
    add_file,
    changed_share,
    decode,
    frames,
    is_cut_out,
    mask_of,
    profile_of,
    with_profile,
)
from PIL import Image, ImageCms

GRADIENT = np.stack(np.broadcast_arrays(np.arange(48)[:, None] * 5, np.arange(32) * 8, 90), -1).astype(np.uint8)
ORIENTATION = 0x0112


def opened(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def wide_gamut() -> bytes:
    """An RGB profile that is not sRGB's: its primaries are those of sRGB in another order of channels' gamma."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = profile.find(b"rXYZ"), profile.find(b"gXYZ")
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"  # red is green: easy to see
    return bytes(profile)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_stands_upright(tmp_path, orientation):
    stored = Image.fromarray(GRADIENT)
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # of EXIF's orientations the transposition that made them
    if orientation > 1:
        stored = stored.transpose(Image.Transpose(back[orientation]))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored.save(tmp_path / "photo.png", exif=exif)
    assert np.array_equal(opened(InputFile(tmp_path / "photo.png").encode()), GRADIENT)


def test_sixteen_bits_of_gray_keep_their_brightness(tmp_path):
    gray = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    Image.fromarray(gray).save(tmp_path / "scan.png")
    assert np.array_equal(opened(InputFile(tmp_path / "scan.png").encode())[..., 0], gray // 257)


def test_the_scenes_numbers_stay_and_objects_are_converted_to_its_profile(tmp_path):
    profile = wide_gamut()
    red = np.full((8, 8, 3), (200, 30, 30), np.uint8)
    Image.fromarray(red).save(tmp_path / "scene.png", icc_profile=profile)
    Image.fromarray(red).save(tmp_path / "thing.png")
    assert np.array_equal(opened(InputFile(tmp_path / "scene.png", profile=profile).encode()), red)
    thing = opened(InputFile(tmp_path / "thing.png", profile=profile).encode())
    assert thing[0, 0, 1] > 150 > thing[0, 0, 0], "what is red is the second number there"
    assert np.array_equal(opened(InputFile(tmp_path / "thing.png").encode()), red)
    assert add_file({}, tmp_path / "thing.png") != add_file({}, tmp_path / "thing.png", profile=profile)


def test_the_result_says_that_its_colors_are_the_scenes(tmp_path):
    profile, file = wide_gamut(), io.BytesIO()
    Image.fromarray(GRADIENT).save(file, "PNG")
    result = Image.open(io.BytesIO(with_profile(file.getvalue(), profile)))
    assert result.info["icc_profile"] == profile
    assert np.array_equal(np.asarray(result), GRADIENT)
    (tmp_path / "result.png").write_bytes(with_profile(file.getvalue(), profile))
    assert profile_of(tmp_path / "result.png") == profile


def test_a_cut_out_brings_its_object_mask(tmp_path):
    pixels = np.dstack([GRADIENT, np.zeros((48, 32), np.uint8)])
    pixels[10:30, 8:20, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "mug.png")
    Image.fromarray(GRADIENT).save(tmp_path / "photo.png")
    assert is_cut_out(tmp_path / "mug.png") and not is_cut_out(tmp_path / "photo.png")
    assert np.array_equal(opened(InputFile(tmp_path / "mug.png", "alpha").encode()), pixels[..., 3])


def test_a_mask_is_a_white_shape_on_black_or_on_nothing(tmp_path):
    shape = np.zeros((20, 20), np.uint8)
    shape[5:9, 4:12] = 255
    on_nothing = Image.fromarray(np.dstack([np.full((20, 20, 3), 255, np.uint8), shape]))
    for picture in (Image.fromarray(shape), on_nothing, Image.fromarray(shape).convert("1")):
        assert np.array_equal(np.asarray(mask_of(picture if picture.mode == "RGBA" else picture.convert("RGB"))), shape)


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_of_a_film_the_first_picture_is_taken(tmp_path, suffix):
    films = [Image.fromarray(np.full((16, 16, 3), value, np.uint8)) for value in (250, 10)]
    films[0].save(tmp_path / f"film.{suffix}", save_all=True, append_images=films[1:], duration=100)
    assert frames(tmp_path / f"film.{suffix}") == 2
    assert np.asarray(decode(tmp_path / f"film.{suffix}").convert("L")).mean() > 240


def test_heic_is_answered_by_what_reads_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "photo.HEIC").write_bytes(b"anything")
    with pytest.raises(JobFailed, match="install pillow-heif"):
        decode(tmp_path / "photo.HEIC")


def test_the_share_that_changed_is_of_the_scenes_pixels(tmp_path):
    Image.fromarray(GRADIENT).save(tmp_path / "scene.png")
    finished, file = GRADIENT.copy(), io.BytesIO()
    finished[:12] = 0
    finished[12:24, :16] += 1
    Image.fromarray(finished).save(file, "PNG")
    assert changed_share(tmp_path / "scene.png", file.getvalue()) == pytest.approx(0.25 + 0.125, abs=0.01)
