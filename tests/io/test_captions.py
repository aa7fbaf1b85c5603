"""Media with captions as others keep them: Hugging Face data sets, COCO, NeMo, img2dataset, tables of URLs."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Audio, Dataset, Features, Image, Value, Video
from datasets import Sequence as ListOf
from PIL import Image as Pictures

from nemo_mm_rank.config import MediaSettings, PoolSource
from nemo_mm_rank.io import coco_rows, json_rows, json_text
from nemo_mm_rank.io.manifest import read_rows
from nemo_mm_rank.io.pool import manifests, read_pools, validate
from nemo_mm_rank.media.opener import Opener
from nemo_mm_rank.media.window import window_of, without_window
from tests.media_files import write_wav

Row = dict[str, Any]


def picture(path: Path, number: int = 0) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pictures.new("RGB", (8, 8), (40 * number, 0, 0)).save(path)
    return path.read_bytes()


def read(path: Path | str, **settings: Any) -> tuple[list[Row], str]:
    """Return the pairs of a pool, and what it was taken for."""
    found, names = [], set()
    for batch in read_pools([PoolSource(path=str(path), **settings)]):
        assert not batch.bad, batch.bad
        names.add(batch.format.name)
        extras = {name: v if isinstance(v, list) else v.to_pylist() for name, v in batch.extras.items()}
        columns = {name: column.to_pylist() for name, column in batch.pairs.items()} | extras
        found += [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return found, "+".join(names)


def sides(rows: list[Row]) -> list[tuple[str, str, str]]:
    return [(row["modality"], row["data"], row["annotation"]) for row in rows]


def test_features_of_hugging_face(tmp_path: Path) -> None:
    content = picture(tmp_path / "x.png")
    write_wav(tmp_path, np.zeros(1600, dtype=np.int16), name="x.wav")
    sound = (tmp_path / "x.wav").read_bytes()
    for name, feature, held, modality in (
        ("photo", Image(), content, "image"),
        ("speech", Audio(), sound, "audio"),
        ("recording", Video(), b"video", "video"),
        ("what", Image(), content, "image"),
    ):
        rows = [{name: {"bytes": held, "path": "a.bin"}, "caption": "A thing.", "n": 1}]
        features = Features({name: feature, "caption": Value("string"), "n": Value("int64")})
        file = tmp_path / f"{name}.parquet"
        pq.write_table(pa.Table.from_pylist(rows, features.arrow_schema), file)  # what the library itself would write
        found, taken_for = read(file)
        assert (taken_for, sides(found)) == ("captions", [(modality, "a.bin", "A thing.")])
        assert (found[0]["data_bytes"], found[0]["n"]) == (held, 1)
        assert name not in found[0]


@pytest.mark.parametrize(
    ("captions", "expected"),
    [("each", ["one", "two", "three"]), ("join", ["one\ntwo", "three"]), ("first", ["one", "three"])],
)
def test_lists_of_captions(tmp_path: Path, captions: str, expected: list[str]) -> None:
    content = picture(tmp_path / "x.png")
    table = {
        "pair_id": ["a", "b"],
        "image": [{"bytes": content, "path": None}] * 2,
        "captions": [["one", "two"], ["three"]],
    }
    features = Features({"pair_id": Value("string"), "image": Image(), "captions": ListOf(Value("string"))})
    Dataset.from_dict(table, features).to_parquet(str(tmp_path / "p.parquet"))
    rows, _ = read(tmp_path / "p.parquet", captions=captions)
    assert [row["annotation"] for row in rows] == expected
    assert [row["pair_id"] for row in rows] == (["a", "a#1", "b"] if captions == "each" else ["a", "b"])
    mapped, _ = read(tmp_path / "p.parquet", captions=captions, fields={"annotation": "captions", "data": "image"})
    assert [row["annotation"] for row in mapped] == expected


def test_captions_that_are_none(tmp_path: Path) -> None:
    picture(tmp_path / "x.png")
    rows = [{"image": "x.png", "captions": value} for value in (["a", "b"], [], [3], "c", ["d"])]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = validate([PoolSource(path=str(tmp_path / "p.jsonl"))])
    assert (report.rows_in, report.bad) == (6, 2)
    assert [(bad.line, bad.field, bad.expected, bad.found) for bad in report.bad_rows] == [
        (2, "captions", "a caption or a list of captions", "[]"),
        (3, "captions", "a caption or a list of captions", "[3]"),
    ]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_folder_of_media_with_metadata(tmp_path: Path, suffix: str) -> None:
    rows = [{"file_name": f"{n}.png", "text": f"A picture, {n}"} for n in range(3)]
    folder = tmp_path / "pictures/train"
    for n in range(3):
        picture(folder / f"{n}.png", n)
    if suffix == "csv":
        (folder / "metadata.csv").write_text(
            "file_name,text\n" + "".join(f'{row["file_name"]},"{row["text"]}"\n' for row in rows)
        )
    elif suffix == "jsonl":
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), folder / "metadata.parquet")
    for place in (folder, tmp_path / "pictures"):
        found, taken_for = read(place)
        assert taken_for == "captions"
        assert sides(found) == [("image", f"{n}.png", f"A picture, {n}") for n in range(3)]
        assert {row["pool"] for row in found} == {place.name}


def test_lines_of_a_table_that_do_not_fit(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("modality,data,annotation\ntext,a,b\ntext,a\ntext,a,b,c\ntext,c,d\n")
    report = validate([PoolSource(path=str(tmp_path / "p.csv"))])
    assert (report.rows_in, report.counts["p", "text"]) == (4, 2)
    assert [bad.message for bad in report.bad_rows] == [
        "row: expected 3 values, found fewer",
        "row: expected 3 values, found more",
    ]


def test_a_data_set_of_several_folders(tmp_path: Path) -> None:
    content = picture(tmp_path / "x.png")
    features = Features({"image": Image(), "text": Value("string")})
    for n in range(2):
        (tmp_path / "set/data").mkdir(parents=True, exist_ok=True)
        table = {"image": [{"bytes": content, "path": None}], "text": [f"number {n}"]}
        Dataset.from_dict(table, features).to_parquet(str(tmp_path / f"set/data/train-{n}.parquet"))
    (tmp_path / "set/README.md").write_text("---\n---\n")
    found, _ = read(tmp_path / "set")
    assert [(row["pool"], row["annotation"]) for row in found] == [("set", "number 0"), ("set", "number 1")]


COCO = {
    "info": {"year": 2017},
    "images": [
        {"id": 7, "file_name": "7.png", "height": 8},
        {"id": 8, "file_name": "8.png", "height": 8},
        {"id": 9, "file_name": "9.png", "height": 8},
    ],
    "annotations": [
        {"image_id": 8, "id": 1, "caption": "eight"},
        {"image_id": 7, "id": 2, "caption": "seven"},
        {"image_id": 7, "id": 3, "caption": "sieben"},
    ],
}


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("suffix", ["", "\n"])
def test_coco(tmp_path: Path, indent: int | None, suffix: str) -> None:
    for n in (7, 8, 9):
        picture(tmp_path / f"val/{n}.png", n)
    file = tmp_path / "captions.json"
    file.write_text(json.dumps(COCO, indent=indent) + suffix)
    report = validate([PoolSource(path=str(file), root=str(tmp_path / "val"))])
    assert list(report.lines())[:2] == [
        f"{file}: captions as of COCO",
        f"{file}:3: coco_captions: expected a caption or a list of captions, found []",
    ]
    file.write_text(json.dumps({**COCO, "images": COCO["images"][:2]}, indent=indent) + suffix)  # type: ignore[index]
    rows, taken_for = read(file, root=str(tmp_path / "val"))
    assert taken_for == "coco"
    assert sides(rows) == [("image", "7.png", "seven"), ("image", "7.png", "sieben"), ("image", "8.png", "eight")]
    assert [row["height"] for row in rows] == [8, 8, 8]


def test_an_object_a_line_is_not_coco(tmp_path: Path) -> None:
    lines = [{"images": [], "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}]
    file = tmp_path / "p.json"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines * 3))
    assert [rows.lines.tolist() for rows in read_rows(str(file))] == [[1, 2, 3]]


def test_what_looks_like_coco_and_is_not(tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    for content, said in (
        ({"images": [{"id": 1}], "annotations": [{"bbox": []}]}, "none of 1 annotations has one"),
        ({"images": 1, "annotations": []}, "no list of images"),
    ):
        file.write_text(json.dumps(content))
        assert validate([PoolSource(path=str(file))]).errors == [
            f"{file}: cannot be read: no captions as of COCO: {said}"
        ]
    whole = json.dumps(COCO, indent=1)
    for cut, said in ((whole.index("sieben"), "it breaks off in annotations, element 3"), (-1, "it breaks off")):
        file.write_text(whole[:cut])
        assert validate([PoolSource(path=str(file))]).errors == [f"{file}: cannot be read: one JSON object, but {said}"]


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("names", ["annotations info images", "images annotations", "info images more annotations"])
def test_coco_is_streamed_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: str, suffix: str
) -> None:
    monkeypatch.setattr(json_text, "BLOCK_BYTES", 100)
    monkeypatch.setattr(json_rows, "MAX_LINE_BYTES", 200)
    monkeypatch.setattr(coco_rows, "BATCH_ROWS", 7)
    monkeypatch.setattr(json_text, "BATCH_ROWS", 5)
    images = [{"id": n if n % 2 else f"{n}", "file_name": f"{n}.png", "\u00fc": "\u00e9" * n} for n in range(30)]
    ids = [image["id"] for image in images]
    captions = [{"image_id": ids[n % 30], "caption": f"\u201c{n}\u201d"} for n in range(70)]
    whole: dict[str, Any] = {"images": images, "annotations": captions}
    whole |= {"info": {"year": 2017, "n": 12345678901234567890}, "more": [1, [2], {"x": "]"}]}
    content = json.dumps({name: whole[name] for name in names.split()}, ensure_ascii=False).encode()
    file = tmp_path / f"c.json{suffix}"
    file.write_bytes(gzip.compress(content) if suffix else content)
    batches = list(read_rows(str(file)))
    assert max(len(rows.lines) for rows in batches) == 7
    assert [line for rows in batches for line in rows.lines.tolist()] == list(range(1, 31))
    found = [captions for rows in batches for captions in rows.columns["coco_captions"]]
    assert found == [[f"\u201c{m}\u201d" for m in range(n, 70, 30)] for n in range(30)]
    assert [value for rows in batches for value in rows.columns["\u00fc"]] == ["\u00e9" * n for n in range(30)]


def test_what_is_wrong_with_elements_of_coco(tmp_path: Path) -> None:
    for n in (7, 9):
        picture(tmp_path / f"{n}.png")
    images = [{"id": 7, "file_name": "7.png"}, 3, {"file_name": "x"}, {"id": 9, "file_name": "9.png"}]
    captions = [
        {"image_id": 7, "caption": "seven"},
        {"image_id": 8, "caption": "of none"},
        {"caption": "of no image"},
        {"image_id": 9},
        "odd",
        {"image_id": 9, "caption": 9},
    ]
    file = tmp_path / "c.json"
    file.write_text(json.dumps({"images": images, "annotations": captions}, indent=1))
    report = validate([PoolSource(path=str(file))])
    assert (report.errors, report.rows_in, report.bad) == ([], 8, 7)
    assert [(bad.line, bad.message) for bad in report.bad_rows] == [
        (2, "row: expected a JSON object in each place of images, found 3"),
        (3, "id: expected a value in each of the images, found nothing"),
        (4, "coco_captions: expected a caption or a list of captions, found [9]"),
        (6, "image_id: expected the id of one of the images, found 8 of annotation 2"),
        (7, "image_id: expected a value in each of the annotations, found nothing (annotation 3)"),
        (8, "caption: expected a value in each of the annotations, found nothing (annotation 4)"),
        (9, "row: expected a JSON object in each place of annotations, found 'odd' (annotation 5)"),
    ]


def test_manifests_of_nemo(tmp_path: Path) -> None:
    rate = 16_000
    loud = (np.array([0.1, 0.5, 0.9]) * 2**15).astype(np.int16)
    write_wav(tmp_path, np.repeat(loud, rate), name="long.wav")
    rows = [
        {"audio_filepath": "long.wav", "text": "all", "duration": 3.0, "lang": "en"},
        {"audio_filepath": "long.wav", "text": "second", "duration": 0.5, "offset": 1.25},
        {"audio_filepath": "long.wav", "text": "third", "offset": 2},
        {"audio_filepath": "long.wav", "text": "bad", "duration": -1.0, "offset": 1},
        {"audio_filepath": "long.wav", "text": "bad", "duration": 1.0, "offset": "1"},
        {"audio_filepath": None, "text": "bad", "duration": 1.0},
        {"audio_filepath": "gone.wav", "text": "bad", "duration": 1.0, "offset": 0},
        {"audio_filepath": "long.wav", "text": " ", "duration": 1.0},
    ]
    file = tmp_path / "m.json"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[:3]))
    found, taken_for = read(file)
    assert taken_for == "nemo-manifest"
    assert sides(found) == [
        ("audio", "long.wav", "all"),
        ("audio", "long.wav#t=1.25,1.75", "second"),
        ("audio", "long.wav#t=2,", "third"),
    ]
    assert [row["source_record"] for row in found] == [json.dumps(row) for row in rows[:3]]
    opener = Opener(MediaSettings(), str(tmp_path))
    heard = [opener.open(row["data"], "audio").samples for row in found]  # type: ignore[attr-defined]
    assert [len(samples) / rate for samples in heard] == [3.0, 0.5, 1.0]
    assert [round(float(samples[len(samples) // 2]), 1) for samples in heard[1:]] == [0.5, 0.9]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    bad = validate([PoolSource(path=str(file))]).bad_rows
    assert [(row.line, row.message) for row in bad] == [
        (4, "duration: expected seconds, more than 0, found -1.0"),
        (5, "offset: expected seconds, 0 or more, found '1'"),
        (6, "audio_filepath: expected the path of a recording, found nothing"),
        (7, "data: expected a media file below the pool's root, found no such file: 'gone.wav'"),
        (8, "annotation: expected a non-empty string, found ' '"),
    ]


def test_windows_of_references() -> None:
    assert window_of("a.wav#t=1") is None
    assert without_window("a#t=1,2.wav") == "a#t=1,2.wav"
    assert (window_of("x#t=1,2#t=3,4"), without_window("x#t=1,2#t=3,4")) == ([[3.0, 4.0]], "x#t=1,2")


def test_what_img2dataset_leaves(tmp_path: Path) -> None:
    rows = [
        {"key": f"00000{n}", "url": f"https://x/{n}", "caption": f"number {n}", "status": status, "error_message": why}
        for n, (status, why) in enumerate([("success", None), ("failed_to_download", "HTTP 404"), ("success", None)])
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "00000.parquet")
    picture(tmp_path / "00000/000000.jpg")
    picture(tmp_path / "00000/000002.webp")
    report = validate([PoolSource(path=str(tmp_path))])
    assert (report.rows_in, report.counts[tmp_path.name, "image"]) == (3, 2)
    assert [str(bad) for bad in report.bad_rows] == [
        f"{tmp_path}/00000.parquet:2: status: expected a download that succeeded, "
        "found 'failed_to_download': 'HTTP 404'"
    ]
    batches = list(read_pools([PoolSource(path=str(tmp_path))]))
    assert batches[0].pairs["data"].to_pylist() == ["00000/000000.jpg", "00000/000002.webp"]
    assert next(report.lines()).endswith("00000.parquet: what img2dataset downloaded")
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for name, content in (("000000.jpg", b"x"), ("000000.txt", b"a caption")):
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    assert [found.file for found in manifests(PoolSource(path=str(tmp_path)))] == [str(tmp_path / "00000.tar")]


def test_a_table_of_urls(tmp_path: Path) -> None:
    rows = [{"URL": "https://example.org/a.jpg", "TEXT": "a caption", "similarity": 0.3}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "laion.parquet")
    found, taken_for = read(tmp_path / "laion.parquet")
    assert (taken_for, sides(found)) == ("urls", [("image", "https://example.org/a.jpg", "a caption")])
    assert found[0]["similarity"] == 0.3
