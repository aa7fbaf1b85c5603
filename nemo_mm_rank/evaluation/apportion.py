"""A whole number divided among groups by weight, none of which can take more than it has room for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nemo_mm_rank.arrays import Ints


def apportion(total: int, weights: Sequence[float] | npt.NDArray[np.float64], caps: Sequence[int] | Ints) -> Ints:
    """Divide ``total`` by largest remainder (Hamilton's method); what a full group cannot take the others share.

    Args:
        total: to be divided.
        weights: ``(g,)``, at least 0; groups of no weight get nothing.
        caps: ``(g,)`` most that each group can take.

    Returns:
        ``(g,)`` counts that sum to ``total``, or to the room there is; of equal remainders the first comes first.
    """
    share, room = np.asarray(weights, dtype=np.float64), np.asarray(caps, dtype=np.int64)
    counts = np.zeros(len(share), dtype=np.int64)
    open_ = (share > 0) & (room > 0)
    while open_.any() and (left := total - int(counts.sum())):
        exact = np.where(open_, share, 0.0) * left / share[open_].sum()
        full = open_ & (exact >= room)
        if not full.any():
            counts += np.floor(exact).astype(np.int64)
            counts[np.argsort(np.floor(exact) - exact, kind="stable")[: total - int(counts.sum())]] += 1
            break
        counts[full] = room[full]
        open_ &= ~full
    return counts
