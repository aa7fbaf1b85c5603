"""The demo pool: the same each time, small, of all modalities, and with just the faults that it says it has."""

from __future__ import annotations

import json
import wave
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from nemo_mm_rank.config import PoolSource
from nemo_mm_rank.demo import make_demo_pool
from nemo_mm_rank.demo.images import COLOURS, PLACES, Shapes
from nemo_mm_rank.io.owned import MARK
from nemo_mm_rank.io.pool import validate


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_pool(tmp_path_factory.mktemp("demo"))


def rows(manifest: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_arguments_give_the_same_files(tmp_path: Path) -> None:
    make_demo_pool(tmp_path / "a", 6)
    make_demo_pool(tmp_path / "b", 6)
    make_demo_pool(tmp_path / "c", 6, seed=1)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    same = digests(tmp_path / "a").items() & digests(tmp_path / "c").items()
    assert {name for name, _ in same} == {"image/corrupt.jpg", MARK}


def test_files_that_are_there_are_left_alone(tmp_path: Path) -> None:
    folder = make_demo_pool(tmp_path, 2).parent
    media = [path for path in folder.glob("*/*") if path.is_file()]
    before = [path.stat().st_mtime_ns for path in media]
    media[0].write_bytes(b"changed")
    make_demo_pool(tmp_path, 2)
    assert [path.stat().st_mtime_ns for path in media[1:]] == before[1:]
    assert media[0].read_bytes() != b"changed"


def test_what_is_in_it(pool: Path) -> None:
    lines = rows(pool)
    assert Counter(row["modality"] for row in lines if not row["pair_id"].startswith("bad")) == {
        "text": 41,  # one is there twice
        "code": 40,
        "image": 40,
        "audio": 40,
        "video": 40,
    }
    assert Counter(row["modality"] for row in lines if row["on_topic"] and row["fault"] is None) == {
        "text": 18,
        "image": 18,
        "audio": 18,
        "video": 18,
    }
    assert Counter(row["fault"] for row in lines if row["fault"]) == {
        "foreign sentence": 16,
        "corrupt file": 1,
        "missing file": 1,
        "empty annotation": 1,
        "id there twice": 1,
    }
    for modality in ("text", "code", "image", "audio", "video"):
        assert len({row["annotation"] for row in lines if row["modality"] == modality}) >= 38
    assert sum(path.stat().st_size for path in pool.parent.rglob("*") if path.is_file()) < 5_000_000


def test_just_the_faults_that_it_names_are_found(pool: Path) -> None:
    report = validate([PoolSource(path=str(pool))])
    assert [(row.pair_id, row.field) for row in report.bad_rows] == [
        ("bad-missing", "data"),
        ("bad-empty", "annotation"),
        ("text-000", "pair_id"),
    ]
    assert report.errors == []
    with pytest.raises(OSError), Image.open(pool.parent / "image/corrupt.jpg") as picture:
        picture.load()


def test_the_media_can_be_opened(pool: Path) -> None:
    for path in sorted((pool.parent / "image").glob("image-*.jpg")):
        with Image.open(path) as picture:
            assert np.asarray(picture).std() > 1
    for path in sorted((pool.parent / "audio").glob("*.wav")):
        with wave.open(str(path)) as sound:
            samples = np.frombuffer(sound.readframes(sound.getnframes()), "<i2")
            assert len(samples) == 4 * sound.getframerate()
            assert 300 < np.abs(samples.astype(int)).max() <= 32767
    for path in sorted((pool.parent / "video").glob("*.mp4")):
        with av.open(path) as film:
            frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in film.decode(video=0)]
            assert len(frames) == 24
            assert film.duration == 4_000_000
            assert np.abs(frames[0] - frames[7]).max() > 20


def test_loud_is_louder_than_quiet(pool: Path) -> None:
    peaks: dict[str, list[int]] = {"loud": [], "quiet": []}
    for row in rows(pool):
        if row["modality"] == "audio":
            with wave.open(str(pool.parent / row["data"])) as sound:
                samples = np.frombuffer(sound.readframes(sound.getnframes()), "<i2").astype(int)
            first = row["annotation"].split(".")[0].lower() + row["annotation"].split(".")[1].lower()
            peaks["quiet" if "quiet" in first else "loud"].append(int(np.abs(samples).max()))
    assert max(peaks["quiet"]) < min(peaks["loud"])


def test_shapes_are_where_the_caption_says() -> None:
    for place, (x, y) in PLACES.items():
        shapes = Shapes("white", (("large", "red", "circle", place),), "upwards", True)
        pixels = shapes.draw()
        assert tuple(pixels[int(y * 120), int(x * 160)]) == COLOURS["red"]
        red = np.argwhere((pixels == COLOURS["red"]).all(axis=2))
        assert np.abs(red.mean(axis=0) - [y * 120, x * 160]).max() < 1
