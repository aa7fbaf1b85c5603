"""Manifests as streams of rows: JSON (`io.json_rows`), CSV, or Parquet (`io.arrow_rows`), local or remote.

WebDataset tars have a room of their own: `io.webdataset`.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import IO, TYPE_CHECKING

import fsspec
import pyarrow as pa

from nemo_mm_rank.config import PoolSource
from nemo_mm_rank.errors import PoolError
from nemo_mm_rank.io import json_rows
from nemo_mm_rank.io.arrow_rows import parquet_rows
from nemo_mm_rank.io.bad_rows import BadRow
from nemo_mm_rank.io.rows import BATCH_ROWS, MAX_LINE_BYTES, Rows, gathered, refuse_pretender
from nemo_mm_rank.media.limits import within
from nemo_mm_rank.media.source import is_url, lacking

if TYPE_CHECKING:
    from typing_extensions import Buffer

DOWNLOAD_SECONDS: float = PoolSource.model_fields["download_seconds"].default
JSON_SUFFIXES, PARQUET_SUFFIXES, TAR_SUFFIX = (".jsonl", ".ndjson", ".json"), (".parquet", ".pq"), ".tar"
CSV_SUFFIX = ".csv"
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
KINDS = ".jsonl, .ndjson, .json (each also .gz or .zst), .csv, .parquet or .tar (WebDataset, not compressed)"


def split_suffix(path: str) -> tuple[str, str | None, str | None]:
    """Return a manifest's stem, its kind (``json``, ``csv``, ``parquet`` or ``tar``), and its compression."""
    name = path.split("?")[0].rstrip("/").rsplit("/", 1)[-1]
    compression = next((codec for suffix, codec in COMPRESSIONS.items() if name.endswith(suffix)), None)
    inner = name.rpartition(".")[0] if compression else name
    for suffix in JSON_SUFFIXES:
        if inner.endswith(suffix):
            return inner.removesuffix(suffix), "json", compression
    for suffix in PARQUET_SUFFIXES:
        if name.endswith(suffix):
            return name.removesuffix(suffix), "parquet", None
    if name.endswith(CSV_SUFFIX):
        return name.removesuffix(CSV_SUFFIX), "csv", None
    if name.endswith(TAR_SUFFIX):
        return name.removesuffix(TAR_SUFFIX), "tar", None
    return name, None, None


def read_rows(file: str, seconds: float = DOWNLOAD_SECONDS) -> Iterator[Rows]:
    """Stream the rows of one manifest that is no tar, a few megabytes at a time.

    Args:
        file: local path or URL.
        seconds: that each read of a URL may take.

    Raises:
        PoolError: the file is missing, is no such manifest, or breaks off; naming the file and why.
    """
    kind = split_suffix(file)[1]
    if kind not in ("json", "csv", "parquet"):
        raise PoolError(f"{file}: a manifest must be {KINDS}")
    with opened(file, seconds) as handle:
        head = handle.peek(64)[:64]
        refuse_pretender(file, head)
        if kind == "parquet":
            yield from parquet_rows(file, handle)
        elif kind == "csv":
            yield from _csv_rows(file, handle)
        else:
            yield from json_rows.json_rows(file, handle)


@contextmanager
def opened(file: str, seconds: float = DOWNLOAD_SECONDS) -> Iterator[io.BufferedReader]:
    """Open a local path or fsspec URL; whatever goes wrong while it is read becomes a `PoolError`.

    Args:
        file: path or URL.
        seconds: that opening a URL and each read of it may take, whatever a server does meanwhile.
    """
    try:
        if not is_url(file):
            with open(file, "rb") as handle:
                yield handle
            return
        with within(seconds, fsspec.open(file, "rb").__enter__) as remote:
            yield io.BufferedReader(_Remote(remote, seconds))
    except FileNotFoundError as error:
        raise PoolError(f"{file}: no such file") from error
    except ImportError as error:
        raise PoolError(f"{file}: cannot be read: {lacking(file, error)}") from error
    except (OSError, EOFError, ValueError, pa.ArrowException) as error:
        raise PoolError(f"{file}: cannot be read: {' '.join(str(error).split())}") from error


class _Remote(io.RawIOBase):
    """An open remote file, each read of which ends in time; a server that says no length can only be read onwards."""

    def __init__(self, handle: IO[bytes], seconds: float) -> None:
        self._handle, self._seconds = handle, seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer)
        content = within(self._seconds, lambda: self._handle.read(len(view)))
        view[: len(content)] = content
        return len(content)

    def seekable(self) -> bool:
        return True  # where it is not, `seek` says why

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if getattr(self._handle, "size", 0) is None:
            raise ValueError("the server does not say how long it is; download it first")
        return self._handle.seek(offset, whence)

    def tell(self) -> int:
        return self._handle.tell()


def is_array(file: str, seconds: float = DOWNLOAD_SECONDS) -> bool:
    """Whether a manifest is one JSON array of records.

    Raises:
        PoolError: it cannot be read.
    """
    if split_suffix(file)[1] != "json":
        return False
    with opened(file, seconds) as handle:
        return json_rows.is_array(file, handle)


def _csv_rows(file: str, handle: IO[bytes]) -> Iterator[Rows]:
    """Read a table of strings with a line of names; a row's line is its number from 1."""
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))  # one value for the process, so only ever raised
    text = io.TextIOWrapper(handle, encoding="utf-8-sig", newline="")
    table = csv.DictReader(text, restkey=_TOO_MANY)
    try:
        numbered = enumerate(table, 1)
        while batch := list(islice(numbered, BATCH_ROWS)):
            good = [(number, row) for number, row in batch if _TOO_MANY not in row and None not in row.values()]
            expected = f"{len(table.fieldnames or ())} values"
            bad = [
                BadRow(file, number, "row", expected, "more" if _TOO_MANY in row else "fewer")
                for number, row in batch
                if _TOO_MANY in row or None in row.values()
            ]
            yield gathered(file, [row for _, row in good], [number for number, _ in good], bad)
    except csv.Error as error:
        raise PoolError(f"{file}: cannot be read: {error}") from error
    finally:
        text.detach()


_TOO_MANY = "\0"
