"""The blend's file: what goes in comes out of every reader, and equal tables are equal bytes."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from nemo_mm_rank.errors import UserError
from nemo_mm_rank.io.export import write_blend

TABLE = pa.table(
    {
        "pair_id": ["a", "é\n\u2028", None],
        "score": pa.array([0.5, float("nan"), float("inf")], pa.float32()),
        "spans": [[[0.0, 1.5]], [], None],
        "meta": [{"x": float("nan"), "b": b"\xff"}, None, {"x": 1.0, "b": None}],
        "time": pa.array([datetime.datetime(2024, 1, 2, 3, 4), None, None], pa.timestamp("s")),
        "price": pa.array([Decimal("1.50"), None, None], pa.decimal128(5, 2)),
        "on": [True, False, None],
    }
)


def test_jsonl_is_json_on_every_line(tmp_path: Path) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(word)

    write_blend(TABLE, tmp_path / "blend.jsonl")
    lines = (tmp_path / "blend.jsonl").read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    assert [json.loads(line, parse_constant=refuse) for line in lines] == [
        {
            "pair_id": "a",
            "score": 0.5,
            "spans": [[0.0, 1.5]],
            "meta": {"x": None, "b": "/w=="},
            "time": "2024-01-02T03:04:00",
            "price": "1.50",
            "on": True,
        },
        {
            "pair_id": "é\n\u2028",
            "score": None,
            "spans": [],
            "meta": None,
            "time": None,
            "price": None,
            "on": False,
        },
        {
            "pair_id": None,
            "score": None,
            "spans": None,
            "meta": {"x": 1.0, "b": None},
            "time": None,
            "price": None,
            "on": None,
        },
    ]
    assert len(pd.read_json(tmp_path / "blend.jsonl", lines=True)) == 3


@pytest.mark.parametrize("name", ["blend.parquet", "blend.jsonl"])
def test_equal_tables_are_equal_bytes(tmp_path: Path, name: str) -> None:
    (tmp_path / "cut").mkdir()
    write_blend(TABLE, tmp_path / name)
    write_blend(pa.concat_tables([TABLE.slice(0, 1), TABLE.slice(1)]), tmp_path / "cut" / name)
    assert (tmp_path / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, "cut"]


def test_parquet_opens_in_pandas(tmp_path: Path) -> None:
    write_blend(TABLE, tmp_path / "blend.parquet")
    assert pd.read_parquet(tmp_path / "blend.parquet")["on"].tolist() == [True, False, None]


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"blend\.csv: a blend can be written as \.parquet or \.jsonl"):
        write_blend(TABLE, tmp_path / "blend.csv")
