"""Parquet and Arrow's batches as streams of rows: cut by bytes, without encodings that differ from file to file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nemo_mm_rank.arrays import Ints
from nemo_mm_rank.errors import PoolError
from nemo_mm_rank.io.bad_rows import BadRow
from nemo_mm_rank.io.rows import BATCH_ROWS, BLOCK_BYTES, Column, Rows, taken

MAX_ROW_BYTES = 2**30
"""Of one row of Parquet, decoded."""
MEDIA_FEATURES = ("Image", "Audio", "Video")
"""What Hugging Face's library calls columns of media."""


def parquet_rows(file: str, handle: IO[bytes]) -> Iterator[Rows]:
    """Stream the rows of an open, seekable file, a few megabytes at a time.

    Raises:
        PoolError: two columns have the same name.
        ArrowException: it is no Parquet, or breaks off.
    """
    whole = pq.ParquetFile(handle, pre_buffer=False)
    names = whole.schema_arrow.names
    if len(set(names)) < len(names):
        raise PoolError(f"{file}: two columns have the same name")
    groups = [whole.metadata.row_group(i) for i in range(whole.metadata.num_row_groups)]
    largest = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=1.0)
    batch_rows = int(min(BATCH_ROWS, max(1, 4 * BLOCK_BYTES / max(1.0, largest))))
    # A value that is said once and meant a million times is a dictionary's: it stays one until its rows are few enough.
    leaves = [whole.schema.column(i) for i in range(len(whole.schema))]
    texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
    parquet = pq.ParquetFile(handle, pre_buffer=False, read_dictionary=texts)
    features = _features(whole.schema_arrow.metadata or {})
    yield from arrow_rows(file, parquet.iter_batches(batch_size=batch_rows), features)


def arrow_rows(
    file: str, batches: Iterable[pa.RecordBatch], features: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Rows]:
    """Stream the rows of record batches, numbered from 1, without the encodings that differ from file to file.

    Args:
        file: what the rows are of, as the user would name it.
        batches: one after the other, all of one schema.
        features: what `Rows` says of columns.
    """
    row = 1
    for batch in batches:
        sizes = np.zeros(len(batch), dtype=np.int64)
        for column in batch.columns:
            sizes += _decoded_bytes(column)
        for start, stop in _cuts(sizes):
            if sizes[start] > MAX_ROW_BYTES:
                expected, found = f"at most {MAX_ROW_BYTES // 2**20:,} MiB", f"{int(sizes[start]) // 2**20:,} MiB"
                bad = BadRow(file, row + start, "row", expected, found)
                yield Rows(file, np.zeros(0, np.int64), {}, (bad,))
            else:
                names = batch.schema.names
                yield _decoded(file, names, batch.slice(start, stop - start), row + start, features)
        row += len(batch)


def _cuts(sizes: Ints) -> Iterator[tuple[int, int]]:
    """Cut rows of these sizes into runs of about `BLOCK_BYTES` times four, a row at least."""
    ends, start = np.cumsum(sizes), 0
    while start < len(sizes):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + 4 * BLOCK_BYTES, "right")))
        yield start, stop
        start = stop


def _decoded_bytes(column: pa.Array) -> Ints:
    """Return how much each row takes without a dictionary, ``(n,)`` bytes."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    kind = column.type
    if pa.types.is_dictionary(kind):
        known: Ints = np.append(_decoded_bytes(column.dictionary), 0)
        rows: Ints = known[column.indices.fill_null(len(known) - 1).to_numpy(zero_copy_only=False)]
        return rows
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_map(kind):
        offsets = column.offsets.to_numpy()
        inner = column.values.slice(offsets[0], offsets[-1] - offsets[0])
        total = np.concatenate([[0], np.cumsum(_decoded_bytes(inner))])
        sums: Ints = np.diff(total[offsets - offsets[0]])
        return sums
    if pa.types.is_struct(kind):
        return sum((_decoded_bytes(inner) for inner in column.flatten()), np.zeros(len(column), np.int64))
    texts = (pa.types.is_string, pa.types.is_binary, pa.types.is_large_string, pa.types.is_large_binary)
    if any(is_kind(kind) for is_kind in texts):
        lengths: Ints = pc.binary_length(column).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        return lengths
    return np.full(len(column), column.nbytes // max(1, len(column)), dtype=np.int64)


def _features(metadata: Mapping[bytes, bytes]) -> dict[str, str]:
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return {name: kind["_type"] for name, kind in features.items() if kind.get("_type") in MEDIA_FEATURES}
    except (ValueError, KeyError, TypeError, AttributeError):  # anybody can write there
        return {}


def _decoded(file: str, names: Sequence[str], batch: pa.RecordBatch, first: int, features: Mapping[str, str]) -> Rows:
    columns: dict[str, Column] = {name: plain(column) for name, column in zip(names, batch.columns, strict=True)}
    lines = np.arange(first, first + len(batch), dtype=np.int64)
    broken = {i: name for name, column in columns.items() for i in _not_utf8(column)}
    bad = tuple(
        BadRow(file, int(lines[i]), "row", "text in UTF-8", f"other bytes in column {name!r}")
        for i, name in sorted(broken.items())
    )
    if broken:
        keep = np.setdiff1d(np.arange(len(lines)), list(broken))
        lines, columns = lines[keep], {name: taken(column, keep) for name, column in columns.items()}
    return Rows(file, lines, columns, bad, features=features)


def plain(column: pa.Array) -> pa.Array:
    """Return a column without the encodings that differ from file to file: dictionaries, views, large offsets."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    undone = _without_dictionaries(column.type)
    if undone != column.type:
        column = column.cast(undone)
    kind = column.type
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return column.cast(pa.string())
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return column.cast(pa.binary())
    return column


def _without_dictionaries(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _without_dictionaries(kind.value_type)
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_without_dictionaries(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_without_dictionaries(kind.value_type)))
    if pa.types.is_map(kind):
        inner = [field.with_type(_without_dictionaries(field.type)) for field in (kind.key_field, kind.item_field)]
        return pa.map_(*inner)
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_without_dictionaries(field.type)) for field in kind])
    return kind


def _not_utf8(column: pa.Array) -> list[int]:
    """Positions of rows with a string, at any depth, that is not UTF-8 (Parquet readers do not check)."""

    def whole(part: pa.Array) -> bool:
        try:
            part.validate(full=True)
        except pa.ArrowInvalid:
            return False
        return True

    return [] if whole(column) else [i for i in range(len(column)) if not whole(column.slice(i, 1))]
