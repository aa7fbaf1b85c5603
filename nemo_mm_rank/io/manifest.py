"""Manifests as streams of rows: JSONL (also .gz and .zst) and Parquet, local or behind any fsspec URL.

WebDataset tars, the third kind, have a room of their own: `io.webdataset`.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import IO, Any, TypeAlias

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from nemo_mm_rank.errors import PoolError
from nemo_mm_rank.io.bad_rows import BadRow, shown
from nemo_mm_rank.media.source import lacking

MAX_LINE_BYTES = 16 * 2**20
MAX_COLUMNS = 1000
BATCH_ROWS = 2048  # few enough for the rows, as Python objects, to stay in the processor's cache
BLOCK_BYTES = 4 * 2**20

JSON_SUFFIXES, PARQUET_SUFFIXES, TAR_SUFFIX = (".jsonl", ".ndjson", ".json"), (".parquet", ".pq"), ".tar"
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
KINDS = ".jsonl, .ndjson, .json (each also .gz or .zst), .parquet or .tar (WebDataset, not compressed)"

Column: TypeAlias = list[Any] | pa.Array
"""One field of several rows: JSON values as they are, or an Arrow array from a Parquet file."""


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of one manifest.

    Attributes:
        lines: ``(n,)`` int64, line (JSONL), row (Parquet) or sample (WebDataset) numbers from 1.
        columns: name -> n values; a key that a JSON row lacks is None.
        bad: rows between these that cannot be read at all.
    """

    file: str
    lines: npt.NDArray[np.int64]
    columns: dict[str, Column]
    bad: tuple[BadRow, ...] = ()


def split_suffix(path: str) -> tuple[str, str | None, str | None]:
    """Return the stem of a manifest's file name, its kind (``json``, ``parquet`` or ``tar``) and its compression."""
    name = path.split("?")[0].rstrip("/").rsplit("/", 1)[-1]
    compression = next((codec for suffix, codec in COMPRESSIONS.items() if name.endswith(suffix)), None)
    inner = name.rpartition(".")[0] if compression else name
    for suffix in JSON_SUFFIXES:
        if inner.endswith(suffix):
            return inner.removesuffix(suffix), "json", compression
    for suffix in PARQUET_SUFFIXES:
        if name.endswith(suffix):
            return name.removesuffix(suffix), "parquet", None
    if name.endswith(TAR_SUFFIX):
        return name.removesuffix(TAR_SUFFIX), "tar", None
    return name, None, None


def read_rows(file: str) -> Iterator[Rows]:
    """Stream the rows of one JSONL or Parquet manifest, a few megabytes at a time.

    Raises:
        PoolError: the file is missing, is no such manifest, or breaks off; naming the file and why.
    """
    _, kind, compression = split_suffix(file)
    if kind not in ("json", "parquet"):
        raise PoolError(f"{file}: a manifest is {KINDS}")
    with opened(file) as handle:
        yield from _parquet_rows(file, handle) if kind == "parquet" else _json_rows(file, handle, compression)


@contextmanager
def opened(file: str) -> Iterator[IO[bytes]]:
    """Open a local path or fsspec URL; whatever goes wrong while it is read becomes a `PoolError`."""
    try:
        with fsspec.open(file, "rb") as handle:
            yield handle
    except FileNotFoundError as error:
        raise PoolError(f"{file}: no such file") from error
    except ImportError as error:
        raise PoolError(f"{file}: cannot be read: {lacking(file, error)}") from error
    except (OSError, EOFError, ValueError, pa.ArrowException) as error:
        raise PoolError(f"{file}: cannot be read: {' '.join(str(error).split())}") from error


def _json_rows(file: str, handle: IO[bytes], compression: str | None) -> Iterator[Rows]:
    stream = pa.CompressedInputStream(pa.PythonFile(handle, "r"), compression) if compression else handle
    line = 1
    for block in _blocks(stream):
        if block is None:
            found = f"more than {MAX_LINE_BYTES} bytes"
            yield Rows(file, np.zeros(0, np.int64), {}, (BadRow(file, line, "row", "one JSON object a line", found),))
            line += 1
            continue
        if line == 1:
            block = block.removeprefix(codecs.BOM_UTF8)
        lines: Sequence[str | bytes]
        try:
            lines = block.decode().split("\n")
        except UnicodeDecodeError:
            lines = block.split(b"\n")
        for start in range(0, len(lines), BATCH_ROWS):
            yield _parsed(file, line + start, lines[start : start + BATCH_ROWS])
        line += len(lines) - 1


