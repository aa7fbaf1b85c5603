"""Data of several parts in manifests: every form it comes in, and every way it can be wrong."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as PILImage

from nemo_mm_rank.config import PoolSource
from nemo_mm_rank.io.export import write_blend
from nemo_mm_rank.io.exports import export_blend
from nemo_mm_rank.io.files import read_table
from nemo_mm_rank.io.ingest import ingest
from nemo_mm_rank.io.pool import read_pools, validate
from nemo_mm_rank.media.source import OUTSIDE
from nemo_mm_rank.modality import combined, known_class, modalities_of
from nemo_mm_rank.schema import DATA_PARTS, PARTS, SOURCE_MEDIA
from tests.parts_pool import write

TEXT = {"modality": "text", "data": "a cat"}
IMAGE = {"modality": "image", "data": "a.png"}


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    PILImage.new("RGB", (20, 10), (200, 30, 30)).save(tmp_path / "a.png")
    PILImage.new("RGB", (20, 10), (30, 30, 200)).save(tmp_path / "b.png")
    return tmp_path / "pool.jsonl"


def read(path: Path, **source: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the pairs of a manifest, and what is said of its bad rows."""
    batches = list(read_pools([PoolSource(path=str(path), **source)]))
    pairs = [row for batch in batches for row in pa.table(batch.pairs).to_pylist()]
    return pairs, [f"{bad.line}: {bad.message}" for batch in batches for bad in batch.bad]


def row(data: Any, **more: Any) -> dict[str, Any]:
    return {"data": data, "annotation": "something", **more}


def test_classes_of_data() -> None:
    assert combined(["image", "text"]) == combined(["text", "image"]) == "text+image"
    assert modalities_of("text+image") == ("text", "image")
    assert modalities_of("audio") == ("audio",)
    assert not any(map(known_class, ["image+text", "text+", "", "text+text", "smell"]))
    with pytest.raises(ValueError, match=r"'text\+image' is"):
        modalities_of("image+text")


def test_parts_in_any_order_are_one_pair(pool: Path) -> None:
    write(pool, [row([IMAGE, TEXT]), row([TEXT, IMAGE], annotation="else", modality="image + text")])
    pairs, bad = read(pool)
    assert not bad
    for pair in pairs:
        assert pair["modality"] == "text+image"
        assert pair["data"] == "a cat\na.png"
        assert pair[DATA_PARTS] == [TEXT, IMAGE]
    assert pairs[0]["pair_id"] != pairs[1]["pair_id"]
    write(pool, [row([TEXT, IMAGE])])
    assert read(pool)[0][0]["pair_id"] == pairs[0]["pair_id"]


def test_a_list_of_one_part_is_data_as_ever(pool: Path) -> None:
    write(pool, [row([IMAGE]), row("a.png", modality="image", annotation="else")])
    pairs, bad = read(pool)
    assert not bad
    assert DATA_PARTS not in pairs[0]
    assert [(pair["modality"], pair["data"]) for pair in pairs] == [("image", "a.png")] * 2


def test_several_media_of_one_modality(pool: Path, tmp_path: Path) -> None:
    """The first is the data, all of them stand beside it, are looked for, and tell pairs apart."""
    other = {"modality": "image", "data": "b.png"}
    write(pool, [row([IMAGE, other]), row([IMAGE, IMAGE]), row([other, TEXT, IMAGE]), row("words", modality="text")])
    pairs, bad = read(pool)
    assert not bad
    assert [(pair["modality"], pair["data"]) for pair in pairs] == [
        *[("image", "a.png")] * 2, ("text+image", "a cat\nb.png"), ("text", "words")
    ]  # fmt: skip
    assert [pair[SOURCE_MEDIA] for pair in pairs] == [[IMAGE, other], [IMAGE, IMAGE], [other, IMAGE], None]
    assert len({pair["pair_id"] for pair in pairs}) == 4
    write(pool, [row([IMAGE, {"modality": "image", "data": "no.png"}])])
    assert read(pool)[1] == [
        "1: data: expected a media file below the pool's root, found no such file: 'no.png' (image part)"
    ]
    write(pool, [row([IMAGE, other], annotation="one"), row([TEXT, other, IMAGE], annotation="two")])
    ingest([PoolSource(path=str(pool))], tmp_path / "run")
    table = read_table(tmp_path / "run" / "part-00000.parquet")
    assert table.schema.field(SOURCE_MEDIA).type == PARTS
    for again in ("again.parquet", "again.jsonl"):
        write_blend(table.drop_columns(["media_root"]), tmp_path / again)
        found, bad = read(tmp_path / again)
        assert (found, bad) == ([{**pair, "media_root": str(tmp_path)} for pair in table.to_pylist()], [])


