"""The user's own columns: whatever JSON holds comes back, typed where it has a type, as text where it has none."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_mm_rank.errors import PoolError
from nemo_mm_rank.io.columns import MIXED, converted, joined, settled, typed
from nemo_mm_rank.io.manifest import read_rows

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("ab", max_size=3)
)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)


def plain(value: Any) -> Any:
    """The value without what a record's missing field and its null have in common, numbers by value."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if item is not None}
    return [plain(item) for item in value] if isinstance(value, list) else value


@settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(json_values, min_size=1, max_size=4), min_size=1, max_size=4))
def test_values_come_back_however_they_are_batched(batches: list[list[Any]]) -> None:
    kind: pa.DataType | None = None
    for batch in batches:
        kind = joined(kind, typed(batch))
    assert kind is not None
    arrays = [converted(batch, settled(kind)) for batch in batches]
    if any(array is None for array in arrays):
        kind = MIXED
        arrays = [converted(batch, MIXED) for batch in batches]
    found = [value for array in arrays if array is not None for value in array.to_pylist()]
    values = [value for batch in batches for value in batch]
    if settled(kind) == MIXED:
        assert [value if value is None else json.loads(value) for value in found] == values
    else:
        assert plain(found) == plain(values)
    schema = pa.schema([("x", pa.string() if settled(kind) == MIXED else settled(kind))])
    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(
            pa.Table.from_arrays([pa.chunked_array(arrays, schema.field("x").type)], schema=schema), f"{folder}/x"
        )
        assert pq.read_table(f"{folder}/x")["x"].to_pylist() == found


@pytest.mark.parametrize(
    ("first", "second", "kind"),
    [
        ([1], [2.5], pa.float64()),
        ([None], [True], pa.bool_()),
        ([1], [True], MIXED),
        (["a"], [1], MIXED),
        ([[]], [[1]], pa.list_(pa.int64())),
        ([{"a": 1}], [{"a": 0.5, "b": "x"}], pa.struct([("a", pa.float64()), ("b", pa.string())])),
        ([{"a": 1}], [[1]], MIXED),
        (pa.array([1], pa.int8()), pa.array([1], pa.int32()), pa.int32()),
        (pa.array([1], pa.timestamp("s")), ["2024"], MIXED),
    ],
)
def test_the_least_type_of_two_batches(first: Any, second: Any, kind: pa.DataType) -> None:
    for one, other in ((first, second), (second, first)):
        assert joined(joined(None, typed(one)), typed(other)) == kind


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=30) | json_values.map(lambda value: json.dumps({"x": value}).encode()), max_size=8))
def test_any_bytes_are_rows_or_bad_rows(lines: list[bytes]) -> None:
    lines = [line.replace(b"\n", b"") for line in lines]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pool.jsonl"
        file.write_bytes(b"\n".join(lines))
        try:
            counted = sum(len(rows.lines) + len(rows.bad) for rows in read_rows(str(file)))
        except PoolError:  # it begins like something else, or like an array that is none
            assert lines[0].strip()
            return
    lines[:1] = [line.removeprefix(b"\xef\xbb\xbf") for line in lines[:1]]
    assert counted == sum(bool(line.strip(b" \t\r")) for line in lines)
