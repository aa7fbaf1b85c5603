"""From a reference and spans to a segment, and what its key says."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from nemo_mm_rank import media
from nemo_mm_rank.config import MediaSettings
from nemo_mm_rank.errors import MediaError
from nemo_mm_rank.media.opener import Opener
from nemo_mm_rank.media.segment import Audio, Image, Video

Write = Callable[..., Path]


@pytest.fixture
def pool(tmp_path: Path, write_video: Write, write_wav: Write) -> Path:
    """Return a pool with one of each kind."""
    noise = np.random.default_rng(1)
    PILImage.fromarray(noise.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    write_wav(noise.integers(-9000, 9000, 44_100 * 3).astype(np.int16), 44_100, "a.wav")
    write_video("a.mp4", 30)
    return tmp_path


def test_one_of_each(pool: Path) -> None:
    opener = pickle.loads(pickle.dumps(Opener(MediaSettings(), str(pool))))
    image, audio, video = (opener.open(f"a.{end}", kind) for end, kind in KINDS)
    assert isinstance(image, Image)
    assert image.pixels.size == (60, 40)
    assert image.nbytes == 7200
    assert isinstance(audio, Audio)
    assert (audio.duration, audio.rate, audio.start) == (3.0, 16_000, 0.0)
    assert isinstance(video, Video)
    assert video.frames.shape == (8, 48, 64, 3)
    assert video.nbytes == 8 * 48 * 64 * 3


KINDS = (("png", "image"), ("wav", "audio"), ("mp4", "video"))


@pytest.mark.parametrize(("end", "kind"), KINDS)
def test_equal_bytes_have_equal_keys_whatever_they_are_called(pool: Path, end: str, kind: str) -> None:
    opener = Opener(MediaSettings(), str(pool))
    content = (pool / f"a.{end}").read_bytes()
    (pool / "other name.txt").write_bytes(content)
    (pool / "changed").write_bytes(content + b"\0")
    key = opener.open(f"a.{end}", kind).key
    assert re.fullmatch("[0-9a-f]{32}", key)
    assert opener.open("other name.txt", kind).key == key
    assert opener.open("in the row", kind, content=content).key == key
    assert opener.open("changed", kind).key != key


def test_keys_tell_apart_what_is_decoded_apart(pool: Path) -> None:
    def keys(**settings: int) -> set[str]:
        opener = Opener(MediaSettings(**settings), str(pool))
        return {
            opener.open("a.wav", "audio").key,
            opener.open("a.wav", "audio", [[0, 1]]).key,
            opener.open("a.wav", "audio", [[0, 1], [2, 3]]).key,
            opener.open("a.mp4", "video").key,
            opener.open("a.mp4", "video", [[0, 1]]).key,
            opener.open("a.png", "image", [[0, 0, 9, 9]]).key,
        }

    assert len(keys()) == 6
    assert keys() == keys()
    changed = keys(sample_rate=8000, video_frames=4)
    assert len(keys() | changed) == 11  # only the picture is the same
    assert keys() == keys(threads=7, max_bytes=10**6)


def test_spans_of_a_picture_crop_to_their_union(pool: Path) -> None:
    opener = Opener(MediaSettings(), str(pool))
    whole = opener.open("a.png", "image")
    part = opener.open("a.png", "image", [[10, 5, 20, 10], [25, 8, 10, 20]])
    assert isinstance(whole, Image)
    assert isinstance(part, Image)
    np.testing.assert_array_equal(np.asarray(part.pixels), np.asarray(whole.pixels)[5:28, 10:35])
    assert part.key == whole.part([10, 5, 25, 23]).key
    over = opener.open("a.png", "image", [[50, 30, 500, 500]])
    assert isinstance(over, Image)
    assert over.pixels.size == (10, 10)
    with pytest.raises(MediaError, match=r"'a\.png': box .* lies outside the image of 60 x 40 pixels"):
        opener.open("a.png", "image", [[70, 0, 5, 5]])


def test_spans_lie_on_the_upright_picture(tmp_path: Path) -> None:
    exif = PILImage.Exif()
    exif[0x0112] = 6
    picture = PILImage.new("RGB", (40, 20))
    picture.paste((255, 255, 255), (0, 0, 10, 20))  # the left, which is seen on top
    picture.save(tmp_path / "a.png", exif=exif)
    top = Opener(MediaSettings(), str(tmp_path)).open("a.png", "image", [[0, 0, 20, 10]])
    assert isinstance(top, Image)
    assert np.asarray(top.pixels).min() == 255


def test_a_window_of_sound_is_the_part_of_the_whole(pool: Path) -> None:
    opener = Opener(MediaSettings(), str(pool))
    whole, part = opener.open("a.wav", "audio"), opener.open("a.wav", "audio", [[1.25, 2.5]])
    assert isinstance(whole, Audio)
    assert isinstance(part, Audio)
    cut = whole.part([1.25, 2.5])
    np.testing.assert_array_equal(part.samples, cut.samples)
    assert (part.key, part.start, part.duration) == (cut.key, cut.start, 1.25)
    over = opener.open("a.wav", "audio", [[2.5, 99]])
    assert over.key == whole.part([2.5, 99]).key == whole.part([2.5, 3]).key
    with pytest.raises(MediaError, match="lies outside the recording"):
        whole.part([3, 4])
    several = opener.open("a.wav", "audio", [[2, 99], [0, 0.5]])
    assert isinstance(several, Audio)
    np.testing.assert_array_equal(several.samples, np.concatenate([whole.samples[:8000], whole.samples[32_000:]]))
    assert several.key == opener.open("a.wav", "audio", [[0, 0.25], [0.25, 0.5], [2, 3]]).key


def test_windows_of_a_video(pool: Path, indices: Callable[..., list[int]]) -> None:
    video = Opener(MediaSettings(), str(pool), frames=4).open("a.mp4", "video", [[2, 2.2], [1, 1.2]])
    assert isinstance(video, Video)
    assert indices(video.frames) == [10, 11, 20, 21]
    np.testing.assert_allclose(video.times, [1.0, 1.1, 2.0, 2.1], atol=1e-3)
    assert video.duration == pytest.approx(3)


def test_errors_name_the_reference_and_never_the_root(pool: Path) -> None:
    opener = Opener(MediaSettings(), str(pool))
    (pool / "text.jpg").write_text("no picture")
    for ref, kind in (
        ("text.jpg", "image"),
        ("text.jpg", "audio"),
        ("text.jpg", "video"),
        ("sub/missing.mp4", "video"),
        ("../a.png", "image"),
        ("a.png", "audio"),
        ("a.wav", "video"),
        ("a.wav", "image"),
        ("a.png", "text"),
    ):
        with pytest.raises(MediaError) as caught:
            opener.open(ref, kind)
        assert str(caught.value).startswith(f"{ref!r}: ")
        assert str(pool) not in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(MediaError) as caught:
        opener.open("x" * 10_000, "image")
    assert len(str(caught.value)) < 400


def test_a_root_of_the_row_comes_before_the_openers(pool: Path) -> None:
    opener = Opener(MediaSettings(), "/nowhere")
    assert isinstance(opener.open("a.png", "image", root=str(pool)), Image)
    with pytest.raises(MediaError, match="does not exist"):
        opener.open("a.png", "image")


def test_open_by_hand(pool: Path) -> None:
    assert isinstance(media.open("a.png", [[0, 0, 5, 5]], root=str(pool)), Image)
    assert isinstance(media.open("a.wav", [[0, 1]], root=str(pool)), Audio)
    assert isinstance(media.open("a.mp4", root=str(pool), settings=MediaSettings(video_frames=2)), Video)
    (pool / "recording").write_bytes((pool / "a.wav").read_bytes())
    assert isinstance(media.open("recording", modality="audio", root=str(pool)), Audio)
    with pytest.raises(MediaError, match="pass the modality"):
        media.open("recording", root=str(pool))
