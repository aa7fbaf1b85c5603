"""Labeling functions vote good, bad or nothing, or veto; votes are counted by pattern, and counts add over shards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nemo_mm_rank import frames
from nemo_mm_rank.arrays import Floats, Ints
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


VETO = 0.05
"""What every veto against a pair multiplies its quality by."""


def vetoed(quality: Floats, vetoes: Votes) -> Floats:
    """Return ``(n,)`` qualities, lowered for every veto.

    Args:
        quality: ``(n,)``.
        vetoes: ``(n, v)`` votes, of which rejections count.
    """
    lowered: Floats = quality * VETO ** (vetoes == REJECT).sum(axis=1)
    return lowered


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
        pieces = list(parts)
        patterns = np.concatenate([part.patterns for part in pieces])
        codes, place = np.unique(encode(patterns), return_inverse=True)
        counts = np.zeros(len(codes), dtype=np.int64)
        np.add.at(counts, place, np.concatenate([part.counts for part in pieces]))
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
