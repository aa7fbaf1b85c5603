"""Labeling functions: a column of scores and two thresholds say of each pair good, bad, or nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nemo_mm_rank import frames
from nemo_mm_rank.errors import ConfigError
from nemo_mm_rank.frames import Frame

Votes = npt.NDArray[np.int8]
"""``(n, m)``: what each of ``m`` functions says of each of ``n`` pairs."""

ABSTAIN, REJECT, SELECT = -1, 0, 1


class LabelingFunction(NamedTuple):
    """One operator's opinion of a pair (Xu et al., EcoDatum, equation 2): a plain tuple will do as well.

    Attributes:
        column: whose scores it reads; higher is better.
        low: it rejects scores at or below.
        high: it selects scores at or above; where both hold, this goes first.
        allowed: the votes that it may cast; another one becomes an abstention. ``(0,)`` is a function that only
            rejects.
    """

    column: str
    low: float
    high: float
    allowed: tuple[int, ...] = (REJECT, SELECT)


def label_votes(
    scores_frame: Frame, functions: Iterable[LabelingFunction | tuple[str, float, float, tuple[int, ...]]]
) -> Votes:
    """Return ``(n, m)`` int8 votes: 1 select, 0 reject, -1 abstain. A pair without a score gets none.

    A score is compared as the double that it is, whatever the column's type.

    Args:
        scores_frame: ``n`` rows with the columns of scores.
        functions: ``m`` of them.

    Raises:
        MissingColumnError: the frame lacks a column.
        ConfigError: thresholds in the wrong order, or votes that there are not.
    """
    asked = [checked(LabelingFunction(*function)) for function in functions]
    frames.check_columns(scores_frame, {function.column: None for function in asked}, "labeling functions")
    # A function after the other in memory: each writes its votes in one go.
    votes = np.full((len(asked), len(scores_frame)), ABSTAIN, dtype=np.int8)
    for mine, function in zip(votes, asked, strict=True):
        scores = frames.numbers(scores_frame, function.column)
        np.putmask(mine, scores <= function.low, REJECT)  # NaN is neither
        np.putmask(mine, scores >= function.high, SELECT)
        for vote in (REJECT, SELECT):
            if vote not in function.allowed:
                np.putmask(mine, mine == vote, ABSTAIN)
    return votes.T


def checked(function: LabelingFunction) -> LabelingFunction:
    """Return ``function``, or raise `ConfigError` where it cannot be meant."""
    if not function.low <= function.high:
        raise ConfigError(
            f"labeling function on {function.column!r}: rejects at or below {function.low:g}, "
            f"but selects at or above {function.high:g}"
        )
    if not function.allowed or not set(function.allowed) <= {REJECT, SELECT}:
        raise ConfigError(
            f"labeling function on {function.column!r}: allowed votes are 0 (reject) and 1 (select), "
            f"not {tuple(function.allowed)}"
        )
    return function
