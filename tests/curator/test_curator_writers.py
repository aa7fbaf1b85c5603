from __future__ import annotations

import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from nemo_curator.tasks import DocumentBatch

from nemo_mm_rank.config import MediaSettings
from nemo_mm_rank.curator import BlendWriter, PoolReader, QuarantineStage, WebDatasetWriter
from nemo_mm_rank.errors import ConfigError, MissingColumnError, UserError
from nemo_mm_rank.io.files import read_table
from nemo_mm_rank.io.owned import MARK
from nemo_mm_rank.media.source import open_source

TABLE = pa.table({"pair_id": ["a", "b"], "emb_fused": pa.array([[0.5, 1.0], None], pa.list_(pa.float32()))})


def batch(data: Any) -> DocumentBatch:
    task = DocumentBatch("demo", data, _metadata={"source_files": ["pool.jsonl"]})
    task.task_id = "0_1"
    return task


def test_equal_rows_are_equal_bytes_from_pandas_too(tmp_path: Path) -> None:
    writer = BlendWriter(path=str(tmp_path / "out"))
    (file,) = writer.process(batch(TABLE)).data
    first = Path(file).read_bytes()
    assert writer.process(batch(TABLE.to_pandas())).data == [file]
    assert Path(file).read_bytes() == first
    assert read_table(Path(file)).equals(TABLE)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [MARK, Path(file).name]


def test_lines_and_fields(tmp_path: Path) -> None:
    writer = BlendWriter(path=str(tmp_path / "out"), file_extension="jsonl", fields=["pair_id"])
    (file,) = writer.process(batch(TABLE)).data
    assert [json.loads(line) for line in Path(file).read_text().splitlines()] == [{"pair_id": "a"}, {"pair_id": "b"}]
    whole = BlendWriter(path=str(tmp_path / "out2"), file_extension="jsonl").process(batch(TABLE)).data[0]
    lines = [json.loads(line) for line in Path(whole).read_text().splitlines()]
    assert np.allclose(lines[0]["emb_fused"], [0.5, 1.0])
    assert lines[1]["emb_fused"] is None


def test_pairs_with_their_media_come_back(pool: Path, tmp_path: Path, through: Any) -> None:
    stages = [
        PoolReader(pools=pool, rows_per_batch=12),
        QuarantineStage(tmp_path / "q"),
        WebDatasetWriter(path=str(tmp_path / "tars"), fields=["on_topic"]),
    ]
    tars = [file for task in through(stages) for file in task.data]
    assert sorted(map(str, (tmp_path / "tars").iterdir())) == sorted([str(tmp_path / "tars" / MARK), *tars])
    assert len(tars) == 3
    bytes_of = {file: Path(file).read_bytes() for file in tars}
    assert [file for task in through(stages) for file in task.data] == tars
    assert {file: Path(file).read_bytes() for file in tars} == bytes_of
    given = pa.concat_tables(batch.data for batch in through(stages[:2]))
    again = pa.concat_tables(batch.data for batch in through([PoolReader(pools=tmp_path / "tars")]))
    assert again["error"].null_count == again.num_rows
    for name in ("modality", "annotation", "on_topic"):
        both = (
            dict(zip(*(table[one].to_pylist() for one in ("pair_id", name)), strict=True)) for table in (given, again)
        )
        assert next(both) == next(both), name
    assert media(again) == media(given)
    assert len(media(given)) > 10


def media(table: pa.Table) -> dict[str, bytes]:
    """Return the content of every pair's media."""
    found = {}
    for row in table.to_pylist():
        if row["modality"] in ("image", "audio", "video"):
            with open_source(row["data"], row["media_root"], MediaSettings()) as file:
                found[row["pair_id"]] = file.read()
    return found


def test_a_batch_of_nothing_replaces_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a picture")
    row = {"pair_id": "a", "pool": "p", "modality": "image", "data": "a.png", "annotation": "x"}
    table = pa.Table.from_pylist([{**row, "media_root": str(tmp_path)}])
    writer = pickle.loads(pickle.dumps(WebDatasetWriter(path=str(tmp_path / "tars"))))
    (file,) = writer.process(batch(table)).data
    with tarfile.open(file) as tar:
        assert tar.getnames() == ["00000001.json", "00000001.png", "00000001.txt"]
    assert writer.process(batch(table.slice(1))).data == [file]
    with tarfile.open(file) as tar:
        assert tar.getnames() == []
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match=r"pair 'a': 'a\.png'"):
        writer.process(batch(table))
    with pytest.raises(
        MissingColumnError, match="webdataset_writer: the frame has no column 'pool', 'modality', 'data'"
    ):
        writer.process(batch(TABLE))
    assert sorted(path.name for path in (tmp_path / "tars").iterdir()) == [MARK, Path(file).name]


def test_what_can_be_mended_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not the URL 's3://x'"):
        BlendWriter(path="s3://x")
    with pytest.raises(ConfigError, match="as parquet or jsonl, not as 'csv'"):
        BlendWriter(path=str(tmp_path), file_extension="csv")
    with pytest.raises(ConfigError, match="max_pixel: unknown key; did you mean 'max_pixels'"):
        WebDatasetWriter(path=str(tmp_path), media={"max_pixel": 3})
