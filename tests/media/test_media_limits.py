"""Bounds of time and memory, however small the file is that would take them; and files that are something else."""

from __future__ import annotations

import io
import struct
import time
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image as PILImage

from nemo_mm_rank import media
from nemo_mm_rank.config import MediaSettings
from nemo_mm_rank.errors import MediaError, TransientError
from nemo_mm_rank.media.apart import call
from nemo_mm_rank.media.container import MAX_SCANS as FRAME_SCANS
from nemo_mm_rank.media.image import MAX_SCANS, decode_image
from nemo_mm_rank.media.limits import check_cpu, cpu_limit, within
from nemo_mm_rank.media.segment import Audio, Image, Video
from nemo_mm_rank.modality import Medium, register
from tests.integration.test_sixth_modality import forget
from tests.media_files import write_video, write_wav


def why(folder: Path, name: str, modality: str, **settings: Any) -> str:
    with pytest.raises(MediaError) as caught:
        media.open(name, root=str(folder), modality=modality, settings=MediaSettings(**settings))
    return str(caught.value)


def jpeg(scans: int, size: tuple[int, int] = (64, 64)) -> bytes:
    """Return a progressive JPEG whose last scan comes again and again until there are ``scans``."""
    file = io.BytesIO()
    PILImage.linear_gradient("L").resize(size).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    last = content.rindex(b"\xff\xda")
    there = content.count(b"\xff\xda")
    return content[:last] + content[last:-2] * (scans - there + 1) + b"\xff\xd9"


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def test_scans_of_a_jpeg_are_counted(tmp_path: Path) -> None:
    (tmp_path / "most.jpg").write_bytes(jpeg(MAX_SCANS))
    (tmp_path / "more.jpg").write_bytes(jpeg(MAX_SCANS + 1))
    # What looks like a scan in a comment, or behind the end, is none.
    seeming = b"\xff\xda" * 1000
    comment = b"\xff\xfe" + struct.pack(">H", len(seeming) + 2) + seeming
    (tmp_path / "seeming.jpg").write_bytes(jpeg(10)[:2] + comment + jpeg(10)[2:] + seeming)
    for name in ("most.jpg", "seeming.jpg"):
        assert isinstance(media.open(name, root=str(tmp_path)), Image)
    said = "'more.jpg': is a JPEG of more than 100 scans, which no image needs"
    assert why(tmp_path, "more.jpg", "image") == said


def test_scans_of_a_frame_in_motion_jpeg_are_counted(tmp_path: Path) -> None:
    def write(name: str, content: bytes) -> None:
        with av.open(str(tmp_path / name), "w") as out:
            stream: Any = out.add_stream("mjpeg", rate=1)
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuvj420p"
            out.start_encoding()
            packet = av.Packet(content)
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, 0, 0, Fraction(1)
            out.mux(packet)

    write("sound.avi", jpeg(10))
    write("more.avi", jpeg(FRAME_SCANS + 1))
    assert isinstance(media.open("sound.avi", modality="video", root=str(tmp_path)), Video)
    assert "has a frame of more than 100 JPEG scans" in why(tmp_path, "more.avi", "video")


def test_sides_count_as_well_as_pixels(tmp_path: Path) -> None:
    PILImage.new("L", (70_000, 1)).save(tmp_path / "wide.png")
    said = "'wide.png': has 70000 x 1 pixels, a side longer than the 65,535 allowed"
    assert why(tmp_path, "wide.png", "image") == said
    assert media.open("wide.png", root=str(tmp_path), settings=MediaSettings(max_side=70_000))
    write_video(tmp_path, count=2)
    said = "'clip.mp4': has frames of 64 x 48 pixels, a side longer than the 63 allowed"
    assert why(tmp_path, "clip.mp4", "video", max_side=63) == said


def test_cpu_that_decoding_takes_is_bounded(tmp_path: Path) -> None:
    PILImage.new("L", (500, 500)).save(tmp_path / "a.png")
    (tmp_path / "a.jpg").write_bytes(jpeg(10, (500, 500)))
    write_wav(tmp_path, np.zeros(160_000, np.int16))
    write_video(tmp_path)
    for name, modality in {"a.png": "image", "a.jpg": "image", "a.wav": "audio", "clip.mp4": "video"}.items():
        said = f"'{name}': takes more than 1e-06 s of CPU to decode (media.decode_seconds)"
        assert why(tmp_path, name, modality, decode_seconds=1e-6) == said


