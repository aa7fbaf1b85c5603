"""Manifests as streams of rows: JSON (an object a line, one array, or COCO's object; also .gz and .zst), CSV, Parquet.

WebDataset tars, the third kind, have a room of their own: `io.webdataset`.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nemo_mm_rank.arrays import Ints
from nemo_mm_rank.config import PoolSource
from nemo_mm_rank.errors import PoolError
from nemo_mm_rank.io.bad_rows import BadRow, shown
from nemo_mm_rank.media.limits import within
from nemo_mm_rank.media.pretenders import pretender
from nemo_mm_rank.media.source import is_url, lacking

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAX_LINE_BYTES = 16 * 2**20
MAX_COLUMNS = 1000
BATCH_ROWS = 2048  # few enough for the rows, as Python objects, to stay in the processor's cache
BLOCK_BYTES = 4 * 2**20
MAX_DEPTH = 200
"""Lists and records inside each other: more stand in no row that anybody has written by hand or by program."""
MAX_RATIO, FREE_BYTES = 200, 2**30
"""A compressed manifest may hold so many times its size, or so many bytes whatever its size."""
DOWNLOAD_SECONDS: float = PoolSource.model_fields["download_seconds"].default
MAX_ROW_BYTES = 2**30
"""Of one row of Parquet, decoded."""
OTHER_FIELDS = "other_fields"
"""Where rows have more different keys than a table can have columns: all but the most frequent, as JSON."""
FREQUENT = 100
"""Keys that are columns all the same."""

MEDIA_FEATURES = ("Image", "Audio", "Video")
"""What Hugging Face's library calls columns of media."""
COCO_CAPTIONS = "coco_captions"
"""The captions of an image of COCO, which stand apart from the images."""
MAX_COCO_BYTES = 2**29
_COCO = re.compile(rb'\s*\{\s*"(info|images|annotations|licenses|type|categories)"\s*:')

_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}

JSON_SUFFIXES, PARQUET_SUFFIXES, TAR_SUFFIX = (".jsonl", ".ndjson", ".json"), (".parquet", ".pq"), ".tar"
CSV_SUFFIX = ".csv"
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
KINDS = ".jsonl, .ndjson, .json (each also .gz or .zst), .csv, .parquet or .tar (WebDataset, not compressed)"

Column: TypeAlias = list[Any] | pa.Array
"""One field of several rows: JSON values as they are, or an Arrow array from a Parquet file."""


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of one manifest.

    Attributes:
        lines: ``(n,)`` int64, line (JSONL), row (Parquet) or sample (WebDataset) numbers from 1.
        columns: name -> n values; a key that a JSON row lacks is None.
        bad: rows between these that cannot be read at all.
        texts: of JSON, the n objects as they are written.
        parts: where a format has taken data apart: position -> ``(modality, data)`` of each part, one of a modality.
        media: where a format has found several media: position -> ``(modality, reference)`` of each.
        features: of Parquet that Hugging Face's library wrote, its columns of media -> Image, Audio or Video.
    """

    file: str
    lines: npt.NDArray[np.int64]
    columns: dict[str, Column]
    bad: tuple[BadRow, ...] = ()
    texts: Sequence[str] = ()
    features: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[int, list[tuple[str, str]]] = field(default_factory=dict)
    media: Mapping[int, list[tuple[str, str]]] = field(default_factory=dict)


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
        raise PoolError(f"{file}: a manifest is {KINDS}")
    with opened(file, seconds) as handle:
        head = handle.peek(64)[:64]
        refuse_pretender(file, head)
        if kind == "parquet":
            yield from _parquet_rows(file, handle)
        elif kind == "csv":
            yield from _csv_rows(file, handle)
        else:  # what a file is compressed by is told by its first bytes, whatever its name
            known = next((codec for magic, codec in _MAGIC.items() if head.startswith(magic)), None)
            yield from _json_rows(file, handle, known)


def refuse_pretender(file: str, head: bytes) -> None:
    """Refuse a file whose first bytes show that it is not what its name says.

    Raises:
        PoolError: naming what it is, and what to do.
    """
    if what := pretender(head, text=True):
        raise PoolError(f"{file}: cannot be read: it is {what}")


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


def _json_rows(file: str, handle: IO[bytes], compression: str | None) -> Iterator[Rows]:
    stream: Any = _Decompressed(file, handle, compression) if compression else handle
    first = stream.read(64)
    if _begins_an_array(first):
        yield from _array_rows(file, first, stream)
        return
    if compression:
        refuse_pretender(file, first)
    if _COCO.match(first.removeprefix(codecs.BOM_UTF8)):
        first += stream.read(MAX_LINE_BYTES)
        if not _is_an_object(first):
            yield from _coco_rows(file, first, stream)
            return
    line = 1
    for block in _blocks(stream, first):
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


def is_array(file: str, seconds: float = DOWNLOAD_SECONDS) -> bool:
    """Whether a manifest is one JSON array of records.

    Raises:
        PoolError: it cannot be read.
    """
    if split_suffix(file)[1] != "json":
        return False
    with opened(file, seconds) as handle:
        head = handle.read(64)
        handle.seek(0)
        known = next((codec for magic, codec in _MAGIC.items() if head.startswith(magic)), None)
        return _begins_an_array(_Decompressed(file, handle, known).read(64) if known else head)


def _begins_an_array(first: bytes) -> bool:
    return first.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"[" and not _is_a_line(first)


def _is_a_line(first: bytes) -> bool:
    """Whether what a file begins with is one line by itself, an array of values, and not an array of objects."""
    line, newline, _ = first.removeprefix(codecs.BOM_UTF8).partition(b"\n")
    try:
        values = json.loads(line)
    except ValueError:
        return False
    return bool(newline) and not (values and all(isinstance(value, dict) for value in values))


def _csv_rows(file: str, handle: IO[bytes]) -> Iterator[Rows]:
    """Read a table of strings with a line of names; a row's line is its number from 1."""
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


