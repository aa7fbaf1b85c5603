"""Parquet files that are there whole or not at all, and that pandas, Dask, cuDF and Curator all open."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nemo_mm_rank.errors import StorageError

NOTE = b"nemo_mm_rank"

TEMPORARY = ".nemo-mm-rank.tmp"
"""How the names of unfinished files and folders end, and no other's; they begin with a dot, so that no pattern of ours
finds them."""


def temporary_name(path: Path) -> Path:
    """Return a new name beside ``path`` for what will be put in its place."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")


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
    temporary = temporary_name(path)
    handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    try:
        with suppress(OSError):  # a file system without locks: then nobody clears away what is left either
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # says that somebody is at work on it
        write(temporary)
        os.fsync(handle)
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: whatever else the old one was linked to keeps its content."""

    def write(target: Path) -> None:
        target.write_bytes(content)

    write_atomically(path, write)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""

    def write(target: Path) -> None:
        target.write_text(text, encoding="utf-8")

    write_atomically(path, write)


def write_json(path: Path, values: Any) -> None:
    """Write JSON atomically, keys in the order given, so that equal values are equal bytes."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def write_table(path: Path, table: pa.Table, note: Mapping[str, Any] | None = None) -> None:
    """Write one Parquet file atomically, with ``note`` as JSON in its metadata (and none of pandas' own)."""
    metadata = {} if note is None else {NOTE: json.dumps(note, sort_keys=True).encode()}
    table = table.replace_schema_metadata(metadata)

    def write(target: Path) -> None:
        pq.write_table(table, target, compression="zstd")

    write_atomically(path, write)


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one Parquet file."""
    return pq.read_table(path, columns=None if columns is None else list(columns), partitioning=None)


def read_note(path: Path) -> dict[str, Any] | None:
    """Return the note that `write_table` left, or None where there is no such file or no note in it."""
    try:
        metadata = pq.read_metadata(path).metadata or {}
    except (OSError, pa.ArrowInvalid):
        return None
    note: dict[str, Any] | None = json.loads(metadata[NOTE]) if NOTE in metadata else None
    return note
