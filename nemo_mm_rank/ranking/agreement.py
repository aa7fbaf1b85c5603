"""How likely a pair's annotation is its data's own, judged against annotations of other pairs.

An expert's cosine of data and annotation means something else in every modality: .3 is much for a picture and little
for code. What it means is there for the taking, because pairs that do not agree can be made at no cost: data with the
annotations of other pairs. Observed cosines are a mixture of pairs in agreement and others,

    f(t) = p0 f0(t) + (1 - p0) f1(t),

and f0 is known from the shuffled pairs, so the chance that a pair is in agreement is ``1 - p0 f0(t) / f(t)``: the
two-groups model and its local false discovery rate (Efron, "Microarrays, empirical Bayes and the two-groups model",
2008, eq. 2.7). An annotation is judged by its sentence that agrees least (`weakest`): all of it has to be the data's
own. In a pool without wrong pairs p0 is near 0 and all chances are near 1: nothing is held against anyone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nemo_mm_rank.config import Settings

Floats = npt.NDArray[np.float64]

FLOOR = 0.05
"""The least chance: a cosine alone proves nothing beyond that."""

FEWEST = 30
"""Pairs of a modality, below which nothing is said of it."""

_BINS, _PER_BIN = 20, 15
_RIDGE = 0.05


class Judge(Settings):
    """From a modality's cosines of data and annotation, by several experts, to one chance.

    Attributes:
        columns: the experts' columns.
        means, scales: of each over the observed pairs; a pair that lacks one counts as the mean.
        weights: of the standardised cosines: Fisher's discriminant of observed against shuffled pairs, none negative.
        places: where on that line the chances are known, ascending; between them they are interpolated.
        chances: there, none falling.
        wrong: p0, the estimated share of pairs that are not in agreement.
    """

    columns: tuple[str, ...]
    means: tuple[float, ...]
    scales: tuple[float, ...]
    weights: tuple[float, ...]
    places: tuple[float, ...]
    chances: tuple[float, ...]
    wrong: float

    @classmethod
    def fit(cls, columns: Sequence[str], observed: Floats, shuffled: Floats) -> Judge | None:
        """Learn from pairs as they are and from shuffled ones.

        Args:
            columns: names of the ``k`` columns.
            observed: ``(n, k)`` cosines, NaN where a pair lacks one.
            shuffled: ``(m, k)`` cosines of the same data with annotations of other pairs.

        Returns:
            None where it cannot be told: fewer than `FEWEST` pairs, or cosines that are no higher for a pair's own
            annotation than for others.
        """
        there = ~np.isnan(observed).all(0) & ~np.isnan(shuffled).all(0)
        if len(observed) < FEWEST or not there.any():
            return None
        names = [columns[place] for place in np.flatnonzero(there).tolist()]
        observed, shuffled = observed[:, there], shuffled[:, there]
        means, scales = np.nanmean(observed, axis=0), np.nanstd(observed, axis=0)
        scales = np.where(scales > 0, scales, 1.0)
        own, others = _standard(observed, means, scales), _standard(shuffled, means, scales)
        weights = _discriminant(own, others)
        if not weights.any():
            return None
        places, chances, wrong = _chances(_line(own, weights), _line(others, weights))
        return cls(
            columns=tuple(names),
            means=tuple(means.tolist()),
            scales=tuple(scales.tolist()),
            weights=tuple(weights.tolist()),
            places=tuple(places.tolist()),
            chances=tuple(chances.tolist()),
            wrong=wrong,
        )

    def __call__(self, cosines: Mapping[str, Floats]) -> Floats:
        """Return ``(n,)`` chances, NaN for a pair that has none of the cosines; each row by itself."""
        values = np.stack([cosines[name].astype(np.float64) for name in self.columns], axis=1)
        line = _line(_standard(values, np.array(self.means), np.array(self.scales)), np.array(self.weights))
        return np.where(np.isnan(values).all(1), np.nan, np.interp(line, self.places, self.chances))


@dataclass(frozen=True)
class Agreement:
    """A judge for every modality that one can be had for.

    Attributes:
        judges: modality -> its judge.
    """

    judges: Mapping[str, Judge]

    @property
    def columns(self) -> list[str]:
        """The columns of cosines that are looked at."""
        return sorted({name for judge in self.judges.values() for name in judge.columns})

    def chances(self, cosines: Mapping[str, Floats], rows_of: Mapping[str, npt.NDArray[np.int64]], n: int) -> Floats:
        """Return ``(n,)`` chances; NaN where there is no judge, or nothing to judge by.

        Args:
            cosines: column -> ``(n,)``.
            rows_of: modality -> positions of its rows.
            n: number of rows.
        """
        found = np.full(n, np.nan)
        for modality, rows in rows_of.items():
            if judge := self.judges.get(modality):
                found[rows] = judge({name: cosines[name][rows] for name in judge.columns})
        return found

    def as_json(self) -> dict[str, Any]:
        """Return plain values, exact to the bit."""
        return {modality: judge.model_dump(mode="json") for modality, judge in sorted(self.judges.items())}

    @classmethod
    def of_json(cls, values: Mapping[str, Mapping[str, Any]]) -> Agreement:
        """Return what `as_json` gave."""
        return cls({modality: Judge.model_validate(judge) for modality, judge in values.items()})


def _standard(values: Floats, means: Floats, scales: Floats) -> Floats:
    standard: Floats = np.nan_to_num((values - means) / scales, nan=0.0)
    return standard


def _line(values: Floats, weights: Floats) -> Floats:
    """Return each row's place on the line, ``(n,)``: summed column by column, so that no row depends on another."""
    total = np.zeros(len(values))
    for column, weight in zip(values.T, weights.tolist(), strict=True):
        total += weight * column
    return total