def _is_an_object(first: bytes) -> bool:
    """Whether the first line is one object by itself, and not all of COCO."""
    try:
        found = json.loads(first.removeprefix(codecs.BOM_UTF8).partition(b"\n")[0])
    except ValueError:
        return False
    return not (isinstance(found, dict) and {"images", "annotations"} <= found.keys())


def _coco_rows(file: str, first: bytes, stream: Any) -> Iterator[Rows]:
    """Read COCO's one object: a row is an image, with its captions.

    Raises:
        PoolError: it is no such object, or a very large one.
    """
    blocks, held = [first], len(first)
    while block := stream.read(BLOCK_BYTES):
        blocks.append(block)
        held += len(block)
        if held > MAX_COCO_BYTES:
            raise PoolError(f"{file}: cannot be read: one object of more than {MAX_COCO_BYTES // 2**20:,} MiB")
    content = b"".join(blocks)
    try:
        whole = json_object(content.removeprefix(codecs.BOM_UTF8))
        captions: dict[Any, list[Any]] = {}
        for one in whole["annotations"]:
            captions.setdefault(one["image_id"], []).append(one["caption"])
        images = [{**image, COCO_CAPTIONS: captions.get(image["id"], [])} for image in whole["images"]]
    except NOT_AN_OBJECT as error:
        raise PoolError(f"{file}: cannot be read: one JSON object, but {why_not(error)}") from error
    except (KeyError, AttributeError) as error:
        raise PoolError(f"{file}: cannot be read: no captions as of COCO: {shown(error)}") from error
    for start in range(0, len(images), BATCH_ROWS):
        rows = images[start : start + BATCH_ROWS]
        yield gathered(file, rows, range(start + 1, start + 1 + len(rows)), ())


class _Decompressed:
    """A compressed stream, read up to what its size allows for."""

    def __init__(self, file: str, handle: IO[bytes], compression: str) -> None:
        self._file, self._handle = file, handle
        self._stream = pa.CompressedInputStream(pa.PythonFile(handle, "r"), compression)
        self._bytes = 0

    def read(self, size: int) -> bytes:
        """Return the next bytes."""
        content: bytes = self._stream.read(size)
        self._bytes += len(content)
        if self._bytes > max(FREE_BYTES, MAX_RATIO * self._handle.tell()):
            raise PoolError(
                f"{self._file}: cannot be read: more than {self._bytes // 2**20:,} MiB come out of "
                f"{self._handle.tell() / 2**20:,.1f}, which no manifest needs; decompress it first if it is meant"
            )
        return content


