"""From scored candidates to the part that is kept: windows of a recording, one box of a picture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

Window = tuple[float, float]
Box = Sequence[float]


def select_windows(
    candidates: Iterable[tuple[float, float, float]], max_segments: int, min_duration: float
) -> list[Window]:
    """Choose windows greedily by score, none overlapping another.

    Windows may touch: one that starts where another ends does not overlap it. Of equal scores the earlier start
    comes first, then the earlier end. A window that is empty or shorter than ``min_duration`` is passed over (how
    much there is beside it to lengthen it with is not known here), and so is one whose score is NaN.

    Args:
        candidates: ``(start, end, score)``, in seconds.
        max_segments: at most this many are chosen.
        min_duration: seconds, shortest window.

    Returns:
        ``(start, end)`` of the chosen ones, by start.
    """
    usable = [
        (start, end, score)
        for start, end, score in candidates
        if end > start and end - start >= min_duration and not math.isnan(score)
    ]
    chosen: list[Window] = []
    for start, end, _ in sorted(usable, key=lambda window: (-window[2], window[0], window[1])):
        if len(chosen) >= max_segments:
            break
        if all(end <= other_start or start >= other_end for other_start, other_end in chosen):
            chosen.append((start, end))
    return sorted(chosen)


def union_box(boxes: Iterable[Box], width: int, height: int, padding: float) -> tuple[int, int, int, int] | None:
    """Return the smallest box of whole pixels round all ``boxes`` and ``padding``, cut to the picture.

    Args:
        boxes: ``(x, y, w, h)`` in pixels, finite; they may reach beyond the picture.
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        padding: pixels added on each side before the cut.

    Returns:
        ``(left, upper, right, lower)`` with ``0 <= left < right <= width`` and ``0 <= upper < lower <= height``, as
        ``PIL.Image.crop`` takes it; None where there is no box, or none of it lies in the picture.
    """
    corners = [(x, y, x + w, y + h) for x, y, w, h in boxes]
    if not corners:
        return None
    left = max(0, math.floor(min(corner[0] for corner in corners) - padding))
    upper = max(0, math.floor(min(corner[1] for corner in corners) - padding))
    right = min(width, math.ceil(max(corner[2] for corner in corners) + padding))
    lower = min(height, math.ceil(max(corner[3] for corner in corners) + padding))
    return (left, upper, right, lower) if left < right and upper < lower else None
