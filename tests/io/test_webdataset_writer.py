"""Blends as WebDataset tars: what the real library reads back, equal bytes, and nothing half written."""

from __future__ import annotations

import datetime
import io
import json
import math
import os
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
import webdataset
from PIL import Image

from nemo_mm_rank.config import MediaSettings, PoolSource
from nemo_mm_rank.errors import StorageError, UserError
from nemo_mm_rank.io.exports import Settings, export_blend
from nemo_mm_rank.io.pool import read_pools
from nemo_mm_rank.media.source import open_source
from tests.tars import header_at, png, write_tar


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "pool"
    folder.mkdir()
    (folder / "a.b.PNG").write_bytes(png(1))
    (folder / "sound").write_bytes(b"no extension")
    write_tar(folder / "s.tar", [("k.png", png(2))])
    return folder


def blend(root: Path) -> pa.Table:
    rows: list[dict[str, Any]] = [
        {"modality": "image", "data": "a.b.PNG", "annotation": "über", "score": 0.5, "spans": [[0.0, 1.0]]},
        {"modality": "text", "data": "the text", "annotation": "a note", "score": math.nan, "licence": "CC0"},
        {"modality": "audio", "data": "sound", "annotation": "a sound", "when": datetime.date(2026, 1, 2)},
        {"modality": "image", "data": f"s.tar@{header_at(root / 's.tar', 'k.png')}!k.png", "annotation": "in a tar"},
        {"modality": "video", "data": "a.json", "annotation": "in the row", "data_bytes": b"content"},
    ]
    for rank, row in enumerate(rows, 1):
        row |= {"pair_id": f"../id {rank}.x", "pool": "p", "rank": rank, "media_root": str(root)}
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in names})


MEMBERS = [
    ("00000001.json", "00000001.png", "00000001.txt"),
    ("00000002.json", "00000002.txt"),
    ("00000003.bin", "00000003.json", "00000003.txt"),
    ("00000004.json", "00000004.png", "00000004.txt"),
    ("00000005.bin", "00000005.json", "00000005.txt"),
]


def write_webdataset(
    table: pa.Table, folder: Path, media: MediaSettings | None = None, max_samples: int = 10_000, max_bytes: int = 2**30
) -> list[Path]:
    settings = Settings(media or MediaSettings(), max_samples=max_samples, max_bytes=max_bytes)
    return export_blend(table, folder, "webdataset", settings)


def names(paths: list[Path]) -> list[list[str]]:
    found = []
    for path in paths:
        with tarfile.open(path) as tar:
            found.append(tar.getnames())
    return found


def test_the_real_library_reads_it(tmp_path: Path, root: Path) -> None:
    [path] = write_webdataset(blend(root), tmp_path / "out")
    assert path == tmp_path / "out" / "blend-000000.tar"
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"0000000{n}" for n in range(1, 6)]
    assert [sample["txt"].decode() for sample in samples] == ["über", "a note", "a sound", "in a tar", "in the row"]
    assert samples[0]["png"] == png(1)
    assert "png" not in samples[1]
    assert samples[2]["bin"] == b"no extension"
    assert samples[3]["png"] == png(2)
    assert samples[4]["bin"] == b"content"
    rows: list[dict[str, Any]] = [json.loads(sample["json"]) for sample in samples]
    assert [row["pair_id"] for row in rows] == [f"../id {n}.x" for n in range(1, 6)]
    assert (rows[0]["score"], rows[0]["spans"], rows[0]["rank"]) == (0.5, [[0.0, 1.0]], 1)
    assert (rows[1]["data"], rows[1]["score"], rows[1]["licence"]) == ("the text", None, "CC0")
    assert rows[2]["when"] == "2026-01-02"
    assert all({"annotation", "media_root", "data_bytes"}.isdisjoint(row) for row in rows)
    assert [row["modality"] for row in rows if "data" in row] == ["text"]
    [picture] = webdataset.WebDataset(str(path), shardshuffle=False).decode("pil").slice(1)
    assert isinstance(picture["png"], Image.Image)
    assert picture["png"].getpixel((0, 0)) == (1, 0, 0)


def test_it_is_a_pool_again(tmp_path: Path, root: Path) -> None:
    table = blend(root)
    write_webdataset(table, tmp_path / "out", max_samples=2)
    rename = {"rank": "old_rank", "score": "old_score"}
    found: dict[str, list[Any]] = {}
    for batch in read_pools([PoolSource(path=str(tmp_path / "out"), rename=rename)]):
        assert batch.bad == []
        for name, column in {**batch.pairs, **batch.extras}.items():
            found.setdefault(name, []).extend(column if isinstance(column, list) else column.to_pylist())
    for name in ("pair_id", "pool", "modality", "annotation", "licence"):
        assert found[name] == table[name].to_pylist()
    assert found["old_rank"] == [1, 2, 3, 4, 5]
    media = []
    for modality, ref in zip(found["modality"], found["data"], strict=True):
        if modality == "text":
            media.append(ref.encode())
            continue
        with open_source(ref, str(tmp_path / "out"), MediaSettings()) as file:
            media.append(file.read())
    assert media == [png(1), b"the text", b"no extension", png(2), b"content"]