def _array_rows(file: str, first: bytes, stream: Any) -> Iterator[Rows]:
    """Read one JSON array, an element at a time; a row's line is the element's number from 1.

    Raises:
        PoolError: the array breaks off, or is no JSON.
    """
    decoder, decode = codecs.getincrementaldecoder("utf-8-sig")(), json.JSONDecoder().raw_decode
    text, place, number, ended = decoder.decode(first).lstrip()[1:], 0, 0, False
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    bad: list[BadRow] = []
    texts: list[str] = []
    held = 0
    while True:
        while place < len(text) and text[place] in " \t\r\n,":
            place += 1
        if place < len(text) and text[place] == "]":
            break
        try:
            element, end = decode(text, place)
            if end == len(text) and not ended and not isinstance(element, (dict, list)):
                raise json.JSONDecodeError("more may follow", text, end)  # a number, cut by the block's end
        except json.JSONDecodeError as error:
            if ended or len(text) - place > MAX_LINE_BYTES:
                yield gathered(file, rows, numbers, bad, texts)
                said = (
                    f"it breaks off in element {number + 1}"
                    if ended and (error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated"))
                    else f"{error.msg} in element {number + 1}"
                )
                raise PoolError(f"{file}: cannot be read: a JSON array, but {said}") from error
            more = stream.read(BLOCK_BYTES)
            text, place, ended = text[place:] + decoder.decode(more, not more), 0, not more
            continue
        number, written, place = number + 1, text[place:end], end
        held += len(written)
        try:
            rows.append(_checked_object(element, written))
            numbers.append(number)
            texts.append(written)
        except NOT_AN_OBJECT as error:
            bad.append(BadRow(file, number, "row", "a JSON object in each place of the array", why_not(error)))
        if len(rows) + len(bad) == BATCH_ROWS or held >= BLOCK_BYTES:
            yield gathered(file, rows, numbers, bad, texts)
            rows, numbers, bad, texts, held = [], [], [], [], 0
    yield gathered(file, rows, numbers, bad, texts)


def _blocks(stream: Any, rest: bytes = b"") -> Iterator[bytes | None]:
    """Cut a stream into whole lines, about `BLOCK_BYTES` at a time; None stands for a line that is too long.

    Args:
        stream: what is left to read.
        rest: what has been read of it.
    """
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
    texts: list[str] = []
    for number, line in enumerate(lines, first_line):
        if not line:
            continue
        try:
            row = json_object(line)
        except NOT_AN_OBJECT as error:
            if not (line.strip(" \t\r") if isinstance(line, str) else line.strip(b" \t\r")):
                continue
            bad.append(BadRow(file, number, "row", "one JSON object a line, in UTF-8", why_not(error)))
        else:
            rows.append(row)
            numbers.append(number)
            texts.append(line if isinstance(line, str) else line.decode())
    return gathered(file, rows, numbers, bad, texts)


def gathered(
    file: str, rows: Sequence[dict[str, Any]], numbers: Sequence[int], bad: Sequence[BadRow], texts: Sequence[str] = ()
) -> Rows:
    """Return rows read one by one, with their numbers, as columns; of too many, the rarest as `OTHER_FIELDS`."""
    names = Counter(chain.from_iterable(rows))
    frequent = names if len(names) <= MAX_COLUMNS else dict(names.most_common(FREQUENT))
    columns: dict[str, Column] = {name: [row.get(name) for row in rows] for name in names if name in frequent}
    if len(frequent) < len(names):
        others = [{name: value for name, value in row.items() if name not in frequent} for row in rows]
        columns[OTHER_FIELDS] = [json.dumps(other, ensure_ascii=False) if other else None for other in others]
    return Rows(file, np.array(numbers, dtype=np.int64), columns, tuple(bad), texts)


NOT_AN_OBJECT = (UnicodeError, ValueError, TypeError, RecursionError)
"""What `json_object` raises."""

_decode = json.JSONDecoder().decode


def json_object(content: str | bytes) -> dict[str, Any]:
    """Return a JSON object in UTF-8; raises one of `NOT_AN_OBJECT` for anything else."""
    text = content if isinstance(content, str) else content.decode()
    row = _decode(text)
    if type(row) is not dict:
        raise TypeError(shown(text.strip()))
    return _checked_object(row, text)


def _checked_object(row: Any, text: str) -> dict[str, Any]:
    """Return a decoded object whose text leaves no doubt about depth and letters, or which was looked through."""
    if type(row) is not dict or "\\ud" in text or "\\uD" in text or text.count("[") + text.count("{") > MAX_DEPTH:
        return _whole_object(row)
    return row


def _whole_object(row: Any) -> dict[str, Any]:
    if type(row) is not dict:
        raise TypeError(shown(row))
    waiting, depth = [row], 0
    while waiting := [item for value in waiting for item in (value.values() if type(value) is dict else value)]:
        waiting, depth = [item for item in waiting if type(item) in (dict, list)], depth + 1
        if depth > MAX_DEPTH:
            raise RecursionError
    # JSON can spell half a character, which no UTF-8 file can hold.
    json.dumps(row, ensure_ascii=False).encode()
    return row


def why_not(error: Exception) -> str:
    """Say what a content was found to be that `json_object` refused."""
    if isinstance(error, json.JSONDecodeError):
        hint = "; one object has to stand on one line" if error.doc.strip() == "{" else ""
        return f"{error.msg} at column {error.colno}{hint}"
    if isinstance(error, UnicodeDecodeError):
        return f"byte 0x{error.object[error.start]:02x} at {error.start + 1}"
    if isinstance(error, UnicodeEncodeError):
        return "half of a surrogate pair"
    if isinstance(error, RecursionError):
        return "values nested too deeply"
    return str(error)


def _parquet_rows(file: str, handle: IO[bytes]) -> Iterator[Rows]:
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


def taken(column: Column, rows: npt.NDArray[np.int64]) -> Column:
    """Return the values at ``rows``."""
    return [column[row] for row in rows] if isinstance(column, list) else column.take(pa.array(rows))


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
