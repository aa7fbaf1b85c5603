"""The user's own columns: one type for each over all batches and pools, whatever any one batch looks like."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from nemo_mm_rank.errors import PoolError
from nemo_mm_rank.io.canonical import PoolBatch
from nemo_mm_rank.io.manifest import MAX_COLUMNS, Column
from nemo_mm_rank.schema import CANONICAL, DATA_BYTES, DATA_PARTS, MEDIA_ROOT, PARTS

MAX_FIELDS = 200
"""A nested value with more distinct keys than this is a mapping, not a record, and is kept as JSON text."""

MIXED = pa.dictionary(pa.int8(), pa.string())
"""Stands for "no one type": the column becomes strings, each value its JSON text. (No column has this type itself:
dictionaries are decoded when they are read.)"""


def typed(column: Column) -> pa.Array | None:
    """Return a column as an Arrow array of the type its values have, None where they have none in common."""
    if isinstance(column, pa.Array):
        return column
    if _too_many_fields(column):
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
        return _as_json(column if isinstance(column, list) else column.to_pylist())
    try:
        if isinstance(column, list):
            return pa.array(column, kind)
        return column if column.type == kind else column.cast(kind)
    except (pa.ArrowException, OverflowError):
        return None


def _as_json(values: Iterable[Any]) -> pa.Array:
    texts = [None if value is None else json.dumps(value, ensure_ascii=False, default=str) for value in values]
    return pa.array(texts, pa.string())


def _too_many_fields(values: list[Any]) -> bool:
    """Whether records among ``values`` have so many keys that a typed column would be mostly nulls."""
    waiting: list[tuple[str, Any]] = [("", value) for value in values if isinstance(value, (dict, list))]
    paths: set[str] = set()
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, dict):
            inner = [(f"{path}.{key}", item) for key, item in value.items()]
            paths.update(name for name, _ in inner)
            if len(paths) > MAX_FIELDS:
                return True
        else:
            inner = [(path, item) for item in value]
        waiting.extend((name, item) for name, item in inner if isinstance(item, (dict, list)))
    return False


OPTIONAL = {DATA_BYTES: pa.binary(), DATA_PARTS: PARTS}
"""Columns of ours that are there where any row of the pools has a value for them."""


@dataclass
class PoolTypes:
    """The columns that pools bring besides the canonical ones, with the types known so far.

    Attributes:
        types: column -> type; `extras.MIXED` for one that has several.
    """

    types: dict[str, pa.DataType] = field(default_factory=dict)

    def learn(self, batch: PoolBatch) -> bool:
        """Take in what ``batch`` shows; whether that is anything new.

        Raises:
            PoolError: there are more columns than anybody can mean.
        """
        before = dict(self.types)
        self.types |= {name: kind for name, kind in OPTIONAL.items() if name in batch.pairs}
        for name, column in batch.extras.items():
            self.types[name] = joined(self.types.get(name), typed(column))
        if len(self.types) > MAX_COLUMNS:
            raise PoolError(f"the pools have more than {MAX_COLUMNS} different fields; keys of a row are field names")
        return before != self.types

    def table(self, batch: PoolBatch) -> pa.Table | None:
        """Return the pairs of ``batch`` in the types known so far, None where one does not fit (it is known then)."""
        n = len(batch.stamps)
        columns = {name: batch.pairs[name] for name in (*CANONICAL, MEDIA_ROOT)}
        for name, kind in OPTIONAL.items():
            if name in self.types:
                columns[name] = batch.pairs.get(name, pa.nulls(n, kind))
        fits = True
        for name, kind in self.types.items():
            if name not in OPTIONAL:
                column = converted(batch.extras.get(name, [None] * n), settled(kind))
                if column is None:
                    self.types[name], fits = MIXED, False
                columns[name] = column
        return pa.table(columns) if fits else None
