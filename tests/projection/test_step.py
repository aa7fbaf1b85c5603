"""The projection as a step over a frame."""

from __future__ import annotations

import pickle
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
import torch

from nemo_mm_rank import frames
from nemo_mm_rank.errors import MissingColumnError, ModelError
from nemo_mm_rank.frames import Vectors
from nemo_mm_rank.projection import ProjectionStep, fit
from nemo_mm_rank.schema import ANNOTATION, ERROR, FUSED, annotation_column
from tests.projection.pool import QUICK, made_up

SAMPLE = made_up(48)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("projection")
    fit(SAMPLE, QUICK, seed=1).save(path)
    return path


@pytest.fixture
def frame() -> pd.DataFrame:
    rows = pd.DataFrame({"mine": range(48), ANNOTATION: SAMPLE.annotations})
    out = frames.attach(rows, {**SAMPLE.sources, annotation_column("anchor"): Vectors.full(SAMPLE.anchors)})
    assert isinstance(out, pd.DataFrame)
    return out


def _step(folder: Path) -> ProjectionStep:
    return ProjectionStep(folder, list(SAMPLE.sources), "anchor")


def test_adds_fused_embeddings_and_agreement(folder: Path, frame: pd.DataFrame) -> None:
    step = _step(folder)
    out = step(frame)
    fused = frames.vectors(out, FUSED)
    assert out["mine"].tolist() == list(range(48))
    assert out[ERROR].isna().all()
    assert frames.array(out, FUSED).type == pa.list_(pa.float32())
    assert frames.array(out, "agreement_score").type == pa.float32()
    torch.testing.assert_close(fused.values.norm(dim=1), torch.ones(48))
    expected = (fused.values * SAMPLE.anchors).sum(1)
    torch.testing.assert_close(torch.tensor(out["agreement_score"].tolist()), expected)
    assert list(step.meta(frame).columns) == list(out.columns)
    assert list(step.provides) == [FUSED, "agreement_score"]


def test_partitions_and_processes_give_the_same_bytes(folder: Path, frame: pd.DataFrame) -> None:
    step = _step(folder)
    whole = step(frame)
    other = pickle.loads(pickle.dumps(step))
    parts = pd.concat([other(frame.iloc[:1]), other(frame.iloc[1:20]), other(frame.iloc[20:])])
    assert frames.array(parts, FUSED).equals(frames.array(whole, FUSED))
    assert frames.array(parts, "agreement_score").equals(frames.array(whole, "agreement_score"))


def test_what_cannot_be_projected_is_quarantined(folder: Path, frame: pd.DataFrame) -> None:
    values, valid = SAMPLE.sources["words"].values.clone(), torch.ones(48, dtype=torch.bool)
    values[4, 0] = float("nan")
    valid[3] = False  # a text: it has no other source
    anchors, there = SAMPLE.anchors.clone(), torch.ones(48, dtype=torch.bool)
    there[0] = False
    anchors[1, 5] = float("inf")
    frame = frames.attach(
        frame, {"words": Vectors(values * valid[:, None], valid), annotation_column("anchor"): Vectors(anchors, there)}
    )
    out = _step(folder)(frame)
    assert {row: error for row, error in out[ERROR].items() if not pd.isna(error)} == {
        0: "projection: EmbeddingError: the annotation has no usable embedding",
        1: "projection: EmbeddingError: the annotation has no usable embedding",
        3: "projection: EmbeddingError: no expert embedded the data",
        4: "projection: EmbeddingError: the fused embedding is not finite",
    }
    assert (
        out[FUSED].isna().tolist() == out["agreement_score"].isna().tolist() == [r in (0, 1, 3, 4) for r in range(48)]
    )
    rest = torch.tensor([row for row in range(48) if row not in (0, 1, 3, 4)])
    clean = frames.vectors(_step(folder)(frame.drop(columns=[ERROR, FUSED], errors="ignore")), FUSED)
    assert torch.equal(frames.vectors(out, FUSED).values[rest], clean.values[rest])


def test_what_it_is_follows_from_the_files(folder: Path, tmp_path: Path) -> None:
    assert _step(folder).identity() == _step(folder).identity()
    fit(SAMPLE, QUICK, seed=2).save(tmp_path)
    assert _step(folder).identity() != _step(tmp_path).identity()


def test_a_folder_written_anew_is_read_anew(tmp_path: Path, frame: pd.DataFrame) -> None:
    fit(SAMPLE, QUICK, seed=2).save(tmp_path)
    step = _step(tmp_path)
    before = frames.vectors(step(frame), FUSED).values
    fit(SAMPLE, QUICK, seed=5).save(tmp_path)
    assert not torch.equal(frames.vectors(step(frame), FUSED).values, before)


def test_what_is_missing_is_named(folder: Path, tmp_path: Path, frame: pd.DataFrame) -> None:
    with pytest.raises(MissingColumnError, match="projection: the frame has no column 'sight'"):
        _step(folder)(frame.drop(columns="sight"))
    with pytest.raises(ModelError, match="contains no projection"):
        _step(tmp_path / "nowhere")(frame)