def _discriminant(own: Floats, others: Floats) -> Floats:
    """Return ``(k,)`` weights: Fisher's linear discriminant (1936) with a ridge, negative ones set to 0.

    Experts that agree with each other share their weight, and one that cannot tell pairs apart gets none.
    """
    apart = own.mean(0) - others.mean(0)
    within = _covariance(own) + _covariance(others) + _RIDGE * np.eye(len(apart))
    weights: Floats = np.maximum(np.linalg.solve(within, apart), 0.0)
    return weights


def _covariance(values: Floats) -> Floats:
    centred = values - values.mean(0)
    # Without BLAS, whose rounding depends on the number of threads.
    covariance: Floats = np.einsum("ni,nj->ij", centred, centred) / len(values)
    return covariance


def _chances(own: Floats, others: Floats) -> tuple[Floats, Floats, float]:
    """Return places on the line, the chances there, and the share of wrong pairs."""
    bins = max(2, min(_BINS, len(own) // _PER_BIN))
    edges = np.unique(np.quantile(own, np.linspace(0, 1, bins + 1)[1:-1]))
    mine, theirs = np.searchsorted(edges, own), np.searchsorted(edges, others)
    count = np.bincount(mine, minlength=len(edges) + 1)
    density = count / len(own)
    null = np.bincount(theirs, minlength=len(edges) + 1) / len(others)
    # Half of the wrong pairs lie below the shuffled ones' median, and few of the others do (Storey, "A direct approach
    # to false discovery rates", 2002, with lambda = 1/2): never too low an estimate.
    wrong = min(1.0, 2 * float((own <= np.median(others)).mean()))
    filled = count > 0
    raw = np.maximum(0.0, 1 - wrong * null[filled] / density[filled])
    places = np.array([np.median(own[mine == code]) for code in np.flatnonzero(filled)])
    return places, np.clip(_rising(raw, density[filled]), FLOOR, 1.0), wrong


def _rising(values: Floats, weights: Floats) -> Floats:
    """Return the nearest values that never fall: pooled adjacent violators (Ayer et al., 1955)."""
    blocks: list[list[float]] = []  # value, weight, length
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        blocks.append([value, weight, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            last, before = blocks.pop(), blocks[-1]
            total = before[1] + last[1]
            before[0] = (before[0] * before[1] + last[0] * last[1]) / total
            before[1], before[2] = total, before[2] + last[2]
    return np.repeat([block[0] for block in blocks], [int(block[2]) for block in blocks])
