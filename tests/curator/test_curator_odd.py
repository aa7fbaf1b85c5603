"""Odd values in tasks of others: each costs its own row at most, never a neighbour's, and never the pipeline."""

from __future__ import annotations

import datetime
import io
import uuid
import wave
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from nemo_curator.tasks import AudioTask, DocumentBatch, ImageBatch, ImageObject, InterleavedBatch
from nemo_curator.tasks.video import Clip, Video, VideoTask, _Window
from PIL import Image

from nemo_mm_rank.curator import (
    AudioPairsStage,
    ClipPairsStage,
    ExpertEmbeddingStage,
    ImagePairsStage,
    InterleavedPairsStage,
    PairColumnsStage,
)
from nemo_mm_rank.curator.stages import to_table
from nemo_mm_rank.media.opener import Opener
from nemo_mm_rank.schema import DATA_BYTES, ERROR, PAIR_ID

PIXELS = np.full((8, 8, 3), 9, np.uint8)
HALF = "\ud800"
"""What no UTF-8 can say."""
HALVED = "row: expected text, found half of a surrogate pair"


def check(table: pa.Table, said: str | None) -> None:
    """See that of two rows the second is a pair, and the first one too, or says what it should."""
    odd, fine = table[ERROR].to_pylist()
    assert fine is None
    if said is None:
        assert odd is None
    else:
        assert odd.startswith(f"pool: BadRow: {said}"), odd


def images(stage: ImagePairsStage, **odd: Any) -> pa.Table:
    both: list[dict[str, Any]] = [{"image_id": "odd", **odd}, {"image_id": "fine"}]
    usual = {"image_data": PIXELS, "metadata": {"caption": "A."}, "embedding": np.ones(4)}
    batch = ImageBatch("shots", [ImageObject(**{**usual, **one}) for one in [*both]])
    return stage.process(batch).data


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ({"image_data": torch.from_numpy(PIXELS)}, None),
        ({"image_data": PIXELS.tolist()}, None),
        ({"image_data": Image.fromarray(PIXELS)}, None),
        ({"image_data": [[1, 2], [3]]}, "data: expected pixels, found "),
        ({"image_data": "words"}, "data: expected pixels, found an array of <U5 in shape ()"),
        ({"image_data": b"bytes"}, "data: expected pixels, found an array of |S5 in shape ()"),
        ({"image_data": np.full((4, 4), np.nan)}, "data: expected pixels, found numbers that are none"),
        ({"image_data": np.full((4, 4, 3), 0.5, np.float16)}, "data: expected pixels, found numbers that are none, or"),
        ({"metadata": {"caption": 5}}, "annotation: expected a string, found int 5"),
        ({"metadata": {"caption": b"x"}}, None),
        ({"metadata": {"caption": b"\xff"}}, "annotation: expected a string, found bytes"),
        ({"metadata": {"caption": {"a": 1}}}, "annotation: expected a string, found dict"),
        ({"metadata": {"caption": datetime.date(2020, 1, 1)}}, "annotation: expected a string, found date"),
        ({"metadata": {"caption": HALF}}, HALVED),
        ({"metadata": {"caption": "A.", "mine": {"in": [HALF]}}}, HALVED),
        ({"metadata": {"caption": "A.", "mine": {(1, 2): "no key of JSON"}}}, None),
        ({"metadata": "words"}, "annotation: expected a non-empty string, found nothing"),
        ({"image_id": 5}, None),
        ({"image_id": float("nan")}, None),
        ({"image_id": uuid.UUID(int=5)}, None),
        ({"image_id": HALF}, HALVED),
        ({"image_id": ["a"]}, "pair_id: expected a string or a number, found list ['a']"),
        ({"image_data": None, "image_path": HALF}, HALVED),
        ({"image_data": None, "image_path": Path("gone.png")}, "data: expected a media file below the pool's root"),
        ({"image_data": None, "image_path": 5}, "data: expected a string or bytes, found int 5"),
        ({"embedding": "words"}, "embedding by 'clip': expected a vector, found could not convert"),
        ({"embedding": np.ones((2, 4))}, "embedding by 'clip': expected a vector, found numbers in shape (2, 4)"),
        ({"embedding": np.full(4, np.nan)}, "embedding by 'clip': expected a vector, found one without a direction"),
    ],
)
def test_images(odd: dict[str, Any], said: str | None) -> None:
    check(images(ImagePairsStage(embedding="clip"), **odd), said)


