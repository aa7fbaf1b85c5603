"""JSON as it is read: objects by themselves, and the elements of arrays that need not fit into memory."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from nemo_mm_rank.io.bad_rows import shown
from nemo_mm_rank.io.rows import BATCH_ROWS, BLOCK_BYTES, MAX_LINE_BYTES, uncollected

MAX_DEPTH = 200
"""Lists and records inside each other: more stand in no row that anybody has written by hand or by program."""


class Text:
    """What is left of a JSON text that is read block by block.

    Args:
        begun: what has been read of it.
        stream: what is left to read.
        place: of the first character to look at, not counting white space before all.

    Attributes:
        text: as far as it has been read, without what is done with.
        ended: whether there is no more.
    """

    def __init__(self, begun: bytes, stream: Any, place: int = 0) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.text, self.place, self.ended = self._decoder.decode(begun).lstrip(), place, False

    def read(self) -> None:
        """Read another block."""
        more = self._stream.read(BLOCK_BYTES)
        self.text, self.place = self.text[self.place :] + self._decoder.decode(more, not more), 0
        self.ended = not more

    def next(self) -> str:
        """Go to the next character that is no white space, and return it; "" at the end."""
        while True:
            self.place = _SPACE.match(self.text, self.place).end()  # type: ignore[union-attr]  # it matches nothing, too
            if self.place < len(self.text) or self.ended:
                return self.text[self.place : self.place + 1]
            self.read()

    @property
    def held(self) -> int:
        """Characters that have been read and not been looked at."""
        return len(self.text) - self.place

    def value(self) -> Any:
        """Return the value that begins here, and go behind it.

        Raises:
            ValueError: there is none, or a very long one.
        """
        while True:
            try:
                value, end = _raw_decode(self.text, self.place)
                if end == len(self.text) and not self.ended and not isinstance(value, (dict, list, str)):
                    raise json.JSONDecodeError("more may follow", self.text, end)  # a number, cut by the block's end
            except json.JSONDecodeError:
                if self.ended or self.held > MAX_LINE_BYTES:
                    raise
                self.read()
                continue
            self.place = end
            return value


Element = tuple[Any, str]
"""As it was decoded, and as it is written."""
_SPACE, _BETWEEN = re.compile(r"[ \t\r\n]*"), re.compile(r"[ \t\r\n,]*")


def elements(text: Text) -> Iterator[tuple[list[Element], str | None]]:
    """Yield the elements of an array by batches, and beside the last why it has no end; then the text is behind it.

    Args:
        text: at the place behind its bracket.
    """
    while True:
        found, error = _decoded(text)
        if error is None:
            yield found, None
            if text.text[text.place : text.place + 1] == "]":
                text.place += 1
                return
        elif isinstance(error, json.JSONDecodeError) and not text.ended and text.held <= MAX_LINE_BYTES:
            yield found, None
            text.read()
        else:
            cut = (
                isinstance(error, json.JSONDecodeError)
                and text.ended
                and (error.pos >= len(text.text.rstrip()) or error.msg.startswith("Unterminated"))
            )
            yield found, "it breaks off" if cut else getattr(error, "msg", None) or why_not(error)
            return


@uncollected()
def _decoded(text: Text) -> tuple[list[Element], Exception | None]:
    """Decode a batch of an array's elements; return them, and why what follows is none, where that is known."""
    found: list[Element] = []
    held = 0
    whole, place, ended = text.text, text.place, text.ended
    error: Exception | None = None
    while len(found) < BATCH_ROWS and held < BLOCK_BYTES:
        place = _BETWEEN.match(whole, place).end()  # type: ignore[union-attr]  # it matches nothing, too
        if whole[place : place + 1] == "]":
            break
        try:
            element, end = _raw_decode(whole, place)
            if end == len(whole) and not ended and type(element) not in (dict, list):
                raise json.JSONDecodeError("more may follow", whole, end)  # a number, cut by the block's end
        except (ValueError, RecursionError) as failed:
            error = failed
            break
        found.append((element, whole[place:end]))
        held += end - place
        place = end
    text.place = place
    return found, error


NOT_AN_OBJECT = (UnicodeError, ValueError, TypeError, RecursionError)
"""What `json_object` raises."""
_decode, _raw_decode = json.JSONDecoder().decode, json.JSONDecoder().raw_decode


def json_object(content: str | bytes) -> dict[str, Any]:
    """Return a JSON object in UTF-8; raises one of `NOT_AN_OBJECT` for anything else."""
    text = content if isinstance(content, str) else content.decode()
    row = _decode(text)
    if type(row) is not dict:
        raise TypeError(shown(text.strip()))
    return checked_object(row, text)


def checked_object(row: Any, text: str) -> dict[str, Any]:
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
        if "\r" in error.doc.rstrip():
            hint = "; its lines end with a carriage return alone, so convert it, e.g. with `tr '\\r' '\\n'`"
        return f"{error.msg} at column {error.colno}{hint}"
    if isinstance(error, UnicodeDecodeError):
        return f"byte 0x{error.object[error.start]:02x} at {error.start + 1}"
    if isinstance(error, UnicodeEncodeError):
        return "half of a surrogate pair"
    if isinstance(error, RecursionError):
        return "values that are nested too deeply"
    return str(error)