def test_pools_without_parts_have_no_column_for_them(pool: Path) -> None:
    write(pool, [row("a.png", modality="image")])
    batch = next(read_pools([PoolSource(path=str(pool))]))
    assert set(batch.pairs) == {"pair_id", "pool", "modality", "data", "annotation", "media_root"}


def test_parts_in_parquet(pool: Path) -> None:
    file = pool.with_suffix(".parquet")
    kind = pa.list_(pa.struct([("data", pa.string()), ("modality", pa.string())]))
    table = {"what": pa.array([[IMAGE, TEXT], [TEXT]], kind), "annotation": ["x", "y"]}
    pq.write_table(pa.table(table), file)
    pairs, bad = read(file, fields={"data": "what"})
    assert not bad
    assert [pair["modality"] for pair in pairs] == ["text+image", "text"]
    assert [pair[DATA_PARTS] for pair in pairs] == [[TEXT, IMAGE], None]


def test_what_was_ingested_can_be_a_pool_again(pool: Path, tmp_path: Path) -> None:
    write(pool, [row([TEXT, IMAGE]), row("words", modality="text")])
    ingest([PoolSource(path=str(pool))], tmp_path / "run")
    table = read_table(tmp_path / "run" / "part-00000.parquet")
    assert table.schema.field(DATA_PARTS).type == PARTS
    pq.write_table(table.drop_columns(["media_root"]), tmp_path / "again.parquet")
    pairs, bad = read(tmp_path / "again.parquet")
    assert not bad
    assert [{**pair, "media_root": None} for pair in pairs] == [
        {**pair, "media_root": None} for pair in table.to_pylist()
    ]


def test_a_column_of_parts_comes_late(pool: Path, tmp_path: Path) -> None:
    """Rows of a later part bring the column: all parts have it all the same."""
    rows = [row(f"words {number}", modality="text") for number in range(3000)]
    write(pool, [*rows, row([TEXT, IMAGE])])
    ingest([PoolSource(path=str(pool))], tmp_path / "run", rows_per_shard=1000)
    tables = [read_table(file) for file in sorted((tmp_path / "run").glob("part-*.parquet"))]
    assert len({table.schema.remove_metadata() for table in tables}) == 1
    assert sum(table[DATA_PARTS].null_count for table in tables) == 3000


BAD = {
    "data: expected a media file below the pool's root, found no such file: 'no.png' (image part)": [
        TEXT,
        {"modality": "image", "data": "no.png"},
    ],
    f"data: expected a media file below the pool's root, found '/a.png', which {OUTSIDE} (image part)": [
        {"modality": "image", "data": "/a.png"},
        TEXT,
    ],
    "modality: expected one of text, code, image, audio, video, found 'imgae' (part 2); did you mean 'image'?": [
        TEXT,
        {"modality": "imgae", "data": "a.png"},
    ],
    "modality: expected one of text, code, image, audio, video, found None (part 1)": [{"data": "a.png"}, TEXT],
    "data: expected a non-empty string, found ' ' (text part)": [{"modality": "text", "data": " "}, IMAGE],
    "data: expected a non-empty string, found None (image part)": [TEXT, {"modality": "image"}],
    "data: expected one part of text, found another (part 3)": [TEXT, IMAGE, TEXT],
    "data: expected a list of parts {modality, data}, found none": [],
    "data: expected a list of parts {modality, data}, found 'a.png' (part 2)": [TEXT, "a.png"],
    "data: expected a list of parts {modality, data}, found a key 'dta' (part 1); did you mean 'data'?": [
        {"modality": "text", "dta": "x"}
    ],
}


