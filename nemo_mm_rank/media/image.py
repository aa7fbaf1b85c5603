"""Pictures through Pillow: upright, 8-bit RGB, one frame."""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress
from typing import IO

import numpy as np
from PIL import Image as PILImage
from PIL import ImageOps, UnidentifiedImageError

from nemo_mm_rank.errors import MediaError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI")
"""Raster formats that Pillow decodes itself: nothing that runs another program (EPS) or only guesses."""

_BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, OverflowError, MemoryError,
    RuntimeError, struct.error, zlib.error,
)  # fmt: skip
"""What Pillow's readers raise when a file does not hold what it promises."""


def decode_image(file: IO[bytes], max_pixels: int) -> PILImage.Image:
    """Decode a picture: EXIF orientation applied, transparency on white, the first frame of an animation, in RGB.

    16-bit greys keep their high byte (as Pillow does for 16-bit colours). Colour profiles are not applied.
    What the file is called does not matter, only what it holds.

    Raises:
        MediaError: not a picture, damaged or cut short, or more than ``max_pixels``, which is checked before any
            pixel is decoded.
    """
    # Pillow's own guard must not speak up before ours; it is one value for the process, so it is only ever raised.
    if PILImage.MAX_IMAGE_PIXELS is not None:
        PILImage.MAX_IMAGE_PIXELS = max(PILImage.MAX_IMAGE_PIXELS, max_pixels)
    try:
        with PILImage.open(file, formats=_available()) as image:
            if image.width * image.height > max_pixels:
                raise MediaError(f"has {image.width} x {image.height} pixels, more than the {max_pixels:,} allowed")
            image.load()
            with suppress(*_BROKEN):  # EXIF that cannot be read says nothing; the picture is there all the same
                ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except UnidentifiedImageError as error:
        raise MediaError(f"is not a picture in a known format ({', '.join(FORMATS)})") from error
    except (PILImage.DecompressionBombError, PILImage.DecompressionBombWarning) as error:
        raise MediaError(f"has more pixels than the {max_pixels:,} allowed") from error
    except _BROKEN as error:
        raise MediaError(f"cannot be decoded as a picture: {error or type(error).__name__}") from error


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
