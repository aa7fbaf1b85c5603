"""Statistics of scores over the whole pool that add over shards in any order, and what they put scores into.

Sums of floats depend on their order; these are sums of integers. Scores are rounded to multiples of 2**-20 for the
statistics alone, so one shard or fifty, in any order, give the same mean and deviation to the bit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import sqrt
from typing import Annotated, Any, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import PlainSerializer, PlainValidator

from nemo_mm_rank.arrays import Ints
from nemo_mm_rank.errors import ConfigError
from nemo_mm_rank.ranking.query_scores import PREFIX

Values: TypeAlias = npt.NDArray[np.floating[Any]]

Counts: TypeAlias = Annotated[
    Ints, PlainValidator(lambda values: np.asarray(values, np.int64)), PlainSerializer(lambda counts: counts.tolist())
]
"""Whole numbers that can be written as JSON."""

_UNIT = 1 << 20
_LARGEST = 1 << 20
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Moments:
    """Count, sum and sum of squares of scores, in exact integers.

    Attributes:
        count: number of scores.
        total: their sum, in units of 2**-20.
        squares: the sum of their squares, in units of 2**-40.
    """

    count: int = 0
    total: int = 0
    squares: int = 0

    @classmethod
    def of(cls, values: Values) -> Moments:
        """Count ``(n,)`` scores; NaN stands for a score that is missing and is left out.

        Raises:
            ConfigError: a score beyond 2**20, which only absurd weights can lead to.
        """
        values = values[~np.isnan(values)]
        moments = cls(len(values))
        for start in range(0, len(values), _CHUNK):
            chunk = values[start : start + _CHUNK].astype(np.float64)
            if np.abs(chunk).max() > _LARGEST:
                raise ConfigError(
                    f"a score of {np.abs(chunk).max():g} is out of range: use lower values in ranking.weights"
                )
            fixed = np.rint(chunk * _UNIT).astype(np.int64)
            # |fixed| <= 2**40, so its square would overflow: (high * 2**20 + low)**2, each sum below 2**61.
            high, low = fixed >> 20, fixed & (_UNIT - 1)
            squares = (int((high * high).sum()) << 40) + (int((high * low).sum()) << 21) + int((low * low).sum())
            moments = moments + cls(0, int(fixed.sum()), squares)
        return moments

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.total + other.total, self.squares + other.squares)

    @property
    def mean(self) -> float:
        """Mean; 0 of no scores."""
        return self.total / self.count / _UNIT if self.count else 0.0

    @property
    def std(self) -> float:
        """Standard deviation (of the population); 0 of no scores."""
        spread = self.count * self.squares - self.total * self.total
        return sqrt(spread / self.count**2) / _UNIT if self.count else 0.0

    def standardise(self, values: Values) -> npt.NDArray[np.float64]:
        """Return ``(values - mean) / std``, ``(n,)``: 0 everywhere where the scores do not differ; NaN stays NaN."""
        centred = values.astype(np.float64) - self.mean
        standardised: npt.NDArray[np.float64] = (
            centred / self.std if self.std else np.where(np.isnan(values), values, 0)
        )
        return standardised


@dataclass(frozen=True)
class Comoments:
    """How two scores go together, where a pair has both: exact however the pool is sharded.

    Attributes:
        first, second: statistics of either.
        both: of their sum, whose variance is that of either and twice their covariance.
    """

    first: Moments = field(default_factory=Moments)
    second: Moments = field(default_factory=Moments)
    both: Moments = field(default_factory=Moments)

    @classmethod
    def of(cls, first: Values, second: Values) -> Comoments:
        """Count ``(n,)`` scores of both kinds; NaN stands for one that is missing."""
        known = ~(np.isnan(first) | np.isnan(second))
        a, b = first[known].astype(np.float64), second[known].astype(np.float64)
        return cls(Moments.of(a), Moments.of(b), Moments.of(a + b))

    def __add__(self, other: Comoments) -> Comoments:
        return Comoments(self.first + other.first, self.second + other.second, self.both + other.both)

    @property
    def correlation(self) -> float:
        """Pearson's; 0 where either does not differ."""
        scale = 2 * self.first.std * self.second.std
        return (self.both.std**2 - self.first.std**2 - self.second.std**2) / scale if scale else 0.0


