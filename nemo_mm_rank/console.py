"""What is printed, made harmless: nothing that comes from data steers a terminal, and no password is shown."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Iterable
from io import TextIOWrapper
from typing import TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

_MARKS = "\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
"""What turns the direction of writing round, breaks lines as no line end does, or cannot be encoded."""

_CONTROL = re.compile(f"[\x00-\x1f\x7f-\x9f{_MARKS}]")
_CONTROL_IN_LINES = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f{_MARKS}]")
MIRROR = "nemo-mm-rank-stores"
"""The folder of a cache below which mirrors of folders in object stores lie (`io.mirror`)."""
_MIRRORED = re.compile(rf"(?:/[^\s/'\"]+)*/{MIRROR}/([a-z0-9]+)/")
_PASSWORD = re.compile(r"(?<=://)[^\s/?#:@'\"]*:[^\s/?#'\"]*@")


def printable(text: object, lines: bool = False) -> str:
    r"""Return ``text`` as it may be printed: control characters as escapes (``\x1b``), passwords in URLs left out.

    What mirrors an object store goes by its URL.

    Args:
        text: anything; what is no string is turned into one.
        lines: it is text of ours, whose line ends and tabs stand.
    """
    harmless = (_CONTROL_IN_LINES if lines else _CONTROL).sub(_escaped, str(text))
    return without_passwords(_MIRRORED.sub(r"\1://", harmless))


def without_passwords(text: str) -> str:
    """Return ``text`` with ``(hidden)`` in place of user and password in URLs.

    >>> without_passwords("ftp://me:secret@host/pool.jsonl")
    'ftp://(hidden)@host/pool.jsonl'
    """
    return _PASSWORD.sub("(hidden)@", text)


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


class SafeConsole(Console):
    """Rich's console for text that may come from data: printable, and square brackets are no markup.

    Args:
        stderr: write to standard error.
        quiet: write nothing.
    """

    def __init__(self, stderr: bool = False, quiet: bool = False, soft_wrap: bool = False) -> None:
        super().__init__(stderr=stderr, quiet=quiet, soft_wrap=soft_wrap, markup=False, emoji=False, highlight=False)
        if isinstance(self.file, TextIOWrapper) and self.file.errors == "strict":
            self.file.reconfigure(errors="replace")  # a terminal that lacks a letter stops no run

    def render_str(self, text: str, **settings: object) -> Text:
        """Return ``text`` made printable, before it is measured for the cell it goes into."""
        return super().render_str(printable(text, lines=True), **settings)  # type: ignore[arg-type]

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield what is drawn; whatever way it came here, its text is printable."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text, lines=True), segment.style)


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), lines=True)


class Note(UserWarning):
    """Something that somebody should know; the command line prints its one line."""


def guard_messages() -> None:
    """Make printable, too, what libraries say in warnings and, where nobody has set up logging, in its messages."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        ours = issubclass(category, Note)
        said = f"note: {message}\n" if ours else warnings.formatwarning(message, category, filename, lineno, line)
        print(printable(said, lines=True), end="", file=file or sys.stderr)

    warnings.showwarning = show
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Printable())
