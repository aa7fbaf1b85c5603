"""From features of a pair to the chance that its annotation is its data's own.

Own annotations against ones that were spoilt on purpose are a labelled problem that costs nothing: a logistic
regression tells them apart (Cox, 1958), and what it says of a pair is a likelihood ratio. Observed pairs are a mixture
of own annotations and wrong ones, ``f(s) = p0 f0(s) + (1 - p0) f1(s)`` with ``f0`` known from the spoilt ones, so
``1 - p0 f0(s) / f(s)`` is the chance that a pair is right (Efron, "Microarrays, empirical Bayes and the two-groups
model", 2008, eq. 2.7).

``p0`` can only be bounded from above, by the least ratio of the two distribution functions (Storey, 2002; Blanchard,
Lee and Scott, "Semi-supervised novelty detection", 2010), and a judge that tells own from spoilt badly bounds it badly.
So three things keep a judge from claiming more than it knows: a share of wrong pairs so small that honest pairs could
make it up counts nothing, nor does a judge that would tell own from spoilt no better than by `TOLD`, and chances are
relative to the best ones of their modality, so that where nothing can be told all of them are 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nemo_mm_rank.arrays import Floats, Ints
from nemo_mm_rank.measures.separation import chance, separation, wrong_at_most
from nemo_mm_rank.schema import LEAST_CHANCE

FEWEST = 30
"""Pairs of a modality, and annotations to spoil them with, below which nothing is said."""

HARMLESS = (0.02, 0.07)
"""Shares of wrong pairs: up to the first one nothing is held against anyone, from the second on all of it."""

TOLD = (0.7, 0.8)
"""Chances that a right pair scores above a spoilt one: up to the first a judge counts nothing, from the second on
fully."""

_SURE = 2.0
"""Deviations (of the area under the ROC curve, where nothing can be told) that are put down to chance."""

_BINS, _PER_BIN = 20, 15
_RIDGE, _STEPS = 1.0, 50


@dataclass(frozen=True)
class Line:
    """One logistic regression.

    Attributes:
        means, scales: ``(f,)`` of the features over own annotations; a missing feature counts as its mean.
        weights: ``(f,)`` of the standardised features.
        intercept: of the logarithm of the odds, both classes weighing alike.
    """

    means: Floats
    scales: Floats
    weights: Floats
    intercept: float

    @classmethod
    def fit(cls, own: Floats, spoilt: Floats) -> Line:
        """Learn from ``(n, f)`` features of own annotations and ``(m, f)`` of spoilt ones, by Newton's method.

        A ridge of 1 on the weights of the standardised features keeps few pairs from being learnt by heart.
        """
        with np.errstate(invalid="ignore"):
            there = ~np.isnan(own).all(0)
            means = np.where(there, np.nanmean(np.where(there, own, 0.0), axis=0), 0.0)
            spread = np.nanstd(np.where(there, own, 0.0), axis=0)
        scales = np.where(spread > 0, spread, 1.0)
        rows = np.concatenate([own, spoilt])
        design = np.concatenate([np.ones((len(rows), 1)), _standard(rows, means, scales)], axis=1)
        target = np.concatenate([np.ones(len(own)), np.zeros(len(spoilt))])
        least = min(len(own), len(spoilt))
        importance = np.concatenate([np.full(len(own), least / len(own)), np.full(len(spoilt), least / len(spoilt))])
        ridge = np.full(design.shape[1], _RIDGE)
        ridge[0] = 1e-6
        found = np.zeros(design.shape[1])
        for _ in range(_STEPS):
            chance = 1 / (1 + np.exp(-np.clip(_product(design, found), -30, 30)))
            slope = np.einsum("nf,n->f", design, importance * (chance - target)) + ridge * found
            # Without BLAS, whose rounding depends on the number of threads.
            curve = np.einsum("ni,nj->ij", design * (importance * chance * (1 - chance))[:, None], design)
            step = np.linalg.solve(curve + np.diag(ridge), slope)
            found = found - step
            if np.abs(step).max() < 1e-9:
                break
        return cls(means, scales, found[1:], float(found[0]))

    def __call__(self, features: Floats) -> Floats:
        """Return ``(n,)`` logarithms of the odds, each row by itself."""
        return self.intercept + _product(_standard(features, self.means, self.scales), self.weights)


@dataclass(frozen=True)
class Judge:
    """What tells own annotations from those spoilt in one way, in one modality.

    Attributes:
        lines: one per fold; line k was trained without the annotations of fold k.
        places: where chances are known, ascending; between them they are interpolated.
        chances: there, none falling, the last one 1.
        about: ``pairs`` it was learnt from, ``told`` (how often a right pair scores above a spoilt one: out of sample,
            and with the wrong pairs among the observed ones taken off) and ``wrong``, the share of pairs that it takes
            for wrong.
    """

    lines: tuple[Line, ...]
    places: Floats
    chances: Floats
    about: dict[str, float]

    def chance(self, scores: Floats) -> Floats:
        """Return the chances of ``(n,)`` scores; NaN stays NaN."""
        return np.where(np.isnan(scores), np.nan, np.interp(scores, self.places, self.chances))

    def score(self, features: Floats, folds: Ints) -> Floats:
        """Return ``(n,)`` logarithms of odds, each by the line that never saw the row's annotation."""
        return by_fold(self.lines, features, folds)

    @classmethod
    def of(cls, lines: Sequence[Line], own: Floats, spoilt: Floats) -> Judge:
        """Learn the chances from out-of-sample scores of ``(n,)`` observed and ``(m,)`` spoilt pairs."""
        bound = wrong_at_most(own, spoilt)
        above, share = separation(own, spoilt), 1 - min(bound, 0.95)
        told = min(1.0, 0.5 + (above - 0.5) / share) if above > 0.5 else above  # worse than a guess: as it is
        # Where hardly a pair is right, chance alone would pass for a separation once the wrong ones are taken off.
        unsure = _SURE * chance(len(own), len(spoilt))
        wrong = bound * _ramp(bound, HARMLESS) * _ramp(told - unsure / share, TOLD)
        places, chances = _chances(own, spoilt, wrong)
        return cls(tuple(lines), places, chances, {"pairs": float(len(own)), "told": told, "wrong": wrong})

    def as_json(self) -> dict[str, Any]:
        """Return plain values, exact to the bit."""
        lines = [
            {
                "means": line.means.tolist(),
                "scales": line.scales.tolist(),
                "weights": line.weights.tolist(),
                "intercept": line.intercept,
            }
            for line in self.lines
        ]
        return {"lines": lines, "places": self.places.tolist(), "chances": self.chances.tolist(), "about": self.about}

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> Judge:
        """Return what `as_json` gave."""
        lines = tuple(
            Line(np.array(line["means"]), np.array(line["scales"]), np.array(line["weights"]), line["intercept"])
            for line in values["lines"]
        )
        return cls(lines, np.array(values["places"]), np.array(values["chances"]), dict(values["about"]))


