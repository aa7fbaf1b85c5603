"""Digests of content: of files as bytes, of tables as values, whatever file or chunks they came in."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nemo_mm_rank.io.manifest import opened, split_suffix
from nemo_mm_rank.io.webdataset import kind_of, split_name
from nemo_mm_rank.media.tar import walk

_SIZE = 16
_CHUNK = 2**22


def file_digest(file: str) -> str:
    """Return the digest of a local or remote manifest's bytes; of a tar's without its media.

    Media are stamped one by one, wherever they lie, and a tar of them may be as large as a disk.

    Raises:
        PoolError: it cannot be read.
    """
    digest = hashlib.blake2b(digest_size=_SIZE)
    with opened(file) as handle:
        for part in _tar_parts(handle) if split_suffix(file)[1] == "tar" else _chunks(handle):
            digest.update(part)
    return digest.hexdigest()


def _chunks(handle: IO[bytes], size: int | None = None) -> Iterator[bytes]:
    """Yield the next ``size`` bytes, or all there are."""
    left = size
    while chunk := handle.read(_CHUNK if left is None else min(_CHUNK, left)):
        left = None if left is None else left - len(chunk)
        yield chunk


def _tar_parts(handle: IO[bytes]) -> Iterator[bytes]:
    """Yield where each member lies and what it is, and its content unless its name says that it is media."""
    try:
        for member in walk(handle):
            there = [member.name, member.type.decode("latin-1"), member.offset, member.offset_data, member.size]
            yield json.dumps([*there, member.mtime]).encode()
            if kind_of(split_name(member.name)[1]) is None:
                handle.seek(member.offset_data)
                yield from _chunks(handle, member.size)
    except tarfile.TarError as error:
        yield str(error).encode()
    yield str(handle.seek(0, 2)).encode()


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
