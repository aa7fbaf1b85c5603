"""The report on a pool: every fault with its place, counts by pool and modality, and no stop at a broken file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nemo_mm_rank.config import PoolSource
from nemo_mm_rank.io.pool import validate

GOOD = {"modality": "text", "data": "some text", "annotation": "a note"}


def jsonl(path: Path, lines: list[dict[str, Any]]) -> PoolSource:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return PoolSource(path=str(path))


def test_a_report_of_several_pools(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(b"x")
    one = jsonl(
        tmp_path / "one.jsonl",
        [
            {**GOOD, "pair_id": "a"},
            {**GOOD, "pair_id": "b", "annotation": " "},
            {**GOOD, "pair_id": "c", "modality": "image", "data": "cat.jpg"},
            {**GOOD, "pair_id": "d", "modality": "image", "data": "dog.jpg"},
            {**GOOD, "pair_id": "e", "modality": "codes"},
        ],
    )
    with Path(one.path).open("a") as file:
        file.write("{]\n")
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1")
    two = jsonl(tmp_path / "two.jsonl", [{**GOOD, "pair_id": "a"}, {**GOOD, "pair_id": "f", "pool": "other"}])
    nowhere = PoolSource(path=str(tmp_path / "none"))
    report = validate([one, PoolSource(path=str(broken)), two, nowhere])
    assert (report.rows_in, report.bad, report.ok) == (8, 5, False)
    assert report.by_field == {"annotation": 1, "data": 1, "modality": 1, "row": 1, "pair_id": 1}
    assert report.counts == {("one", "text"): 1, ("one", "image"): 1, ("other", "text"): 1}
    lines = list(report.lines())
    assert lines[0].startswith(f"error: {broken}: cannot be read: ")
    assert lines[1:] == [
        f"error: {nowhere.path}: no such file or folder",
        f"{one.path}:2: pair 'b': annotation: expected a non-empty string, found ' '",
        f"{one.path}:4: pair 'd': data: expected a media file below the pool's root, found no such file: 'dog.jpg'",
        f"{one.path}:5: pair 'e': modality: expected one of text, code, image, audio, video, found 'codes'; "
        "did you mean 'code'?",
        f"{one.path}:6: row: expected one JSON object a line, in UTF-8, "
        "found Expecting property name enclosed in double quotes at column 2",
        f"{two.path}:1: pair 'a': pair_id: expected an id that no other row has, found the id of {one.path}:1 again",
        "pool   text  code  image  audio  video  all",
        "one       1     0      1      0      0    2",
        "other     1     0      0      0      0    1",
        "8 rows: 3 good, 5 bad (1 annotation, 1 data, 1 modality, 1 pair_id, 1 row)",
    ]


def test_a_good_pool(tmp_path: Path) -> None:
    report = validate([jsonl(tmp_path / "pool.jsonl", [GOOD])])
    assert report.ok
    assert list(report.lines())[-1] == "1 rows: 1 good, 0 bad"


def test_a_pool_of_nothing_is_not_ok(tmp_path: Path) -> None:
    assert not validate([jsonl(tmp_path / "pool.jsonl", [])]).ok


def test_a_long_list_is_cut_and_counted(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "pool.jsonl", [{**GOOD, "data": ""}] * 5000)
    report = validate([source], most=3)
    assert (report.bad, len(report.bad_rows)) == (5000, 3)
    assert "... and 4,997 more bad rows" in report.lines()
