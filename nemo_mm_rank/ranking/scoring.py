"""From a pair's cosines to its score: standardised over the pool, weighted, summed, calibrated per modality."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nemo_mm_rank.config import RankingSettings
from nemo_mm_rank.errors import ConfigError, MissingColumnError, nearest
from nemo_mm_rank.ranking.calibrate import Moments, Quantiles
from nemo_mm_rank.ranking.pool import Rows, Shards, live
from nemo_mm_rank.ranking.score import AGREEMENT, component
from nemo_mm_rank.schema import MODALITY, PAIR_ID, POOL

Floats = npt.NDArray[np.float64]

EXPERTS = "experts"
_NOT_EXPERTS = ("fused", "annotation", AGREEMENT)
WORDS = (PAIR_ID, POOL, MODALITY)


@dataclass(frozen=True)
class Scoring:
    """How cosines become scores.

    Each column of cosines is standardised over the pool. A component's value is the mean over its columns that the
    pair has (a fusion expert's models, of which a pair usually has one), ``experts`` the mean over the experts that it
    has; a component that a pair lacks altogether counts 0, the pool's mean. The score is the sum of the components
    times their weights, by name, and then calibrated within the pair's modality where that is asked for.

    A space in which the query tells pairs apart spreads their cosines; one in which it says nothing holds them close
    together, and standardising would blow that up. So weights count by the spread of their component, relative to the
    widest: ``weight * (std / widest std) ** settings.spread``. ``agreement`` knows no query and keeps its weight.

    Attributes:
        weights: component -> weight that it counts with, by name; components without weight are left out.
        moments: column of cosines -> its statistics over all ranked pairs.
        calibration: modality -> statistics of the sum over its ranked pairs; empty for none.
        counts: ``modality`` and ``pool`` -> value -> ranked pairs.
        ranked: number of pairs without an error.
    """

    weights: Mapping[str, float]
    moments: Mapping[str, Moments]
    calibration: Mapping[str, Moments | Quantiles]
    counts: Mapping[str, Mapping[str, int]]
    ranked: int

    @classmethod
    def fit(cls, shards: Shards, cosines: Sequence[str], settings: RankingSettings) -> Scoring:
        """Take the statistics of all shards: one pass over the columns of cosines, two where scores are calibrated.

        Args:
            shards: with ``pair_id, pool, modality`` and the cosines.
            cosines: the columns of cosines (what `ScoreStep.provides`).
            settings: weights and calibration.

        Raises:
            ConfigError: a weight for a component that has no column of cosines.
            MissingColumnError: a shard lacks a column.
        """
        weights = _weights(settings.weights, cosines)
        moments = {name: Moments() for name in sorted(cosines)}
        counts: dict[str, Counter[str]] = {MODALITY: Counter(), POOL: Counter()}
        ranked = 0
        for part, _, table in live(shards, [MODALITY, POOL, *moments]):
            missing = [name for name in (MODALITY, POOL, *moments) if name not in table.column_names]
            if missing:
                raise MissingColumnError(f"shard {part} lacks {', '.join(map(repr, missing))}")
            moments = {name: seen + Moments.of(table[name].to_numpy()) for name, seen in moments.items()}
            for by, counter in counts.items():
                counter.update({entry["values"]: entry["counts"] for entry in table[by].value_counts().to_pylist()})
            ranked += table.num_rows
        weights = _by_spread(weights, moments, settings.spread)
        scoring = cls(weights, moments, {}, {by: dict(sorted(seen.items())) for by, seen in counts.items()}, ranked)
        how = settings.calibration or "off"
        return scoring if how == "off" else scoring._calibrated(shards, how)

    def _calibrated(self, shards: Shards, how: str) -> Scoring:
        kind: type[Moments] | type[Quantiles] = Moments if how == "zscore" else Quantiles
        found: dict[str, Any] = {modality: kind() for modality in self.counts[MODALITY]}
        for batch in self.batches(shards):
            for modality, rows in batch.by(MODALITY).items():
                found[modality] = found[modality] + kind.of(batch.scores[rows])
        return Scoring(self.weights, self.moments, found, self.counts, self.ranked)

    def batches(self, shards: Shards) -> Iterator[Batch]:
        """Yield the scored live rows, shard by shard."""
        for part, rows, table in live(shards, [*WORDS, *self.moments]):
            components = self.components(table)
            yield Batch(part, rows, table.select(WORDS), components, self.scores(components, table[MODALITY]))

    def scores(self, components: Mapping[str, Floats], modality: pa.ChunkedArray) -> Floats:
        """Return ``(n,)`` scores, given the standardised components ``(n,)`` of each pair and its modality.

        Where scores are calibrated, every modality must be one that was ranked.
        """
        total = np.zeros(len(modality))
        for name, weight in self.weights.items():
            total += weight * components[name]
        if self.calibration:
            for value, inside in _by_value(modality).items():
                total[inside] = self.calibration[value].standardise(total[inside])
        return total

    def components(self, table: pa.Table) -> dict[str, Floats]:
        """Return the standardised value of each weighted component, ``(n,)``."""
        by_component: dict[str, list[Floats]] = {}
        for name, moments in self.moments.items():
            by_component.setdefault(component(name), []).append(moments.standardise(table[name].to_numpy()))
        values = {name: _mean_of_present(columns) for name, columns in by_component.items()}
        if EXPERTS in self.weights:
            values[EXPERTS] = _mean_of_present([value for name, value in values.items() if name not in _NOT_EXPERTS])
        return {name: np.where(np.isnan(values[name]), 0.0, values[name]) for name in self.weights}


@dataclass(frozen=True)
class Batch:
    """The live rows of one shard, scored.

    Attributes:
        part: shard number.
        rows: ``(n,)`` their positions in the shard.
        words: table of ``pair_id, pool, modality``.
        components: name -> ``(n,)`` standardised values.
        scores: ``(n,)``.
    """

    part: int
    rows: Rows
    words: pa.Table
    components: Mapping[str, Floats]
    scores: Floats

    def by(self, column: str) -> dict[str, Rows]:
        """Return value -> positions of the rows that have it."""
        return _by_value(self.words[column])


def _by_value(column: pa.ChunkedArray) -> dict[str, Rows]:
    encoded = column.combine_chunks().dictionary_encode()
    codes = encoded.indices.to_numpy()
    return {value: np.flatnonzero(codes == code) for code, value in enumerate(encoded.dictionary.to_pylist())}


def _weights(weights: Mapping[str, float], cosines: Sequence[str]) -> dict[str, float]:
    """Return the weights by name that are not 0, refusing components that are not there.

    ``experts`` without any expert that shares a space with text is left out: it is in the default weights.
    """
    there = {component(name) for name in cosines}
    known = there | {EXPERTS}
    for name, weight in weights.items():
        if weight and name not in known:
            raise ConfigError(f"ranking.weights: nothing scores {name!r} here{nearest(name, known)}")
    if not there.difference(_NOT_EXPERTS):
        known = there
    used = {name: weight for name, weight in sorted(weights.items()) if weight and name in known}
    if not used:
        raise ConfigError(f"ranking.weights: none of {', '.join(sorted(there))} has a weight")
    return used


def _by_spread(weights: Mapping[str, float], moments: Mapping[str, Moments], power: float) -> dict[str, float]:
    """Return the weights that components count with, given how far their cosines spread over the pool."""
    spreads: dict[str, float] = {}
    for name in weights:
        of = [m.std for column, m in moments.items() if component(column) == name]
        if name == EXPERTS:
            of = [m.std for column, m in moments.items() if component(column) not in _NOT_EXPERTS]
        if name != AGREEMENT:
            spreads[name] = sum(of) / len(of)
    widest = max(spreads.values(), default=0.0)
    if not widest:
        return dict(weights)
    return {name: weight * (spreads.get(name, widest) / widest) ** power for name, weight in weights.items()}


def _mean_of_present(columns: Sequence[Floats]) -> Floats:
    """Return the mean over ``columns`` of the values that are not NaN, NaN where all of them are."""
    total, count = np.zeros_like(columns[0]), np.zeros_like(columns[0])
    for column in columns:
        missing = np.isnan(column)
        total += np.where(missing, 0.0, column)
        count += ~missing
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
