"""What labeling functions do: how often they vote, beside each other and against each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from nemo_mm_rank.arrays import Floats
from nemo_mm_rank.quality.ensemble.patterns import PatternCounts
from nemo_mm_rank.quality.ensemble.votes import ABSTAIN, REJECT, SELECT, Votes

T = TypeVar("T")


@dataclass(frozen=True)
class Rates(Generic[T]):
    """Shares of the pairs.

    Attributes:
        coverage: a function votes.
        overlap: it votes, and so does another one.
        conflict: it votes, and another one votes the opposite.
    """

    coverage: T
    overlap: T
    conflict: T


@dataclass(frozen=True)
class Summary:
    """How often labeling functions vote; "votes" is "does not abstain", where EcoDatum's paper prints "!= 0".

    Attributes:
        functions: ``(m,)`` each: pairs on which this function does (Snorkel's ``LFAnalysis``).
        data: pairs on which any function does (EcoDatum's equations 4 to 6, Snorkel's ``label_coverage`` and so on).
        selects, rejects: ``(m,)`` shares of the pairs that the function votes 1 and 0 for.
    """

    functions: Rates[Floats]
    data: Rates[float]
    selects: Floats
    rejects: Floats


def lf_summary(votes: Votes) -> Summary:
    """Return coverage, overlap and conflict per function and of the whole data set.

    Args:
        votes: ``(n, m)`` of 1, 0 and -1.
    """
    return summarise(PatternCounts.of(votes))


def summarise(counted: PatternCounts) -> Summary:
    """Return the same from counts. Shares of no pairs at all are 0."""
    patterns, counts = counted.patterns, counted.counts
    n = max(1, counted.n)
    voted = patterns != ABSTAIN
    overlaps = voted.sum(axis=1) > 1
    # Where votes differ at all, every function that votes has somebody against it.
    conflicts = (patterns == REJECT).any(axis=1) & (patterns == SELECT).any(axis=1)

    def of_functions(rows: npt.NDArray[np.bool_]) -> Floats:
        shares: Floats = counts @ rows / n
        return shares

    def of_data(rows: npt.NDArray[np.bool_]) -> float:
        return int(counts[rows].sum()) / n

    return Summary(
        Rates(*(of_functions(voted & rows[:, None]) for rows in (np.ones_like(overlaps), overlaps, conflicts))),
        Rates(*(of_data(rows) for rows in (voted.any(axis=1), overlaps, conflicts))),
        of_functions(patterns == SELECT),
        of_functions(patterns == REJECT),
    )
