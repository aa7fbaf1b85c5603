"""From what a pool's scores are like to thresholds: what no more than the best 40 % reach, and what is an outlier."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt

from nemo_mm_rank.quality.ensemble.settings import FunctionSettings, Quantile, Reject
from nemo_mm_rank.quality.ensemble.votes import LabelingFunction

Scores = npt.NDArray[np.floating]

FEW = 30
"""Of fewer scores the quartiles say too little to call any of them an outlier."""
WHISKER = 1.5
"""Interquartile ranges from a quartile to Tukey's inner fence."""


def resolve(settings: FunctionSettings, scores: Scores) -> LabelingFunction:
    """Return a labeling function with its thresholds as scores.

    Args:
        settings: of the function.
        scores: ``(n,)`` of its column in the pool, sorted, without NaN.
    """
    high = _top(scores, settings.select) if settings.select is not None else np.inf
    low = max((_low(scores, level) for level in settings.rejects), default=-np.inf)
    # A number and a share may cross: what is selected is not rejected.
    return LabelingFunction(settings.column, min(low, high), high, settings.allowed)


def _top(scores: Scores, level: float | Quantile) -> float:
    """Return the least score that no more than ``level`` of all reach; infinite where the highest are too many.

    Where many scores are equal, "top 40 %" is less than that, and may be none: a function that selected the whole
    crowd at its edge would say the same of nearly every pair.
    """
    if not isinstance(level, Quantile):
        return level
    most = _count(level, len(scores))
    if most == 0:
        return np.inf
    edge = len(scores) - most
    if edge and scores[edge - 1] == scores[edge]:
        edge = int(np.searchsorted(scores, scores[edge], side="right"))
    return float(scores[edge]) if edge < len(scores) else np.inf


def _low(scores: Scores, level: Reject) -> float:
    """Return the greatest score that is rejected: of a share, one that no more than so many stay at or below."""
    if isinstance(level, Quantile):
        return -_top(-scores[::-1], level)
    return level if isinstance(level, float) else _outlying(scores)


def _outlying(scores: Scores) -> float:
    """Return the greatest number below Tukey's inner fence, ``Q1 - 1.5 (Q3 - Q1)``; -infinity for few scores.

    Tukey, "Exploratory Data Analysis" (1977), section 2C. A quartile is one of the scores: the least that a quarter
    (three quarters) of all stay at or below. The fence itself is no outlier, so that of scores which are nearly all
    alike the common one is never rejected.
    """
    if len(scores) < FEW:
        return -np.inf
    first, third = (float(scores[-(-quarters * len(scores) // 4) - 1]) for quarters in (1, 3))
    # Equal ones may be infinite, and would have no difference.
    return float(np.nextafter(first - WHISKER * (third - first if third > first else 0.0), -np.inf))


def _count(level: Quantile, n: int) -> int:
    return int(n * Fraction(str(level.share)))
