"""From shares of the pool to scores: which threshold no more than the best 40 % reach."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt

from nemo_mm_rank.quality.ensemble.settings import FunctionSettings, Quantile
from nemo_mm_rank.quality.ensemble.votes import LabelingFunction

Scores = npt.NDArray[np.floating]


def resolve(settings: FunctionSettings, scores: Scores) -> LabelingFunction:
    """Return a labeling function with its thresholds as scores.

    Args:
        settings: of the function.
        scores: ``(n,)`` of its column in the pool, sorted, without NaN.
    """
    high = _top(scores, settings.select) if settings.select is not None else np.inf
    low = _bottom(scores, settings.reject) if settings.reject is not None else -np.inf
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


def _bottom(scores: Scores, level: float | Quantile) -> float:
    """Return the greatest score that no more than ``level`` of all stay at or below; likewise."""
    return -_top(-scores[::-1], level) if isinstance(level, Quantile) else level


def _count(level: Quantile, n: int) -> int:
    return int(n * Fraction(str(level.share)))
