"""Moving pictures: which frames, how large, which way up, and what damage and lies do."""

from __future__ import annotations

import io
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import psutil
import pytest

from nemo_mm_rank.errors import MediaError
from nemo_mm_rank.media.video import decode_video
from tests.media_files import boxes

WriteVideo = Callable[..., Path]
Indices = Callable[[npt.NDArray[np.uint8]], list[int]]
Decoded = tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64], float]


def decode(
    source: Path | bytes,
    count: int = 5,
    side: int = 256,
    windows: list[tuple[float, float]] | None = None,
    max_seconds: float = 3600,
    max_pixels: int = 10**8,
) -> Decoded:
    file = io.BytesIO(source if isinstance(source, bytes) else source.read_bytes())
    return decode_video(file, count, side, windows, max_seconds, max_pixels)


CODINGS = [
    ("a.mp4", "libx264", {"g": "12", "bf": "3"}),
    ("a.mp4", "libx264", {"g": "250", "bf": "2", "x264-params": "b-pyramid=2:open-gop=1"}),
    ("a.mp4", "libx265", {"x265-params": "keyint=8:log-level=none"}),
    ("a.mkv", "mpeg4", {"g": "7", "bf": "2"}),
    ("a.avi", "mpeg4", {"g": "7"}),
    ("a.ts", "mpeg2video", {"g": "9", "bf": "2"}),
    ("a.webm", "libvpx-vp9", {"g": "10", "cpu-used": "8", "deadline": "realtime"}),
    ("a.mov", "mjpeg", {}),
]


@pytest.mark.parametrize(("name", "codec", "options"), CODINGS)
def test_the_middles_of_equal_slices(
    write_video: WriteVideo, indices: Indices, name: str, codec: str, options: dict[str, str]
) -> None:
    path = write_video(name, 50, 25 if codec == "mpeg2video" else 10, codec=codec, options=options)
    rate = 25 if codec == "mpeg2video" else 10
    frames, times, duration = decode(path)
    assert frames.shape == (5, 48, 64, 3)
    assert frames.dtype == np.uint8
    assert indices(frames) == [5, 15, 25, 35, 45]
    np.testing.assert_allclose(times * rate, [5, 15, 25, 35, 45], atol=0.02)
    assert duration == pytest.approx(50 / rate, abs=0.01)


@pytest.mark.parametrize(("name", "codec", "options"), CODINGS)
def test_middles_between_the_starts_of_frames(
    write_video: WriteVideo, indices: Indices, name: str, codec: str, options: dict[str, str]
) -> None:
    path = write_video(name, 50, 25 if codec == "mpeg2video" else 10, codec=codec, options=options)
    assert indices(decode(path, 8)[0]) == [3, 9, 15, 21, 28, 34, 40, 46]


@pytest.mark.parametrize(("name", "codec", "options"), CODINGS[:4])
def test_spans_keep_exactly_their_seconds(
    write_video: WriteVideo, indices: Indices, name: str, codec: str, options: dict[str, str]
) -> None:
    path = write_video(name, 50, codec=codec, options=options)
    assert indices(decode(path, 4, windows=[(2, 2.4)])[0]) == [20, 21, 22, 23]
    assert indices(decode(path, 4, windows=[(0, 0.2), (4.8, 9)])[0]) == [0, 1, 48, 49]
    assert indices(decode(path, 1, windows=[(3.31, 3.32)])[0]) == [33]
    with pytest.raises(MediaError, match=r"behind its end at 5\.000 s"):
        decode(path, windows=[(6, 7)])


def test_the_same_frames_as_from_decoding_everything(write_video: WriteVideo) -> None:
    noise = np.random.default_rng(3).integers(0, 255, (60, 48, 64, 3), dtype=np.uint8)
    path = write_video(count=60, pictures=noise, options={"g": "15", "bf": "3", "x264-params": "b-pyramid=2"})
    with av.open(str(path)) as container:
        everything = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for count in (1, 3, 7, 60):
        frames, times, _ = decode(path, count)
        np.testing.assert_array_equal(frames, [everything[number] for number in np.rint(times * 10).astype(int)])


def test_variable_frame_rate_is_sampled_by_time_not_by_number(write_video: WriteVideo, indices: Indices) -> None:
    ticks = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 30, 60, 90]
    frames, times, duration = decode(write_video("a.mkv", len(ticks), ticks=ticks), 4)
    assert duration == pytest.approx(9.1, abs=0.01)
    assert indices(frames) == [9, 10, 10, 11]
    np.testing.assert_allclose(times, [0.9, 3, 3, 6], atol=0.01)


