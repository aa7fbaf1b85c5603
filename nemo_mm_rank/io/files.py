"""Files that are there whole or not at all, Parquet that every reader opens, and digests of content."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import save

from nemo_mm_rank.errors import DamagedError, ModelError, StorageError
from nemo_mm_rank.io import mirror
from nemo_mm_rank.io.clip_folder import clip_files
from nemo_mm_rank.io.lance_rows import is_lance, lance_files
from nemo_mm_rank.io.manifest import opened, split_suffix
from nemo_mm_rank.io.mirror import TEMPORARY as TEMPORARY
from nemo_mm_rank.io.webdataset import kind_of, split_name
from nemo_mm_rank.media.tar import walk
from nemo_mm_rank.schema import EMBEDDING, VECTOR

NOTE = b"nemo_mm_rank"


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it in place: synced, in one rename.

    A process killed at any moment, or a full disk, leaves the old file or none; a stray temporary file is ignored
    by every reader of ours. The mode follows the umask. What a link of that name leads to stays as it is.

    Raises:
        StorageError: the disk is full, or the folder cannot be written to.
    """
    try:
        _write_and_rename(path, write)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written: {os.strerror(error.errno) if error.errno else error}"
        ) from error


def _write_and_rename(path: Path, write: Callable[[Path], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = mirror.temporary_name(path)
    handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    try:
        lock(handle)  # says that somebody is at work on it; without locks nobody clears away what is left either
        write(temporary)
        os.fsync(handle)
        mirror.put(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


def lock(handle: int) -> bool:
    """Lock an open file for this process; return whether it is locked: another may have it, or there are no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: whatever else the old one was linked to keeps its content."""

    def write(target: Path) -> None:
        target.write_bytes(content)

    write_atomically(path, write)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, values: Any) -> None:
    """Write JSON atomically, keys in the order given, so that equal values are equal bytes."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


SEAL = "seal"
_MARKS, _DIGITS = (f'"{SEAL}": "'.encode(), f'"{SEAL}":"'.encode()), 32
"""What stands before a file's seal, hexadecimal digits of a digest of all its other bytes, where its format has room:
last in a JSON object, in the note of a Parquet file, in the metadata of tensors."""
OPEN = "0" * _DIGITS
"""A seal before it is set."""


def _seal(content: bytes) -> tuple[int, bytes]:
    """Return where a file's content has its seal, 0 where it has none, and the one that fits."""
    start = max((place + len(mark) for mark in _MARKS if (place := content.rfind(mark)) >= 0), default=0)
    if not start:
        return 0, b""
    view = memoryview(content)
    digest = hashlib.blake2b(view[:start], digest_size=_DIGITS // 2)
    digest.update(view[start + _DIGITS :])
    return start, digest.hexdigest().encode()


def sealed(content: bytes) -> bytes:
    """Return a file's content with the seal that fits it; as it is where it has room for none."""
    start, seal = _seal(content)
    return content[:start] + seal + content[start + len(seal) :]


@lru_cache(maxsize=2**17)
def _sound(path: str, *stamp: int) -> bool:
    content = Path(path).read_bytes()
    start, seal = _seal(content)
    return len(content) == stamp[0] > 0 and content[start : start + len(seal)] == seal


def _stamp(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def is_sound(path: Path) -> bool:
    """Whether a file is there, and its seal, where it has one, fits: looked at once a process and state of the file."""
    mirror.fetch(path)
    try:
        return _sound(str(path), *_stamp(path))
    except OSError:
        return False


@contextmanager
def _sound_file(path: Path) -> Iterator[None]:
    """Refuse a file that is not intact, and turn what is raised over its content into one line.

    Raises:
        DamagedError: naming it.
    """
    if not is_sound(path):
        raise DamagedError(path)
    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DamagedError(path) from error


def write_sealed(path: Path, values: Mapping[str, Any]) -> None:
    """Write JSON as `write_json` does, with a seal as its last value."""
    write_bytes(path, sealed((json.dumps({**values, SEAL: OPEN}, indent=2, ensure_ascii=False) + "\n").encode()))


def read_sealed(path: Path) -> dict[str, Any]:
    """Read what `write_sealed` wrote, without the seal.

    Raises:
        DamagedError: it is gone, or is not as it was written.
    """
    with _sound_file(path):
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("no object")
        return {name: value for name, value in values.items() if name != SEAL}


def write_table(path: Path, table: pa.Table, note: Mapping[str, Any] | None = None) -> None:
    """Write one Parquet file atomically, with ``note`` as JSON in its metadata (none of pandas' own), and a seal."""
    text = json.dumps({**(note or {}), SEAL: OPEN}, sort_keys=True)
    table = table.replace_schema_metadata({NOTE: text.encode()})

    def write(target: Path) -> None:
        pq.write_table(
            table, target, compression="zstd", write_page_checksum=True, **_encodings(table.schema.remove_metadata())
        )
        start, seal = _seal(target.read_bytes())
        with target.open("rb+") as file:
            file.seek(start)
            file.write(seal)

    write_atomically(path, write)


@lru_cache(maxsize=64)
def _encodings(schema: pa.Schema) -> dict[str, Any]:
    """Return how columns are encoded: embeddings byte by byte, because hardly two of their numbers are equal."""
    vectors = [f"{one.name}.list.element" for one in schema if one.type == VECTOR and one.name.startswith(EMBEDDING)]
    if not vectors:
        return {}
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    leaves = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    others = [path for path in (leaves.column(place).path for place in range(len(leaves))) if path not in vectors]
    return {"use_dictionary": others, "column_encoding": dict.fromkeys(vectors, "BYTE_STREAM_SPLIT")}


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically; an `OPEN` seal among its metadata is set."""
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, sealed(save(content, metadata=None if metadata is None else dict(metadata))))


@contextmanager
def reading(folder: Path, what: str) -> Iterator[None]:
    """Turn what is raised over a folder that does not hold ``what``, or half of it, into one line.

    Raises:
        ModelError: naming the folder.
    """
    try:
        mirror.bring(folder)
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        line = " ".join(str(error).split())
        raise ModelError(f"{folder} contains no {what}: {type(error).__name__}: {line}") from error


def read_table(path: Path, columns: Sequence[str] | None = None, *, our: bool = True) -> pa.Table:
    """Read one Parquet file.

    Args:
        path: of the file.
        columns: those to read.
        our: whether it is as we wrote it; a user's may have been made from one of ours, and have its note.

    Raises:
        DamagedError: ours is gone, or is not as it was written.
    """
    wanted = None if columns is None else list(columns)
    if not our:
        return pq.read_table(path, columns=wanted, partitioning=None, page_checksum_verification=True)
    with _sound_file(path):
        # Not by a data set, which takes three times as long to open a small file.
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read(wanted)
        if wanted is None:
            return table
        if missing := set(wanted) - set(table.column_names):
            raise pa.ArrowInvalid(f"{path} has no column {', '.join(sorted(missing))}")
        return table.select(wanted)  # "a" has read "a.b" as well


@lru_cache(maxsize=2**14)
def _footer(path: str, *_: int) -> tuple[pa.Schema, int, bytes | None]:
    """Return the columns, the number of rows and our note of a Parquet file in one state."""
    footer = pq.read_metadata(path)
    return footer.schema.to_arrow_schema(), int(footer.num_rows), (footer.metadata or {}).get(NOTE)


def read_schema(path: Path) -> pa.Schema:
    """Return the columns of a Parquet file; raises as `read_table` does."""
    with _sound_file(path):
        return _footer(str(path), *_stamp(path))[0]


def count_rows(path: Path) -> int:
    """Return the number of rows of a Parquet file; raises as `read_table` does."""
    with _sound_file(path):
        return _footer(str(path), *_stamp(path))[1]


def read_note(path: Path) -> dict[str, Any] | None:
    """Return the note that `write_table` left, or None where there is no such file, none of ours, or a damaged one."""
    try:
        with _sound_file(path):
            text = _footer(str(path), *_stamp(path))[2]
            note: dict[str, Any] = json.loads(text) if text is not None else {}
            note.pop(SEAL, None)
            return note or None
    except DamagedError:
        return None


def file_names(folder: Path) -> set[str]:
    """Return the names of the files in a folder, by one call for all; none where there is no folder."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return set()


_SIZE = 16


def folder_digest(folder: str | Path, names: Sequence[str], what: str) -> str:
    """Return a digest of the files of ``folder`` that make it ``what`` it is.

    Raises:
        ModelError: one of them is missing.
    """
    digest = hashlib.blake2b(digest_size=_SIZE)
    with reading(Path(folder), what):
        for name in names:
            digest.update(hashlib.blake2b((Path(folder) / name).read_bytes()).digest())
    return digest.hexdigest()


_CHUNK = 2**22


def file_digest(file: str) -> str:
    """Return the digest of a local or remote manifest's bytes; without the media of tars and clips.

    Media are stamped one by one, wherever they lie, and a tar of them may be as large as a disk.

    Raises:
        PoolError: it cannot be read.
    """
    digest = hashlib.blake2b(digest_size=_SIZE)
    if os.path.isdir(file):
        files = lance_files(file) if is_lance(file) else clip_files(file)
        digest.update(json.dumps([[os.path.basename(one), file_digest(one)] for one in files]).encode())
        return digest.hexdigest()
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
