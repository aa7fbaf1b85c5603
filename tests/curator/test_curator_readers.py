from __future__ import annotations

import json
import os
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from nemo_curator.tasks import EmptyTask

from nemo_mm_rank.config import PoolSource
from nemo_mm_rank.curator import PoolReader
from nemo_mm_rank.errors import ConfigError, PoolError
from nemo_mm_rank.io.files import read_table
from nemo_mm_rank.run.curation import Result
from nemo_mm_rank.schema import ERROR, PAIR_ID


def texts(n: int, start: int = 0, **more: Any) -> list[dict[str, Any]]:
    row = {"modality": "text", "data": "A passage.", "annotation": "A question?"}
    return [{"pair_id": f"p{i}", **row, **more} for i in range(start, start + n)]


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_the_pairs_of_a_run_and_its_bad_rows(pool: Path, run: Result, rows: pa.Table, through: Any) -> None:
    batches = through([PoolReader(pools=pool, rows_per_batch=6)])
    table = pa.concat_tables(batch.data for batch in batches)
    assert [batch.num_items for batch in batches] == [6] * (table.num_rows // 6) + [table.num_rows % 6]
    good = table.filter(table[ERROR].is_null())
    assert good.select(rows.column_names).equals(rows.select(rows.column_names))
    assert set(good.column_names) - set(rows.column_names) == {ERROR}
    bad = table.filter(table[ERROR].is_valid())
    known = read_table(run.folder / "pool" / "bad_rows.parquet").to_pylist()
    assert bad.num_rows == len(known) > 2
    for row, other in zip(bad.to_pylist(), known, strict=True):
        assert row[PAIR_ID] == other["pair_id"]
        assert row[ERROR] == f"pool: BadRow: {other['message']} ({pool}:{other['line']})"
        assert row["annotation"] is None
    assert len({batch.task_id for batch in batches}) == len(batches)
    assert all(batch._metadata["source_files"] == [str(pool)] for batch in batches)
    assert batches[0].dataset_name == pool.stem


def test_nothing_is_lost_where_lines_cannot_be_read(tmp_path: Path, through: Any) -> None:
    path = jsonl(tmp_path / "a.jsonl", ["[1]", *texts(2), "{", '{"pair_id": "p9", "modality": "smell"}', texts(1)[0]])
    (batch,) = through([PoolReader(pools=path)])
    errors = {(row[PAIR_ID], (row[ERROR] or "").rpartition("(")[2]) for row in batch.data.to_pylist()}
    place = [f"{path}:{line})" for line in range(1, 7)]
    assert errors == {("p0", ""), ("p1", ""), (None, place[0]), (None, place[3]), ("p9", place[4]), ("p0", place[5])}
    (none,) = through([PoolReader(pools=jsonl(tmp_path / "b.jsonl", ["{", "}"]))])
    assert none.data[ERROR].null_count == 0
    assert "annotation" in none.data.column_names


def test_columns_of_the_user_s_have_one_type_in_a_partition(tmp_path: Path, through: Any) -> None:
    rows = [*texts(2100, stars=1, tag="x"), *texts(3, 3000, stars=2.5, tag=7)]
    batches = through([PoolReader(pools=jsonl(tmp_path / "a.jsonl", rows), rows_per_batch=1000)])
    assert [batch.num_items for batch in batches] == [1000, 1000, 103]
    assert {batch.data.schema.field("stars").type for batch in batches} == {pa.float64()}
    assert batches[-1].data["tag"].to_pylist() == ['"x"'] * 100 + ["7"] * 3


def test_files_kinds_names_and_field_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, through: Any) -> None:
    jsonl(tmp_path / "many/a.jsonl", texts(3))
    jsonl(tmp_path / "many/b.jsonl", texts(2, 5))
    jsonl(tmp_path / "many/c.jsonl", texts(2, 7))
    mine = pd.DataFrame([{"key": "q1", "modality": "text", "data": "x", "caption": "y", "stars": 3}])
    pq.write_table(pa.Table.from_pandas(mine, preserve_index=False), tmp_path / "mine.parquet")
    monkeypatch.chdir(tmp_path)
    source = {"path": "mine.parquet", "fields": {"annotation": "caption", "pair_id": "key"}, "name": "other"}
    reader = PoolReader(pools=["many", source], files_per_partition=2)
    monkeypatch.chdir("/")  # as workers may
    batches = through([pickle.loads(pickle.dumps(reader))])
    assert [batch.data[PAIR_ID].to_pylist() for batch in batches] == [
        ["p0", "p1", "p2", "p5", "p6"],
        ["p7", "p8"],
        ["q1"],
    ]
    names = [[os.path.basename(file) for file in batch._metadata["source_files"]] for batch in batches]
    assert names == [["a.jsonl", "b.jsonl"], ["c.jsonl"], ["mine.parquet"]]
    assert [batch._metadata["total_partitions"] for batch in batches] == [3, 3, 3]
    last = batches[-1].data.to_pylist()[0]
    assert (last["pool"], last["annotation"], last["stars"]) == ("other", "y", 3)
    assert last["media_root"] == str(tmp_path)
    again = through([reader])
    assert [batch.task_id for batch in again] == [batch.task_id for batch in batches]
    assert max(Counter(batch.task_id for batch in again).values()) == 1


def test_what_can_be_mended_is_said(tmp_path: Path, through: Any) -> None:
    with pytest.raises(ConfigError, match=r"field map: there is no field 'captoin'"):
        PoolReader(pools={"path": "x", "fields": {"captoin": "c"}})
    with pytest.raises(ConfigError, match="pool: rows_per_batch must be at least 1, not 0"):
        PoolReader(pools=tmp_path, rows_per_batch=0)
    with pytest.raises(PoolError, match="no such file or folder"):
        through([PoolReader(pools=tmp_path / "nothing.jsonl")])
    path = jsonl(tmp_path / "a.jsonl", texts(1))
    with pytest.raises(PoolError, match="is in two pools"):
        through([PoolReader(pools=[path, PoolSource(path=str(tmp_path))])])
    [batch] = through([PoolReader(pools=jsonl(tmp_path / "b.jsonl", texts(1, score=3)))])
    assert batch.to_pandas()["original_score"].tolist() == [3]


def test_its_parts(pool: Path) -> None:
    files, reader = PoolReader(pools=pool).decompose()
    assert (files.num_workers(), files.is_fanout_stage(), reader.is_fanout_stage()) == (1, True, True)
    assert files.process(EmptyTask())[0].data == [str(pool)]
