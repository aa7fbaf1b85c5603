"""Ingest: parts of one schema that every reader opens, the same rows however they are cut, and nothing lost."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemo_mm_rank.config import PoolSource
from nemo_mm_rank.errors import PoolError, StorageError
from nemo_mm_rank.io import columns
from nemo_mm_rank.io import part_files as parts_module
from nemo_mm_rank.io.files import TEMPORARY, read_note, read_table, table_digest, write_table
from nemo_mm_rank.io.ingest import IngestReport, ingest
from nemo_mm_rank.io.owned import MARK


def rows(n: int, start: int = 0, **extra: Any) -> list[dict[str, Any]]:
    return [
        {"pair_id": f"id{i}", "modality": "text", "data": f"text {i}", "annotation": f"note {i}", **extra}
        for i in range(start, start + n)
    ]


def jsonl(path: Path, lines: Iterable[dict[str, Any]]) -> PoolSource:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return PoolSource(path=str(path))


def parts(folder: Path) -> list[pa.Table]:
    return [read_table(path) for path in sorted(folder.glob("part-*.parquet"))]


def whole(folder: Path) -> pa.Table:
    return pa.concat_tables(parts(folder))


def test_the_report_and_the_parts(tmp_path: Path) -> None:
    lines = rows(10)
    lines[3]["annotation"] = ""
    report = ingest([jsonl(tmp_path / "pool.jsonl", lines)], tmp_path / "out", rows_per_shard=4)
    assert (report.rows_in, report.good, report.bad, report.shards, report.fresh) == (10, 9, 1, 3, True)
    assert [part.num_rows for part in parts(tmp_path / "out")] == [4, 4, 1]
    assert whole(tmp_path / "out")["pair_id"].to_pylist() == [f"id{i}" for i in range(10) if i != 3]
    notes = [read_note(tmp_path / "out" / f"part-0000{i}.parquet") for i in range(3)]
    assert [note and note["key"] for note in notes] == list(report.digests)
    assert len(set(report.digests)) == 3
    bad = read_table(tmp_path / "out" / "bad_rows.parquet").to_pylist()
    assert bad == [
        {
            "pair_id": "id3",
            "pool": "pool",
            "modality": "text",
            "step": "pool",
            "error": "BadRow",
            "message": "annotation: expected a non-empty string, found ''",
            "file": str(tmp_path / "pool.jsonl"),
            "line": 4,
        }
    ]


@pytest.mark.parametrize(("shards", "sizes"), [(1, [9]), (2, [5, 4]), (4, [3, 2, 2, 2]), (50, [1] * 9)])
def test_as_many_shards_as_asked_for(tmp_path: Path, shards: int, sizes: list[int]) -> None:
    lines = rows(10)
    lines[3]["annotation"] = ""
    ingest([jsonl(tmp_path / "pool.jsonl", lines)], tmp_path / "out", shards=shards)
    assert [part.num_rows for part in parts(tmp_path / "out")] == sizes


MIXED: list[Any] = [1, None, 2.5, "x", [1, "a"], {"a": {}}, True, 2**70]


def test_the_rows_are_the_same_however_they_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemo_mm_rank.io.json_rows.BATCH_ROWS", 16)
    lines = rows(300)
    for i, line in enumerate(lines):
        if i >= 100:
            line["late"] = i
        line["widens"] = i if i < 200 else i + 0.5
        line["mixed"] = MIXED[i // 40]
        line["record"] = {"a": i} if i < 150 else {"b": [str(i)]}
        line["annotation"] = "" if i % 7 == 3 else line["annotation"]
    source = jsonl(tmp_path / "pool.jsonl", lines)
    expected: pa.Table = None
    cuts: list[tuple[int, int | None]] = [(5, None), (16, None), (33, None), (1000, None), (9, 1), (9, 7), (9, 50)]
    for n, (size, shards) in enumerate(cuts):
        ingest([source], tmp_path / f"{n}", rows_per_shard=size, shards=shards)
        for part in parts(tmp_path / f"{n}"):
            assert expected is None or part.schema == expected.schema
        expected = whole(tmp_path / f"{n}") if expected is None else expected
        assert whole(tmp_path / f"{n}").equals(expected)
    assert expected.schema.field("late").type == pa.int64()
    assert expected.schema.field("widens").type == pa.float64()
    assert expected.schema.field("mixed").type == pa.string()
    good = [line for line in lines if line["annotation"]]
    assert [None if text is None else json.loads(text) for text in expected["mixed"].to_pylist()] == [
        line["mixed"] for line in good
    ]
    assert expected["record"].to_pylist() == [{"a": None, "b": None, **line["record"]} for line in good]


def test_types_over_pools_of_different_kinds(tmp_path: Path) -> None:
    first = jsonl(tmp_path / "a.jsonl", rows(2, size=1, tags=["x"], when="2024-01-01", same=None))
    table = pa.Table.from_pylist(rows(2, start=2))
    table = table.append_column("size", pa.array([1.5, 2.5]))
    table = table.append_column("tags", pa.array([7, None]))
    table = table.append_column("when", pa.array([0, 1], pa.timestamp("s")))
    table = table.append_column("colour", pa.array(["red", "blue"]).dictionary_encode())
    pq.write_table(table, tmp_path / "b.parquet")
    ingest([first, PoolSource(path=str(tmp_path / "b.parquet"))], tmp_path / "out")
    found = whole(tmp_path / "out")
    assert found["size"].to_pylist() == [1.0, 1.0, 1.5, 2.5]
    assert found["tags"].to_pylist() == ['["x"]', '["x"]', "7", None]
    assert found["when"].to_pylist() == ['"2024-01-01"'] * 2 + ['"1970-01-01 00:00:00"', '"1970-01-01 00:00:01"']
    assert found["same"].to_pylist() == [None] * 4
    assert found["colour"].to_pylist() == [None, None, "red", "blue"]
    assert {name: str(found[name].type) for name in ("size", "tags", "same", "colour")} == {
        "size": "double",
        "tags": "string",
        "same": "string",
        "colour": "string",
    }


def test_a_whole_number_that_no_float_holds_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemo_mm_rank.io.json_rows.BATCH_ROWS", 1)
    lines = [{**row, "n": n} for row, n in zip(rows(2), (2**60 + 1, 0.5), strict=True)]
    ingest([jsonl(tmp_path / "pool.jsonl", lines)], tmp_path / "out")
    assert whole(tmp_path / "out")["n"].to_pylist() == [str(2**60 + 1), "0.5"]


def test_records_with_ever_new_keys_become_text(tmp_path: Path) -> None:
    lines = [{**row, "scores": {"by": {f"k{i}": i}}} for i, row in enumerate(rows(300))]
    ingest([jsonl(tmp_path / "pool.jsonl", lines)], tmp_path / "out")
    assert whole(tmp_path / "out")["scores"].to_pylist()[7] == '{"by": {"k7": 7}}'


def test_every_reader_opens_the_parts(tmp_path: Path) -> None:
    lines = rows(20, tags=["a", "b"], meta={"licence": "CC0"}, size=3)
    ingest([jsonl(tmp_path / "pool.jsonl", lines)], tmp_path / "out", rows_per_shard=7)
    frame = pd.read_parquet(tmp_path / "out" / "part-00000.parquet")
    assert frame["size"].tolist() == [3] * 7
    assert frame["tags"][0].tolist() == ["a", "b"]
    everything = dd.read_parquet(str(tmp_path / "out" / "part-*.parquet")).compute()
    assert everything["pair_id"].tolist() == [f"id{i}" for i in range(20)]


def test_content_travels_with_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "MAX_PART_BYTES", 5000)
    content = [bytes([i]) * 1000 for i in range(20)]
    table = pa.table({"data": content, "annotation": [f"n{i}" for i in range(20)], "modality": ["image"] * 20})
    pq.write_table(table, tmp_path / "b.parquet")
    monkeypatch.setattr("nemo_mm_rank.io.arrow_rows.BATCH_ROWS", 3)
    sources = [jsonl(tmp_path / "a.jsonl", rows(2)), PoolSource(path=str(tmp_path / "b.parquet"))]
    report = ingest(sources, tmp_path / "out")
    found = whole(tmp_path / "out")
    assert found["data_bytes"].to_pylist() == [None, None, *content]
    assert found.column_names[:7] == ["pair_id", "pool", "modality", "data", "annotation", "media_root", "data_bytes"]
    assert report.shards > 1


def test_bad_rows_fail_where_they_are_to(tmp_path: Path) -> None:
    lines = rows(10)
    for i in range(2, 9):
        lines[i]["modality"] = "texts"
    source = jsonl(tmp_path / "pool.jsonl", lines)
    with pytest.raises(PoolError) as caught:
        ingest([source], tmp_path / "out", on_bad_row="fail")
    assert str(caught.value).split("\n") == [
        "7 of 10 rows are bad",
        *(
            f"{source.path}:{i + 1}: pair 'id{i}': modality: expected one of text, code, image, audio, video, "
            "found 'texts'; did you mean 'text'?"
            for i in range(2, 7)
        ),
        "... and 2 more",
    ]
    assert not (tmp_path / "out" / "ingest.json").exists()


def test_a_pool_without_a_good_row(tmp_path: Path) -> None:
    with pytest.raises(PoolError, match=r"no usable pair: 0 rows, 0 bad"):
        ingest([jsonl(tmp_path / "pool.jsonl", [])], tmp_path / "out")
    with pytest.raises(PoolError, match=r"no usable pair: 1 rows, 1 bad\n.*pool\.jsonl:1: "):
        ingest([jsonl(tmp_path / "pool.jsonl", [{"data": 1}])], tmp_path / "out", shards=3)


def media_pool(folder: Path) -> PoolSource:
    lines = rows(6)
    for i in range(3):
        (folder / f"{i}.jpg").write_bytes(b"x" * (i + 1))
        lines[i].update(modality="image", data=f"{i}.jpg")
    return jsonl(folder / "pool.jsonl", lines)


def test_an_equal_ingest_is_recognised_and_a_changed_one_is_not(tmp_path: Path) -> None:
    source, out = media_pool(tmp_path), tmp_path / "out"

    def again(**settings: Any) -> IngestReport:
        return ingest([source], out, **{"rows_per_shard": 2, **settings})

    first = again()
    stamp = (out / "part-00000.parquet").stat().st_mtime_ns
    second = again()
    assert (second.fresh, second.digests, second.good) == (False, first.digests, 6)
    assert (out / "part-00000.parquet").stat().st_mtime_ns == stamp

    os.utime(tmp_path / "2.jpg", ns=(1, 1))
    touched = again()
    assert touched.fresh
    assert [a == b for a, b in zip(first.digests, touched.digests, strict=True)] == [True, False, True]

    (out / "part-00001.parquet").unlink()
    assert again().fresh
    assert again(on_bad_row="fail").fresh
    assert [again(rows_per_shard=6).shards, len(parts(out))] == [1, 1]

    (tmp_path / "1.jpg").unlink()
    assert (again().bad, again().fresh) == (1, True)
    (tmp_path / "1.jpg").write_bytes(b"back")
    assert again().bad == 0
    Path(source.path).write_text(Path(source.path).read_text().replace("note 5", "note five"))
    assert again().fresh
    assert whole(out)["annotation"].to_pylist()[-1] == "note five"


def test_a_copy_of_a_pool_has_the_same_digests(tmp_path: Path) -> None:
    digests = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        source = media_pool(tmp_path / name)
        for i in range(3):
            os.utime(tmp_path / name / f"{i}.jpg", ns=(1, 1))
        digests.append(ingest([source], tmp_path / f"out-{name}").digests)
    assert digests[0] == digests[1]


def test_texts_from_files_are_read_again(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("one")
    source = jsonl(tmp_path / "pool.jsonl", [{"modality": "text", "data_path": "t.txt", "annotation": "n"}])
    ingest([source], tmp_path / "out")
    (tmp_path / "t.txt").write_text("two")
    assert ingest([source], tmp_path / "out").fresh
    assert whole(tmp_path / "out")["data"].to_pylist() == ["two"]


def test_what_a_killed_ingest_leaves_is_never_read(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "pool.jsonl", rows(10_000))
    ingest([source], tmp_path / "whole", rows_per_shard=500)
    out = tmp_path / "out"
    code = (
        "import sys; from pathlib import Path; from nemo_mm_rank.config import PoolSource\n"
        "from nemo_mm_rank.io.ingest import ingest\n"
        "ingest([PoolSource(path=sys.argv[1])], Path(sys.argv[2]), rows_per_shard=500)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, source.path, str(out)])
    while len(list(out.glob("part-*.parquet"))) < 5:
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "ingest.json").exists()
    for path in out.glob("part-*.parquet"):
        assert read_table(path).num_rows == 500
    (out / f".part-00003.parquet.x{TEMPORARY}").write_bytes(b"half")
    write_table(out / "part-00099.parquet", pa.table({"of": ["an older ingest"]}), {"key": "other"})
    ingest([source], out, rows_per_shard=500)
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in (tmp_path / "whole").iterdir())
    for path in out.glob("*.parquet"):
        assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()


def test_a_full_disk_leaves_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    source = jsonl(tmp_path / "pool.jsonl", rows(2000))
    # A bound on the size of files gives the same OSError from the same call as a full disk.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(StorageError, match="File too large"):
            ingest([source], tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [MARK]
    assert ingest([source], tmp_path / "out").good == 2000


def test_ever_new_columns_are_gathered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "MAX_COLUMNS", 10)
    source = jsonl(tmp_path / "pool.jsonl", [{**row, f"k{i}": 1} for i, row in enumerate(rows(20))])
    assert ingest([source], tmp_path / "out").gathered
    assert whole(tmp_path / "out")["other_fields"].to_pylist() == [f'{{"k{i}": 1}}' for i in range(20)]


def test_progress_counts_every_row(tmp_path: Path) -> None:
    counted: list[int] = []
    ingest([jsonl(tmp_path / "pool.jsonl", [*rows(5000), {}])], tmp_path / "out", progress=counted.append)
    assert sum(counted) == 5001


def test_a_digest_is_of_values_alone() -> None:
    table = pa.table(
        {
            "text": ["a", None, "", "bc"],
            "list": [[1.5], None, [], [2.5, None]],
            "record": [{"x": True, "y": b"1"}, None, {"x": None, "y": b""}, {"x": False, "y": None}],
            "time": pa.array([1, None, 3, 4], pa.timestamp("ms")),
        }
    )
    cut = pa.concat_tables([table.slice(i, 1) for i in range(4)])
    assert table_digest(table) == table_digest(cut) == table_digest(table.take([0, 1, 2, 3]))
    assert table_digest(table.slice(1)) == table_digest(cut.slice(1)) != table_digest(table)
    others = [
        pa.table({"x": values})
        for values in (["ab", "c"], ["a", "bc"], [None, "abc"], ["", "abc"], [["ab", "c"], []], [["ab"], ["c"]])
    ]
    assert len({table_digest(other) for other in others}) == len(others)


def test_a_file_that_cannot_be_read_does_not_stop_the_others(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    jsonl(pool / "a.jsonl", rows(3))
    (pool / "b.parquet").write_bytes(b"")
    (pool / "c.jsonl.gz").write_bytes(gzip.compress((pool / "a.jsonl").read_bytes() * 2)[:-12])
    (pool / "d.jsonl").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    jsonl(pool / "e.jsonl", rows(2, 50))
    report = ingest([PoolSource(path=str(pool))], tmp_path / "parts")
    assert (report.good + report.bad, report.rows_in) == (report.rows_in,) * 2
    bad = pq.read_table(tmp_path / "parts" / "bad_rows.parquet").to_pylist()
    broken = {Path(row["file"]).name: row["message"] for row in bad if row["message"].startswith("file: ")}
    assert set(broken) == {"b.parquet", "c.jsonl.gz", "d.jsonl"}
    assert all(
        text.startswith("file: expected a manifest that can be read to its end, found ") for text in broken.values()
    )
    assert "it is a Git LFS pointer" in broken["d.jsonl"]
    with pytest.raises(PoolError, match="rows are bad"):
        ingest([PoolSource(path=str(pool))], tmp_path / "strict", on_bad_row="fail")


def test_values_nested_deeply_are_kept_as_json_and_too_deeply_a_bad_row(tmp_path: Path) -> None:
    good = rows(3)
    good[0]["n"] = [[["x"]]]
    lines = [json.dumps(row) for row in good]
    for depth in (100, 500, 100_000):
        lines.append(lines[1].replace('"pair_id": "', f'"n": {"[" * depth + "]" * depth}, "pair_id": "{depth}-'))
    (tmp_path / "pool.jsonl").write_text("\n".join(lines))
    report = ingest([PoolSource(path=str(tmp_path / "pool.jsonl"))], tmp_path / "parts")
    assert (report.good, report.bad) == (4, 2)
    assert pq.read_table(tmp_path / "parts" / "part-00000.parquet")["n"].to_pylist() == [
        '[[["x"]]]',
        None,
        None,
        "[" * 100 + "]" * 100,
    ]
    nested = pa.array([None, [1]])
    for _ in range(20):
        nested = pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), nested)
    table = pa.Table.from_pylist(rows(2)).append_column("deep", nested)
    pq.write_table(table, tmp_path / "deep.parquet")
    ingest([PoolSource(path=str(tmp_path / "deep.parquet"))], tmp_path / "deep")
    assert pq.read_table(tmp_path / "deep" / "part-00000.parquet")["deep"].to_pylist() == [
        "[" * 20 + "null" + "]" * 20,
        "[" * 20 + "[1]" + "]" * 20,
    ]


def test_more_keys_than_a_table_has_columns_are_json(tmp_path: Path) -> None:
    good = rows(4)
    good[1] |= {f"key{n}": n for n in range(1500)}
    good[3]["mine"] = "kept"
    jsonl(tmp_path / "pool.jsonl", good)
    report = ingest([PoolSource(path=str(tmp_path / "pool.jsonl"))], tmp_path / "parts")
    assert (report.good, report.bad, report.gathered) == (4, 0, False)
    table = pq.read_table(tmp_path / "parts" / "part-00000.parquet")
    assert len(table.column_names) < 110
    values = table.to_pylist()
    assert json.loads(values[3]["other_fields"]) == {"mine": "kept"}
    assert values[0]["other_fields"] is None
    others = json.loads(values[1].pop("other_fields"))
    assert {n for n in range(1500) if (values[1].get(f"key{n}") or others.get(f"key{n}")) == n} == set(range(1, 1500))
