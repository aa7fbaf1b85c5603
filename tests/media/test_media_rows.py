"""The data and annotation sides of a frame's rows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image as PILImage

from nemo_mm_rank.config import MediaSettings
from nemo_mm_rank.errors import MediaError, PairError, TextError
from nemo_mm_rank.frames import Frame, from_table
from nemo_mm_rank.media.opener import Opener
from nemo_mm_rank.media.rows import annotation_text, annotation_texts, iter_data
from nemo_mm_rank.media.segment import Audio, Image, Segment, Video

Write = Callable[..., Path]


@pytest.fixture
def pool(tmp_path: Path, write_video: Write, write_wav: Write) -> Path:
    """Return a pool with pictures whose grey is their number, a sound and a video."""
    for number in range(40):
        PILImage.new("L", (4, 4), number).save(tmp_path / f"{number}.png")
    write_wav(np.ones(32_000, np.int16))
    write_video("a.mp4", 20)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    return tmp_path


def table(**columns: Any) -> Frame:
    """Return a frame with Arrow dtypes."""
    return from_table(pa.table(columns))


def grey(item: object) -> int:
    assert isinstance(item, Image)
    return int(np.asarray(item.pixels)[0, 0, 0])


MIXED = {
    "modality": ["image", "text", "audio", "image", "code", "video", "text", "image", "tune", None, "image", "text"],
    "data": ["7.png", "Words.", "a.wav", "broken.png", "x = 1", "a.mp4", "", "../7.png", "a", "b", None, "a\0b"],
}


def test_items_in_row_order_and_errors_in_their_place(pool: Path) -> None:
    items = list(iter_data(table(**MIXED), Opener(MediaSettings(), str(pool))))
    kinds = [
        Image,
        str,
        Audio,
        MediaError,
        str,
        Video,
        TextError,
        MediaError,
        PairError,
        PairError,
        MediaError,
        TextError,
    ]
    assert [type(item) for item in items] == kinds
    assert grey(items[0]) == 7
    assert (items[1], items[4]) == ("Words.", "x = 1")


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_many_items_keep_their_order(pool: Path, threads: int) -> None:
    rows = table(modality=["image"] * 40, data=[f"{number}.png" for number in range(40)])
    opener = Opener(MediaSettings(), str(pool))
    assert [grey(item) for item in iter_data(rows, opener, threads=threads)] == list(range(40))
    some = [31, 2, 2, 17]
    assert [grey(item) for item in iter_data(rows, opener, some, threads=threads)] == some


def test_spans(pool: Path) -> None:
    rows = table(
        modality=["image", "text", "audio", "code", "audio"],
        data=["7.png", "One. Two. Three.", "a.wav", "a = 1\n\nb = 2", "a.wav"],
        sns_data_spans=[[[1, 1, 2, 3]], [[0, 4], [10, 16]], [[0.5, 1], [1.5, 1.75]], [[0, 5], [7, 12]], None],
    )
    opener = Opener(MediaSettings(), str(pool))
    image, text, audio, code, whole = iter_data(rows, opener)
    assert isinstance(image, Image)
    assert image.pixels.size == (2, 3)
    assert (text, code) == ("One.\nThree.", "a = 1\nb = 2")
    assert isinstance(audio, Audio)
    assert isinstance(whole, Audio)
    assert (audio.duration, whole.duration) == (0.75, 2.0)
    untrimmed = list(iter_data(rows, opener, use_spans=False))
    assert untrimmed[1] == "One. Two. Three."
    assert [item.duration for item in untrimmed if isinstance(item, Audio)] == [2, 2]


def test_content_in_the_row_and_roots_of_rows(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    PILImage.new("L", (4, 4), 200).save(other / "7.png")
    rows = table(
        modality=["image"] * 5,
        data=["7.png", "7.png", "nowhere", None, "7.png"],
        media_root=[None, str(other), None, None, None],
        data_bytes=[None, None, (pool / "9.png").read_bytes(), (pool / "8.png").read_bytes(), b""],
    )
    *items, empty = iter_data(rows, Opener(MediaSettings(), str(pool)))
    assert [grey(item) for item in items] == [7, 200, 9, 8]
    assert isinstance(empty, MediaError)
    assert str(empty) == "'7.png': is empty"


def test_plain_pandas_columns_and_unpaired_surrogates() -> None:
    rows = pd.DataFrame(
        {"modality": ["text"] * 4, "data": pd.Series(["fine", "bad \ud800", None, "x" * 20], dtype=object)}
    )
    fine, surrogate, missing, long = iter_data(rows, Opener(MediaSettings(max_text_chars=10)))
    assert fine == "fine"
    assert "unpaired surrogate" in str(surrogate)
    assert "missing" in str(missing)
    assert "20 characters, more than the 10 allowed" in str(long)


class CountingOpener(Opener):
    """Opens as any other, and keeps count."""

    opened = 0

    def open(self, *args: Any, **options: Any) -> Segment:
        type(self).opened += 1
        return super().open(*args, **options)


def decoders() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("decode")}


def test_looks_ahead_within_bounds_and_ends_with_its_consumer(pool: Path) -> None:
    rows = table(modality=["image"] * 40, data=[f"{number}.png" for number in range(40)])
    CountingOpener.opened = 0
    others = decoders()  # a failure that somebody still looks at holds its own
    items = iter_data(rows, CountingOpener(MediaSettings(), str(pool)), threads=2)
    for taken in range(1, 11):
        next(items)
        assert CountingOpener.opened <= taken + 4
    assert decoders() - others
    items.close()  # type: ignore[attr-defined]
    assert decoders() <= others
    assert CountingOpener.opened <= 14


def test_annotations() -> None:
    assert annotation_text("A dog runs. It barks.") == "A dog runs. It barks."
    assert annotation_text("A dog runs. It barks. Now.", [[0, 11], [22, 26]]) == "A dog runs. Now."
    with pytest.raises(TextError, match="empty"):
        annotation_text(" ")
    rows = table(annotation=["One. Two.", "", None, "Three."], sns_annotation_spans=[[[5, 9]], None, None, None])
    first, empty, missing, last = annotation_texts(rows, MediaSettings())
    assert (first, last) == ("Two.", "Three.")
    assert isinstance(empty, TextError)
    assert isinstance(missing, TextError)
    assert annotation_texts(rows, MediaSettings(), use_spans=False)[0] == "One. Two."
