"""Copies of media: small, playable, of the right part, the same bytes each time; and why there is none."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from nemo_mm_rank.config import MediaSettings
from nemo_mm_rank.media import preview as media
from nemo_mm_rank.media.preview import Preview, copy
from tests.media_files import level, write_video, write_wav

SETTINGS = MediaSettings()


def made(folder: Path, name: str, modality: str, spans: list[list[float]] | None = None) -> Preview:
    found = copy(name, modality, spans, str(folder), None, SETTINGS)
    assert found == copy(name, modality, spans, str(folder), None, SETTINGS)
    return found


def decoded(found: Preview) -> Any:
    return av.open(content(found))


def content(found: Preview) -> BytesIO:
    return BytesIO(base64.b64decode(found["src"].split(",", 1)[1]))


def test_a_picture_is_scaled_down_with_its_boxes(tmp_path: Path) -> None:
    Image.new("RGB", (800, 400), "navy").save(tmp_path / "a.png")
    found = made(tmp_path, "a.png", "image", [[200, 100, 400, 200], [0, 0, 80, 40]])
    assert Image.open(content(found)).size == (240, 120)
    assert found["boxes"] == [[0.25, 0.25, 0.5, 0.5], [0, 0, 0.1, 0.1]]
    assert found["src"].startswith("data:image/jpeg;base64,")
    assert "boxes" not in made(tmp_path, "a.png", "image")


def test_a_sound_is_cut_to_what_was_kept(tmp_path: Path) -> None:
    time = np.arange(20 * 16_000) / 16_000
    tone = np.where(time < 10, np.sin(2 * np.pi * 300 * time), np.sin(2 * np.pi * 1200 * time))
    write_wav(tmp_path, (tone * 12_000).astype(np.int16))
    first, later = made(tmp_path, "a.wav", "audio"), made(tmp_path, "a.wav", "audio", [[12.0, 14.0]])
    assert (first["start"], first["end"]) == (0.0, 8.0)
    assert (later["start"], later["end"], later["windows"]) == (11.5, 19.5, [[12.0, 14.0]])
    for found, pitch in ((first, 300), (later, 1200)):
        with decoded(found) as opened:
            samples = np.concatenate([frame.to_ndarray()[0] for frame in opened.decode(audio=0)])
            rate = opened.streams.audio[0].rate
        assert len(samples) / rate == pytest.approx(8, abs=0.2)
        spectrum = np.abs(np.fft.rfft(samples[rate : 3 * rate]))
        assert np.argmax(spectrum) / 2 == pytest.approx(pitch, abs=5)
        assert len(found["src"]) < 80_000


def test_windows_at_the_start_are_shown_from_the_start(tmp_path: Path) -> None:
    write_wav(tmp_path, np.zeros(3 * 16_000, dtype=np.int16))
    found = made(tmp_path, "a.wav", "audio", [[1.0, 2.0]])
    assert (found["start"], found["end"], found["windows"]) == (0.0, 3.0, [[1.0, 2.0]])


def test_a_film_is_small_short_and_in_time(tmp_path: Path) -> None:
    write_video(tmp_path, count=200, rate=10, size=(640, 360))
    found = made(tmp_path, "clip.mp4", "video", [[12.0, 15.0]])
    assert (found["start"], found["end"], found["windows"]) == (11.5, 19.5, [[12.0, 15.0]])
    with decoded(found) as opened:
        frames = [(float(frame.time), frame.to_ndarray(format="rgb24")) for frame in opened.decode(video=0)]
        assert float(opened.duration or 0) / av.time_base == pytest.approx(8, abs=0.3)
    assert frames[0][1].shape == (134, 240, 3)  # even sides
    assert frames[-1][0] <= 8
    at = dict(frames)
    middle = min(at, key=lambda time: abs(time - 4))
    assert at[middle].mean() == pytest.approx(level(115 + round(middle * 10)), abs=6)


def test_a_short_film_and_one_of_a_single_frame(tmp_path: Path) -> None:
    for count, length in ((12, 1.2), (1, 0.1)):
        write_video(tmp_path, f"{count}.mp4", count=count, rate=10)
        found = made(tmp_path, f"{count}.mp4", "video")
        assert found["end"] == pytest.approx(length, abs=0.05)
        with decoded(found) as opened:
            times = [frame.time for frame in opened.decode(video=0)]
        assert times == sorted(set(times))
        assert 1 <= len(times) <= count + 1


def test_what_cannot_be_shown_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    assert "'gone.jpg': does not exist" in made(tmp_path, "gone.jpg", "image")["missing"]
    assert "'broken.jpg'" in made(tmp_path, "broken.jpg", "image")["missing"]
    assert "leads out of the root of the pool" in made(tmp_path, "../secret.jpg", "image")["missing"]
    noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    monkeypatch.setattr(media, "MAX_BYTES", 10_000)
    assert made(tmp_path, "noise.png", "image") == {
        "missing": "not shown, because a copy of it would take more than 10,000 bytes of this page"
    }


def test_other_codings_where_the_first_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path, count=30)
    write_wav(tmp_path, np.zeros(16_000, dtype=np.int16))
    monkeypatch.setattr(media, "_available", lambda codec: codec in ("libopus", "libvpx"))
    for name, modality, kind in (("a.wav", "audio", "data:audio/ogg"), ("clip.mp4", "video", "data:video/webm")):
        found = made(tmp_path, name, modality)
        assert found["src"].startswith(kind)
        with decoded(found) as opened:
            assert len(list(opened.decode(**{modality: 0}))) > 1
    monkeypatch.setattr(media, "_available", lambda codec: False)
    assert "can write neither libmp3lame nor libopus" in made(tmp_path, "a.wav", "audio")["missing"]
