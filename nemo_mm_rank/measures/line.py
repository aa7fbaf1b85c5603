"""A logistic regression that tells own things from spoilt ones, each judged by one that never saw it (Cox, 1958)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nemo_mm_rank.arrays import Floats, Ints

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

    def as_json(self) -> dict[str, Any]:
        """Return plain values, exact to the bit."""
        return {
            "means": self.means.tolist(),
            "scales": self.scales.tolist(),
            "weights": self.weights.tolist(),
            "intercept": self.intercept,
        }

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> Line:
        """Return what `as_json` gave."""
        means, scales, weights = (np.array(values[name]) for name in ("means", "scales", "weights"))
        return cls(means, scales, weights, values["intercept"])


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


def _standard(values: Floats, means: Floats, scales: Floats) -> Floats:
    standard: Floats = np.nan_to_num((values - means) / scales, nan=0.0)
    return standard


def _product(values: Floats, weights: Floats) -> Floats:
    """Return ``(n,)`` sums over the columns, taken column by column, so that no row depends on another."""
    total = np.zeros(len(values))
    for column, weight in zip(values.T, weights.tolist(), strict=True):
        total += weight * column
    return total
