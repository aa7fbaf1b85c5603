"""How well pairs are on topic: standardised cosines with the query, weighted for narrow and for broad objectives.

What tells best depends on how much of the pool an objective asks for. "A dog playing outdoors" is a small part, and the
pair's own annotation says it best. "Natural scenes with people" is a third of the pool, annotations hardly ever say so,
and what the data looks like does. How much a query asks for shows in the skewness of the scores: where a share ``p``
stands apart it is ``(1 - 2 p) / sqrt(p (1 - p))``, which is 1.5 for a fifth, .87 for .3 and 0 for a half.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from nemo_mm_rank.arrays import Floats
from nemo_mm_rank.config import BroadSettings, RankingSettings
from nemo_mm_rank.errors import ConfigError, nearest
from nemo_mm_rank.ranking.calibrate import Comoments, Moments, Quantiles
from nemo_mm_rank.ranking.query_scores import PREFIX, component

Columns = Mapping[str, Floats]
"""Column of cosines or of scores from elsewhere -> ``(n,)``, NaN where a pair has none."""

EXPERTS = "experts"
NOT_EXPERTS = ("fused", "annotation")

TELLS = (0.1, 0.3)
"""Correlations with the annotations' cosines: up to the first an expert says nothing of the query, from the second on
it counts fully."""

FEWEST = 100
"""Pairs below which nothing is said of how broad an objective is: it counts as narrow."""
ONE_KIND = 0.9
"""Where one modality is more of a pool than this, no objective is taken for broad: what tells kinds of data apart does
not tell the pairs of one kind apart, and there the annotation says best what is asked for."""


@dataclass(frozen=True)
class Mixture:
    """One way of putting components together: the sum of their standardised values times their weights.

    Each column is standardised over the pool. A component's value is the mean over its columns that the pair has (a
    fusion expert's models, of which a pair usually has one), ``experts`` the mean over the experts that it has; a
    component that a pair lacks altogether counts 0, the pool's mean.

    A space in which the query tells pairs apart spreads their cosines; one in which it says nothing holds them close
    together, and standardising would blow that up. So weights count by the spread of their component, relative to the
    widest: ``weight * (std / widest std) ** spread``. And an annotation describes its data, so an expert whose cosines
    with the query do not go along with those of the annotations says nothing of the query: where ``tells`` is given,
    experts count by it.

    Attributes:
        weights: component -> weight that it counts with, by name; components without weight are left out.
        moments: column -> its statistics over all ranked pairs.
        total: statistics of the sum over all ranked pairs.
        tells: expert -> from 0 to 1, how much it says of the query; experts that are not named count fully.
    """

    weights: Mapping[str, float]
    moments: Mapping[str, Moments]
    total: Moments = field(default_factory=Moments)
    tells: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        weights: Mapping[str, float],
        moments: Mapping[str, Moments],
        spread: float,
        tells: Mapping[str, float] | None = None,
    ) -> Mixture:
        """Take weights by spread, and those of experts by what they say; ``total`` is still to be counted.

        Raises:
            ConfigError: a weight for a component that has no column, or none that has one.
        """
        mixture = _by_spread(_weights(weights, list(moments)), moments, spread)
        for name, share in (tells or {}).items():
            if name in mixture:
                mixture[name] *= share
        if EXPERTS in mixture and tells:
            mixture[EXPERTS] *= max(tells.get(name, 1.0) for name in experts_among(moments))
        return cls(mixture, moments, tells=dict(tells or {}))

    def components(self, columns: Columns) -> dict[str, Floats]:
        """Return the standardised value of each weighted component, ``(n,)``."""
        by_component: dict[str, list[Floats]] = {}
        for name, moments in self.moments.items():
            by_component.setdefault(component(name), []).append(moments.standardise(columns[name]))
        values = {name: _mean_of_present(found) for name, found in by_component.items()}
        if EXPERTS in self.weights:
            experts = experts_among(self.moments)
            shares = [self.tells.get(name, 1.0) for name in experts]
            shares = shares if any(shares) else [1.0] * len(experts)
            values[EXPERTS] = _mean_of_present([values[name] for name in experts], shares)
        return {name: np.where(np.isnan(values[name]), 0.0, values[name]) for name in self.weights}

    def sum(self, columns: Columns) -> Floats:
        """Return ``(n,)`` sums, each row by itself."""
        components = self.components(columns)
        total = np.zeros(len(next(iter(columns.values()))))
        for name, weight in self.weights.items():
            total += weight * components[name]
        return total

    def standard(self, columns: Columns) -> Floats:
        """Return the standardised sum, ``(n,)``."""
        return self.total.standardise(self.sum(columns))


@dataclass(frozen=True)
class Topic:
    """How well a pair is on topic, in standard deviations over the pool.

    Attributes:
        narrow: what counts for an objective that asks for a small part of the pool.
        broad: what counts for one that asks for much of it; None for the same.
        breadth: from 0 to 1, how much the broad one counts.
        skewness: of the narrow sum over the pool, where that was looked at.
    """

    narrow: Mixture
    broad: Mixture | None = None
    breadth: float = 0.0
    skewness: float | None = None

    def __call__(self, plain: Columns, near: Columns) -> Floats:
        """Return ``(n,)`` scores.

        Args:
            plain: cosines with the queries, and scores from elsewhere.
            near: the same with closeness to the best pairs added.
        """
        topic = self.narrow.standard(plain)
        if self.broad is not None and self.breadth:
            topic = (1 - self.breadth) * topic + self.breadth * self.broad.standard(near)
        return topic

    def contributions(self, plain: Columns, near: Columns) -> dict[str, Floats]:
        """Return what each component adds to the scores, ``(n,)``; arguments as for a call."""
        factor = _inverse(self.narrow.total) * (1 - self.breadth)
        weights = self.narrow.weights
        parts = {name: factor * weights[name] * values for name, values in self.narrow.components(plain).items()}
        if self.broad is not None and self.breadth:
            factor = _inverse(self.broad.total) * self.breadth
            for name, values in self.broad.components(near).items():
                parts[name] = parts.get(name, 0.0) + factor * self.broad.weights[name] * values
        return parts

    def weight(self, name: str) -> float:
        """Return what one standard deviation of a component counts with in the whole."""
        weight = self.narrow.weights.get(name, 0.0) * _inverse(self.narrow.total) * (1 - self.breadth)
        if self.broad is not None and self.breadth:
            weight += self.broad.weights.get(name, 0.0) * _inverse(self.broad.total) * self.breadth
        return weight


def breadth_of(seen: Quantiles, settings: BroadSettings) -> tuple[float, float]:
    """Return from 0 to 1 how broad an objective is, and the skewness of its scores.

    Args:
        seen: the histogram of the narrow sum, standardised.
        settings: from which skewness on an objective is narrow, and up to which it is broad.
    """
    skewness = seen.skewness
    low, high = settings.skewness
    return float(np.clip((high - skewness) / (high - low), 0.0, 1.0)), skewness


def tells_of(together: Mapping[str, Comoments]) -> dict[str, float]:
    """Return expert -> how much it says of the query, from 0 to 1.

    Args:
        together: column of an expert's cosines -> how they go together with those of the annotations.
    """
    low, high = TELLS
    by_expert: dict[str, list[float]] = {}
    for column, comoments in together.items():
        by_expert.setdefault(component(column), []).append((comoments.correlation - low) / (high - low))
    return {name: float(np.clip(max(shares), 0.0, 1.0)) for name, shares in by_expert.items()}


def experts_among(columns: Collection[str]) -> list[str]:
    """Return the components that experts are among some columns of cosines, in the columns' order."""
    found = dict.fromkeys(component(name) for name in columns if name.startswith(PREFIX))
    return [name for name in found if name not in NOT_EXPERTS]


