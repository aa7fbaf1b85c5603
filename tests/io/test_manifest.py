"""Manifests: every container gives the same rows with the same numbers, and one bad line is one bad row."""

from __future__ import annotations

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemo_mm_rank.errors import PoolError
from nemo_mm_rank.io import arrow_rows, json_rows
from nemo_mm_rank.io.manifest import read_rows, split_suffix
from nemo_mm_rank.io.rows import FREQUENT, OTHER_FIELDS


def read(file: Path | str) -> tuple[list[int], dict[str, list[Any]], list[str]]:
    lines: list[int] = []
    columns: dict[str, list[Any]] = {}
    bad: list[str] = []
    for rows in read_rows(str(file)):
        for name, column in rows.columns.items():
            values = column if isinstance(column, list) else column.to_pylist()
            columns.setdefault(name, [None] * len(lines)).extend(values)
        lines += rows.lines.tolist()
        bad += [str(row) for row in rows.bad]
    return lines, columns, bad


ROWS = [{"n": n, "text": f"línea {n} \u2028 \U0001f600"} for n in range(5000)]


def jsonl() -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def write(folder: Path, suffix: str) -> Path:
    path = folder / f"pool{suffix}"
    if suffix.endswith(".gz"):
        # Two members, as concatenated files have.
        path.write_bytes(gzip.compress(jsonl()[:1000]) + gzip.compress(jsonl()[1000:]))
    elif suffix.endswith(".zst"):
        with pa.CompressedOutputStream(str(path), "zstd") as stream:
            stream.write(jsonl())
    elif suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=777)
    else:
        path.write_bytes(jsonl())
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_every_container_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    lines, columns, bad = read(write(tmp_path, suffix))
    assert lines == list(range(1, 5001))
    assert columns == {"n": [row["n"] for row in ROWS], "text": [row["text"] for row in ROWS]}
    assert bad == []


def test_a_url_reads_like_a_file() -> None:
    fsspec.filesystem("memory").pipe("/manifests/pool.jsonl", jsonl())
    assert read("memory://manifests/pool.jsonl")[0] == list(range(1, 5001))


def test_small_blocks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read(write(tmp_path, ".jsonl.gz"))
    monkeypatch.setattr(json_rows, "BLOCK_BYTES", 100)
    monkeypatch.setattr(json_rows, "BATCH_ROWS", 7)
    assert read(write(tmp_path, ".jsonl.gz")) == whole


def test_each_bad_line_is_one_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "pool.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf"
        b'{"n": 1}\n'
        b"\n"
        b'{"n": 2\n'
        b"[1, 2]\r\n"
        b'{"n": "\xff"}\n'
        b'{"n": "\\ud800"}\n'
        b'{"n": "\\ud83d\\ude00"}\r\n'
        b'{"n": 1} {"n": 2}\n' + b"[" * 100_000 + b"\n"
        b'{"n": ' + b"9" * 5000 + b"}\n"
        b'  {"n": 3}'
    )
    lines, columns, bad = read(path)
    assert lines == [1, 7, 11]
    assert columns == {"n": [1, "\U0001f600", 3]}
    expected = "row: expected one JSON object a line, in UTF-8, found"
    assert bad[:-1] == [
        f"{path}:3: {expected} Expecting ',' delimiter at column 8",
        f"{path}:4: {expected} '[1, 2]'",
        f"{path}:5: {expected} byte 0xff at 8",
        f"{path}:6: {expected} half of a surrogate pair",
        f"{path}:8: {expected} Extra data at column 10",
        f"{path}:9: {expected} values that are nested too deeply",
    ]
    assert bad[-1].startswith(f"{path}:10: {expected} Exceeds the limit (4300 digits)")


@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_line_that_is_too_long_is_one_bad_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: bytes) -> None:
    monkeypatch.setattr(json_rows, "BLOCK_BYTES", 64)
    monkeypatch.setattr(json_rows, "MAX_LINE_BYTES", 300)
    path = tmp_path / "pool.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": "' + b"x" * 5000 + b'"}\n{"n": 3}\n{"n": "' + b"y" * 281 + b'"}' + end)
    lines, columns, bad = read(path)
    assert lines == [1, 3, 4]
    assert columns["n"] == [1, 3, "y" * 281]
    assert bad == [f"{path}:2: row: expected one JSON object a line, found more than 300 bytes"]


