"""JSON as streams of rows: an object a line, one array of objects, or COCO's one object; compressed or not."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from io import BufferedReader
from typing import IO, Any

import numpy as np
import pyarrow as pa

from nemo_mm_rank.errors import PoolError
from nemo_mm_rank.io.bad_rows import BadRow
from nemo_mm_rank.io.coco_rows import coco_rows
from nemo_mm_rank.io.json_text import NOT_AN_OBJECT, Element, Text, checked_object, elements, json_object, why_not
from nemo_mm_rank.io.rows import BATCH_ROWS, BLOCK_BYTES, MAX_LINE_BYTES, Rows, gathered, refuse_pretender, uncollected

MAX_RATIO, FREE_BYTES = 200, 2**30
"""A compressed manifest may hold so many times its size, or so many bytes whatever its size."""
_COCO = re.compile(rb'\s*\{\s*"(info|images|annotations|licenses|type|categories)"\s*:')
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


def json_rows(file: str, handle: BufferedReader) -> Iterator[Rows]:
    """Stream the rows of an open file, at its start, a few megabytes at a time.

    Raises:
        PoolError: it breaks off, or is no JSON.
    """
    stream = _uncompressed(file, handle)
    first = stream.read(64)
    if _begins_an_array(first):
        yield from _array_rows(file, first, stream)
        return
    refuse_pretender(file, first)
    if _COCO.match(first.removeprefix(codecs.BOM_UTF8)):
        first += stream.read(MAX_LINE_BYTES)
        if not _is_an_object(first):
            yield from coco_rows(file, Text(first, stream))
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


def is_array(file: str, handle: BufferedReader) -> bool:
    """Whether an open file, at its start, is one JSON array of objects."""
    return _begins_an_array(_uncompressed(file, handle).read(64))


def _uncompressed(file: str, handle: BufferedReader) -> Any:
    """Return the stream that a file holds; what it is compressed by is told by its first bytes, whatever its name."""
    head = handle.peek(4)
    found = next((codec for magic, codec in _MAGIC.items() if head.startswith(magic)), None)
    return _Decompressed(file, handle, found) if found else handle


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


def _is_an_object(first: bytes) -> bool:
    """Whether the first line is one object by itself, and not all of COCO."""
    try:
        found = json.loads(first.removeprefix(codecs.BOM_UTF8).partition(b"\n")[0])
    except ValueError:
        return False
    return not (isinstance(found, dict) and {"images", "annotations"} <= found.keys())


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
    number = 0
    for found, failed in elements(Text(first, stream, place=1)):
        yield _checked(file, number + 1, found)
        number += len(found)
        if failed is not None:
            raise PoolError(f"{file}: cannot be read: a JSON array, but {failed} in element {number + 1}")


@uncollected()
def _checked(file: str, first: int, found: Sequence[Element]) -> Rows:
    """Return elements of an array as rows, those that are objects."""
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    bad: list[BadRow] = []
    texts: list[str] = []
    for number, (element, written) in enumerate(found, first):
        try:
            rows.append(checked_object(element, written))
            numbers.append(number)
            texts.append(written)
        except NOT_AN_OBJECT as error:
            bad.append(BadRow(file, number, "row", "a JSON object in each place of the array", why_not(error)))
    return gathered(file, rows, numbers, bad, texts)


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


@uncollected()
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
