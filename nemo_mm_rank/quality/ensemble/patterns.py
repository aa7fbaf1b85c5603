"""Votes counted by pattern: with ``m`` functions there are at most ``3^m``, and counts add up over shards.

All that the label model fits, and all that the summary says, follows from these counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nemo_mm_rank.arrays import Ints
from nemo_mm_rank.errors import ConfigError
from nemo_mm_rank.quality.ensemble.votes import Votes

Codes = npt.NDArray[Any]

_ROWS = 2**16
"""Rows whose codes are made at a time, so that they stay in the processor's cache."""
_DENSE = 13
"""Up to so many functions, patterns are counted in a table of all that there can be (13 MB)."""
MOST = 40
"""Functions whose patterns fit into a 64-bit code."""


@dataclass(frozen=True)
class PatternCounts:
    """How many pairs have which votes.

    Attributes:
        patterns: ``(k, m)`` int8, different ones, in the order of their codes.
        counts: ``(k,)`` int64, above 0.
    """

    patterns: Votes
    counts: Ints

    @classmethod
    def of(cls, votes: Votes) -> PatternCounts:
        """Count the rows of ``(n, m)`` votes.

        Raises:
            ConfigError: something else than votes, or more than 40 functions.
        """
        m = checked_votes(votes).shape[1]
        if m <= _DENSE:
            table = np.zeros(3**m, dtype=np.int64)
            for start in range(0, len(votes), _ROWS):
                table += np.bincount(encode(votes[start : start + _ROWS]), minlength=len(table))
            codes = np.flatnonzero(table)
            return cls(decode(codes.astype(np.uint32), m), table[codes])
        codes, counts = np.unique(encode(votes), return_counts=True)
        return cls(decode(codes, m), counts.astype(np.int64))

    @classmethod
    def merged(cls, parts: Iterable[PatternCounts]) -> PatternCounts:
        """Add up the counts of shards; their order does not matter.

        Raises:
            ValueError: there is no shard at all, or they differ in the number of functions.
        """
        found = list(parts)
        patterns = np.concatenate([part.patterns for part in found])
        codes, place = np.unique(encode(patterns), return_inverse=True)
        counts = np.zeros(len(codes), dtype=np.int64)
        np.add.at(counts, place, np.concatenate([part.counts for part in found]))
        return cls(decode(codes, patterns.shape[1]), counts)

    @property
    def n(self) -> int:
        """Pairs counted."""
        return int(self.counts.sum())

    def only(self, functions: Sequence[int]) -> PatternCounts:
        """Return the counts of some functions alone."""
        return PatternCounts.merged([PatternCounts(self.patterns[:, list(functions)], self.counts)])


def checked_votes(votes: Votes) -> Votes:
    """Return ``votes``, or raise `ConfigError` where they are none."""
    if votes.ndim != 2 or not np.issubdtype(votes.dtype, np.signedinteger):
        raise ConfigError(f"votes are an (n, m) array of integers, not {votes.dtype} of shape {votes.shape}")
    if votes.shape[1] > MOST:
        raise ConfigError(f"{votes.shape[1]} labeling functions; {MOST} are the most")
    if votes.size and (votes.min() < -1 or votes.max() > 1):
        raise ConfigError("votes are 1 (select), 0 (reject) and -1 (abstain)")
    return votes


def encode(votes: Votes) -> Codes:
    """Return ``(n,)`` codes of ``(n, m)`` votes: the digits of a number in base 3, the first function's the highest."""
    m = votes.shape[1]
    kind = np.uint32 if m <= 20 else np.uint64
    codes: Codes = np.zeros(len(votes), dtype=kind)
    for function in range(m):
        np.multiply(codes, kind(3), out=codes)
        np.add(codes, (votes[:, function] + 1).astype(np.uint8), out=codes)
    return codes


def decode(codes: Codes, m: int) -> Votes:
    """Return ``(k, m)`` int8 votes of ``(k,)`` codes."""
    votes = np.empty((len(codes), m), dtype=np.int8)
    left = codes.copy()
    for function in reversed(range(m)):
        left, digit = np.divmod(left, left.dtype.type(3))
        votes[:, function] = digit.astype(np.int8) - 1
    return votes