def cross_fit(
    own: Floats, folds: Ints, spoilt: Floats, spoilt_folds: Ints, count: int
) -> tuple[list[Line], Floats, Floats]:
    """Fit one `Line` per fold on the rows of all others; return them, and the scores of each fold's own rows.

    Args:
        own: ``(n, f)`` features of the pairs as they are.
        folds: ``(n,)`` fold of each.
        spoilt: ``(m, f)``.
        spoilt_folds: ``(m,)`` fold of the pair that was spoilt.
        count: number of folds. Where all pairs are of one fold, that one is trained on them, too.
    """
    lines = []
    for fold in range(count):
        first, second = own[folds != fold], spoilt[spoilt_folds != fold]
        lines.append(Line.fit(first, second) if len(first) and len(second) else Line.fit(own, spoilt))
    return lines, by_fold(lines, own, folds), by_fold(lines, spoilt, spoilt_folds)


def by_fold(lines: Sequence[Line], features: Floats, folds: Ints) -> Floats:
    """Return ``(n,)`` scores of ``(n, f)`` features, each by the line of its fold."""
    scores = np.zeros(len(features))
    for fold, line in enumerate(lines):
        rows = folds == fold
        scores[rows] = line(features[rows])
    return scores


def _ramp(value: float, between: tuple[float, float]) -> float:
    low, high = between
    return float(np.clip((value - low) / (high - low), 0.0, 1.0))


def _chances(own: Floats, spoilt: Floats, wrong: float) -> tuple[Floats, Floats]:
    """Return places on the line, and the chances there, relative to the highest."""
    bins = max(2, min(_BINS, len(own) // _PER_BIN))
    edges = np.unique(np.quantile(own, np.linspace(0, 1, bins + 1)[1:-1]))
    mine, theirs = np.searchsorted(edges, own), np.searchsorted(edges, spoilt)
    count = np.bincount(mine, minlength=len(edges) + 1)
    filled = count > 0
    density = count[filled] / len(own)
    null = np.bincount(theirs, minlength=len(edges) + 1)[filled] / len(spoilt)
    places = np.array([np.median(own[mine == code]) for code in np.flatnonzero(filled)])
    chances = _rising(np.maximum(0.0, 1 - wrong * null / density), density)
    best = chances.max()
    return places, np.clip(chances / best, LEAST_CHANCE, 1.0) if best > 0 else np.ones(len(places))


def _rising(values: Floats, weights: Floats) -> Floats:
    """Return the nearest values that never fall: pooled adjacent violators (Ayer et al., 1955)."""
    blocks: list[tuple[float, float, int]] = []  # value, weight, length
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        block = (value, weight, 1)
        while blocks and blocks[-1][0] > block[0]:
            before = blocks.pop()
            total = before[1] + block[1]
            block = ((before[0] * before[1] + block[0] * block[1]) / total, total, before[2] + block[2])
        blocks.append(block)
    return np.repeat([block[0] for block in blocks], [block[2] for block in blocks])


def _standard(values: Floats, means: Floats, scales: Floats) -> Floats:
    standard: Floats = np.nan_to_num((values - means) / scales, nan=0.0)
    return standard


def _product(values: Floats, weights: Floats) -> Floats:
    """Return ``(n,)`` sums over the columns, taken column by column, so that no row depends on another."""
    total = np.zeros(len(values))
    for column, weight in zip(values.T, weights.tolist(), strict=True):
        total += weight * column
    return total
