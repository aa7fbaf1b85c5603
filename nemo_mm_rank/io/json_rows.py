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
from nemo_mm_rank.io.bad_rows import BadRow, shown
from nemo_mm_rank.io.rows import BATCH_ROWS, BLOCK_BYTES, MAX_LINE_BYTES, Rows, gathered, refuse_pretender

MAX_DEPTH = 200
"""Lists and records inside each other: more stand in no row that anybody has written by hand or by program."""
MAX_RATIO, FREE_BYTES = 200, 2**30
"""A compressed manifest may hold so many times its size, or so many bytes whatever its size."""
COCO_CAPTIONS = "coco_captions"
"""The captions of an image of COCO, which stand apart from the images."""
MAX_COCO_BYTES = 2**29
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


def _coco_rows(file: str, first: bytes, stream: Any) -> Iterator[Rows]:
    """Read COCO's one object: a row is an image, with its captions; one of no image is a bad row after them.

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
        captions: dict[Any, list[Any]] = {image["id"]: [] for image in whole["images"]}
        lost = []
        for number, one in enumerate(whole["annotations"], 1):
            if one["image_id"] in captions:
                captions[one["image_id"]].append(one["caption"])
            else:
                found = f"{shown(one['image_id'])} of annotation {number}"
                lost.append(
                    BadRow(file, len(whole["images"]) + number, "image_id", "the id of one of the images", found)
                )
        images = [{**image, COCO_CAPTIONS: captions[image["id"]]} for image in whole["images"]]
    except NOT_AN_OBJECT as error:
        raise PoolError(f"{file}: cannot be read: one JSON object, but {why_not(error)}") from error
    except (KeyError, AttributeError) as error:
        raise PoolError(f"{file}: cannot be read: no captions as of COCO: {shown(error)}") from error
    for start in range(0, len(images), BATCH_ROWS):
        rows = images[start : start + BATCH_ROWS]
        yield gathered(file, rows, range(start + 1, start + 1 + len(rows)), ())
    if lost:
        yield gathered(file, [], [], lost)


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
        hint = "; each object must be on one line of its own" if error.doc.strip() == "{" else ""
        return f"{error.msg} at column {error.colno}{hint}"
    if isinstance(error, UnicodeDecodeError):
        return f"byte 0x{error.object[error.start]:02x} at {error.start + 1}"
    if isinstance(error, UnicodeEncodeError):
        return "half of a surrogate pair"
    if isinstance(error, RecursionError):
        return "values that are nested too deeply"
    return str(error)
