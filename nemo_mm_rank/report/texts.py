"""Texts with the parts that were trimmed, cut to a length that a page can carry."""

from __future__ import annotations

from collections.abc import Sequence

from nemo_mm_rank.media.segment import Span

Piece = list[str | bool]
"""``[text, kept]``."""


def pieces(text: str, spans: Sequence[Span] | None, limit: int) -> list[Piece]:
    """Return a text as pieces that were kept or not, in order; together they are the text up to ``limit`` characters.

    White space between kept parts counts as kept: it is no loss.

    Args:
        text: the whole text.
        spans: ``[start, end]`` in characters of what was kept; None is all.
        limit: most characters; where more are left, the last piece ends in an ellipsis.
    """
    bounds = [(0, len(text))] if spans is None else sorted((max(0, int(a)), min(len(text), int(b))) for a, b in spans)
    found: list[Piece] = []
    place = 0

    def add(end: int, kept: bool) -> None:
        nonlocal place
        end = min(end, limit)
        if end <= place:
            return
        piece = text[place:end]
        kept = kept or not piece.strip()
        if found and found[-1][1] == kept:
            found[-1][0] = f"{found[-1][0]}{piece}"
        else:
            found.append([piece, kept])
        place = end

    for start, end in bounds:
        add(start, False)
        add(end, True)
    add(len(text), False)
    if len(text) > limit:
        found.append(["\N{HORIZONTAL ELLIPSIS}", True])
    return found


def excerpt(text: str, limit: int) -> str:
    """Return the beginning of a text on one line."""
    line = " ".join(text[: 2 * limit].split())
    return line if len(line) <= limit else f"{line[: limit - 1]}\N{HORIZONTAL ELLIPSIS}"
