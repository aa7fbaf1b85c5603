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
from nemo_mm_rank.measures.line import Line, by_fold
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
        lines = [line.as_json() for line in self.lines]
        return {"lines": lines, "places": self.places.tolist(), "chances": self.chances.tolist(), "about": self.about}

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> Judge:
        """Return what `as_json` gave."""
        lines = tuple(map(Line.of_json, values["lines"]))
        return cls(lines, np.array(values["places"]), np.array(values["chances"]), dict(values["about"]))


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
