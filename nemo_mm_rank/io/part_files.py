"""The part files of a pool: rows collected until a part is full, then written in one go."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nemo_mm_rank.arrays import Ints
from nemo_mm_rank.errors import MediaError
from nemo_mm_rank.io.files import read_note, read_schema, read_table, table_digest, write_table
from nemo_mm_rank.io.references import References, folded
from nemo_mm_rank.modality import identity, is_media
from nemo_mm_rank.schema import DATA, DATA_BYTES, DATA_PARTS, MEDIA_ROOT, MODALITY, SOURCE_MEDIA

MAX_PART_BYTES = 256 * 2**20


def part_name(part: int) -> str:
    """Return the file name of part ``part``."""
    return f"part-{part:05d}.parquet"


def is_part(path: Path) -> bool:
    """Whether a file is a part that we wrote: by its name, and by the note in it."""
    return re.fullmatch(r"part-\d{5,}\.parquet", path.name) is not None and read_note(path) is not None


class PartWriter:
    """Cuts a stream of tables of one schema into parts.

    Args:
        folder: for the files.
        sizes: rows of the parts; the last size holds for all that follow.
        bounded: close a part early where its rows come to more than `MAX_PART_BYTES`.
    """

    def __init__(self, folder: Path, sizes: Sequence[int], bounded: bool = True) -> None:
        self._folder = folder
        self._sizes = sizes
        self._bounded = bounded
        self._parts: list[dict[str, Any]] = []
        self._tables: list[pa.Table] = []
        self._stamps: list[Ints] = []
        self._written: list[Ints] = []
        self._waiting = 0
        self._bytes = 0
        self.rows = 0

    def add(self, table: pa.Table, stamps: Ints) -> None:
        """Add rows and the stamps ``(n, 2)`` of their media files."""
        self.rows += table.num_rows
        start = 0
        while start < table.num_rows:
            size = self._sizes[min(len(self._parts), len(self._sizes) - 1)]
            stop = min(table.num_rows, start + size - self._waiting)
            self._tables.append(table.slice(start, stop - start))
            self._stamps.append(stamps[start:stop])
            self._waiting += stop - start
            self._bytes += self._tables[-1].nbytes
            start = stop
            heavy = self._bounded and self._bytes > MAX_PART_BYTES
            if self._waiting == size or heavy:
                self._write()

    def close(self) -> list[dict[str, Any]]:
        """Write what is left, and return name, key, rows and digest of the stamps of every part."""
        if self._waiting:
            self._write()
        stamps = np.concatenate([np.empty((0, 2), dtype=np.int64), *self._written])
        write_table(self._folder / STAMPS, pa.table({"bytes": stamps[:, 0], "time": stamps[:, 1]}))
        return self._parts

    def _write(self) -> None:
        name = part_name(len(self._parts))
        # The place of the pool on this machine is no content: a copy of a pool has the same digests.
        table = pa.concat_tables(self._tables).combine_chunks()
        stamps = np.concatenate(self._stamps)
        self._written.append(stamps)
        files = _stamps_digest(stamps)
        decoded_by = identity(table[MODALITY].unique().to_pylist())
        key = table_digest(table.drop_columns([MEDIA_ROOT]), f"{files}{decoded_by}".encode())
        note = {"key": key, "rows": table.num_rows, "files": files}
        write_table(self._folder / name, table, note)
        self._parts.append({"name": name, **note})
        self._tables, self._stamps, self._waiting, self._bytes = [], [], 0, 0


def files_unchanged(folder: Path, part: dict[str, Any]) -> bool:
    """Whether a part is there as recorded, and its media files have the sizes and times that they had."""
    note = read_note(folder / part["name"])
    if note is None or {"name": part["name"], **note} != part:
        return False
    if not part["files"]:
        return True
    there = read_schema(folder / part["name"]).names
    if DATA_BYTES in there:
        return False
    now = stamps_now(read_table(folder / part["name"], [name for name in STAMPED if name in there]))
    return bool(_stamps_digest(now) == part["files"])


STAMPS = "stamps.parquet"
"""The stamps of all rows of a pool, ``bytes, time``, in the order of its parts."""

STAMPED = (MODALITY, DATA, MEDIA_ROOT, DATA_PARTS, SOURCE_MEDIA)
"""Columns that say which media files a row has."""

_GONE = -2


def stamps_now(table: pa.Table) -> Ints:
    """Return ``(n, 2)`` int64 size and modification time (ns) of rows' media files as they are now.

    -1 where there is none to look at, -2 where one is gone.

    Args:
        table: with those of `STAMPED` that there are.
    """
    columns = {name: table[name].to_pylist() for name in STAMPED if name in table.column_names}
    stamps = np.full((table.num_rows, 2), -1, dtype=np.int64)
    references = {root: References(root) for root in set(columns[MEDIA_ROOT])}
    for row, (modality, data, root, *several) in enumerate(zip(*columns.values(), strict=True)):
        try:
            if every := next((parts for parts in reversed(several) if parts), None):
                files = [one[DATA] for one in every if is_media(one[MODALITY])]
                stamps[row] = folded([references[root].stamp(file) for file in files])
            elif is_media(modality):
                stamps[row] = references[root].stamp(data)
        except MediaError:
            stamps[row] = _GONE
    return stamps


def _stamps_digest(stamps: Ints) -> str:
    """Return the digest of stamps, "" where no file was looked at."""
    return "" if (stamps < 0).all() else hashlib.blake2b(stamps.tobytes(), digest_size=16).hexdigest()