def broad_weights(settings: RankingSettings, columns: Sequence[str]) -> dict[str, float]:
    """Return the weights for broad objectives of components that are there; none where there is nothing to add."""
    assert settings.broad is not None  # noqa: S101 (asked only then)
    known = {component(name) for name in columns} | ({EXPERTS} if experts_among(columns) else set())
    return {name: weight for name, weight in settings.broad.weights.items() if weight and name in known}


def _inverse(moments: Moments) -> float:
    return 1 / moments.std if moments.std else 0.0


def _weights(weights: Mapping[str, float], columns: Sequence[str]) -> dict[str, float]:
    """Return the weights by name that are not 0, refusing components that are not there.

    ``experts`` without any expert that shares a space with text is left out: it is in the default weights.
    """
    there = {component(name) for name in columns}
    known = there | {EXPERTS}
    for name, weight in weights.items():
        if weight and name not in known:
            raise ConfigError(f"ranking.weights: this run has no score {name!r}{nearest(name, known)}")
    if not experts_among(columns):
        known = there
    used = {name: weight for name, weight in sorted(weights.items()) if weight and name in known}
    if not used:
        raise ConfigError(f"ranking.weights: none of {', '.join(sorted(there))} has a weight")
    return used


def _by_spread(weights: Mapping[str, float], moments: Mapping[str, Moments], power: float) -> dict[str, float]:
    """Return the weights that components count with, given how far their cosines spread over the pool."""
    spreads: dict[str, float] = {}
    queried = {column: m.std for column, m in moments.items() if column.startswith(PREFIX)}
    for name in weights:
        parts = experts_among(queried) if name == EXPERTS else [name]
        of = [std for column, std in queried.items() if component(column) in parts]
        if of:
            spreads[name] = sum(of) / len(of)
    widest = max(spreads.values(), default=0.0)
    if not widest:
        return dict(weights)
    return {name: weight * (spreads.get(name, widest) / widest) ** power for name, weight in weights.items()}


def _mean_of_present(columns: Sequence[Floats], weights: Sequence[float] | None = None) -> Floats:
    """Return the weighted mean over ``columns`` of the values that are not NaN, NaN where there is none."""
    total, count = np.zeros_like(columns[0]), np.zeros_like(columns[0])
    for column, weight in zip(columns, weights or [1.0] * len(columns), strict=True):
        present = ~np.isnan(column)
        total += np.where(present, weight * column, 0.0)
        count += weight * present
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
