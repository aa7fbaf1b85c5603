"""The arithmetic of kept parts: windows of a recording, boxes of an image, characters of a text."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nemo_mm_rank.errors import MediaError, TextError
from nemo_mm_rank.media.segment import Span


def union(boxes: Sequence[Span]) -> Span:
    """Return the smallest ``[x, y, w, h]`` that holds all ``boxes``.

    Raises:
        MediaError: no box, or one that is none.
    """
    for box in boxes:
        if len(box) != 4 or not all(map(math.isfinite, box)) or box[2] <= 0 or box[3] <= 0:
            raise MediaError(f"span {list(box)} is not a box [x, y, w, h]")
    if not boxes:
        raise MediaError("no box is kept")
    left, upper = min(box[0] for box in boxes), min(box[1] for box in boxes)
    right, lower = max(box[0] + box[2] for box in boxes), max(box[1] + box[3] for box in boxes)
    return [left, upper, right - left, lower - upper]


def merge(windows: Sequence[Span]) -> list[tuple[float, float]]:
    """Return ``windows`` in seconds by start, those that overlap or touch made one, nothing before zero.

    Raises:
        MediaError: no window, or one that is none.

    >>> merge([(1, 3), (2, 4), (6, 7)])
    [(1.0, 4.0), (6.0, 7.0)]
    """
    for window in windows:
        if len(window) != 2 or not all(map(math.isfinite, window)) or not max(0, window[0]) < window[1]:
            raise MediaError(f"span {list(window)} is not a window [start, end] in seconds")
    if not windows:
        raise MediaError("no window is kept")
    merged: list[tuple[float, float]] = []
    for start, end in sorted((max(0.0, float(start)), float(end)) for start, end in windows):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def clip(windows: Sequence[tuple[float, float]], duration: float) -> list[tuple[float, float]]:
    """Return the parts of ``windows`` that lie within ``duration`` seconds.

    Raises:
        MediaError: where none does.
    """
    inside = [(start, min(end, duration)) for start, end in windows if start < duration]
    if not inside:
        raise MediaError(f"the kept windows lie behind its end at {duration:.3f} s")
    return inside


def slice_middles(windows: Sequence[tuple[float, float]], count: int) -> npt.NDArray[np.float64]:
    """Cut the windows, laid end to end, into ``count`` equal slices: ``(count,)`` seconds of their middles."""
    starts, ends = np.array(windows, dtype=np.float64).T
    offsets = np.concatenate(([0.0], np.cumsum(ends - starts)))
    laid = (np.arange(count) + 0.5) / count * offsets[-1]
    which = np.clip(np.searchsorted(offsets, laid, side="right") - 1, 0, len(starts) - 1)
    return np.asarray(starts[which] + (laid - offsets[which]))


def kept_text(text: str | None, spans: Sequence[Span] | None, joint: str, limit: int) -> str:
    """Return the kept parts of a text, ``[start, end]`` in characters, put together by ``joint``; None keeps all.

    Raises:
        TextError: missing, empty (before or after), longer than ``limit`` characters, or not text.

    >>> kept_text("A dog. Buy now! It runs.", [[0, 6], [16, 24]], " ", limit=100)
    'A dog. It runs.'
    """
    if text is None:
        raise TextError("the text is missing")
    if not isinstance(text, str):  # a frame can hold anything
        raise TextError(f"{str(text)[:60]!r} is a {type(text).__name__}, not a text")
    if len(text) > limit:
        raise TextError(f"the text has {len(text):,} characters, more than the {limit:,} allowed")
    if "\0" in text:
        raise TextError("the text holds a NUL character: this is binary data")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TextError("the text holds an unpaired surrogate: it was not decoded as what it is") from error
    if not text.strip():
        raise TextError("the text is empty")
    if spans is None:
        return text
    for span in spans:
        if len(span) != 2 or not 0 <= span[0] < span[1]:
            raise TextError(f"span {list(span)} is not [start, end] in characters")
    kept = joint.join(text[int(start) : int(end)] for start, end in spans)
    if not kept.strip():
        raise TextError("no part of the text is kept")
    return kept
