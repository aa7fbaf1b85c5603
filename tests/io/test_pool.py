"""Pools in canonical columns: names, kinds of content, ids, and the one line that each bad row gets."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemo_mm_rank.config import PoolSource
from nemo_mm_rank.errors import PoolError
from nemo_mm_rank.io.bad_rows import BadRow, Seen
from nemo_mm_rank.io.pool import manifests, read_pools, validate
from nemo_mm_rank.media.source import OUTSIDE

GOOD = {"pair_id": "a", "pool": "p", "modality": "text", "data": "some text", "annotation": "a note"}


def jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(*sources: PoolSource | Path | str, check_files: bool = True) -> tuple[dict[str, list[Any]], list[BadRow]]:
    pools = [source if isinstance(source, PoolSource) else PoolSource(path=str(source)) for source in sources]
    columns: dict[str, list[Any]] = {}
    bad: list[BadRow] = []
    for batch in read_pools(pools, check_files):
        assert len({len(column) for column in (*batch.pairs.values(), *batch.extras.values(), batch.stamps)}) == 1
        assert batch.rows_in == len(batch.stamps) + len(batch.bad)
        for name, column in batch.pairs.items():
            columns.setdefault(name, []).extend(column.to_pylist())
        for name, extra in batch.extras.items():
            columns.setdefault(name, []).extend(extra if isinstance(extra, list) else extra.to_pylist())
        bad += batch.bad
    return columns, bad


def without(**changes: Any) -> dict[str, Any]:
    row = {**GOOD, **changes}
    return {name: value for name, value in row.items() if value != "absent"}


def test_a_canonical_row_stays_as_it_is(tmp_path: Path) -> None:
    columns, bad = read(jsonl(tmp_path / "pool.jsonl", [{**GOOD, "licence": "CC0"}]))
    assert columns == {
        **{name: [value] for name, value in GOOD.items()},
        "media_root": [str(tmp_path)],
        "licence": ["CC0"],
    }
    assert bad == []


MODALITIES = "one of text, code, image, audio, video"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pair_id": ""}, "pair '': pair_id: expected a non-empty string, found ''"),
        ({"pair_id": [1]}, "pair_id: expected a string or a number, found list [1]"),
        ({"pair_id": True}, "pair_id: expected a string or a number, found bool True"),
        ({"pool": 3}, "pair 'x': pool: expected a string, found int 3"),
        ({"modality": "absent"}, f"pair 'x': modality: expected {MODALITIES}, found nothing"),
        ({"modality": None}, f"pair 'x': modality: expected {MODALITIES}, found nothing"),
        ({"modality": "Image"}, f"pair 'x': modality: expected {MODALITIES}, found 'Image'; did you mean 'image'?"),
        ({"modality": "smell"}, f"pair 'x': modality: expected {MODALITIES}, found 'smell'"),
        ({"modality": 1}, "pair 'x': modality: expected a string, found int 1"),
        ({"data": "absent"}, "pair 'x': data: expected a non-empty string, found nothing"),
        ({"data": " \n\u3000"}, "pair 'x': data: expected a non-empty string, found ' \\n\\u3000'"),
        ({"data": {"a": 1}}, "pair 'x': data: expected a string or bytes, found dict {'a': 1}"),
        ({"annotation": None}, "pair 'x': annotation: expected a non-empty string, found nothing"),
        ({"annotation": ""}, "pair 'x': annotation: expected a non-empty string, found ''"),
        ({"annotation": 5.5}, "pair 'x': annotation: expected a string, found float 5.5"),
        ({"annotation": {"w": "w" * 90}}, f"pair 'x': annotation: expected a string, found dict {{'w': '{'w' * 53}..."),
        ({"pair_id": "a"}, "pair 'a': pair_id: expected an id that no other row has, found the id of {file}:1 again"),
        ({"data_path": "t.txt"}, "pair 'x': data_path: expected either data or data_path, found both"),
        (
            {"data": "absent", "data_path": "../t.txt"},
            f"pair 'x': data_path: expected a text file below the pool's root, found '../t.txt', which {OUTSIDE}",
        ),
        (
            {"annotation": "absent", "annotation_path": "no.txt"},
            "pair 'x': annotation_path: expected a text file below the pool's root, "
            "found 'no.txt', which does not exist",
        ),
        (
            {"annotation": "absent", "annotation_path": "latin.txt"},
            "pair 'x': annotation_path: expected a text file below the pool's root, "
            "found 'latin.txt', which is not UTF-8 at byte 4",
        ),
        (
            {"modality": "image", "data": "no.jpg"},
            "pair 'x': data: expected a media file below the pool's root, found no such file: 'no.jpg'",
        ),
        (
            {"modality": "audio", "data": "empty.wav"},
            "pair 'x': data: expected a media file below the pool's root, found 'empty.wav', which is empty",
        ),
        (
            {"modality": "image", "data": "."},
            "pair 'x': data: expected a media file below the pool's root, found '.', which is not a file",
        ),
        (
            {"modality": "video", "data": "../outside.jpg"},
            f"pair 'x': data: expected a media file below the pool's root, found '../outside.jpg', which {OUTSIDE}",
        ),
        (
            {"modality": "image", "data": "/etc/passwd"},
            f"pair 'x': data: expected a media file below the pool's root, found '/etc/passwd', which {OUTSIDE}",
        ),
        (
            {"modality": "image", "data": "link.jpg"},
            f"pair 'x': data: expected a media file below the pool's root, found 'link.jpg', which {OUTSIDE}",
        ),
        (
            {"modality": "image", "data": "linked/outside.jpg"},
            f"pair 'x': data: expected a media file below the pool's root, found 'linked/outside.jpg', which {OUTSIDE}",
        ),
        (
            {"modality": "image", "data": "a\0b"},
            "pair 'x': data: expected a media file below the pool's root, found 'a\\x00b', which is not a file name",
        ),
    ],
)
def test_what_a_bad_row_says(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    (tmp_path / "outside.jpg").write_bytes(b"x")
    folder = tmp_path / "pool"
    rows = [GOOD, without(**{"pair_id": "x", **changes}), {**GOOD, "pair_id": "z"}]
    file = jsonl(folder / "pool.jsonl", rows)
    (folder / "empty.wav").touch()
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    (folder / "linked").symlink_to(tmp_path)
    columns, bad = read(file)
    assert [str(row) for row in bad] == [f"{file}:2: {message.replace('{file}', str(file))}"]
    assert columns["pair_id"] == ["a", "z"]


def test_a_column_that_no_row_has_names_those_there_are(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "pool.jsonl", [{"modality": "text", "data": "d", "anotation": "n"}])
    [row] = read(file)[1]
    assert row.found == (
        "no field 'annotation'; did you mean 'anotation'? (the fields are: modality, data, anotation; "
        "name yours with --field annotation=NAME)"
    )


def test_a_bad_row_carries_what_is_known_of_the_pair(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [without(annotation=""), {"oops": 1}]
    file = jsonl(tmp_path / "pool.jsonl", lines)
    first, second = read(file)[1]
    assert (first.pair_id, first.pool, first.modality, first.line) == ("a", "p", "text", 1)
    assert (second.pair_id, second.pool, second.modality, second.line) == (None, "pool", None, 2)


def test_a_field_map_and_a_fixed_modality(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(b"x")
    rows: list[dict[str, Any]] = [
        {"file_name": "cat.jpg", "caption": "a cat", "height": 3},
        {"file_name": "cat.jpg", "caption": "a dog"},
    ]
    fields = {"pair_id": "file_name", "data": "file_name", "annotation": "caption"}
    file = jsonl(tmp_path / "meta.jsonl", rows)
    columns, bad = read(PoolSource(path=str(file), fields=fields, modality="image", name="cats"))
    assert columns == {
        "pair_id": ["cat.jpg"],
        "pool": ["cats"],
        "modality": ["image"],
        "data": ["cat.jpg"],
        "annotation": ["a cat"],
        "media_root": [str(tmp_path)],
        "height": [3],
    }
    assert [row.line for row in bad] == [2]


def test_a_mapped_field_beside_one_with_our_name_is_refused(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "pool.jsonl", [{**GOOD, "caption": "c"}])
    with pytest.raises(PoolError, match="column 'annotation' exists, but 'annotation' is mapped to 'caption'"):
        read(PoolSource(path=str(file), fields={"annotation": "caption"}))


@pytest.mark.parametrize(
    "name", ["error", "media_root", "emb_data__x", "sns_reason", "cosine__x", "score", "rank", "weakest", "feedback__x"]
)
def test_a_column_of_ours_goes_by_another_name(tmp_path: Path, name: str) -> None:
    file = jsonl(tmp_path / "pool.jsonl", [{**GOOD, name: 1}])
    columns, bad = read(file)
    assert not bad
    assert columns[f"original_{name}"] == [1]


def test_a_name_that_is_there_twice_is_told_apart(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "pool.jsonl", [{**GOOD, "score": 1, "original_score": 2, "weakest_sentence": "x"}])
    columns, bad = read(file)
    assert not bad
    assert (columns["original_original_score"], columns["original_score"]) == ([1], [2])
    [batch] = read_pools([PoolSource(path=str(file))])
    assert batch.renamed == {"score": "original_original_score", "weakest_sentence": "original_weakest_sentence"}
    lines = "\n".join(validate([PoolSource(path=str(file))]).lines())
    note = "note: columns with names that nemo-mm-rank uses itself are kept under other names: "
    assert f"{note}'score' as 'original_original_score', " in lines


def test_a_column_of_ours_can_be_kept_under_another_name(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "pool.jsonl", [{**GOOD, "score": 0.5}])
    columns, bad = read(PoolSource(path=str(file), rename={"score": "clip_score"}))
    assert not bad
    assert columns["clip_score"] == [0.5]
    assert "score" not in columns


def test_texts_from_files(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t/a.txt").write_text("\ufeffdata é")
    (tmp_path / "t/b.txt").write_text("note")
    (tmp_path / "t/c.jpg").write_bytes(b"x")
    rows = [
        {"pair_id": 1, "modality": "text", "data_path": "t/a.txt", "annotation_path": "t/b.txt"},
        {"pair_id": 2, "modality": "image", "data_path": "t/c.jpg", "annotation_path": "t/b.txt"},
        {"pair_id": 3.5, "modality": "text", "data": "d", "annotation": "n"},
    ]
    columns, bad = read(jsonl(tmp_path / "pool.jsonl", rows))
    assert bad == []
    assert columns["pair_id"] == ["1", "2", "3.5"]
    assert columns["data"] == ["data é", "t/c.jpg", "d"]
    assert columns["annotation"] == ["note", "note", "n"]
    assert "data_path" not in columns


def test_ids_are_made_of_pool_and_content(tmp_path: Path) -> None:
    rows = [{"modality": "text", "data": f"d{n}", "annotation": "n"} for n in (1, 2, 1)]
    columns, bad = read(jsonl(tmp_path / "mine.jsonl", rows))
    assert [row.line for row in bad] == [3]
    assert all(name.startswith("mine-") and len(name) == 21 for name in columns["pair_id"])
    again, _ = read(jsonl(tmp_path / "mine.jsonl", rows[1:]))
    assert again["pair_id"] == columns["pair_id"][::-1]
    assert columns["pool"] == ["mine", "mine"]


def test_content_in_parquet(tmp_path: Path) -> None:
    (tmp_path / "there.png").write_bytes(b"x")
    hugging_face = pa.array(
        [
            {"bytes": b"PNG1", "path": "one.png"},
            {"bytes": b"PNG2", "path": None},
            {"bytes": None, "path": "there.png"},
            None,
        ],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    table = pa.table({"image": hugging_face, "text": ["a", "b", "c", "d"]})
    pq.write_table(table, tmp_path / "hf.parquet")
    source = PoolSource(
        path=str(tmp_path / "hf.parquet"), fields={"data": "image", "annotation": "text"}, modality="image"
    )
    columns, bad = read(source)
    assert columns["data_bytes"] == [b"PNG1", b"PNG2", None]
    assert columns["data"] == ["one.png", blake2b(b"PNG2", digest_size=16).hexdigest(), "there.png"]
    assert [str(row).partition(": ")[2] for row in bad] == ["data: expected a non-empty string, found nothing"]


def test_plain_bytes_in_parquet(tmp_path: Path) -> None:
    table = pa.table(
        {
            "modality": ["audio", "text", "text", "image"],
            "data": [b"RIFF", "é".encode(), b"\xff", b""],
            "annotation": ["a", "b", "c", "d"],
        }
    )
    pq.write_table(table, tmp_path / "raw.parquet")
    columns, bad = read(tmp_path / "raw.parquet")
    assert columns["data_bytes"] == [b"RIFF", None]
    assert columns["data"][1] == "é"
    assert [(row.line, row.field, row.found) for row in bad] == [
        (3, "data", "bytes that are not UTF-8: b'\\xff'"),
        (4, "data", "no bytes"),
    ]


def test_ids_in_parquet_may_be_numbers(tmp_path: Path) -> None:
    columns = {name: [GOOD[name]] * 2 for name in ("modality", "data", "annotation")}
    for ids in (pa.array([7, 8]), pa.array([7, 8], pa.uint8()), pa.array(["7", "8"]).dictionary_encode()):
        pq.write_table(pa.table({"pair_id": ids, **columns}), tmp_path / "pool.parquet")
        assert read(tmp_path / "pool.parquet")[0]["pair_id"] == ["7", "8"]


def test_ids_are_unique_over_pools(tmp_path: Path) -> None:
    one = jsonl(tmp_path / "one.jsonl", [{**GOOD, "pair_id": f"{n}"} for n in range(3000)])
    two = jsonl(tmp_path / "two.jsonl", [{**GOOD, "pair_id": name} for name in ("new", "2999", "new", "0")])
    columns, bad = read(one, two)
    assert len(columns["pair_id"]) == 3001
    assert [str(row).partition("found ")[2] for row in bad] == [
        f"the id of {one}:3000 again",
        f"the id of {two}:1 again",
        f"the id of {one}:1 again",
    ]


def test_seen_agrees_with_a_dictionary() -> None:
    seen, first = Seen(), dict[str, str]()
    import numpy as np

    rng = np.random.default_rng(0)
    for file in "abc":
        for start in range(0, 4000, 500):
            names = [str(n) for n in rng.integers(0, 5000, 500)]
            lines = np.arange(start + 1, start + 501)
            again = seen.add(names, file, lines)
            expected = {}
            for row, name in enumerate(names):
                place = f"{file}:{start + 1 + row}"
                if name in first:
                    expected[row] = first[name]
                first.setdefault(name, place)
            assert again == expected


def test_a_folder_a_glob_and_a_url(tmp_path: Path) -> None:
    jsonl(tmp_path / "pool/b.jsonl", [{**without(pool="absent"), "pair_id": "b"}])
    jsonl(tmp_path / "pool/a.jsonl", [{**without(pool="absent"), "pair_id": "a"}])
    for other in ("notes.json", ".hidden.jsonl", "_meta.jsonl", "deeper/c.jsonl"):
        jsonl(tmp_path / "pool" / other, [without(pair_id="no")])
    columns, _ = read(tmp_path / "pool")
    assert (columns["pair_id"], columns["pool"]) == (["a", "b"], ["pool", "pool"])
    columns, _ = read(tmp_path / "pool" / "[a-z].jsonl")
    assert (columns["pair_id"], columns["pool"]) == (["a", "b"], ["a", "b"])
    columns, _ = read(tmp_path / "pool" / "**" / "c.jsonl")
    assert columns["pair_id"] == ["no"]
    memory = fsspec.filesystem("memory")
    memory.pipe("/pools/x/p.jsonl", json.dumps({**GOOD, "modality": "image", "data": "i.jpg"}).encode())
    memory.pipe("/pools/x/notes.txt", b"no manifest")
    for path in ("memory://pools/x/p.jsonl", "memory://pools/x", "memory://pools/*/p.jsonl"):
        columns, bad = read(path)
        assert (columns["pair_id"], columns["data"], bad) == (["a"], ["i.jpg"], [])
        assert columns["media_root"][0].replace(":///", "://") == "memory://pools/x"


def test_a_name_with_glob_characters_is_a_name(tmp_path: Path) -> None:
    assert read(jsonl(tmp_path / "data[1].jsonl", [GOOD]))[0]["pair_id"] == ["a"]


def test_pools_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path, message in {
        "none.jsonl": "no such file or folder",
        "empty": "the folder contains no manifest",
        "*.jsonl": "matches no manifest",
    }.items():
        with pytest.raises(PoolError, match=message):
            manifests(PoolSource(path=str(tmp_path / path)))


def test_a_root_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    (tmp_path / "media/a.jpg").write_bytes(b"12345")
    file = jsonl(tmp_path / "lists/pool.jsonl", [{**GOOD, "modality": "image", "data": "a.jpg"}])
    assert len(read(file)[1]) == 1
    source = PoolSource(path=str(file), root=str(tmp_path / "media"))
    [batch] = read_pools([source])
    assert batch.bad == []
    assert batch.stamps.tolist() == [[5, os.stat(tmp_path / "media/a.jpg").st_mtime_ns]]
    assert batch.pairs["media_root"].to_pylist() == [str(tmp_path / "media")]


def test_files_are_looked_for_only_when_asked(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "pool.jsonl", [{**GOOD, "modality": "image", "data": "no.jpg"}])
    columns, bad = read(file, check_files=False)
    assert (columns["data"], bad) == (["no.jpg"], [])


def test_a_url_in_a_row_is_left_to_whoever_opens_it(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "pool.jsonl", [{**GOOD, "modality": "image", "data": "https://example.org/a.jpg"}])
    assert read(file)[1] == []


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_nan_is_no_id(tmp_path: Path, kind: str) -> None:
    rows = [
        {"pair_id": value, "modality": "text", "data": f"d{n}", "annotation": "a"} for n, value in enumerate(FLOATS)
    ]
    if kind == "jsonl":
        file = jsonl(tmp_path / "pool.jsonl", rows)
    else:
        file = tmp_path / "pool.parquet"
        pq.write_table(pa.Table.from_pylist(rows), file)
    columns, bad = read(file)
    assert bad == []
    assert columns["pair_id"][:2] == ["0.0", "2.5"]
    assert len(set(columns["pair_id"])) == 4
    assert all(name.startswith("pool-") for name in columns["pair_id"][2:])


FLOATS = [0.0, 2.5, float("nan"), float("nan")]


def test_references_relative_to_a_manifest_that_lies_below_the_root(tmp_path: Path) -> None:
    for name in ("im/a.png", "m/b.png", "b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "outside.png").symlink_to("/etc/hostname")
    (tmp_path / "notes.txt").write_text("words")
    parts = [{"modality": "text", "data": "t"}, {"modality": "image", "data": "../im/a.png"}]
    media: list[Any] = ["../im/a.png", "b.png", str(tmp_path / "im/a.png"), "../outside.png", "../../x.png", parts]
    rows: list[dict[str, Any]]
    rows = [{"pair_id": f"{n}", "modality": "image", "data": data, "annotation": "a"} for n, data in enumerate(media)]
    rows[5]["modality"] = None
    rows.append({"pair_id": "6", "modality": "text", "data": "d", "annotation_path": "../notes.txt"})
    file = jsonl(tmp_path / "m" / "pool.jsonl", rows)
    columns, bad = read(PoolSource(path=str(file), root=str(tmp_path)))
    assert [row.pair_id for row in bad] == ["3", "4"]
    assert columns["data"] == ["im/a.png", "b.png", str(tmp_path / "im/a.png"), "t\nim/a.png", "d"]
    assert columns["data_parts"][3][1] == {"modality": "image", "data": "im/a.png"}
    assert columns["annotation"][-1] == "words"
    assert set(columns["media_root"]) == {str(tmp_path)}


def test_lists_of_one_and_files_are_read_row_by_row(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"an image")
    data: list[Any] = [
        "a.png",
        ["a.png"],
        {"bytes": None, "path": "a.png"},
        [{"path": "a.png"}],
        {"bytes": None, "path": None},
        {"path": "a.png", "more": 1},
        ["a.png", "a.png"],
        [],
    ]
    rows = [{**GOOD, "pair_id": str(n), "modality": "image", "data": value} for n, value in enumerate(data)]
    columns, bad = read(jsonl(tmp_path / "pool.jsonl", rows))
    assert (columns["pair_id"], columns["data"]) == (list("0123"), ["a.png"] * 4)
    assert [(row.line, row.field, row.expected) for row in bad] == [
        (5, "data", "a non-empty string"),
        (6, "data", "a string or bytes"),
        (7, "data", "a list of parts {modality, data}"),
        (8, "data", "a list of parts {modality, data}"),
    ]


def test_images_in_lists_of_one_in_parquet(tmp_path: Path) -> None:
    file = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = [[{"bytes": b"one", "path": None}], [{"bytes": b"two", "path": "b.png"}], [], None]
    table = pa.table({"images": pa.array(images, pa.list_(file)), "text": list("abcd")})
    pq.write_table(table, tmp_path / "pool.parquet")
    fields = {"data": "images", "annotation": "text"}
    columns, bad = read(PoolSource(path=str(tmp_path / "pool.parquet"), fields=fields, modality="image"))
    assert columns["data_bytes"] == [b"one", b"two"]
    assert [(row.line, row.field) for row in bad] == [(3, "data"), (4, "data")]


def test_captions_in_lists_beside_data(tmp_path: Path) -> None:
    rows = [{"modality": "text", "data": "words", "annotation": ["one", "two"]}]
    rows.append({"modality": "code", "data": "x = 1", "annotation": ["three"]})
    columns, bad = read(jsonl(tmp_path / "pool.jsonl", rows))
    assert columns["modality"] == ["text", "text", "code"]
    assert columns["data"] == ["words", "words", "x = 1"]
    assert (columns["annotation"], bad) == (["one", "two", "three"], [])


def test_a_list_of_captions_leaves_rows_that_name_files_alone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("from a file", encoding="utf-8")
    kept = {"modality": "text", "data": "words"}
    rows: list[dict[str, Any]] = [{**kept, "annotation": ["one", "two"]}, {**kept, "annotation_path": "a.txt"}]
    rows.append({"modality": "text", "data_path": "a.txt", "annotation": "three"})
    columns, bad = read(jsonl(tmp_path / "pool.jsonl", rows))
    assert list(zip(columns["data"], columns["annotation"], strict=True)) == [
        ("words", "from a file"),
        ("from a file", "three"),
    ]
    assert [(row.line, row.field, row.expected) for row in bad] == [(1, "annotation", "a string")]