def _blocks(stream: Any) -> Iterator[bytes | None]:
    """Cut a stream into whole lines, about `BLOCK_BYTES` at a time; None stands for a line that is too long."""
    rest: bytes = b""
    skipping = False
    while chunk := stream.read(BLOCK_BYTES):
        if skipping:
            _, newline, chunk = chunk.partition(b"\n")
            skipping = not newline
        rest += chunk
        cut = rest.rfind(b"\n") + 1
        if cut:
            # Only a line that began in an earlier block can be too long, so the first is the only one to measure.
            first = rest.index(b"\n")
            if first > MAX_LINE_BYTES:
                yield None
                yield rest[first + 1 : cut]
            else:
                yield rest[:cut]
            rest = rest[cut:]
        elif len(rest) > MAX_LINE_BYTES:
            yield None
            rest, skipping = b"", True
    if rest:
        yield rest


def _parsed(file: str, first_line: int, lines: Sequence[str | bytes]) -> Rows:
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    bad: list[BadRow] = []
    for number, line in enumerate(lines, first_line):
        try:
            row = json_object(line)
        except NOT_AN_OBJECT as error:
            if not (line.strip(" \t\r") if isinstance(line, str) else line.strip(b" \t\r")):
                continue
            bad.append(BadRow(file, number, "row", "one JSON object a line, in UTF-8", why_not(error)))
        else:
            rows.append(row)
            numbers.append(number)
    return gathered(file, rows, numbers, bad)


def gathered(file: str, rows: Sequence[dict[str, Any]], numbers: Sequence[int], bad: Sequence[BadRow]) -> Rows:
    """Return rows read one by one, with their numbers, as columns.

    Raises:
        PoolError: they have more fields than anybody can mean.
    """
    names = dict.fromkeys(chain.from_iterable(rows))
    if len(names) > MAX_COLUMNS:
        raise PoolError(f"{file}: more than {MAX_COLUMNS} different fields; the keys of a row are field names")
    columns: dict[str, Column] = {name: [row.get(name) for row in rows] for name in names}
    return Rows(file, np.array(numbers, dtype=np.int64), columns, tuple(bad))


NOT_AN_OBJECT = (UnicodeError, ValueError, TypeError, RecursionError)
"""What `json_object` raises."""

_decode = json.JSONDecoder().decode


def json_object(content: str | bytes) -> dict[str, Any]:
    """Return a JSON object in UTF-8; raises one of `NOT_AN_OBJECT` for anything else."""
    text = content if isinstance(content, str) else content.decode()
    row = _decode(text)
    if type(row) is not dict:
        raise TypeError(shown(text.strip()))
    if "\\ud" in text or "\\uD" in text:
        # JSON can spell half a character, which no UTF-8 file can hold.
        json.dumps(row, ensure_ascii=False).encode()
    return row


def why_not(error: Exception) -> str:
    """Say what a content was found to be that `json_object` refused."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return f"byte 0x{error.object[error.start]:02x} at {error.start + 1}"
    if isinstance(error, UnicodeEncodeError):
        return "half of a surrogate pair"
    if isinstance(error, RecursionError):
        return "values nested too deeply"
    return str(error)


def _parquet_rows(file: str, handle: IO[bytes]) -> Iterator[Rows]:
    parquet = pq.ParquetFile(handle, pre_buffer=False)
    names = parquet.schema_arrow.names
    if len(set(names)) < len(names):
        raise PoolError(f"{file}: two columns have the same name")
    groups = [parquet.metadata.row_group(i) for i in range(parquet.metadata.num_row_groups)]
    largest = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=1.0)
    batch_rows = int(min(BATCH_ROWS, max(1, 4 * BLOCK_BYTES / max(1.0, largest))))
    row = 1
    for batch in parquet.iter_batches(batch_size=batch_rows):
        columns: dict[str, Column] = {name: plain(column) for name, column in zip(names, batch.columns, strict=True)}
        lines = np.arange(row, row + len(batch), dtype=np.int64)
        row += len(batch)
        broken = {i: name for name, column in columns.items() for i in _not_utf8(column)}
        bad = tuple(
            BadRow(file, int(lines[i]), "row", "text in UTF-8", f"other bytes in column {name!r}")
            for i, name in sorted(broken.items())
        )
        if broken:
            keep = np.setdiff1d(np.arange(len(lines)), list(broken))
            lines, columns = lines[keep], {name: taken(column, keep) for name, column in columns.items()}
        yield Rows(file, lines, columns, bad)


def taken(column: Column, rows: npt.NDArray[np.int64]) -> Column:
    """Return the values at ``rows``."""
    return [column[row] for row in rows] if isinstance(column, list) else column.take(pa.array(rows))


def plain(column: pa.Array) -> pa.Array:
    """Return a column without the encodings that differ from file to file: dictionaries, views, large offsets."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return column.cast(pa.string())
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return column.cast(pa.binary())
    return column


def _not_utf8(column: pa.Array) -> list[int]:
    """Positions of rows with a string, at any depth, that is not UTF-8 (Parquet readers do not check)."""

    def whole(part: pa.Array) -> bool:
        try:
            part.validate(full=True)
        except pa.ArrowInvalid:
            return False
        return True

    return [] if whole(column) else [i for i in range(len(column)) if not whole(column.slice(i, 1))]
