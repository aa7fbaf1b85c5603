"""Every format that blends are exported in is a pool again: the same pairs, with the contents of all their media."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from nemo_mm_rank.config import MediaSettings, PoolSource
from nemo_mm_rank.demo import make_demo_pool
from nemo_mm_rank.io.export import write_blend
from nemo_mm_rank.io.exports import EXPORTS, Settings, export_blend
from nemo_mm_rank.io.exports.base import media_of, parts_of
from nemo_mm_rank.io.files import read_table
from nemo_mm_rank.io.ingest import ingest
from nemo_mm_rank.io.pool import validate
from nemo_mm_rank.modality import is_media
from tests.media_files import write_wav

Pair = tuple[str, list[str], str, list[tuple[str, bytes]]]
"""Modality, texts of the data, annotation, and kind and content of each medium."""
POOLS = {"webdataset": "", "hf": "", "energon": "/*/*.tar", "llava": "/blend.json"} | dict.fromkeys(
    ("sharegpt", "swift", "messages", "parquet", "jsonl"), ""
)
"""Where the pool is in the folder of an export."""


def taken_in(path: str | Path, folder: Path) -> pa.Table:
    source = PoolSource(path=str(path))
    report = validate([source])
    assert (report.errors, report.bad_rows) == ([], [])
    ingest([source], folder)
    tables = [read_table(part) for part in sorted(folder.glob("part-*.parquet"))]
    return pa.concat_tables(tables, promote_options="permissive")


def pairs(table: pa.Table) -> dict[str, Pair]:
    found: dict[str, Pair] = {}
    for row in table.to_pylist():
        media = [(one.kind, one.open(MediaSettings()).read()) for one in media_of(row, Settings())]
        texts = [data for kind, data, _ in parts_of(row, trimmed=False) if not is_media(kind)]
        found[row["pair_id"]] = (row["modality"], texts, row["annotation"], media)
    return found


@pytest.fixture(scope="module")
def blend(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """Pairs of every modality, of several parts, and of several media of one."""
    folder = tmp_path_factory.mktemp("trips")
    pool = make_demo_pool(folder / "pool", 3)
    rows = [json.loads(line) for line in pool.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["fault"] is None]
    pictures = [{"modality": "image", "data": row["data"]} for row in rows if row["modality"] == "image"]
    text, code = {"modality": "text", "data": "Which?"}, {"modality": "code", "data": "f(x)"}
    sounds = [{"modality": "audio", "data": row["data"]} for row in rows if row["modality"] == "audio"]
    for number, parts in enumerate(
        [[text, *pictures], pictures[:2], [text, code], [*pictures[:2], code, *sounds[:2], text]]
    ):
        rows.append({"pair_id": f"several-{number}", "data": parts, "annotation": f"Ünlike, {number}"})
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return taken_in(pool, folder / "in")


def test_no_format_is_left_out() -> None:
    assert POOLS.keys() - {"parquet", "jsonl"} == EXPORTS.keys() - {"own", "nemo-manifest", "uids"}


@pytest.mark.parametrize("name", POOLS)
def test_an_export_is_a_pool_again(blend: pa.Table, tmp_path: Path, name: str) -> None:
    place = f"{tmp_path / name}{POOLS[name]}"
    if name in EXPORTS:
        export_blend(blend, tmp_path / name, name)
    else:
        place = f"{tmp_path}/blend.{name}"
        write_blend(blend.drop_columns(["media_root"]), Path(place))
        for kind in ("image", "audio", "video"):
            (tmp_path / kind).symlink_to(Path(blend["media_root"][0].as_py(), kind))
        [root] = set(blend["media_root"].to_pylist())
        blend_source = PoolSource(path=place, trusted_roots=[root])
        ingest([blend_source], tmp_path / "again")
        found = pairs(read_table(tmp_path / "again/part-00000.parquet"))
        assert found == pairs(blend)
        return
    expected = pairs(blend)
    if name not in ("webdataset", "hf"):  # conversations know text, and no code
        expected = {key: _as_text(*pair) for key, pair in expected.items()}
    first = taken_in(place, tmp_path / "again")
    assert pairs(first) == expected
    export_blend(first, tmp_path / "second", name)
    assert pairs(taken_in(f"{tmp_path / 'second'}{POOLS[name]}", tmp_path / "third")) == expected


def _as_text(modality: str, texts: list[str], annotation: str, media: list[tuple[str, bytes]]) -> Pair:
    kinds = ["text" if kind == "code" else kind for kind in modality.split("+")]
    in_order = sorted(media, key=lambda one: ["image", "video", "audio"].index(one[0]))
    return "+".join(dict.fromkeys(kinds)), ["\n".join(texts)] if texts else [], annotation, in_order


def test_records_are_a_pool_again(tmp_path: Path) -> None:
    """The folder has the scores beside them, which are no manifest."""
    rows: list[dict[str, Any]] = [
        {
            "messages": [{"role": "user", "content": f"Ask {n}"}, {"role": "assistant", "content": "Say"}],
            "odd": {"n": n},
        }
        for n in range(3)
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = taken_in(tmp_path / "mine.jsonl", tmp_path / "in")
    export_blend(table, tmp_path / "own", "own")
    assert sorted(path.name for path in (tmp_path / "own").glob("*.jsonl")) == ["mine.jsonl", "mine.scores.jsonl"]
    again = taken_in(tmp_path / "own", tmp_path / "again")
    assert again["source_record"].to_pylist() == table["source_record"].to_pylist()
    assert [pair[:3] for pair in pairs(again).values()] == [pair[:3] for pair in pairs(table).values()]


def test_a_manifest_of_nemo_is_a_pool_again(tmp_path: Path) -> None:
    write_wav(tmp_path, np.arange(48_000, dtype=np.int16), name="a.wav")
    rows = [
        {"audio_filepath": "a.wav", "text": "all"},
        {"audio_filepath": "a.wav", "text": "a part", "offset": 1, "duration": 0.5},
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = taken_in(tmp_path / "m.jsonl", tmp_path / "in")
    export_blend(table, tmp_path / "out", "nemo-manifest")
    again = taken_in(tmp_path / "out", tmp_path / "again")
    assert pairs(again) == pairs(table)
