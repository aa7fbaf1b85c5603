"""Scores counted by bin: between two neighbouring thresholds of all candidates every score gets the same vote.

So a search looks at the pool once, and what it tries after that costs the same for a thousand pairs or a billion.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from nemo_mm_rank import frames
from nemo_mm_rank.arrays import Floats, Ints
from nemo_mm_rank.quality.ensemble.patterns import PatternCounts
from nemo_mm_rank.quality.ensemble.votes import LabelingFunction, Votes, label_votes
from nemo_mm_rank.schema import MODALITY
from nemo_mm_rank.steps import by_value

Bins = npt.NDArray[np.uint8]
Candidates = Sequence[LabelingFunction]
"""One function with different thresholds, all on the same column."""


@dataclass(frozen=True)
class Binning:
    """Bins of the functions as one modality has them.

    Attributes:
        columns: ``m`` columns of scores.
        edges: ``m`` arrays of thresholds, ascending: the least score of each bin but the first.
        votes: ``m`` arrays ``(candidates, bins)`` int8: how each candidate votes on each bin; the last is that of NaN.
    """

    columns: tuple[str, ...]
    edges: tuple[Floats, ...]
    votes: tuple[Votes, ...]

    @classmethod
    def of(cls, candidates: Sequence[Candidates]) -> Binning:
        """Return the bins that ``m`` functions with their candidates need."""
        edges = tuple(_edges(some) for some in candidates)
        votes = []
        for some, bounds in zip(candidates, edges, strict=True):
            least = pd.DataFrame({some[0].column: np.concatenate([[-np.inf], bounds, [np.nan]])})
            votes.append(label_votes(least, some).T)
        return cls(tuple(some[0].column for some in candidates), edges, tuple(votes))

    def bins(self, frame: frames.Frame) -> Bins:
        """Return ``(n, m)`` the bin of each score."""
        found = np.empty((len(self.columns), len(frame)), dtype=np.uint8)
        for mine, column, edges in zip(found, self.columns, self.edges, strict=True):
            scores = frames.numbers(frame, column)
            mine[:] = np.where(np.isnan(scores), len(edges) + 1, np.searchsorted(edges, scores, side="right"))
        return found.T

    def pick(self, bins: Bins, choice: Sequence[int]) -> Votes:
        """Return ``(k, m)`` votes of the chosen candidate of each function."""
        votes = np.empty(bins.shape, dtype=np.int8)
        for function, (table, candidate) in enumerate(zip(self.votes, choice, strict=True)):
            votes[:, function] = table[candidate][bins[:, function]]
        return votes


def _edges(candidates: Candidates) -> Floats:
    # At or above a threshold, or above it: the least double that is.
    bounds = [one.high for one in candidates] + [
        np.nextafter(one.low, np.inf) for one in candidates if one.low > -np.inf
    ]
    found = np.unique(np.array(bounds, dtype=np.float64))
    return found[np.isfinite(found)]


@dataclass(frozen=True)
class BinCounts:
    """How many pairs have scores in which bins.

    Attributes:
        bins: ``(k, m)``, different ones.
        counts: ``(k,)``.
    """

    bins: Bins
    counts: Ints

    @classmethod
    def of(cls, bins: Bins, counts: Ints | None = None) -> BinCounts:
        """Count the rows of ``(n, m)`` bins, each as often as ``counts`` says."""
        if counts is None:
            counts = np.ones(len(bins), dtype=np.int64)
        words = np.zeros((len(bins), -(-bins.shape[1] // 8) * 8), dtype=np.uint8)
        words[:, : bins.shape[1]] = bins
        keys = words.view(np.uint64)
        _, first, place = np.unique(
            keys[:, 0] if keys.shape[1] == 1 else keys,
            return_index=True,
            return_inverse=True,
            axis=0,
        )
        total = np.zeros(len(first), dtype=np.int64)
        np.add.at(total, place.reshape(-1), counts)
        return cls(bins[first], total)

    @classmethod
    def merged(cls, parts: Iterable[BinCounts]) -> BinCounts:
        """Add up the counts of shards."""
        found = list(parts)
        return cls.of(np.concatenate([part.bins for part in found]), np.concatenate([part.counts for part in found]))


Binned = Mapping[str, BinCounts]
"""Modality -> counts."""


def bin_table(table: pa.Table, binnings: Mapping[str, Binning]) -> dict[str, BinCounts]:
    """Count the rows of a table, modality by modality.

    Args:
        table: with ``modality`` and the columns of scores.
        binnings: by modality; others are left out.
    """
    frame = frames.from_table(table)
    groups = by_value([str(value) for value in frames.strings(frame, MODALITY)])
    return {
        modality: BinCounts.of(binnings[modality].bins(frame.iloc[rows]))
        for modality, rows in groups.items()
        if modality in binnings
    }


def merge(parts: Iterable[Binned]) -> dict[str, BinCounts]:
    """Add up the counts of shards."""
    found: dict[str, list[BinCounts]] = {}
    for part in parts:
        for modality, counts in part.items():
            found.setdefault(modality, []).append(counts)
    return {modality: BinCounts.merged(some) for modality, some in sorted(found.items())}


def patterns(binned: Binned, binnings: Mapping[str, Binning], choice: Sequence[int]) -> PatternCounts:
    """Return the patterns of votes that a choice of candidates gives."""
    return PatternCounts.merged(
        PatternCounts(binnings[modality].pick(counts.bins, choice), counts.counts)
        for modality, counts in binned.items()
    )