@pytest.mark.parametrize(
    ("kind", "side", "settings"),
    [
        ("WEBP", 1500, {"method": 0}),
        ("TIFF", 3000, {"compression": "tiff_lzw"}),
        ("AVIF", 1500, {"speed": 10}),
        ("JPEG2000", 500, {}),
    ],
)
def test_a_decoder_that_does_all_in_one_call_is_ended(
    tmp_path: Path, kind: str, side: int, settings: dict[str, Any]
) -> None:
    """Nothing in this process could: its limit is seen before the call, and the call takes ten times as long."""
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    PILImage.fromarray(noise).save(tmp_path / "a.png", kind, **settings)
    PILImage.new("RGB", (8, 8), (200, 0, 0)).save(tmp_path / "b.png", kind, **settings)
    said = "'a.png': takes more than 0.02 s of CPU to decode (media.decode_seconds)"
    assert why(tmp_path, "a.png", "image", decode_seconds=0.02) == said
    whole = media.open("a.png", root=str(tmp_path))
    assert isinstance(whole, Image)
    assert whole.pixels.size == (side, side)
    small = media.open("b.png", root=str(tmp_path))  # the next process is as good as the one that was ended
    assert isinstance(small, Image)
    with (tmp_path / "b.png").open("rb") as file:
        assert decode_image(file, 10**6, here=True).tobytes() == small.pixels.tobytes()


@pytest.mark.parametrize("modality", ["audio", "video"])
def test_a_format_that_is_not_read_is_said(tmp_path: Path, modality: str) -> None:
    (tmp_path / "a.wav").write_bytes(jpeg(10))
    assert (
        why(tmp_path, "a.wav", modality) == f"'a.wav': cannot be opened as {modality}: its format is none that is read"
    )


ENDS = "tests.media.work_apart:ends"


def test_a_decoder_that_crashes_ends_itself_alone() -> None:
    for ended, kind, said in (
        ("SIGSEGV", MediaError, r"^cannot be decoded: the decoder has crashed \(SIGSEGV\)$"),
        ("SIGKILL", TransientError, "^memory is too short to decode it$"),
        ("7", MediaError, r"the decoder has crashed \(exit status 7\)"),
    ):
        with pytest.raises(kind, match=said):
            call(ENDS, ended.encode(), {})
    assert call(ENDS, b"", {"back": [1]}) == (b"whole", {"back": [1]})
    with pytest.raises(MediaError, match=r"^cannot be decoded: KeyError: 'name'$"):
        call(ENDS, b"raise", {})


