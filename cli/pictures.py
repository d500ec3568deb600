"""Images as ComfyUI gets them: decoded here, in the same way for all of its versions."""

import hashlib
import io
import re
import struct
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageOps

from .errors import JobFailed

FOLDER = "pnp-mix"  # of the images that a graph loads, in ComfyUI's input folder
Content = Literal["picture", "mask", "alpha"]


class InputFile(NamedTuple):
    """A file that ComfyUI loads, and what of it."""

    path: Path
    content: Content = "picture"  # "mask": white on black; "alpha": the mask that a cut-out brings
    profile: bytes | None = None  # ICC profile that the colors are converted to; None: they stay as they are

    def encode(self) -> bytes:
        """Returns the PNG file."""
        image = decode(self.path)
        if self.content == "alpha":
            drawn = image.getchannel("A")
        elif self.content == "mask":
            drawn = mask_of(image)
        else:
            drawn = in_profile(image.convert("RGB"), profile_of(self.path), self.profile)
        file = io.BytesIO()
        drawn.save(file, "PNG", compress_level=1)
        return file.getvalue()


def add_file(
    files: dict[str, InputFile], path: Path, content: Content = "picture", profile: bytes | None = None
) -> str:
    """Adds a file to those that a graph loads, and returns its name for ComfyUI's loaders.

    Raises:
        JobFailed: it is not there, or is no image that can be read.
    """
    decode(path)
    mark = hashlib.sha256(path.read_bytes() + content.encode() + (profile or b"")).hexdigest()
    name = f"{safe(path.stem)}-{mark[:12]}.png"
    files[name] = InputFile(path, content, profile)
    return f"{FOLDER}/{name}"


def safe(name: str) -> str:
    """Returns a name that may be a file's."""
    return re.sub(r"[^\w-]+", "_", name)[:80]


@lru_cache(maxsize=8)  # a run may have thousands
def decode(path: Path) -> Image.Image:
    """Returns the image of a file in RGB or RGBA, 8 bits, upright; of an animation the first frame.

    Raises:
        JobFailed: it is not there, or is no image that can be read.
    """
    if path.suffix.lower() in (".heic", ".heif", ".hif"):
        register_heif(path)
    try:
        image: Image.Image = Image.open(path)
        image.load()
        if image.mode in ("I", "I;16", "I;16B", "I;16L", "I;16N"):  # 16 bits of gray, which convert() would clip
            image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
        has_alpha = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
        return ImageOps.exif_transpose(image).convert("RGBA" if has_alpha else "RGB")
    except FileNotFoundError:
        raise JobFailed(f"the image {path} is not there") from None
    except Exception as error:  # of a damaged file Pillow raises almost anything
        raise JobFailed(f"{path} is no image that can be read ({error})") from error


def register_heif(path: Path) -> None:
    """Lets Pillow read HEIC.

    Raises:
        JobFailed: the library that does is not installed.
    """
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise JobFailed(f"{path} is a HEIC image; install pillow-heif, or save it as JPEG or PNG") from None
    register_heif_opener()


@lru_cache(maxsize=64)
def profile_of(path: Path) -> bytes | None:
    """Returns the ICC profile of a file's RGB colors; None where it has none.

    Raises:
        JobFailed: it is no image that can be read.
    """
    decode(path)
    with Image.open(path) as image:
        profile = image.info.get("icc_profile")
    if not profile:
        return None
    try:
        space = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space.strip()
    except (OSError, ImageCms.PyCMSError):
        return None  # damaged
    return profile if space == "RGB" else None


def in_profile(image: Image.Image, own: bytes | None, wanted: bytes | None) -> Image.Image:
    """Returns an RGB image in the colors of another ICC profile; None stands for sRGB."""
    if own == wanted:
        return image
    srgb = ImageCms.createProfile("sRGB")
    source, target = (ImageCms.ImageCmsProfile(io.BytesIO(x) if x else srgb) for x in (own, wanted))
    return ImageCms.buildTransform(source, target, image.mode, image.mode).apply(image)


def mask_of(image: Image.Image) -> Image.Image:
    """Returns a mask, white where the object is: the brightness, or the alpha channel of one color on transparency."""
    if image.mode == "RGBA":
        pixels = np.asarray(image)
        seen = pixels[pixels[..., 3] > 0][:, :3]
        if len(seen) and (seen == seen[0]).all() and pixels[..., 3].min() < 255:
            return image.getchannel("A")
    return image.convert("RGB").convert("L")


def is_cut_out(path: Path) -> bool:
    """Returns whether a part of the image is transparent, and a part is not."""
    image = decode(path)
    if image.mode != "RGBA":
        return False
    opaque = np.asarray(image.getchannel("A")) >= 128
    return bool(opaque.any() and not opaque.all())


def frames(path: Path) -> int:
    """Returns the number of frames of an image file."""
    with Image.open(path) as image:
        return getattr(image, "n_frames", 1)


def with_profile(png: bytes, profile: bytes | None) -> bytes:
    """Returns a PNG file with an ICC profile; its pixels and texts are unchanged."""
    if profile is None:
        return png
    body = b"iCCP" + b"ICC profile\0\0" + zlib.compress(profile)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    end_of_header = 8 + 25  # signature, IHDR
    return png[:end_of_header] + chunk + png[end_of_header:]


def changed_share(scene: Path, finished: bytes) -> float:
    """Returns the share, 0..1, of the scene's pixels that differ in the result."""
    before, after = (np.asarray(x.convert("RGB")) for x in (decode(scene), Image.open(io.BytesIO(finished))))
    return float((before != after).any(-1).mean()) if before.shape == after.shape else 1.0
