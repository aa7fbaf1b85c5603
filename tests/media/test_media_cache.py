"""Media from behind URLs are kept up to a bound, and as they are there now."""

from __future__ import annotations

import time
from pathlib import Path

import fsspec
import pytest

from nemo_mm_rank.config import MediaSettings
from nemo_mm_rank.errors import MediaError
from nemo_mm_rank.media import cache
from nemo_mm_rank.media.source import open_source

ROOT = "memory://media-cache"


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.PLACE, str(tmp_path))
    monkeypatch.setattr(cache, "_written", 0)
    return tmp_path / cache.MEDIA


def put(name: str, content: bytes) -> None:
    fsspec.filesystem("memory").pipe_file(f"/media-cache/{name}", content)


def read(name: str, bound: int, max_bytes: int = 10**6) -> bytes:
    with open_source(name, ROOT, MediaSettings(cache_bytes=bound, max_bytes=max_bytes)) as file:
        return file.read()


def test_what_was_opened_is_not_copied_again(kept: Path) -> None:
    put("a", b"first")
    assert read("a", 10**6) == b"first"
    (file,) = kept.iterdir()
    assert file.read_bytes() == b"first"
    file.write_bytes(b"from here")
    assert read("a", 10**6) == b"from here"
    put("a", b"other")
    assert read("a", 10**6) == b"other"


def test_nothing_is_kept_without_a_bound(kept: Path) -> None:
    put("a", b"first")
    assert read("a", 0) == b"first"
    assert not kept.exists()


def test_what_was_opened_longest_ago_goes(kept: Path) -> None:
    bound = 3000
    for number in range(10):
        put(str(number), bytes([number]) * 1000)
        assert read(str(number), bound) == bytes([number]) * 1000
        time.sleep(0.01)
        assert read("0", bound) == bytes(1000)
        assert sum(file.stat().st_size for file in kept.iterdir()) <= bound
    assert {file.read_bytes()[:1] for file in kept.iterdir()} == {b"\0", b"\x08", b"\x09"}


def test_what_is_not_ours_stays(kept: Path) -> None:
    theirs = [kept / "film.mp4", kept / "album/a.jpg", kept.with_name("media") / "b.jpg"]
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(5000))
    (kept / ("0" * 40)).symlink_to(theirs[0])
    for number in range(5):
        put(str(number), bytes([number]) * 1000)
        read(str(number), 1000)
    assert all(path.read_bytes() == bytes(5000) for path in theirs)
    assert (kept / ("0" * 40)).is_symlink()
    assert sum(path.stat().st_size == 1000 for path in kept.iterdir()) == 1


def test_bounds_of_media_hold_for_what_is_kept(kept: Path) -> None:
    put("a", b"x" * 100)
    with pytest.raises(MediaError, match="more than the 50 allowed"):
        read("a", 10**6, max_bytes=50)
    assert not list(kept.iterdir())
    read("a", 10**6)
    with pytest.raises(MediaError, match="more than the 50 allowed"):
        read("a", 10**6, max_bytes=50)
    with pytest.raises(MediaError, match="cannot be found"):
        read("b", 10**6)
