"""Digests of content: of files as bytes, of tables as values, whatever file or chunks they came in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nemo_mm_rank.io.manifest import opened

_SIZE = 16
_CHUNK = 2**22


def file_digest(file: str) -> str:
    """Return the digest of a local or remote file's bytes.

    Raises:
        PoolError: it cannot be read.
    """
    digest = hashlib.blake2b(digest_size=_SIZE)
    with opened(file) as handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def table_digest(table: pa.Table, more: bytes = b"") -> str:
    """Return the digest of a table's names, types and values (and of ``more``).

    The same for equal values, however they are chunked, sliced or compressed, and with any version of Arrow.
    """
    digest = hashlib.blake2b(digest_size=_SIZE)
    for name, column in zip(table.column_names, table.columns, strict=True):
        digest.update(json.dumps([name, str(column.type), len(column)]).encode())
        for part in _values(column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)):
            digest.update(part)
    digest.update(more)
    return digest.hexdigest()


def _values(array: pa.Array) -> Iterator[Any]:
    """Yield the buffers that a column's values come to: which are there, and what they are, without the nulls."""
    if isinstance(array, pa.ChunkedArray):  # more than 2 GiB of characters
        array = array.cast(pa.large_string() if pa.types.is_string(array.type) else pa.large_binary()).combine_chunks()
    there = pc.is_valid(array).to_numpy(zero_copy_only=False)
    yield np.packbits(there)
    array = array.drop_null()
    kind = array.type
    if kind in (pa.string(), pa.binary(), pa.large_string(), pa.large_binary()):
        yield np.ascontiguousarray(pc.binary_length(array).to_numpy(), dtype=np.int64)
        yield _bytes(array)
    elif pa.types.is_struct(kind):
        for position in range(kind.num_fields):
            yield from _values(pc.struct_field(array, position))
    elif pa.types.is_list(kind):
        yield np.ascontiguousarray(pc.list_value_length(array).to_numpy(), dtype=np.int64)
        yield from _values(array.flatten())
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        yield np.ascontiguousarray(array.to_numpy(zero_copy_only=False))
    else:
        yield json.dumps(array.to_pylist(), default=str).encode()


def _bytes(array: pa.Array) -> Any:
    if not len(array):
        return b""
    width = np.int64 if array.type in (pa.large_string(), pa.large_binary()) else np.int32
    _, offsets, content = array.buffers()
    ends = np.frombuffer(offsets, dtype=width)[[array.offset, array.offset + len(array)]]
    return b"" if content is None else memoryview(content)[ends[0] : ends[1]]
