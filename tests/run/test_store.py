from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemo_mm_rank.errors import DamagedError, EmbeddingError, MissingColumnError, PairError
from nemo_mm_rank.frames import Frame
from nemo_mm_rank.io.files import read_note, read_schema, read_table, write_table
from nemo_mm_rank.io.part_files import part_name
from nemo_mm_rank.run.store import ShardStore, Stage, digest
from nemo_mm_rank.schema import ERROR, FUSED, VECTOR
from nemo_mm_rank.steps import Added, Step


class Length(Step):
    """Adds the annotation's length plus a constant; empty ones fail."""

    name = "length"

    def __init__(self, plus: int = 0) -> None:
        self.plus = plus

    @property
    def requires(self) -> Mapping[str, pa.DataType]:
        return {"annotation": pa.string()}

    @property
    def provides(self) -> Mapping[str, pa.DataType]:
        return {"length": pa.int64()}

    def process(self, rows: Frame) -> Added:
        texts = rows["annotation"].tolist()
        errors: dict[int, PairError] = {row: EmbeddingError("empty") for row, text in enumerate(texts) if not text}
        return Added({"length": pa.array([len(text) + self.plus if text else None for text in texts])}, errors)

    def identity(self) -> dict[str, Any]:
        return {"step": self.name, "plus": self.plus}


@pytest.fixture
def pool(tmp_path: Path) -> ShardStore:
    folder = tmp_path / "pool"
    rows = [["a", "bb"], ["", "dddd"]]
    for part, texts in enumerate(rows):
        table = pa.table(
            {"pair_id": [f"{part}-{i}" for i in range(2)], "modality": ["text", "code"], "annotation": texts}
        )
        write_table(folder / part_name(part), table, {"key": digest(texts)})
    return ShardStore((folder,), 2)


def stage(pool: ShardStore, folder: Path, plus: int = 0) -> Stage:
    step = Length(plus)
    return Stage(step, pool, folder, digest(step.identity()))


def test_a_stage_writes_only_what_it_adds_and_counts(pool: ShardStore, tmp_path: Path) -> None:
    length = stage(pool, tmp_path / "length")
    assert [length(part) for part in range(2)] == [2, 2]
    assert read_table(length.folder / part_name(1)).to_pylist() == [
        {"length": None, ERROR: "length: EmbeddingError: empty"},
        {"length": 4, ERROR: None},
    ]
    note = read_note(length.folder / part_name(1))
    assert note is not None
    assert note["counts"] == {
        "text": {"in": 1, "trimmed": 0, "quarantined": {"EmbeddingError": 1}},
        "code": {"in": 1, "trimmed": 0, "quarantined": {}},
    }


def test_shards_read_as_wide_rows(pool: ShardStore, tmp_path: Path) -> None:
    length = stage(pool, tmp_path / "length")
    for part in range(2):
        length(part)
    wide = pool.then(length.folder)
    assert wide.read(0).column_names == ["pair_id", "modality", "annotation", "length", ERROR]
    assert wide.read(0, ["length", "pair_id", "unknown"]).to_pylist() == [
        {"length": 1, "pair_id": "0-0"},
        {"length": 2, "pair_id": "0-1"},
    ]
    assert wide.rows(1) == 2
    assert set(wide.columns()) == {"pair_id", "modality", "annotation", "length", ERROR}


def test_done_means_same_input_and_same_way(pool: ShardStore, tmp_path: Path) -> None:
    length = stage(pool, tmp_path / "length")
    assert not length.done(0)
    length(0)
    assert length.done(0)
    assert not length.done(1)
    assert not stage(pool, tmp_path / "length", plus=1).done(0)
    changed = pa.table({"pair_id": ["x"], "modality": ["text"], "annotation": ["new"]})
    write_table(pool.stages[0] / part_name(0), changed, {"key": digest(["new"])})
    assert not length.done(0)


def test_a_half_written_file_counts_as_none(pool: ShardStore, tmp_path: Path) -> None:
    length = stage(pool, tmp_path / "length")
    length(0)
    path = length.folder / part_name(0)
    path.write_bytes(path.read_bytes()[:-20])
    assert not length.done(0)


def test_missing_columns_are_named(tmp_path: Path) -> None:
    write_table(tmp_path / "pool" / part_name(0), pa.table({"pair_id": ["a"], "modality": ["text"]}), {"key": "k"})
    with pytest.raises(MissingColumnError, match="length: the shards lack 'annotation'"):
        stage(ShardStore((tmp_path / "pool",), 1), tmp_path / "length")(0)


def test_embeddings_and_what_is_beside_them_come_back(tmp_path: Path) -> None:
    unit = np.random.default_rng(0).standard_normal((500, 64)).astype(np.float32)
    vectors = pa.array([None if row % 7 == 3 else unit[row] for row in range(500)], VECTOR)
    table = pa.table(
        {
            FUSED: vectors,
            "emb_text.list.element": pa.array([f"word {row % 3}" for row in range(500)]),  # of the user's
            "tags": pa.array([["a", "b"]] * 500),
            "parts": pa.array([[{"data": "x", "at": 1.5}]] * 500),
            "own": vectors,
            "a": pa.array(range(500)),
            "a.b": pa.array(["c"] * 500),
        }
    )
    write_table(tmp_path / "x.parquet", table, {"key": "k"})
    assert read_table(tmp_path / "x.parquet").equals(table)
    assert read_table(tmp_path / "x.parquet", ["a.b", FUSED]).equals(table.select(["a.b", FUSED]))
    assert read_table(tmp_path / "x.parquet", ["a"]).column_names == ["a"]
    assert pd.read_parquet(tmp_path / "x.parquet")["tags"][499].tolist() == ["a", "b"]
    assert read_schema(tmp_path / "x.parquet").remove_metadata() == table.schema
    with pytest.raises(DamagedError):
        read_table(tmp_path / "x.parquet", ["b"])
    row_group = pq.read_metadata(tmp_path / "x.parquet").row_group(0)
    encodings = {
        row_group.column(i).path_in_schema: row_group.column(i).encodings for i in range(row_group.num_columns)
    }
    assert "BYTE_STREAM_SPLIT" in encodings["emb_fused.list.element"]
    assert all("BYTE_STREAM_SPLIT" not in used for path, used in encodings.items() if not path.startswith("emb_fused"))
    assert any("DICTIONARY" in one for one in encodings["tags.list.element"])


def test_a_full_disk_leaves_no_file_behind(tmp_path: Path) -> None:
    """The process may write 64 KiB a file; what it fails to write must not be there afterwards, whole or half."""
    script = """
import resource, sys, signal
from pathlib import Path
import numpy as np, pyarrow as pa
from nemo_mm_rank.errors import StorageError
from nemo_mm_rank.io.files import write_table
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
table = pa.table({"x": np.random.default_rng(0).random(100_000)})
try:
    write_table(Path(sys.argv[1]) / "big.parquet", table, {"key": "k"})
except StorageError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path / 'big.parquet'}: cannot be written: File too large\n"
    assert os.listdir(tmp_path) == []