_BINS = 1 << 14


def _empty() -> npt.NDArray[np.int64]:
    return np.zeros(_BINS, dtype=np.int64)


@dataclass(frozen=True)
class Quantiles:
    """A histogram of scores, from which each score's quantile is read by interpolation.

    The 16,384 bins are equal parts of ``s / (1 + |s|)``, which lies in (-1, 1) whatever the score; a quantile is off
    by at most the share of scores in the score's own bin, and keeps the order of scores.

    Attributes:
        counts: ``(16384,)`` int64.
    """

    counts: Counts = field(default_factory=_empty)

    @classmethod
    def of(cls, values: Values) -> Quantiles:
        """Count ``(n,)`` scores, none of them NaN."""
        bins, _ = _place(values)
        return cls(np.bincount(bins, minlength=_BINS).astype(np.int64))

    def __add__(self, other: Quantiles) -> Quantiles:
        return Quantiles(self.counts + other.counts)

    @property
    def skewness(self) -> float:
        """Third standardised moment, by the middle of each bin; 0 where the scores do not differ."""
        place = 2 * (np.arange(_BINS) + 0.5) / _BINS - 1
        values = place / (1 - np.abs(place))
        total = int(self.counts.sum())
        if not total:
            return 0.0
        centred = values - float((values * self.counts).sum()) / total
        variance = float((centred**2 * self.counts).sum()) / total
        return float((centred**3 * self.counts).sum()) / total / variance**1.5 if variance > 1e-12 else 0.0

    def standardise(self, values: Values) -> npt.NDArray[np.float64]:
        """Return each score's quantile in [0, 1]: the share of scores below it."""
        bins, within = _place(values)
        below = np.cumsum(self.counts) - self.counts
        quantiles: npt.NDArray[np.float64] = (below[bins] + within * self.counts[bins]) / max(1, int(self.counts.sum()))
        return quantiles


def _place(values: Values) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return each score's bin, and where in the bin it lies, in [0, 1]."""
    values = values.astype(np.float64)
    # (1 + s / (1 + |s|)) / 2 is in [0, 1]; only the four operations, which every machine rounds alike.
    place = (1 + values / (1 + np.abs(values))) * (_BINS / 2)
    bins = np.minimum(place.astype(np.int64), _BINS - 1)
    return bins, place - bins


FUSED_COSINE, ANNOTATION_COSINE = PREFIX + "fused", PREFIX + "annotation"

Inside = Mapping[str, npt.NDArray[np.int64]]
"""Modality -> positions of its rows."""


def _no_moments() -> defaultdict[str, Moments]:
    return defaultdict(Moments)


@dataclass(frozen=True)
class Matched:
    """Statistics of both cosines within each modality, exact however the pool is sharded.

    Attributes:
        fused: modality -> moments of the fused cosines.
        annotation: modality -> moments of the annotations' cosines.
    """

    fused: dict[str, Moments] = field(default_factory=_no_moments)
    annotation: dict[str, Moments] = field(default_factory=_no_moments)

    def add(self, fused: Values, annotation: Values, inside: Inside) -> None:
        """Count ``(n,)`` cosines of both kinds; NaN where there is none."""
        for modality, rows in inside.items():
            self.fused[modality] += Moments.of(fused[rows])
            self.annotation[modality] += Moments.of(annotation[rows])

    def match(self, fused: Values, inside: Inside) -> npt.NDArray[np.floating[Any]]:
        """Return ``(n,)`` float64 fused cosines on the scale of the annotations'; every modality must be known."""
        out = np.full(len(fused), np.nan)
        for modality, rows in inside.items():
            target = self.annotation[modality]
            out[rows] = self.fused[modality].standardise(fused[rows]) * target.std + target.mean
        return out
