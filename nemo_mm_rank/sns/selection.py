"""Which parts are relevant enough to keep, and whether what is kept is worth the cut."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from nemo_mm_rank.arrays import Bools

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.integer]


def gate(original: npt.ArrayLike, candidate: npt.ArrayLike, ratio: float, eps: float) -> Bools:
    """Accept a trimmed pair iff ``candidate >= ratio * max(original, eps)`` (poster, arXiv 2605.01163).

    ``eps`` keeps an original that is unrelated or worse (similarity 0 or below) from letting anything pass. NaN on
    either side, a pair that no model could judge, is refused.

    Args:
        original: similarity of the whole pair, any shape.
        candidate: similarity of the trimmed pair, same shape.
        ratio: 1 asks for no loss, more for a gain.
        eps: above 0.

    Returns:
        bool, same shape.

    >>> gate([0.4, 0.4, -0.1], [0.5, 0.3, 0.0], ratio=1, eps=1e-6).tolist()
    [True, False, False]
    """
    floor = ratio * np.maximum(np.asarray(original), eps)
    return np.asarray(np.asarray(candidate) >= floor)


def threshold(scores: Floats, tau: float) -> Bools:
    """Keep every part whose relevance reaches ``tau`` (as the method's authors do); NaN never does.

    Args:
        scores: ``(m,)`` relevance.
        tau: least relevance.

    Returns:
        ``(m,)`` bool.

    >>> threshold(np.array([0.5, 0.2, np.nan]), 0.35).tolist()
    [True, False, False]
    """
    return np.asarray(scores >= tau)


def nucleus(scores: Floats, owner: Ints, mass: float, temperature: float) -> Bools:
    """Keep each owner's smallest set of parts whose softmax mass reaches ``mass``.

    The softmax of ``scores / temperature`` runs over the parts of one owner; parts are taken from the most relevant
    down, the earlier of equals first, until their mass reaches ``mass`` (nucleus sampling, arXiv 1904.09751,
    equation 2, with parts in place of tokens). NaN is never kept.

    Args:
        scores: ``(m,)`` relevance.
        owner: ``(m,)`` which text or recording a part is of: integers from 0, parts of one owner side by side.
        mass: above 0, at most 1.
        temperature: above 0.

    Returns:
        ``(m,)`` bool. An owner's result does not depend on the other owners, to the bit.

    >>> nucleus(np.array([0.9, 0.88, 0.1, 0.5]), np.array([0, 0, 0, 1]), mass=0.9, temperature=0.05).tolist()
    [True, True, False, True]
    """
    kept = np.zeros(len(scores), dtype=bool)
    if not len(scores):
        return kept
    counts = np.bincount(owner)
    position = np.arange(len(scores)) - (np.cumsum(counts) - counts)[owner]
    # One row per owner, padded: sums then run along a row, in an order that no other owner changes.
    grid = np.full((len(counts), counts.max()), -np.inf)
    grid[owner, position] = np.where(np.isnan(scores), -np.inf, scores)
    order = np.argsort(-grid, axis=1, kind="stable")
    ranked = np.take_along_axis(grid, order, axis=1)
    best = np.where(np.isneginf(ranked[:, :1]), 0.0, ranked[:, :1])
    weights = np.exp((ranked - best) / temperature)
    reached = np.cumsum(weights, axis=1)
    before = np.concatenate([np.zeros((len(reached), 1)), reached[:, :-1]], axis=1)
    taken = np.empty(grid.shape, dtype=bool)
    np.put_along_axis(taken, order, (before < mass * reached[:, -1:]) & (weights > 0), axis=1)
    kept[:] = taken[owner, position]
    return kept


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
    """Return the smallest box of whole pixels round all ``boxes`` and ``padding``, cut to the image.

    Args:
        boxes: ``(x, y, w, h)`` in pixels, finite; they may reach beyond the image.
        width: of the image, in pixels.
        height: of the image, in pixels.
        padding: pixels added on each side before the cut.

    Returns:
        ``(left, upper, right, lower)`` with ``0 <= left < right <= width`` and ``0 <= upper < lower <= height``, as
        ``PIL.Image.crop`` takes it; None where there is no box, or none of it lies in the image.
    """
    corners = [(x, y, x + w, y + h) for x, y, w, h in boxes]
    if not corners:
        return None
    left = max(0, math.floor(min(corner[0] for corner in corners) - padding))
    upper = max(0, math.floor(min(corner[1] for corner in corners) - padding))
    right = min(width, math.ceil(max(corner[2] for corner in corners) + padding))
    lower = min(height, math.ceil(max(corner[3] for corner in corners) + padding))
    return (left, upper, right, lower) if left < right and upper < lower else None
