"""The user's own columns: one type for each over all batches and pools, whatever any one batch looks like."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from nemo_mm_rank.io.canonical import PoolBatch
from nemo_mm_rank.io.rows import MAX_COLUMNS, OTHER_FIELDS, Column
from nemo_mm_rank.schema import (
    CANONICAL,
    CONTENTS,
    DATA_BYTES,
    DATA_PARTS,
    MEDIA_ROOT,
    PARTS,
    SOURCE_CONTENTS,
    SOURCE_MEDIA,
    SOURCE_RECORD,
)

MAX_FIELDS = 200
"""A nested value with more distinct keys than this is a mapping, not a record, and is kept as JSON text."""

MAX_DEPTH = 16
"""Values that are nested deeper are kept as JSON text: not every reader of Parquet follows them further."""

MIXED = pa.dictionary(pa.int8(), pa.string())
"""Stands for "no one type": the column becomes strings, each value its JSON text. (No column has this type itself:
dictionaries are decoded when they are read.)"""


def typed(column: Column) -> pa.Array | None:
    """Return a column as an Arrow array of the type its values have, None where they have none in common."""
    if isinstance(column, pa.Array):
        return column if _depth(column.type) <= MAX_DEPTH else None
    if _too_much(column):
        return None
    try:
        return pa.array(column)
    except (pa.ArrowException, OverflowError):
        return None


def joined(known: pa.DataType | None, column: pa.Array | None) -> pa.DataType:
    """Return the least type that holds both what is ``known`` so far and ``column``.

    Nulls go with everything; integers widen and go with floats; records take each other's fields; anything else
    that differs is `MIXED`.
    """
    if column is None or known == MIXED:
        return MIXED
    if known is None or known == column.type:
        return column.type
    try:
        fields = [pa.schema([pa.field("x", kind)]) for kind in (known, column.type)]
        return pa.unify_schemas(fields, promote_options="permissive").field("x").type
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return MIXED


def settled(kind: pa.DataType) -> pa.DataType:
    """Return the type to write: without what Parquet or its readers lack (columns of nothing, records of nothing)."""
    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_list(kind):
        inner = settled(kind.value_type)
        return MIXED if inner == MIXED else pa.list_(inner)
    if pa.types.is_struct(kind):
        fields = [pa.field(field.name, settled(field.type)) for field in kind]
        return MIXED if not fields or any(field.type == MIXED for field in fields) else pa.struct(fields)
    return kind


def converted(column: Column, kind: pa.DataType) -> pa.Array | None:
    """Return ``column`` as ``kind`` (`MIXED`: JSON text), None where a value does not fit it without loss."""
    if kind == MIXED:
        return as_json(column if isinstance(column, list) else column.to_pylist())
    try:
        if isinstance(column, list):
            return pa.array(column, kind)
        return column if column.type == kind else column.cast(kind)
    except (pa.ArrowException, OverflowError):
        return None


def as_json(values: Iterable[Any]) -> pa.Array:
    """Return each value as JSON text, null for None."""
    return pa.array([None if value is None else json_text(value) for value in values], pa.string())


def json_text(value: Any) -> str:
    """Return any value as JSON; what JSON has no way to write, as the text that Python has for it."""
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):  # keys that are none in JSON, or a value that holds itself
        return json.dumps(str(value), ensure_ascii=False)


def _depth(kind: pa.DataType) -> int:
    return 1 + max((_depth(kind.field(i).type) for i in range(kind.num_fields)), default=0)


def _too_much(values: list[Any]) -> bool:
    """Whether values have so many keys that a typed column would be mostly nulls, or are nested too deeply for one."""
    waiting: list[tuple[str, Any]] = [("", value) for value in values if isinstance(value, (dict, list))]
    paths: set[str] = set()
    depth = 0
    while waiting:
        inner: list[tuple[str, Any]] = []
        for path, value in waiting:
            if isinstance(value, dict):
                inner += [(f"{path}.{key}", item) for key, item in value.items()]
            else:
                inner += [(path, item) for item in value]
        paths.update(name for name, _ in inner)
        depth += 1
        if len(paths) > MAX_FIELDS or depth >= MAX_DEPTH:
            return True
        waiting = [(name, item) for name, item in inner if isinstance(item, (dict, list))]
    return False


OPTIONAL = {
    DATA_BYTES: pa.binary(),
    DATA_PARTS: PARTS,
    SOURCE_MEDIA: PARTS,
    SOURCE_CONTENTS: CONTENTS,
    SOURCE_RECORD: pa.string(),
}
"""Columns of ours that are there where any row of the pools has a value for them."""


@dataclass
class PoolTypes:
    """The columns that pools bring besides the canonical ones, with the types known so far.

    Attributes:
        types: column -> type; `MIXED` for one that has several.
        gathered: whether there are more columns than a table can have, so that all are JSON in `OTHER_FIELDS`.
    """

    types: dict[str, pa.DataType] = field(default_factory=dict)
    gathered: bool = False

    def learn(self, batch: PoolBatch) -> bool:
        """Take in what ``batch`` shows; whether that is anything new."""
        before = dict(self.types)
        self.types |= {name: kind for name, kind in OPTIONAL.items() if name in batch.pairs}
        for name, column in batch.extras.items() if not self.gathered else ():
            self.types[name] = joined(self.types.get(name), typed(column))
        if len(self.types) > MAX_COLUMNS:
            self.gathered = True
            self.types = {name: kind for name, kind in self.types.items() if name in OPTIONAL}
            self.types[OTHER_FIELDS] = pa.string()
        return before != self.types

    def table(self, batch: PoolBatch) -> pa.Table | None:
        """Return the pairs of ``batch`` in the types known so far, None where one does not fit (it is known then)."""
        n = len(batch.stamps)
        columns = {name: batch.pairs[name] for name in (*CANONICAL, MEDIA_ROOT)}
        for name, kind in OPTIONAL.items():
            if name in self.types:
                columns[name] = batch.pairs.get(name, pa.nulls(n, kind))
        fits = True
        extras = batch.extras if not self.gathered else {OTHER_FIELDS: _in_one(batch.extras, n)}
        for name, kind in self.types.items():
            if name not in OPTIONAL:
                column = converted(extras.get(name, [None] * n), settled(kind))
                if column is None:
                    self.types[name], fits = MIXED, False
                columns[name] = column
        return pa.table(columns) if fits else None


def _in_one(extras: Mapping[str, Column], n: int) -> list[str | None]:
    """Return all fields of every row as the JSON text of one."""
    columns = {name: value if isinstance(value, list) else value.to_pylist() for name, value in extras.items()}
    rows = ({name: column[row] for name, column in columns.items() if column[row] is not None} for row in range(n))
    return [json.dumps(row, ensure_ascii=False, default=str) if row else None for row in rows]
