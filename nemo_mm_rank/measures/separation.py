"""How well scores tell one kind of thing from another, and how much of a mixture the other kind can be at most."""

from __future__ import annotations

import numpy as np

from nemo_mm_rank.arrays import Floats

_LOW = np.array([0.2, 0.3, 0.4, 0.5])
"""Quantiles of the spoilt ones at which the two distribution functions are compared."""


def wrong_at_most(own: Floats, spoilt: Floats) -> float:
    """Return an upper bound of the share of observed scores that are as spoilt ones: the least ratio of the shares of
    both that lie below a low quantile of the spoilt ones (Storey, 2002)."""
    below = np.searchsorted(np.sort(own), np.quantile(spoilt, _LOW), side="right") / len(own)
    return float(min(1.0, (below / _LOW).min()))


def separation(own: Floats, spoilt: Floats) -> float:
    """Return how often one of ``own`` lies above one of ``spoilt`` (the area under the ROC curve), ties half.

    >>> separation(np.array([2.0, 4.0]), np.array([1.0, 2.0]))
    0.875
    """
    ordered = np.sort(spoilt)
    below = np.searchsorted(ordered, own, side="left") + np.searchsorted(ordered, own, side="right")
    return float(below.mean() / 2 / len(spoilt))


def chance(own: int, spoilt: int) -> float:
    """Return the deviation of `separation` over so many of either, where nothing can be told (Mann and Whitney)."""
    return float(np.sqrt((1 / own + 1 / spoilt) / 12))
