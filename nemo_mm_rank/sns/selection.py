"""Which parts are relevant enough to keep, and whether what is kept is worth the cut."""

from __future__ import annotations

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