def test_what_is_wrong_with_a_part_names_it(pool: Path) -> None:
    rows = [row(parts, annotation=f"{number}") for number, parts in enumerate(BAD.values())]
    write(pool, [*rows, row([TEXT, IMAGE])])
    pairs, bad = read(pool)
    assert bad == [f"{line}: {said}" for line, said in enumerate(BAD, 1)]
    assert [pair["modality"] for pair in pairs] == ["text+image"]


def test_what_contradicts_the_parts(pool: Path) -> None:
    write(
        pool,
        [
            row([TEXT, IMAGE], modality="image"),
            row("a cat", modality="text+image"),
            {"data": [TEXT, IMAGE], "data_path": "a.txt", "annotation": "x"},
        ],
    )
    (pool.parent / "a.txt").write_text("words", encoding="utf-8")
    pairs, bad = read(pool)
    assert not pairs
    assert bad == [
        "1: modality: expected 'text+image', as its parts are, found 'image'",
        "2: modality: expected one of text, code, image, audio, video, found 'text+image'; did you mean 'image'?",
        "3: data_path: expected either data or data_path, found both",
    ]


def test_a_fixed_modality_is_for_rows_without_parts(pool: Path) -> None:
    write(pool, [row([TEXT, IMAGE]), row("a.png")])
    assert [pair["modality"] for pair in read(pool, modality="image")[0]] == ["text+image", "image"]


def test_the_files_of_parts_are_watched(pool: Path, tmp_path: Path) -> None:
    write(pool, [row([TEXT, IMAGE]), row([IMAGE], annotation="y")])
    first = ingest([PoolSource(path=str(pool))], tmp_path / "run")
    assert not ingest([PoolSource(path=str(pool))], tmp_path / "run").fresh
    os.utime(pool.parent / "a.png", ns=(1, 1))
    again = ingest([PoolSource(path=str(pool))], tmp_path / "run")
    assert again.fresh
    assert again.digests != first.digests


def test_the_report_counts_classes_of_their_own(pool: Path) -> None:
    write(pool, [row([TEXT, IMAGE]), row("words", modality="text"), row([TEXT, {"modality": "image", "data": "no"}])])
    report = validate([PoolSource(path=str(pool))])
    lines = list(report.lines())
    assert "(image part)" in lines[0]
    assert lines[1].split() == ["pool", "text", "code", "image", "audio", "video", "text+image", "all"]
    assert lines[2].split() == ["pool", "1", "0", "0", "0", "0", "1", "2"]
    assert lines[3] == "3 rows: 2 good, 1 bad (1 data)"


def test_there_and_back_in_a_tar(pool: Path, tmp_path: Path) -> None:
    write(pool, [row([TEXT, IMAGE]), row([IMAGE, {"modality": "code", "data": "f(x)"}]), row("words", modality="text")])
    ingest([PoolSource(path=str(pool))], tmp_path / "run")
    table = read_table(tmp_path / "run" / "part-00000.parquet")
    [tar] = export_blend(table, tmp_path / "tars", "webdataset")
    pairs, bad = read(tar)
    assert not bad
    assert [pair["modality"] for pair in pairs] == ["text+image", "code+image", "text"]
    assert [pair["pair_id"] for pair in pairs] == table["pair_id"].to_pylist()
    for pair in pairs[:2]:
        words, media = pair[DATA_PARTS]
        assert words["data"] in ("a cat", "f(x)")
        assert media["data"].startswith("blend-000000.tar@")
        assert media["data"].endswith(".2.png")
