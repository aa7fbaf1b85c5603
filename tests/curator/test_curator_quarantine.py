from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from nemo_curator.backends.base import BaseStageAdapter
from nemo_curator.stages.text.io.writer import ParquetWriter
from nemo_curator.tasks import DocumentBatch

from nemo_mm_rank.curator import QuarantineStage
from nemo_mm_rank.errors import ConfigError, MissingColumnError, StorageError, UserError
from nemo_mm_rank.io.bad_rows import SCHEMA
from nemo_mm_rank.io.files import read_table
from nemo_mm_rank.run.curation import Result

ERRORS = [None, "experts: MediaError: no such file: 'a: b.jpg'", None]


def batch(errors: list[str | None], **metadata: Any) -> DocumentBatch:
    n = len(errors)
    columns = {
        "pair_id": pa.array([f"p{i}" for i in range(n)], pa.string()),
        "pool": pa.array(["demo"] * n, pa.string()),
        "modality": pa.array(["image"] * n, pa.string()),
        "mine": pa.array(range(n), pa.int64()),
        "error": pa.array(errors, pa.string()),
    }
    return DocumentBatch("demo", pa.table(columns), _metadata=metadata)


def files(folder: Path) -> list[pa.Table]:
    return [read_table(file) for file in sorted(folder.glob("[!.]*"))] if folder.exists() else []


def test_rows_in_are_rows_out_and_rows_in_the_folder(tmp_path: Path) -> None:
    stage = QuarantineStage(tmp_path / "q")
    given = batch(ERRORS, source_files=["a.jsonl"])
    out = BaseStageAdapter(stage).process_batch([given])[0]
    assert out.data.to_pylist() == [row for row in given.data.to_pylist() if row["error"] is None]
    assert out.data.schema == given.data.schema
    assert out._metadata == given._metadata
    assert out._stage_perf[-1].custom_metrics == {"pairs": 3, "kept": 2, "quarantined": 1}
    (table,) = files(tmp_path / "q")
    assert table.schema.remove_metadata() == SCHEMA
    assert table.to_pylist() == [
        {
            "pair_id": "p1",
            "pool": "demo",
            "modality": "image",
            "step": "experts",
            "error": "MediaError",
            "message": "no such file: 'a: b.jpg'",
            "file": None,
            "line": None,
        }
    ]


def test_the_columns_are_those_of_a_run(run: Result, tmp_path: Path) -> None:
    QuarantineStage(tmp_path).process(batch(ERRORS))
    assert files(tmp_path)[0].schema.remove_metadata() == read_table(run.folder / "quarantine.parquet").schema


def test_a_rerun_replaces_its_file_and_removes_what_is_no_longer_true(tmp_path: Path) -> None:
    stage = QuarantineStage(tmp_path)
    for task_id in ("0_a_0", "0_a_1"):  # two batches of one file
        task = batch(ERRORS, source_files=["a.jsonl"])
        task.task_id = task_id
        stage.process(task)
    assert len(files(tmp_path)) == 2
    again = batch([None, "rank: EmbeddingError: other", None], source_files=["a.jsonl"])
    again.task_id = "0_a_0"
    stage.process(again)
    assert sorted(table["message"][0].as_py() for table in files(tmp_path)) == ["no such file: 'a: b.jpg'", "other"]
    good = batch([None] * 3, source_files=["a.jsonl"])
    good.task_id = "0_a_0"
    stage.process(good)
    assert [table["message"][0].as_py() for table in files(tmp_path)] == ["no such file: 'a: b.jpg'"]


@pytest.mark.parametrize("task_id", ["", "r123", "r456"])
def test_a_batch_that_curator_cannot_place_is_known_by_its_pairs(task_id: str, tmp_path: Path) -> None:
    stage = QuarantineStage(tmp_path)
    stage.process(batch(ERRORS))
    task = batch(ERRORS, source_files=["a.jsonl"])
    task.task_id = task_id
    stage.process(task)
    assert len(files(tmp_path)) == 1
    other = batch([*ERRORS, None], source_files=["a.jsonl"])  # other rows of the same file
    stage.process(other)
    assert len(files(tmp_path)) == 2


def test_a_batch_without_a_live_row_goes_on_empty(tmp_path: Path, through: Any) -> None:
    writer = ParquetWriter(path=str(tmp_path / "out"))
    task = batch(["a: B: c"] * 2, source_files=["a.jsonl"])
    (written,) = through([QuarantineStage(tmp_path / "q"), writer], [task])
    table = read_table(Path(written.data[0]))
    assert table.num_rows == 0
    assert table.schema.types == task.data.schema.types
    assert files(tmp_path / "q")[0].num_rows == 2
    assert QuarantineStage(tmp_path / "q").process(batch([])).num_items == 0


def test_what_can_be_mended_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not the URL"):
        QuarantineStage("s3://bucket/q")
    stage = QuarantineStage(tmp_path)
    with pytest.raises(MissingColumnError, match="quarantine: the frame has no column 'pool', 'modality', 'error'"):
        stage.process(DocumentBatch("demo", pa.table({"pair_id": ["a"]})))
    with pytest.raises(UserError, match="column 'error' holds 'oh dear', not 'step: Class: message'"):
        stage.process(batch(["oh dear"]))
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="exists already and is not a folder"):
        QuarantineStage(tmp_path / "file")
    with pytest.raises(StorageError, match="cannot be written"):
        QuarantineStage(tmp_path / "file" / "q").process(batch(ERRORS))
    assert pickle.loads(pickle.dumps(stage)).path == tmp_path