def test_a_truncated_archive_is_no_short_pool(tmp_path: Path) -> None:
    for suffix in (".jsonl.gz", ".jsonl.zst"):
        path = write(tmp_path, suffix)
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(PoolError, match=r"pool\.jsonl\.(gz|zst): cannot be read: .+"):
            read(path)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\0" * 100 + b"PAR1", jsonl()])
def test_a_parquet_file_that_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pool.parquet"
    path.write_bytes(content)
    with pytest.raises(PoolError, match=r"pool\.parquet: cannot be read: "):
        read(path)


def test_strings_in_parquet_that_are_not_utf8(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(np.array([0, 1, 2, 3], np.int32)), pa.py_buffer(b"a\xffc")]
    )
    nested = pa.array([[1], [2], [3]])
    pq.write_table(pa.table({"text": broken, "list": nested}), tmp_path / "pool.parquet")
    lines, columns, bad = read(tmp_path / "pool.parquet")
    assert lines == [1, 3]
    assert columns == {"text": ["a", "c"], "list": [[1], [3]]}
    assert bad == [f"{tmp_path}/pool.parquet:2: row: expected text in UTF-8, found other bytes in column 'text'"]


def test_encodings_of_arrow_are_undone(tmp_path: Path) -> None:
    table = pa.table(
        {
            "category": pa.array(["a", "b", "a"]).dictionary_encode(),
            "large": pa.array(["x", None, "z"], pa.large_string()),
        }
    )
    pq.write_table(table, tmp_path / "pool.parquet")
    [rows] = read_rows(str(tmp_path / "pool.parquet"))
    assert {name: column.type for name, column in rows.columns.items() if isinstance(column, pa.Array)} == {
        "category": pa.string(),
        "large": pa.string(),
    }


def test_keys_that_are_values_are_gathered(tmp_path: Path) -> None:
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps({"x": n, f"key{n}": n}) + "\n" for n in range(1001)))
    [rows] = read_rows(str(path))
    assert len(rows.columns) == FREQUENT + 1
    assert rows.columns["x"] == list(range(1001))
    assert [value for value in rows.columns[OTHER_FIELDS] if value] == [f'{{"key{n}": {n}}}' for n in range(99, 1001)]


def test_what_is_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(PoolError, match=r"pool\.tsv: a manifest must be \.jsonl, .*\.parquet or \.tar"):
        read(tmp_path / "pool.tsv")
    with pytest.raises(PoolError, match=r"none\.jsonl: no such file"):
        read(tmp_path / "none.jsonl")
    with pytest.raises(PoolError, match=r"nowhere://x\.jsonl: cannot be read: Protocol not known"):
        read("nowhere://x.jsonl")


def test_suffixes() -> None:
    assert split_suffix("a/b.c.jsonl.gz") == ("b.c", "json", "gzip")
    assert split_suffix("s3://x/train-0.parquet") == ("train-0", "parquet", None)
    assert split_suffix("https://x/pool.jsonl?token=1") == ("pool", "json", None)
    assert split_suffix("a/shard-000.tar") == ("shard-000", "tar", None)
    assert split_suffix("pool.parquet.gz")[1] is None
    assert split_suffix("shard-000.tar.gz")[1] is None


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("indent", [None, 1])
def test_an_array_is_read_element_by_element(tmp_path: Path, suffix: str, indent: int | None) -> None:
    elements = [{"n": n, "text": "\u00e9" * n} for n in range(3000)]
    text = json.dumps([*elements[:5], 7, [1], *elements[5:]], indent=indent, ensure_ascii=False)
    content = b"\xef\xbb\xbf " + text.encode()
    path = tmp_path / f"pool.json{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    lines, columns, bad = read(path)
    assert lines == [*range(1, 6), *range(8, 3003)]
    assert columns["n"] == list(range(3000))
    assert columns["text"] == [element["text"] for element in elements]
    expected = "row: expected a JSON object in each place of the array, found"
    assert bad == [f"{path}:6: {expected} 7", f"{path}:7: {expected} [1]"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'[{"a": 1}, {"a"', "a JSON array, but it breaks off"),
        (b'[{"a": 1}', "a JSON array, but it breaks off"),
        (b'[{"a": 1}, {"a": x}]', "a JSON array, but Expecting value in element 2"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "it is a Git LFS pointer"),
        (b"<!DOCTYPE html><html></html>", "it is an HTML page"),
        ('{"a": 1}'.encode("utf-16"), "it is UTF-16: save it as UTF-8"),
        ('{"a": 1}'.encode("utf-32"), "it is UTF-32: save it as UTF-8"),
    ],
)
def test_what_is_something_else_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "pool.jsonl"
    path.write_bytes(content)
    with pytest.raises(PoolError, match=rf"pool\.jsonl: cannot be read: {said}"):
        read(path)


