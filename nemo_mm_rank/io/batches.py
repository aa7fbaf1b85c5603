"""Rows that are in memory already, of somebody's pipeline, say: pairs by the rules that a manifest's rows follow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from nemo_mm_rank.config import PoolSource
from nemo_mm_rank.errors import PoolError
from nemo_mm_rank.io.arrow_rows import arrow_rows, plain
from nemo_mm_rank.io.bad_rows import BadRow, Seen
from nemo_mm_rank.io.canonical import PoolBatch
from nemo_mm_rank.io.columns import PoolTypes, json_text
from nemo_mm_rank.io.formats import FORMATS
from nemo_mm_rank.io.formats.base import Format
from nemo_mm_rank.io.pool import pairs_of
from nemo_mm_rank.io.references import References, Rootless
from nemo_mm_rank.io.rows import BATCH_ROWS, Rows, taken
from nemo_mm_rank.schema import ERROR, MODALITY, PAIR_ID, POOL


def in_memory(data: pa.Table | pd.DataFrame | Mapping[str, Sequence[Any]], place: str) -> Iterator[Rows]:
    """Yield the rows of a table, a dataframe or columns by name, numbered from 1.

    Args:
        data: ``n`` rows; values of several types in a column stay as they are.
        place: what the rows are of, for messages.

    Raises:
        PoolError: two columns have the same name.
    """
    names = data.column_names if isinstance(data, pa.Table) else list(map(str, data))
    if len(set(names)) < len(names):
        raise PoolError(f"{place}: two columns have the same name")
    if isinstance(data, pa.Table):
        table = data
    else:
        every = data.items() if isinstance(data, Mapping) else ((name, data[name]) for name in data)
        columns = {str(name): _column(values) for name, values in every}
        if any(isinstance(column, list) for column in columns.values()):
            yield _without_halves(place, columns)
            return
        table = pa.table(columns)
    if table.num_rows:
        yield from arrow_rows(place, table.to_batches(max_chunksize=BATCH_ROWS))
    else:
        yield Rows(place, np.zeros(0, np.int64), {field.name: pa.nulls(0, field.type) for field in table.schema})


def _column(values: Any) -> Any:
    """Return ``values`` as an Arrow array, or as they are where no Arrow array can hold them."""
    if isinstance(values, pa.ChunkedArray):
        return values.combine_chunks()
    if isinstance(values, pa.Array):
        return values
    try:
        column = pa.array(values, from_pandas=True)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        column = None
    # Among bytes, Arrow takes texts for bytes, too.
    if column is None or (pa.types.is_binary(column.type) and any(isinstance(value, str) for value in values)):
        return [None if value is pd.NA or value is pd.NaT else value for value in values]
    return column


def _without_halves(place: str, columns: Mapping[str, Any]) -> Rows:
    """Return columns of which some are lists as rows; one in which a text has half a surrogate pair cannot be read."""
    lists = [column for column in columns.values() if isinstance(column, list)]
    whole = np.array([all(map(is_whole, row)) for row in zip(*lists, strict=True)])
    kept = np.flatnonzero(whole)
    undone = {name: column if isinstance(column, list) else plain(column) for name, column in columns.items()}
    bad = [BadRow(place, row + 1, "row", "text", "half of a surrogate pair") for row in np.flatnonzero(~whole).tolist()]
    return Rows(place, kept + 1, {name: taken(column, kept) for name, column in undone.items()}, tuple(bad))


def is_whole(value: Any) -> bool:
    """Whether no text in ``value`` has half a surrogate pair, for which UTF-8 has no bytes."""
    try:
        (json_text(value) if isinstance(value, (str, list, dict)) else "").encode()
    except UnicodeEncodeError:
        return False
    return True


def pair_table(
    rows: Iterator[Rows], source: PoolSource, pool: str, root: str | None, known: Format | None = None
) -> pa.Table:
    """Return ``rows`` as pairs, each in its place: a row that is none says why in ``error``, with what is known of it.

    Rows may be written in any format that a manifest may; one with a list of captions becomes several pairs.

    >>> rows = in_memory({"caption": ["A gull.", None], "words": ["The sea.", "The sky."]}, "batch")
    >>> fields = {"data": "words", "annotation": "caption"}
    >>> table = pair_table(rows, PoolSource(path="-", fields=fields, modality="text"), "mine", None)
    >>> table["annotation"].to_pylist(), table["error"].to_pylist()
    (['A gull.', None], [None, 'pool: BadRow: annotation: expected a non-empty string, found nothing (batch:2)'])

    Args:
        rows: read by `in_memory`.
        source: field map, fixed modality, new names, and what else a pool is told of its rows.
        pool: the name of the pool for rows that do not say.
        root: what media references are relative to, as `io.pool.media_root` returns it; None: rows carry all they are.
        known: the rows' format, where it need not be looked for.

    Returns:
        Canonical columns, `MEDIA_ROOT`, `DATA_BYTES` and `DATA_PARTS` where any row has them, the rows' own, `ERROR`.

    Raises:
        PoolError: a column of the rows has a canonical name, while another is mapped to it.
    """
    references, seen = References(root) if root is not None else Rootless(), Seen()
    batches = list(pairs_of(rows, source, pool, references, seen, among=FORMATS if known is None else (known,)))
    places = [np.concatenate([batch.lines, np.array([row.line for row in batch.bad], np.int64)]) for batch in batches]
    tables = [
        table.take(np.argsort(lines, kind="stable")) if batch.bad else table
        for table, batch, lines in zip(with_bad_rows(batches), batches, places, strict=True)
    ]
    return pa.concat_tables(tables, promote_options="default")


def with_bad_rows(batches: Sequence[PoolBatch]) -> list[pa.Table]:
    """Return each batch as a table, all in one schema: its pairs, and then its bad rows, with what is known of them."""
    types = PoolTypes()
    for batch in batches:
        types.learn(batch)
    while True:
        tables = [types.table(batch) for batch in batches]
        if all(table is not None for table in tables):
            return [_and_bad(table, batch.bad) for table, batch in zip(tables, batches, strict=True)]


def _and_bad(pairs: pa.Table, bad: Sequence[BadRow]) -> pa.Table:
    columns = {
        PAIR_ID: [row.pair_id for row in bad],
        POOL: [row.pool for row in bad],
        MODALITY: [row.modality for row in bad],
        ERROR: [f"pool: BadRow: {row.message} ({row.file}:{row.line})" for row in bad],
    }
    there = pairs.append_column(ERROR, pa.nulls(pairs.num_rows, pa.string()))
    known = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    return pa.concat_tables([there, known], promote_options="default")
