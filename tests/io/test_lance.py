"""Lance data sets as pools; skipped where the library is not installed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from nemo_mm_rank.config import PoolSource
from nemo_mm_rank.io import lance_rows
from nemo_mm_rank.io.ingest import ingest
from nemo_mm_rank.io.pool import read_pools, validate

N = 5000


def rows(n: int = N) -> pa.Table:
    columns: dict[str, Any] = {"caption": [f"Number {n}, ünlike others." for n in range(n)], "n": list(range(n))}
    columns["image"] = [bytes([n % 256]) * 100 for n in range(n)]
    columns["vector"] = pa.array([[1.0, float(n)] for n in range(n)], pa.list_(pa.float32(), 2))
    return pa.table(columns)


@pytest.fixture
def lance() -> Any:
    return pytest.importorskip("lance", reason="needs pylance, which no extra brings: pip install pylance")


def test_a_data_set_of_images_with_captions(lance: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lance_rows, "BATCH_ROWS", 700)
    folder = tmp_path / "mine.lance"
    lance.write_dataset(rows(3000), str(folder), max_rows_per_file=1000)
    lance.write_dataset(rows().slice(3000), str(folder), mode="append")
    source = PoolSource(path=str(folder))
    batches = list(read_pools([source]))
    assert max(batch.rows_in for batch in batches) <= 700
    assert [line for batch in batches for line in batch.lines.tolist()] == list(range(1, N + 1))
    found = pa.concat_tables(pa.table({**batch.pairs, "n": batch.extras["n"]}) for batch in batches)
    assert found["annotation"].to_pylist() == rows()["caption"].to_pylist()
    assert found["data_bytes"].to_pylist() == rows()["image"].to_pylist()
    assert found["n"].to_pylist() == list(range(N))
    assert set(found["modality"].to_pylist()) == {"image"}
    assert set(found["pool"].to_pylist()) == {"mine"}
    assert next(validate([source]).lines()) == f"{folder}: media with captions, as of Hugging Face data sets"


def test_another_version_is_read_anew(lance: Any, tmp_path: Path) -> None:
    folder, run = tmp_path / "mine.lance", tmp_path / "run"
    table = pa.table({"modality": ["text"] * 3, "data": ["a", "b", "c"], "annotation": ["x", " ", "z"]})
    data = lance.write_dataset(table, str(folder))
    source = PoolSource(path=str(folder))
    first = ingest([source], run)
    assert (first.good, first.bad, first.fresh, ingest([source], run).fresh) == (2, 1, True, False)
    assert str(validate([source]).bad_rows[0]) == f"{folder}:2: annotation: expected a non-empty string, found ' '"
    data.delete("data = 'b'")
    again = ingest([source], run)
    assert (again.good, again.bad, again.fresh) == (2, 0, True)


def test_what_is_damaged(lance: Any, tmp_path: Path) -> None:
    folder = tmp_path / "mine.lance"
    lance.write_dataset(rows(10), str(folder))
    [file] = (folder / "data").iterdir()
    file.write_bytes(file.read_bytes()[:200])
    [error] = validate([PoolSource(path=str(folder))]).errors
    assert error.startswith(f"{folder}: cannot be read: ")


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_versions", "data"):
        (tmp_path / "mine.lance" / name).mkdir(parents=True)
    monkeypatch.setitem(sys.modules, "lance", None)
    report = validate([PoolSource(path=str(tmp_path / "mine.lance"))])
    assert report.errors == [f"{tmp_path}/mine.lance: cannot be read: a library is missing: pip install pylance"]