def test_time_asleep_is_no_cpu_and_the_limit_ends_with_its_block() -> None:
    with cpu_limit(0.2):
        time.sleep(0.3)
        check_cpu()
    with cpu_limit(1e-9), pytest.raises(MediaError):
        check_cpu()
    check_cpu()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_of_many_frames_one_is_decoded(tmp_path: Path, kind: str) -> None:
    if kind not in PILImage.registered_extensions().values():
        pytest.skip(f"this Pillow has no {kind}")
    frames = [PILImage.new("RGB", (32, 32), (number % 256, number // 256, 9)) for number in range(500)]
    frames[0].save(tmp_path / "many", kind, save_all=True, append_images=frames[1:])
    start = time.thread_time()
    segment = media.open("many", modality="image", root=str(tmp_path))
    assert time.thread_time() - start < 1
    assert isinstance(segment, Image)
    assert segment.pixels.size == (32, 32)


LONG = {
    "ztxt": chunk(b"zTXt", b"k\0\0" + zlib.compress(b"a" * 2_000_000)),
    "itxt": chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(b"a" * 2_000_000)),
    "text": chunk(b"tEXt", b"k\0" + b"a" * 2_000_000),
    "bomb": chunk(b"zTXt", b"k\0\0" + zlib.compress(b"a" * 100_000_000)),
    "many": chunk(b"zTXt", b"k\0\0" + zlib.compress(b"a" * 1_000_000)) * 100,
    "profile": chunk(b"iCCP", b"k\0\0" + zlib.compress(b"a" * 100_000_000)),
}


@pytest.mark.parametrize("place", [33, -12])
@pytest.mark.parametrize("name", LONG)
def test_texts_in_a_png_are_no_reason_to_refuse_it(tmp_path: Path, name: str, place: int) -> None:
    file = io.BytesIO()
    PILImage.new("RGB", (4, 4), (1, 2, 3)).save(file, "PNG")
    content = file.getvalue()
    (tmp_path / "a.png").write_bytes(content[:place] + LONG[name] + content[place:])
    segment = media.open("a.png", root=str(tmp_path))
    assert isinstance(segment, Image)
    assert segment.pixels.getpixel((3, 3)) == (1, 2, 3)


def test_hours_of_silence_are_cut(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "s.mp3"), "w") as out:
        stream: Any = out.add_stream("libmp3lame", rate=8000, layout="mono")
        out.start_encoding()
        size = stream.codec_context.frame_size
        for number in range(100):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, size), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 8000, number * size
            out.mux(stream.encode(frame))
    content = (tmp_path / "s.mp3").read_bytes()
    (tmp_path / "s.mp3").write_bytes(content + content[len(content) // 2 :] * 2000)  # two hours
    segment = media.open("s.mp3", root=str(tmp_path), settings=MediaSettings(max_seconds=60))
    assert isinstance(segment, Audio)
    assert segment.duration == 60


class Odd(Medium):
    """Raises what a decoder may."""

    raised: BaseException = Exception()

    def decode(self, file: Any, settings: MediaSettings, spans: Any = None) -> Any:
        raise self.raised


@pytest.fixture
def odd() -> Iterator[None]:
    """The name of `Odd`, until the end of the test."""
    register({"odd": f"{__name__}:Odd"})
    yield
    forget("odd")


@pytest.mark.usefixtures("odd")
def test_whatever_a_decoder_raises_is_the_items_reason(tmp_path: Path) -> None:
    (tmp_path / "a.odd").write_bytes(b"content")
    for error, said in (
        (OverflowError("too\nlarge"), "cannot be decoded: OverflowError: too large"),
        (KeyError("s64"), "cannot be decoded: KeyError: 's64'"),
        (ZeroDivisionError("division by zero"), "cannot be decoded: ZeroDivisionError: division by zero"),
        (av.error.InvalidDataError(1, "no such data"), "cannot be decoded: no such data"),
        (ValueError("odd"), "cannot be decoded: odd"),
    ):
        Odd.raised = error
        assert why(tmp_path, "a.odd", "odd") == f"'a.odd': {said}"
    Odd.raised = MemoryError()
    with pytest.raises(TransientError, match=r"^'a\.odd': there is too little memory to decode it$"):
        media.open("a.odd", modality="odd", root=str(tmp_path))
    Odd.raised = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        media.open("a.odd", modality="odd", root=str(tmp_path))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "a Git LFS pointer, .*git lfs pull"),
        (b"\n<!DOCTYPE html><html><body>Not found</body></html>", "an HTML page, .*download it again"),
        (b"\xef\xbb\xbf<html>", "an HTML page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML: either the answer of a server"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC, .*heif-convert"),
        (b"%PDF-1.7\n", "a PDF: .*pdftoppm"),
    ],
)
@pytest.mark.parametrize("modality", ["image", "audio", "video"])
def test_what_is_something_else_is_named(tmp_path: Path, content: bytes, said: str, modality: str) -> None:
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(MediaError, match=f"'a.bin': cannot be decoded as {modality}: it is {said}"):
        media.open("a.bin", modality=modality, root=str(tmp_path))


def test_what_does_not_end_is_left_to_itself() -> None:
    assert within(10, lambda: 3) == 3
    assert within(10, lambda: None) is None
    with pytest.raises(ZeroDivisionError):
        within(10, lambda: 1 / 0)
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"the download did not end within 0.2 s \(download_seconds\)"):
        within(0.2, lambda: time.sleep(3))
    assert time.monotonic() - start < 2