def test_an_embedding_of_another_size() -> None:
    sizes = [3, 4, 4]
    batch = ImageBatch(
        "shots",
        [
            ImageObject(image_id=f"i{n}", image_data=PIXELS, metadata={"caption": "A."}, embedding=np.ones(size))
            for n, size in enumerate(sizes)
        ],
    )
    table = ImagePairsStage(embedding="clip").process(batch).data
    assert "expected a vector of 4 numbers, found one of 3" in table[ERROR][0].as_py()
    assert table[ERROR].to_pylist()[1:] == [None, None]


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ({"waveform": "words"}, "waveform: expected samples and their rate, found could not convert"),
        ({"waveform": np.full(50, np.nan)}, "waveform: expected samples and their rate, found samples in shape (50,)"),
        ({"waveform": np.zeros((2, 3, 4))}, "waveform: expected samples and their rate, found samples in shape"),
        ({"waveform": torch.zeros(2, 1600)}, None),
        ({"sample_rate": "fast"}, "waveform: expected samples and their rate, found invalid literal"),
        ({"sample_rate": -3}, "waveform: expected samples and their rate, found a sample rate of -3 Hz"),
        ({"audio_filepath": Path("gone.wav")}, "data: expected a media file below the pool's root, found no such file"),
        ({"audio_filepath": 5}, "data: expected a string or bytes, found int 5"),
        ({"text": 5}, "annotation: expected a string, found int 5"),
        ({"text": b"x"}, "annotation: expected a non-empty string, found nothing"),
        ({"text": HALF}, HALVED),
        ({"parts": [{"start": 10**400, "end": 1}]}, "parts: expected a list of {start, end} in seconds"),
        ({"parts": 5}, "parts: expected a list of {start, end} in seconds, found 5"),
        ({"mine": object(), "yours": [object()], "theirs": {1, 2}}, None),
    ],
)
def test_sounds(odd: dict[str, Any], said: str | None, tmp_path: Path) -> None:
    usual = {"waveform": np.zeros(1600), "sample_rate": 16_000, "text": "Still."}
    tasks = [AudioTask(data={**usual, "id": "odd", **odd}), AudioTask(data={**usual, "id": "fine"})]
    [batch] = AudioPairsStage(root=tmp_path, fields={"pair_id": "id"}, segments="parts").process_batch(tasks)
    check(batch.data, said)


def test_channels_of_a_waveform_that_cancel_each_other_out_are_heard() -> None:
    tone = np.sin(np.arange(16_000) / 9).astype(np.float32) / 2
    task = AudioTask(data={"waveform": np.stack([tone, -tone]), "sample_rate": 16_000, "text": "A tone."})
    [batch] = AudioPairsStage().process_batch([task])
    content = batch.data[DATA_BYTES][0].as_py()
    with wave.open(io.BytesIO(content)) as file:
        assert (file.getnchannels(), file.getnframes()) == (2, 16_000)
    heard: Any = Opener().open("tone", "audio", content=content)
    assert np.abs(heard.samples - tone).max() < 1e-3


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ({"buffer": np.frombuffer(b"bytes", np.uint8)}, None),
        ({"buffer": "words"}, "data: expected a clip with its bytes, found none"),
        ({"span": (None, 1)}, None),
        ({"span": ()}, None),
        ({"windows": None}, "annotation: expected a non-empty string, found nothing"),
        ({"windows": [_Window(0, 9, caption=None)]}, "annotation: expected a non-empty string, found nothing"),
        ({"windows": [_Window(0, 9, caption={"q": 5})]}, "annotation: expected a non-empty string, found nothing"),
        ({"cosmos_embed1_embedding": "words"}, "embedding by 'cosmos': expected a vector, found could not convert"),
    ],
)
def test_clips(odd: dict[str, Any], said: str | None) -> None:
    usual = {
        "source_video": "film.mp4",
        "span": (0, 1),
        "buffer": b"bytes",
        "windows": [_Window(0, 9, caption={"q": "A."})],
        "cosmos_embed1_embedding": np.ones(3),
    }
    clips = [Clip(uuid=uuid.uuid4(), **{**usual, **odd}), Clip(uuid=uuid.uuid4(), **usual)]
    check(
        ClipPairsStage(embedding="cosmos").process(VideoTask("films", Video(Path("film.mp4"), clips=clips))).data, said
    )


