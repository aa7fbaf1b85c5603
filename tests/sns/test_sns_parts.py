"""Data of several parts: each is trimmed by itself, and what is left of all is held against the annotation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image as PILImage
from scipy.io import wavfile

from nemo_mm_rank import frames
from nemo_mm_rank.config import MediaSettings, SNSSettings
from nemo_mm_rank.media.opener import Opener
from nemo_mm_rank.media.rows import take_apart
from nemo_mm_rank.modality import combined
from nemo_mm_rank.schema import DATA_PARTS, PARTS, SOURCE_MEDIA
from nemo_mm_rank.sns.parts import Parts
from nemo_mm_rank.sns.step import SNSStep, mean, side_by_side
from tests.sns.test_sns_step import EXPERT, MODELS

Row = tuple[list[tuple[str, str]], str]
"""Parts, and the annotation."""

TEXT = ("text", "The dog runs. The market closed.")


@pytest.fixture
def media(tmp_path: Path) -> Path:
    pixels = np.zeros((60, 80, 3), dtype=np.uint8)
    pixels[:, :40] = (250, 0, 0)
    PILImage.fromarray(pixels).save(tmp_path / "half.png")
    PILImage.new("RGB", (80, 60), (250, 0, 0)).save(tmp_path / "red.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    time = np.arange(8 * 16_000) / 16_000
    loud = np.where(time < 4, np.sin(time * 3000), 0).astype(np.float32)
    wavfile.write(tmp_path / "tone.wav", 16_000, loud)
    return tmp_path


def frame(root: Path, *rows: Row) -> Any:
    columns = {
        "pair_id": [f"p{number}" for number in range(len(rows))],
        "pool": ["test"] * len(rows),
        "modality": [combined(kind for kind, _ in parts) for parts, _ in rows],
        "data": ["\n".join(data for _, data in parts) for parts, _ in rows],
        "annotation": [annotation for _, annotation in rows],
        "media_root": [str(root)] * len(rows),
    }
    parts = [
        [{"modality": kind, "data": data} for kind, data in parts] if len(parts) > 1 else None for parts, _ in rows
    ]
    table = pa.table({**columns, DATA_PARTS: pa.array(parts, PARTS)})
    return frames.from_table(table)


def step(**settings: Any) -> SNSStep:
    worked_out = {"mode": "bidirectional", "temperature": 0.1, "region_grid": 2, "padding": 0}
    return SNSStep(SNSSettings.model_validate({**worked_out, **settings}), EXPERT, MODELS)


def trim(sns: SNSStep, root: Path, *rows: Row) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = frames.to_table(sns(frame(root, *rows))).to_pylist()
    return out


def test_every_part_is_cut_by_itself(media: Path) -> None:
    (row,) = trim(step(mode="forward"), media, ([TEXT, ("image", "half.png")], "A dog. Red."))
    assert row["sns_data_spans"] == [[0, 0, 13], [1, 0, 0, 40, 60]]
    assert row["sns_annotation_spans"] is None
    assert row["sns_reason"] == "forward: kept text: 1 of 2 sentences, image: 2 of 5 regions"
    # (dog + market + red + black) / 2, and (dog + red) / sqrt 2, both against (dog + red) / sqrt 2
    assert row["sns_before"] == pytest.approx(0.5**0.5)
    assert row["sns_after"] == pytest.approx(1)


def test_what_any_part_supports_stays_in_the_annotation(media: Path) -> None:
    annotation = "A dog. Red. Rain is coming."
    (row,) = trim(step(mode="backward"), media, ([("text", "The dog runs."), ("image", "red.png")], annotation))
    assert row["sns_data_spans"] is None
    assert row["sns_annotation_spans"] == [[0, 6], [7, 11]]
    assert row["sns_reason"] == "backward: kept 2 of 3 annotation sentences"
    assert row["sns_after"] == pytest.approx(1)


def test_both_directions(media: Path) -> None:
    (row,) = trim(step(), media, ([TEXT, ("audio", "tone.wav")], "A dog, a tone. Rain is coming."))
    assert row["sns_data_spans"] == [[0, 0, 13], [1, 0, 4]]
    assert row["sns_annotation_spans"] == [[0, 14]]
    assert row["sns_reason"] == (
        "bidirectional: kept text: 1 of 2 sentences, audio: 3 of 7 windows and 1 of 2 annotation sentences"
    )


def test_a_part_stays_whole_where_its_own_gate_refuses(media: Path) -> None:
    """Dog alone is 1.41 times as like the annotation as dog and market, and red 1.004 times as the whole picture."""
    pixels = np.full((60, 80, 3), (250, 0, 0), dtype=np.uint8)
    pixels[40:, 60:] = 0
    PILImage.fromarray(pixels).save(media / "mostly.png")
    row, other = trim(
        step(mode="forward", gate_ratio=1.1, region_grid=4),
        media,
        ([TEXT, ("image", "mostly.png")], "A dog. Red."),
        ([("text", "The dog runs."), ("image", "red.png")], "A dog. Red."),
    )
    assert row["sns_reason"] == "forward: kept text: 1 of 2 sentences"
    assert row["sns_data_spans"] == [[0, 0, 13]]
    assert other["sns_reason"].startswith("untrimmed: text: one segment, image: ")


def test_one_part_is_cut_as_the_same_data_alone(media: Path) -> None:
    """A part that has nothing to cut beside it changes nothing of what is found in the other."""
    alone = trim(step(mode="forward"), media, ([TEXT], "A dog."))[0]
    beside = trim(step(mode="forward"), media, ([TEXT, ("image", "red.png")], "A dog."))[0]
    assert [span[1:] for span in beside["sns_data_spans"]] == alone["sns_data_spans"] == [[0, 13]]


def test_pairs_in_any_company_are_trimmed_alike(media: Path) -> None:
    rows: list[Row] = [
        ([TEXT, ("image", "half.png")], "A dog. Red."),
        ([TEXT], "A dog."),
        ([TEXT, ("audio", "tone.wav")], "A dog, a tone. Rain is coming."),
        ([("text", "Rain. A cat."), ("image", "red.png")], "A cat."),
        ([("image", "half.png")], "Red."),
    ]
    together = trim(step(), media, *rows)
    alone = [trim(step(), media, row)[0] for row in rows]
    assert [{**row, "pair_id": ""} for row in together] == [{**row, "pair_id": ""} for row in alone]


def test_what_fails_names_the_part(media: Path) -> None:
    rows: list[Row] = [
        ([TEXT, ("image", "broken.png")], "A dog."),
        ([("text", "x" * 300), ("image", "red.png")], "A dog."),
        ([("text", "unknown words"), ("image", "red.png")], "A dog."),
        ([TEXT, ("image", "red.png")], ""),
        ([TEXT, ("image", "red.png")], "A dog."),
    ]
    sns = step()
    sns.media = MediaSettings(max_text_chars=200)
    errors = [row["error"] for row in trim(sns, media, *rows)]
    assert errors[0].startswith("sns: MediaError: image part: 'broken.png': is not an image")
    assert errors[1:] == [
        "sns: TextError: text part: the text has 300 characters, more than the 200 allowed",
        "sns: EmbeddingError: text part: nothing that it knows",
        "sns: TextError: the text is empty",
        None,
    ]


def test_parts_that_are_not_there(media: Path) -> None:
    whole = frame(media, ([TEXT, ("image", "red.png")], "A dog."))
    out = step()(whole.drop(columns=[DATA_PARTS]))
    assert frames.strings(out, "error") == [
        "sns: EmbeddingError: data of class text+image has its parts in a column 'data_parts', and there is none"
    ]
    other = whole.assign(modality="text+audio")
    assert frames.strings(step()(other), "error") == [
        "sns: EmbeddingError: parts of ['text', 'image'] are no data of class text+audio"
    ]


def test_decoders_apply_the_spans_of_each_part(media: Path) -> None:
    rows = step()(frame(media, ([TEXT, ("image", "half.png")], "A dog. Red."), ([TEXT, ("image", "red.png")], "Dog")))
    apart = take_apart(rows, "text+image", [0, 1])
    first, second = apart.decoded(Opener(MediaSettings()), 2)
    assert isinstance(first, tuple)
    assert isinstance(second, tuple)
    words, picture = first
    assert (words, picture.pixels.size) == ("The dog runs.", (40, 60))  # type: ignore[union-attr]
    assert second[1].pixels.size == (80, 60)  # type: ignore[union-attr]


def test_means_and_parts_by_hand() -> None:
    vectors = np.array([[[1, 0], [1, 0]], [[0, 1], [np.nan, 0]]], dtype=np.float32)
    np.testing.assert_allclose(mean(vectors), [[0.5**0.5, 0.5**0.5], [np.nan, np.nan]], rtol=1e-6)
    opposite = np.array([[[1, 0]], [[-1, 0]]], dtype=np.float32)
    assert np.isnan(mean(opposite)).all()
    left = Parts(np.array([[1.0], [2.0], [3.0]], dtype=np.float32), np.array([2, 1]))
    right = Parts(np.array([[4.0], [5.0]], dtype=np.float32), np.array([1, 1]))
    both = side_by_side([left, right])
    assert both.vectors.ravel().tolist() == [1, 2, 4, 3, 5]
    assert both.counts.tolist() == [3, 2]


def test_several_media_of_a_modality_stay_whole(media: Path) -> None:
    """A sentence may be about the second picture, which would not be kept where the first is looked at alone."""
    rows = frame(media, ([TEXT, ("image", "half.png")], "A dog. Red."), ([TEXT, ("image", "half.png")], "A dog. Red."))
    pictures = [{"modality": "image", "data": name} for name in ("half.png", "red.png")]
    rows = frames.attach(rows, {SOURCE_MEDIA: pa.array([pictures, pictures[:1]], PARTS)})
    several, one = frames.to_table(step(mode="forward")(rows)).to_pylist()
    assert (several["sns_data_spans"], several["sns_annotation_spans"], several["error"]) == (None, None, None)
    assert several["sns_reason"] == "untrimmed: its data has several media of one modality"
    assert one["sns_data_spans"] == [[0, 0, 13], [1, 0, 0, 40, 60]]