def test_shards_by_samples_and_by_bytes(tmp_path: Path, root: Path) -> None:
    table = blend(root)
    assert names(write_webdataset(table, tmp_path / "all")) == [[name for sample in MEMBERS for name in sample]]
    paths = write_webdataset(table, tmp_path / "two", max_samples=2)
    assert [path.name for path in paths] == ["blend-000000.tar", "blend-000001.tar", "blend-000002.tar"]
    assert names(paths) == [[*MEMBERS[0], *MEMBERS[1]], [*MEMBERS[2], *MEMBERS[3]], [*MEMBERS[4]]]
    # The first two samples take three members and two, each a header and a block.
    exact = write_webdataset(table, tmp_path / "exact", max_bytes=5 * 1024)
    assert names(exact) == [[*MEMBERS[0], *MEMBERS[1]], [*MEMBERS[2]], [*MEMBERS[3]], [*MEMBERS[4]]]
    assert names(write_webdataset(table, tmp_path / "one", max_bytes=1)) == [list(sample) for sample in MEMBERS]


def test_equal_pairs_are_equal_bytes(tmp_path: Path, root: Path) -> None:
    table = blend(root)
    first = [path.read_bytes() for path in write_webdataset(table, tmp_path / "one", max_samples=3)]
    os.utime(root / "a.b.PNG", (0, 0))
    chunks = pa.concat_tables([table.slice(0, 2), table.slice(2)])
    again = [path.read_bytes() for path in write_webdataset(chunks, tmp_path / "two", max_samples=3)]
    assert again == first
    with tarfile.open(fileobj=io.BytesIO(first[0])) as tar:
        stamps = {(found.mtime, found.uid, found.gid, found.uname, found.gname, found.mode) for found in tar}
    assert stamps == {(0, 0, 0, "", "", 0o644)}


def test_media_that_have_gone_leave_nothing(tmp_path: Path, root: Path) -> None:
    table = blend(root)
    (root / "sound").unlink()
    with pytest.raises(UserError, match=r"pair '\.\./id 3\.x': 'sound' does not exist; no tar was written"):
        write_webdataset(table, tmp_path / "out", max_samples=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pool"]


def test_the_rules_for_media_hold(tmp_path: Path, root: Path) -> None:
    table = blend(root)
    with pytest.raises(UserError, match="12 bytes, more than the 11 allowed"):
        write_webdataset(table.slice(2, 1), tmp_path / "out", MediaSettings(max_bytes=11))
    for data, message in {
        "../out/sound": "leads out of the root of the pool",
        "/etc/hostname": "leads out of the root of the pool",
        "memory://gone/a.png": "is a URL; set media.allow_urls",
    }.items():
        row = table.slice(0, 1).set_column(table.column_names.index("data"), "data", pa.array([data]))
        with pytest.raises(UserError, match=message):
            write_webdataset(row, tmp_path / "out")
    fsspec.filesystem("memory").pipe("/export/a.png", png(3))
    there = table.slice(0, 1).set_column(table.column_names.index("data"), "data", pa.array(["memory://export/a.png"]))
    [path] = write_webdataset(there, tmp_path / "out", MediaSettings(allow_urls=True))
    assert next(iter(webdataset.WebDataset(str(path), shardshuffle=False)))["png"] == png(3)
    fsspec.filesystem("memory").rm("/export", recursive=True)


def test_where_it_may_be_written(tmp_path: Path, root: Path) -> None:
    table = blend(root)
    with pytest.raises(UserError, match="the blend contains no pair to export"):
        write_webdataset(table.slice(0, 0), tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert len(write_webdataset(table, tmp_path / "empty")) == 1
    with pytest.raises(UserError, match="contains an exported blend already"):
        write_webdataset(table, tmp_path / "empty")
    with pytest.raises(UserError, match="exists already and is not a folder"):
        write_webdataset(table, root / "sound")
    with pytest.raises(StorageError, match="cannot be written: File exists"):
        write_webdataset(table, root / "sound" / "out")


def test_rows_without_a_root_are_about_the_current_folder(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    [path] = write_webdataset(blend(root).drop_columns(["media_root"]), tmp_path / "out")
    assert names([path]) == [[name for sample in MEMBERS for name in sample]]
