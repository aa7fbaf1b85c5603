"""Images through Pillow: upright, 8-bit RGB, one frame."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Mapping
from contextlib import suppress
from io import BytesIO
from typing import IO, Any, cast

import numpy as np
from PIL import Image as PILImage
from PIL import ImageFile, ImageOps, UnidentifiedImageError

from nemo_mm_rank.errors import MediaError
from nemo_mm_rank.media.apart import call
from nemo_mm_rank.media.limits import Watched, check_cpu

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI")
"""Raster formats that Pillow decodes itself: nothing that runs another program (EPS) or only guesses."""
IN_ONE_CALL = ("WEBP", "TIFF", "AVIF", "JPEG2000")
"""Those whose decoders cannot be stopped on the way: they run in a process of their own (`media.apart`)."""

_BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, OverflowError, MemoryError,
    RuntimeError, struct.error, zlib.error,
)  # fmt: skip
"""What Pillow's readers raise when a file does not hold what it promises."""


MAX_SCANS = 100
"""Of a JPEG: each goes over the whole image, and takes as little as a dozen bytes."""
_BLOCK = 1 << 12
"""Bytes that a decoder is fed at a time."""
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_SCAN, _END = b"\xff\xda", b"\xff\xd9"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")


def decode_image(file: IO[bytes], max_pixels: int, max_side: int = 65_535, here: bool = False) -> PILImage.Image:
    """Decode an image: EXIF orientation applied, transparency on white, the first frame of an animation, in RGB.

    16-bit greys keep their high byte (as Pillow does for 16-bit colours). Colour profiles are not applied.
    What the file is called does not matter, only what it holds.

    Args:
        file: the image, as a file that seeks.
        max_pixels: of width and height together.
        max_side: of either.
        here: decode in this process, whatever the format (`IN_ONE_CALL`).

    Raises:
        MediaError: not an image, damaged or cut short, or more than ``max_pixels`` or a side of more than
            ``max_side``, which is checked before any pixel is decoded.
    """
    # Pillow's own guard must not speak up before ours; it is one value for the process, so it is only ever raised.
    if PILImage.MAX_IMAGE_PIXELS is not None:
        PILImage.MAX_IMAGE_PIXELS = max(PILImage.MAX_IMAGE_PIXELS, max_pixels)
    try:
        try:
            return _decoded(file, max_pixels, max_side, here)
        except ValueError:
            # Texts that Pillow finds too long: nothing is used of them.
            return _decoded(_without_texts(file), max_pixels, max_side, here)
    except UnidentifiedImageError as error:
        raise MediaError(f"is not an image in a known format ({', '.join(FORMATS)})") from error
    except (PILImage.DecompressionBombError, PILImage.DecompressionBombWarning) as error:
        raise MediaError(f"has more pixels than the {max_pixels:,} allowed") from error
    except _BROKEN as error:
        raise MediaError(f"cannot be decoded as an image: {error or type(error).__name__}") from error


def answer(content: bytes, about: Mapping[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """Decode an image in a process of its own: see `media.apart`."""
    image = decode_image(BytesIO(content), **about, here=True)
    return image.tobytes(), {"size": image.size}


def _decoded(file: IO[bytes], max_pixels: int, max_side: int, here: bool) -> PILImage.Image:
    with PILImage.open(cast("IO[bytes]", Watched(file)), formats=_available()) as image:
        if image.width * image.height > max_pixels:
            raise MediaError(f"has {image.width} x {image.height} pixels, more than the {max_pixels:,} allowed")
        if max(image.size) > max_side:
            raise MediaError(f"has {image.width} x {image.height} pixels, a side longer than the {max_side:,} allowed")
        if image.format in IN_ONE_CALL and not here:
            file.seek(0)
            about = {"max_pixels": max_pixels, "max_side": max_side}
            pixels, said = call(f"{__name__}:answer", file.read(), about)
            return PILImage.frombytes("RGB", tuple(said["size"]), pixels)
        if image.format in ("JPEG", "MPO"):
            _check_scans(file)
        if isinstance(image, ImageFile.ImageFile):
            image.decodermaxblock = _BLOCK
        image.load()
        with suppress(*_BROKEN):  # EXIF that cannot be read says nothing; the image is there all the same
            ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image)


def _check_scans(file: IO[bytes]) -> None:
    """Refuse a JPEG of too many scans; the file is left where it was."""
    before = file.tell()
    place, scans, end = 2, 0, False
    while not end:
        check_cpu()
        file.seek(place)
        block = file.read(_BLOCK)
        marker = _MARKER.search(block)
        if marker is None:
            place, end = place + len(block) - 1, len(block) < 2
            continue
        scans += marker[0] == _SCAN
        if scans > MAX_SCANS:
            raise MediaError(f"is a JPEG of more than {MAX_SCANS} scans, which no image needs")
        after = marker.end()
        place, end = place + after + int.from_bytes(block[after : after + 2], "big"), marker[0] == _END
    file.seek(before)


def _without_texts(file: IO[bytes]) -> IO[bytes]:
    """Return a PNG without its texts and its colour profile; any other file as it is."""
    file.seek(0)
    if file.read(8) != b"\x89PNG\r\n\x1a\n":
        return file
    kept = BytesIO()
    kept.write(b"\x89PNG\r\n\x1a\n")
    while len(header := file.read(8)) == 8:
        check_cpu()
        length = int.from_bytes(header[:4], "big") + 4
        if header[4:] in _TEXTS:
            file.seek(length, 1)
        else:
            kept.write(header + file.read(length))
    kept.seek(0)
    return kept


def _available() -> tuple[str, ...]:
    """Return the formats that this build of Pillow has (older ones lack AVIF)."""
    if not all(name in PILImage.OPEN for name in FORMATS):
        PILImage.init()
    return tuple(name for name in FORMATS if name in PILImage.OPEN)


def _to_rgb(image: PILImage.Image) -> PILImage.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode == "F":
        raise MediaError("has floating-point pixels, for which no value means white")
    if image.mode.startswith("I"):
        return _high_byte(image).convert("RGB")
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        white = PILImage.new("RGBA", picture.size, "white")
        return PILImage.alpha_composite(white, picture).convert("RGB")
    return image.convert("RGB")


def _high_byte(image: PILImage.Image) -> PILImage.Image:
    # Pillow's own conversion from these modes clips at 255, which leaves white.
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise MediaError("has integer pixels beyond 16 bits, for which no value means white")
    return PILImage.fromarray((values >> 8).astype(np.uint8))
