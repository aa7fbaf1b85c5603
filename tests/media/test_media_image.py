"""Pictures: every kind that a pool holds, and every kind of damage."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image as PILImage

from nemo_mm_rank.errors import MediaError
from nemo_mm_rank.media.image import decode_image
from tests.media_files import png_header


def encoded(image: PILImage.Image, kind: str, **options: object) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def corners(image: PILImage.Image) -> list[tuple[int, ...]]:
    w, h = image.size
    points = [(0, 0), (w - 1, 0), (0, h - 1), (w - 1, h - 1)]
    return [tuple(np.asarray(image)[y, x]) for x, y in points]


RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def four_colours() -> PILImage.Image:
    image = PILImage.new("RGB", (4, 2))
    for x in range(4):
        for y in range(2):
            image.putpixel((x, y), ((RED, GREEN), (BLUE, WHITE))[y][x // 2])
    return image


# Orientation: where the stored picture's corners (RED GREEN / BLUE WHITE) are seen, by the EXIF standard.
UPRIGHT = {
    1: [RED, GREEN, BLUE, WHITE],
    2: [GREEN, RED, WHITE, BLUE],
    3: [WHITE, BLUE, GREEN, RED],
    4: [BLUE, WHITE, RED, GREEN],
    5: [RED, BLUE, GREEN, WHITE],
    6: [BLUE, RED, WHITE, GREEN],
    7: [WHITE, GREEN, BLUE, RED],
    8: [GREEN, WHITE, RED, BLUE],
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(orientation: int) -> None:
    exif = PILImage.Exif()
    exif[0x0112] = orientation
    image = decode_image(encoded(four_colours(), "PNG", exif=exif), 100)
    assert image.size == ((4, 2) if orientation <= 4 else (2, 4))
    assert corners(image) == UPRIGHT[orientation]


def test_unreadable_exif_leaves_the_picture_as_it_is() -> None:
    image = decode_image(encoded(four_colours(), "PNG", exif=b"Exif\0\0no such thing"), 100)
    assert corners(image) == UPRIGHT[1]


def test_sixteen_bit_grey_is_scaled_and_not_clipped() -> None:
    ramp = np.array([[0, 255, 256, 0x7FFF, 0x8000, 0xFFFF]], dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        image = decode_image(encoded(PILImage.fromarray(ramp), kind), 100)
        assert image.mode == "RGB"
        assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 1, 127, 128, 255]


def test_sixteen_bit_colour_png() -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    pixels = struct.pack(">6H", 0xFFFF, 0x8000, 0, 0x00FF, 0x0100, 0x7FFF)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    png += chunk(b"IDAT", zlib.compress(b"\0" + pixels)) + chunk(b"IEND", b"")
    assert np.asarray(decode_image(io.BytesIO(png), 10))[0].tolist() == [[255, 128, 0], [0, 1, 127]]


@pytest.mark.parametrize(
    ("values", "message"),
    [(np.zeros((2, 2), np.float32), "floating-point"), (np.full((2, 2), 70_000, np.int32), "beyond 16 bits")],
)
def test_pixels_without_a_defined_white_are_refused(values: np.ndarray, message: str) -> None:
    with pytest.raises(MediaError, match=message):
        decode_image(encoded(PILImage.fromarray(values), "TIFF"), 100)


def test_cmyk() -> None:
    image = decode_image(encoded(PILImage.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100), 100)
    red, green, blue = np.asarray(image)[4, 4].tolist()
    assert red >= 250
    assert max(green, blue) <= 5


def test_transparency_lies_on_white() -> None:
    half = PILImage.new("RGBA", (2, 1), (255, 0, 0, 128))
    half.putpixel((1, 0), (0, 0, 0, 0))
    assert np.asarray(decode_image(encoded(half, "PNG"), 10))[0].tolist() == [[255, 127, 127], [255, 255, 255]]
    grey = PILImage.new("LA", (1, 1), (0, 0))
    assert np.asarray(decode_image(encoded(grey, "PNG"), 10))[0, 0].tolist() == [255, 255, 255]


def test_palette_with_and_without_transparency() -> None:
    image = PILImage.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert np.asarray(decode_image(encoded(image, "PNG"), 10))[0].tolist() == [[10, 20, 30], [40, 50, 60]]
    see_through = decode_image(encoded(image, "PNG", transparency=0), 10)
    assert np.asarray(see_through)[0].tolist() == [[255, 255, 255], [40, 50, 60]]


def test_grey_and_bilevel() -> None:
    assert np.asarray(decode_image(encoded(PILImage.new("L", (1, 1), 77), "PNG"), 1))[0, 0].tolist() == [77] * 3
    assert np.asarray(decode_image(encoded(PILImage.new("1", (1, 1), 1), "PNG"), 1))[0, 0].tolist() == [255] * 3


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    frames = [PILImage.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    file = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert corners(decode_image(file, 100)) == [RED] * 4


@pytest.mark.parametrize("size", [(20_000, 20_000), (11_000, 10_000)])
def test_too_many_pixels_are_refused_from_the_header_alone(size: tuple[int, int]) -> None:
    # Nothing but a header: were any pixel asked for, the error would be another one.
    file = io.BytesIO(png_header(*size) + struct.pack(">I", 10) + b"IDAT" + b"\0" * 10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PILImage.DecompressionBombWarning)
        with pytest.raises(MediaError, match=r"more (than the|pixels than the) 100,000,000 allowed"):
            decode_image(file, 100_000_000)


def test_what_the_limit_allows_raises_no_warning_of_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PILImage, "MAX_IMAGE_PIXELS", 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode_image(encoded(PILImage.new("L", (5, 5)), "PNG"), 25).size == (5, 5)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    whole = encoded(PILImage.fromarray(noise), kind).getvalue()
    with pytest.raises(MediaError):
        decode_image(io.BytesIO(whole[: len(whole) // 2]), 10_000)


@pytest.mark.parametrize(
    "content",
    [
        b"just some text\n",
        b'<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"/>',
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n",
        b"\x80\x04\x95pickle.",
        bytes(1000),
    ],
)
def test_what_is_no_picture_is_refused_whatever_its_name(content: bytes) -> None:
    with pytest.raises(MediaError, match="not an image in a known format") as caught:
        decode_image(io.BytesIO(content), 10_000)
    assert "0x" not in str(caught.value)


def test_damage_gives_one_kind_of_error() -> None:
    rng = np.random.default_rng(7)
    noise = PILImage.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8))
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
        whole = encoded(noise, kind).getvalue()
        for _ in range(40):
            damaged = bytearray(whole)
            for place in rng.integers(0, min(len(whole), 400), 6):
                damaged[place] = rng.integers(256)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    assert decode_image(io.BytesIO(damaged), 1_000_000).mode == "RGB"
                except MediaError:
                    continue