@pytest.mark.parametrize("pandas", [False, True])
def test_interleaved_rows_without_a_place(pandas: bool) -> None:
    empty = dict.fromkeys(["content_type", "text_content", "binary_content", "source_ref", "materialize_error"])

    def row(sample: str | None, position: int | None, modality: str | None, **more: Any) -> dict[str, Any]:
        return {"sample_id": sample, "position": position, "modality": modality, **empty, **more}

    rows = [
        row(None, 0, "image", binary_content=b"x"),
        row("a", None, "image", binary_content=b"y"),
        row("a", 1, None),
        row("b", 0, "image", binary_content=b"z"),
        row("b", 1, "text", text_content="Words."),
    ]
    data = pd.DataFrame(rows) if pandas else pa.Table.from_pylist(rows)
    table = InterleavedPairsStage().process(InterleavedBatch("pages", data)).data
    assert table[PAIR_ID].to_pylist()[2] == "b:0"
    errors = table[ERROR].to_pylist()
    assert errors[2] is None
    assert all("annotation: expected a non-empty string" in error for error in errors[:2])


def documents(columns: Mapping[str, Sequence[Any]], pandas: bool) -> DocumentBatch:
    return DocumentBatch(
        dataset_name="mine", data=pd.DataFrame(columns, dtype=object) if pandas else pa.table(dict(columns))
    )


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (HALF, HALVED),
        (b"x", None),
        (b"\xff", "annotation: expected a string, found bytes"),
        (["a", ["b"]], "annotation: expected a caption or a list of captions, found"),
        (datetime.date(2020, 1, 1), "annotation: expected a string, found date"),
    ],
)
def test_documents_in_pandas(first: Any, said: str | None) -> None:
    columns: dict[str, Any] = {
        "data": ["Words.", "More words."],
        "annotation": [first, "Fine."],
        "mine": [{1: object()}, 5],
    }
    table = PairColumnsStage(modality="text").process(documents(columns, pandas=True)).data
    check(table, said)
    done = to_table(ExpertEmbeddingStage().process(DocumentBatch(dataset_name="mine", data=table)))
    assert done[ERROR].null_count == (2 if said is None else 1)


def test_bytes_beside_names_in_one_column(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    columns: dict[str, Any] = {"data": [content, "a.png", None], "annotation": ["One.", "Two.", "Three."]}
    table = PairColumnsStage(modality="image", root=tmp_path).process(documents(columns, pandas=True)).data
    assert table[DATA_BYTES].to_pylist() == [content, None, None]
    assert table["data"][1].as_py() == "a.png"
    assert [error is None for error in table[ERROR].to_pylist()] == [True, True, False]


def test_a_batch_that_pandas_holds_goes_through_stages() -> None:
    """Half a surrogate pair in a column of pandas is that row's fault in any stage, not only where pairs are made."""
    columns = {
        "pair_id": ["a", "b"],
        "pool": ["p", "p"],
        "modality": ["text", "text"],
        "data": ["Words of some length.", "More words of some length."],
        "annotation": [f"Odd {HALF}.", "Fine words."],
    }
    done = to_table(ExpertEmbeddingStage().process(documents(columns, pandas=True)))
    first, second = done[ERROR].to_pylist()
    assert second is None
    assert "no text" in first