def test_compression_is_told_by_the_content(tmp_path: Path) -> None:
    (tmp_path / "pool.jsonl").write_bytes(gzip.compress(jsonl()))
    (tmp_path / "pool.jsonl.gz").write_bytes(jsonl())
    for name in ("pool.jsonl", "pool.jsonl.gz"):
        assert read(tmp_path / name)[0] == list(range(1, 5001))


def test_what_decompresses_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pool.jsonl.zst"
    with pa.CompressedOutputStream(str(path), "zstd") as stream:
        stream.write(b'{"a": 1}\n')
        for _ in range(1100):
            stream.write(b" " * 2**20)
    assert path.stat().st_size < 2**20
    with pytest.raises(PoolError, match=r"more than 1,02\d MiB come out of 0\.\d, which no manifest needs"):
        read(path)


def test_pretty_printed_objects_are_told(tmp_path: Path) -> None:
    path = tmp_path / "pool.json"
    path.write_text(json.dumps({"a": 1}, indent=1))
    bad = read(path)[2]
    assert bad[0].endswith("; each object must be on one line of its own")


@pytest.mark.parametrize("kind", ["string", "list", "struct"])
def test_a_dictionary_is_decoded_a_few_rows_at_a_time(tmp_path: Path, kind: str) -> None:
    big, n = "a b " * 250_000, 400
    texts = pa.DictionaryArray.from_arrays(pa.array([0, 1] * (n // 2), pa.int32()), pa.array([big, "small"]))
    column = {
        "string": texts,
        "list": pa.ListArray.from_arrays(pa.array(range(n + 1), pa.int32()), texts),
        "struct": pa.StructArray.from_arrays([texts], ["text"]),
    }[kind]
    path = tmp_path / "pool.parquet"
    pq.write_table(pa.table({"n": range(n), "x": column}), path)
    assert path.stat().st_size < 2**20
    seen = 0
    for rows in read_rows(str(path)):
        values = rows.columns["x"]
        assert isinstance(values, pa.Array)
        assert values.nbytes < 24 * 2**20
        assert values.to_pylist() == column.slice(seen, len(values)).to_pylist()
        seen += len(values)
    assert seen == n


def test_a_row_of_parquet_has_a_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow_rows, "MAX_ROW_BYTES", 2**20)
    monkeypatch.setattr(arrow_rows, "BLOCK_BYTES", 2**17)
    lists = [["x" * 2**19] * 5, ["y"], None]
    pq.write_table(pa.table({"x": pa.array(lists)}), tmp_path / "pool.parquet")
    lines, columns, bad = read(tmp_path / "pool.parquet")
    assert (lines, columns["x"]) == ([2, 3], [["y"], None])
    assert [row.split("pool.parquet")[1] for row in bad] == [":1: row: expected at most 1 MiB, found 2 MiB"]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_a_server_that_says_no_length(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path, suffix)

    class Flows(BaseHTTPRequestHandler):
        """Answers as HTTP/1.0 may: what there is, until the connection ends."""

        def do_HEAD(self) -> None:
            self.send_response(200)
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(path.read_bytes())

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Flows) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{http.server_address[1]}/{path.name}"
        if suffix == ".parquet":
            with pytest.raises(PoolError, match="cannot be read: the server does not say how long it is; download"):
                read(url)
        else:
            assert read(url) == read(path)
        http.shutdown()


def test_lines_of_old_macs_are_called_so(tmp_path: Path) -> None:
    (tmp_path / "pool.jsonl").write_bytes(b'{"n": 1}\r{"n": 2}\r')
    lines, _, bad = read(tmp_path / "pool.jsonl")
    assert lines == []
    assert bad[0].endswith("its lines end with a carriage return alone, so convert it, e.g. with `tr '\\r' '\\n'`")


def test_a_long_field_of_a_table_is_one_value(tmp_path: Path) -> None:
    long = "x" * 300_000
    (tmp_path / "pool.csv").write_text(f"n,text\n1,{long}\n2,short\n")
    lines, columns, bad = read(tmp_path / "pool.csv")
    assert (lines, columns["text"], bad) == ([1, 2], [long, "short"], [])