def test_fewer_frames_than_slices_come_again(write_video: WriteVideo, indices: Indices) -> None:
    assert indices(decode(write_video(count=2), 6)[0]) == [0, 0, 0, 1, 1, 1]
    assert indices(decode(write_video("one.mp4", count=1), 3)[0]) == [0, 0, 0]


def test_only_so_many_seconds_are_decoded(write_video: WriteVideo, indices: Indices) -> None:
    frames, _, duration = decode(write_video(count=50), 2, max_seconds=2)
    assert duration == 2
    assert indices(frames) == [5, 15]


def test_scaled_down_but_never_up(write_video: WriteVideo) -> None:
    path = write_video(count=3, size=(128, 64))
    assert decode(path, 1, side=64)[0].shape == (1, 32, 64, 3)
    assert decode(path, 1, side=300)[0].shape == (1, 64, 128, 3)


def test_a_large_change_of_scale_averages(write_video: WriteVideo) -> None:
    stripes = np.zeros((3, 128, 256, 3), np.uint8)
    stripes[:, :, ::2] = 255
    frames = decode(write_video(count=3, size=(256, 128), pictures=stripes, options={"qp": "0"}), 1, side=32)[0]
    assert abs(frames.mean() - 127) < 8
    assert frames.std() < 20


def test_rotation(write_video: WriteVideo) -> None:
    top_white = np.zeros((4, 48, 64, 3), np.uint8)
    top_white[:, :24] = 255
    content = bytearray(write_video(count=4, pictures=top_white).read_bytes())
    (header,) = boxes(bytes(content), b"tkhd")
    one, none, minus = struct.pack(">i", 1 << 16), struct.pack(">i", 0), struct.pack(">i", -(1 << 16))
    matrices = {
        "right": (none, one, minus, none),
        "left": (none, minus, one, none),
        "lower": (minus, none, none, minus),
    }
    for side, (a, b, c, d) in matrices.items():
        place = header + 40
        content[place : place + 8] = a + b
        content[place + 12 : place + 20] = c + d
        picture = decode(bytes(content), 1)[0][0]
        halves = {
            "right": picture[:, picture.shape[1] // 2 + 2 :],
            "left": picture[:, : picture.shape[1] // 2 - 2],
            "lower": picture[picture.shape[0] // 2 + 2 :],
        }
        assert picture.shape == ((48, 64, 3) if side == "lower" else (64, 48, 3))
        assert halves[side].mean() > 240
        assert picture.mean() < 140


def test_mirrors_are_no_half_turns(write_video: WriteVideo) -> None:
    corner = np.zeros((4, 48, 64, 3), np.uint8)
    corner[:, :24, :32] = 255
    content = bytearray(write_video(count=4, pictures=corner).read_bytes())
    place = boxes(bytes(content), b"tkhd")[0] + 40
    for (a, b, c, d), (below, right) in {
        (1, 0, 0, 1): (False, False),
        (-1, 0, 0, 1): (False, True),
        (1, 0, 0, -1): (True, False),
        (-1, 0, 0, -1): (True, True),
        (0, 1, 1, 0): (False, False),
        (0, -1, -1, 0): (True, True),
        (0, 1, -1, 0): (False, True),
        (0, -1, 1, 0): (True, False),
    }.items():
        content[place : place + 8] = struct.pack(">ii", a << 16, b << 16)
        content[place + 12 : place + 20] = struct.pack(">ii", c << 16, d << 16)
        picture = decode(bytes(content), 1)[0][0]
        height, width = picture.shape[:2]
        assert (height, width) == ((48, 64) if a else (64, 48))
        rows = slice(height // 2 + 2, None) if below else slice(height // 2 - 2)
        columns = slice(width // 2 + 2, None) if right else slice(width // 2 - 2)
        assert picture[rows, columns].mean() > 240
        assert picture.mean() < 80


def test_a_header_with_a_wrong_duration_changes_nothing(write_video: WriteVideo, indices: Indices) -> None:
    content = bytearray(write_video(count=50).read_bytes())
    for scale in (0, 1, 1000):
        for name, offset in ((b"mvhd", 16), (b"tkhd", 20), (b"mdhd", 16)):
            for header in boxes(bytes(content), name):
                place = slice(header + offset, header + offset + 4)
                content[place] = struct.pack(">I", struct.unpack(">I", content[place])[0] * scale)
        frames, _, duration = decode(bytes(content))
        assert indices(frames) == [5, 15, 25, 35, 45]
        assert duration == pytest.approx(5, abs=0.11)
        content = bytearray(write_video(count=50).read_bytes())


@pytest.mark.parametrize("claimed", [0, 3, 1_000_000])
def test_a_header_with_a_wrong_number_of_frames_changes_nothing(
    write_video: WriteVideo, indices: Indices, claimed: int
) -> None:
    content = bytearray(write_video("a.avi", 50, codec="mpeg4").read_bytes())
    for name, offset in ((b"avih", 20), (b"strh", 36)):
        for header in boxes(bytes(content), name):
            content[header + offset : header + offset + 4] = struct.pack("<I", claimed)
    frames, _, duration = decode(bytes(content))
    assert indices(frames) == [5, 15, 25, 35, 45]
    assert duration == pytest.approx(5, abs=0.11)


def test_cut_short_keeps_what_is_there(write_video: WriteVideo, indices: Indices) -> None:
    noise = np.random.default_rng(3).integers(0, 255, (50, 48, 64, 3), dtype=np.uint8)
    content = write_video("a.mkv", 50, codec="mjpeg", pictures=noise).read_bytes()
    whole = decode(content, 50)
    frames, times, duration = decode(content[: len(content) // 2], 10)
    assert 2 < duration < 3
    np.testing.assert_array_equal(frames, whole[0][np.rint(times * 10).astype(int)])
    with pytest.raises(MediaError):
        decode(write_video("b.mp4", 50).read_bytes()[:-400])  # an MP4 without its index cannot be read at all


def test_damaged_in_the_middle_gives_the_frames_around(write_video: WriteVideo, indices: Indices) -> None:
    content = bytearray(write_video("a.ts", 50, 25, codec="mpeg2video", options={"g": "5"}).read_bytes())
    third = len(content) // 3
    content[third : third + 2000] = bytes(2000)
    frames, times, _ = decode(bytes(content), 10)
    assert frames.shape == (10, 48, 64, 3)
    assert (np.diff(times) >= 0).all()
    assert indices(frames)[0] == 2
    assert indices(frames)[-1] == 47


def test_frames_that_do_not_decode_give_way_to_the_one_before(write_video: WriteVideo, indices: Indices) -> None:
    noise = np.random.default_rng(3).integers(0, 4, (50, 48, 64, 3), dtype=np.uint8)
    pictures = noise + np.arange(14, 214, 4, dtype=np.uint8)[:, None, None, None]  # no two packets alike
    content = write_video("a.mkv", 50, options={"g": "1"}, pictures=pictures).read_bytes()
    with av.open(io.BytesIO(content), "r") as container:
        coded = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    for packet in (*coded[4:8], *coded[15:]):
        assert content.count(packet) == 1
        content = content.replace(packet, bytes(len(packet)))
    frames, times, _ = decode(content, 10, max_seconds=2)
    assert indices(frames) == [1, 3, 3, 3, 9, 11, 13, 14, 14, 14]
    np.testing.assert_allclose(times * 10, [1, 3, 3, 3, 9, 11, 13, 14, 14, 14], atol=0.02)


def test_no_frames_at_all(tmp_path: Path, write_video: WriteVideo, write_wav: Callable[..., Path]) -> None:
    path = tmp_path / "none.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        out.start_encoding()
    with pytest.raises(MediaError, match="cannot be opened as video"):
        decode(path)
    with pytest.raises(MediaError, match="no video stream"):
        decode(write_wav(np.zeros(1600, np.int16)))
    with pytest.raises(MediaError, match="cannot be opened as video"):
        decode(b"\x89PNG\r\n\x1a\n" + bytes(100))
    content = bytearray(write_video("a.mkv", 20, codec="mjpeg").read_bytes())
    place = content.index(b"\x1f\x43\xb6\x75") + 40
    content[place:] = np.random.default_rng(0).integers(0, 255, len(content) - place, dtype=np.uint8).tobytes()
    with pytest.raises(MediaError):
        decode(bytes(content))


def test_too_many_pixels(write_video: WriteVideo) -> None:
    with pytest.raises(MediaError, match="64 x 48 pixels, more than the 3,000 allowed"):
        decode(write_video(count=3), max_pixels=3000)


def test_a_long_video_is_never_held_whole(write_video: WriteVideo) -> None:
    size, count = (640, 480), 300
    path = write_video(count=count, size=size, options={"preset": "ultrafast", "g": "1000"})
    content = path.read_bytes()
    decode(content, 4)
    process, stop, seen = psutil.Process(), threading.Event(), [0]
    start = process.memory_info().rss

    def watch() -> None:
        while not stop.is_set():
            seen.append(process.memory_info().rss - start)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        decode(content, 4)
    finally:
        stop.set()
        watcher.join()
    assert len(seen) > 10
    assert max(seen) < 40 * size[0] * size[1] * 1.5  # forty frames' worth of three hundred
