"""From a pair's cosines to its score: standardised, weighted and summed, less what its conditions cost it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nemo_mm_rank.config import RankingSettings
from nemo_mm_rank.errors import ConfigError, MissingColumnError, nearest
from nemo_mm_rank.ranking.agreement import FLOOR, Agreement
from nemo_mm_rank.ranking.calibrate import Moments, Quantiles
from nemo_mm_rank.ranking.feedback import FEEDBACK, Means, feedback_column
from nemo_mm_rank.ranking.matched import ANNOTATION_COSINE, FUSED_COSINE, Matched
from nemo_mm_rank.ranking.pool import Rows, Shards, live
from nemo_mm_rank.ranking.score import AGREEMENT, GIVEN, PREFIX, component
from nemo_mm_rank.schema import MODALITY, PAIR_ID, POOL

Floats = npt.NDArray[np.float64]

EXPERTS = "experts"
NOT_EXPERTS = ("fused", "annotation", AGREEMENT)
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
    widest: ``weight * (std / widest std) ** settings.spread``. ``agreement`` and scores from elsewhere know no query
    and keep their weights. Where there is feedback, a cosine is that with the query and so many times that with the
    best pairs.

    The sum says how well a pair is on topic. *Conditions* are chances in (0, 1]: that the pair is in agreement, or a
    score from elsewhere. Each adds ``strength * W * log(chance)`` with ``W`` the sum of the weights' sizes: the score
    is the logarithm of a product, so a pair must be on topic *and* in agreement, and neither makes up for the other.
    A pair whose chance is not known counts as the others do in the mean of the logarithms.

    Attributes:
        weights: component -> weight that it counts with, by name; components without weight are left out.
        moments: column of cosines or given scores -> its statistics over all ranked pairs.
        calibration: modality -> statistics of the sum over its ranked pairs; empty for none.
        matched: what puts fused cosines on their annotations' scale within each modality; None for nothing.
        counts: ``modality`` and ``pool`` -> value -> ranked pairs.
        ranked: number of pairs without an error.
        conditions: name -> strength; those without are left out.
        logarithms: name of a condition -> statistics of the logarithms of its known chances.
        agreement: what judges agreement, where that is a condition.
        feedback: column of cosines -> weight of the feedback beside it.
        means: what feedback columns are made with, for pairs that are yet to be scored.
    """

    weights: Mapping[str, float]
    moments: Mapping[str, Moments]
    calibration: Mapping[str, Moments | Quantiles]
    counts: Mapping[str, Mapping[str, int]]
    ranked: int
    conditions: Mapping[str, float] = field(default_factory=dict)
    logarithms: Mapping[str, Moments] = field(default_factory=dict)
    agreement: Agreement | None = None
    feedback: Mapping[str, float] = field(default_factory=dict)
    means: Means = field(default_factory=dict)
    matched: Matched | None = None

    @classmethod
    def fit(
        cls, shards: Shards, columns: Sequence[str], settings: RankingSettings, agreement: Agreement | None = None
    ) -> Scoring:
        """Take the statistics of all shards: one pass over the small columns, two where scores are calibrated.

        Args:
            shards: with ``pair_id, pool, modality``, the columns, and those that ``agreement`` looks at.
            columns: the columns of cosines, of feedback, and of scores from elsewhere.
            settings: weights, conditions and calibration.
            agreement: what judges agreement; without it, that is no condition.

        Raises:
            ConfigError: a weight or condition for a component that has no column; a condition out of [0, 1].
            MissingColumnError: a shard lacks a column.
        """
        names = sorted(name for name in columns if not name.startswith(FEEDBACK))
        beside = [name for name in names if feedback_column(name) in columns]
        scoring = cls(
            _weights(settings.weights, names),
            {name: Moments() for name in names},
            {},
            {},
            0,
            _conditions(settings.conditions, names, agreement),
            {},
            agreement,
            dict.fromkeys(beside, settings.feedback_weight),
        )
        matched = _matched(settings, names)
        moments = dict(scoring.moments)
        logarithms = {name: Moments() for name in scoring.conditions}
        counts: dict[str, Counter[str]] = {MODALITY: Counter(), POOL: Counter()}
        ranked = 0
        for part, _, table in live(shards, [MODALITY, POOL, *scoring.reads]):
            missing = [name for name in (MODALITY, POOL, *scoring.reads) if name not in table.column_names]
            if missing:
                raise MissingColumnError(f"shard {part} lacks {', '.join(map(repr, missing))}")
            values = {name: scoring._values(table, name) for name in moments}
            moments = {name: seen + Moments.of(values[name]) for name, seen in moments.items()}
            if matched is not None:
                matched.add(values[FUSED_COSINE], values[ANNOTATION_COSINE], _by_value(table[MODALITY]))
            for name, chances in scoring.chances(table).items():
                logarithms[name] += Moments.of(np.log(chances))
            for by, counter in counts.items():
                counter.update({entry["values"]: entry["counts"] for entry in table[by].value_counts().to_pylist()})
            ranked += table.num_rows
        scoring = replace(scoring, matched=matched, moments=moments)
        scoring = replace(
            scoring,
            weights=_by_spread(scoring.weights, {name: scoring._scale(name) for name in moments}, settings.spread),
            counts={by: dict(sorted(seen.items())) for by, seen in counts.items()},
            ranked=ranked,
            logarithms=logarithms,
        )
        how = settings.calibration or "off"
        return scoring._calibrated(shards, how) if how in ("zscore", "quantile") else scoring

    def _calibrated(self, shards: Shards, how: str) -> Scoring:
        kind: type[Moments] | type[Quantiles] = Moments if how == "zscore" else Quantiles
        found: dict[str, Any] = {modality: kind() for modality in self.counts[MODALITY]}
        for batch in self.batches(shards):
            for modality, rows in batch.by(MODALITY).items():
                found[modality] = found[modality] + kind.of(batch.scores[rows])
        return replace(self, calibration=found)

    @property
    def by_modality(self) -> bool:
        """Whether a score depends on its pair's modality, which then must be one that was ranked."""
        return bool(self.calibration) or self.matched is not None

    @property
    def reads(self) -> list[str]:
        """The columns that scores are made of."""
        judged = self.agreement.columns if self.agreement and AGREEMENT in self.conditions else []
        return [*self.moments, *map(feedback_column, self.feedback), *judged]

    def _values(self, table: pa.Table, name: str) -> npt.NDArray[np.floating[Any]]:
        """Return a column as numbers, NaN where there is none, with its feedback where there is any."""
        values: npt.NDArray[np.floating[Any]] = table[name].to_numpy()
        if weight := self.feedback.get(name):
            values = values.astype(np.float64) + weight * table[feedback_column(name)].to_numpy().astype(np.float64)
        if self.matched is not None and name == FUSED_COSINE:
            values = self.matched.match(values, _by_value(table[MODALITY]))
        return values

    def _scale(self, name: str) -> Moments:
        """Return the statistics of what `_values` returns over the whole pool."""
        return self.moments[ANNOTATION_COSINE if self.matched is not None and name == FUSED_COSINE else name]

    def batches(self, shards: Shards) -> Iterator[Batch]:
        """Yield the scored live rows, shard by shard."""
        for part, rows, table in live(shards, [*WORDS, *self.reads]):
            components, chances = self.components(table), self.chances(table)
            scores = self.scores(components, chances, table[MODALITY])
            yield Batch(part, rows, table.select(WORDS), components, chances, scores)

    def scores(
        self, components: Mapping[str, Floats], chances: Mapping[str, Floats], modality: pa.ChunkedArray
    ) -> Floats:
        """Return ``(n,)`` scores, given the standardised components and the chances ``(n,)``, and the modality.

        Where scores go `by_modality`, every modality must be one that was ranked.
        """
        total = np.zeros(len(modality))
        for name, weight in self.weights.items():
            total += weight * components[name]
        for name in self.conditions:
            total += self.cost(name) * self._logarithms(name, chances[name])
        if self.calibration:
            for value, inside in _by_value(modality).items():
                total[inside] = self.calibration[value].standardise(total[inside])
        return total

    def components(self, table: pa.Table) -> dict[str, Floats]:
        """Return the standardised value of each weighted component, ``(n,)``."""
        by_component: dict[str, list[Floats]] = {}
        for name in self.moments:
            by_component.setdefault(component(name), []).append(
                self._scale(name).standardise(self._values(table, name))
            )
        values = {name: _mean_of_present(columns) for name, columns in by_component.items()}
        if EXPERTS in self.weights:
            values[EXPERTS] = _mean_of_present([values[name] for name in _experts(self.moments)])
        return {name: np.where(np.isnan(values[name]), 0.0, values[name]) for name in self.weights}

    def chances(self, table: pa.Table) -> dict[str, Floats]:
        """Return the chance by each condition, ``(n,)``, at least `agreement.FLOOR`; NaN where it is not known."""
        found: dict[str, Floats] = {}
        for name in self.conditions:
            if name == AGREEMENT:
                assert self.agreement is not None  # noqa: S101 (or it would be no condition)
                cosines = {column: table[column].to_numpy() for column in self.agreement.columns}
                found[name] = self.agreement.chances(cosines, _by_value(table[MODALITY]), table.num_rows)
            else:
                values = table[GIVEN + name].to_numpy().astype(np.float64)
                if ((values < 0) | (values > 1)).any():
                    raise ConfigError(f"ranking.conditions: {name!r} has values out of [0, 1], which are no chances")
                found[name] = np.where(np.isnan(values), np.nan, np.maximum(values, FLOOR))
        return found

    def cost(self, condition: str) -> float:
        """What the logarithm of a condition's chance counts with."""
        return self.conditions[condition] * sum(map(abs, self.weights.values()))

    def _logarithms(self, name: str, chances: Floats) -> Floats:
        return np.where(np.isnan(chances), self.logarithms[name].mean, np.log(chances))


@dataclass(frozen=True)
class Batch:
    """The live rows of one shard, scored.

    Attributes:
        part: shard number.
        rows: ``(n,)`` their positions in the shard.
        words: table of ``pair_id, pool, modality``.
        components: name -> ``(n,)`` standardised values.
        chances: condition -> ``(n,)``, NaN where it is not known.
        scores: ``(n,)``.
    """

    part: int
    rows: Rows
    words: pa.Table
    components: Mapping[str, Floats]
    chances: Mapping[str, Floats]
    scores: Floats

    def by(self, column: str) -> dict[str, Rows]:
        """Return value -> positions of the rows that have it."""
        return _by_value(self.words[column])


def _by_value(column: pa.ChunkedArray) -> dict[str, Rows]:
    encoded = column.combine_chunks().dictionary_encode()
    codes = encoded.indices.to_numpy()
    return {value: np.flatnonzero(codes == code) for code, value in enumerate(encoded.dictionary.to_pylist())}


def _matched(settings: RankingSettings, columns: Sequence[str]) -> Matched | None:
    """Return what matches fused cosines, with nothing counted yet, where that is asked for.

    Raises:
        ConfigError: one of the two cosines is missing.
    """
    if settings.calibration != "matched":
        return None
    for name in (FUSED_COSINE, ANNOTATION_COSINE):
        if name not in columns:
            raise ConfigError(f"ranking.calibration: matched needs {name!r}, which nothing made here")
    return Matched()


def _experts(columns: Collection[str]) -> list[str]:
    """Return the components that experts are among some columns of cosines, in the columns' order."""
    found = dict.fromkeys(component(name) for name in columns if name.startswith(PREFIX))
    return [name for name in found if name not in NOT_EXPERTS]


def _conditions(
    strengths: Mapping[str, float], columns: Sequence[str], agreement: Agreement | None
) -> dict[str, float]:
    """Return the conditions by name that count, refusing one that is not there.

    ``agreement`` without anything that judges it is left out: it is in the default settings.
    """
    there = {component(name) for name in columns if name.startswith(GIVEN)} | {AGREEMENT}
    for name, strength in strengths.items():
        if strength and name not in there:
            raise ConfigError(f"ranking.conditions: nothing says {name!r} here{nearest(name, there)}")
    judged = there if agreement is not None and agreement.judges else there - {AGREEMENT}
    return {name: strength for name, strength in sorted(strengths.items()) if strength and name in judged}


def _weights(weights: Mapping[str, float], cosines: Sequence[str]) -> dict[str, float]:
    """Return the weights by name that are not 0, refusing components that are not there.

    ``experts`` without any expert that shares a space with text is left out: it is in the default weights.
    """
    there = {component(name) for name in cosines}
    known = there | {EXPERTS}
    for name, weight in weights.items():
        if weight and name not in known:
            raise ConfigError(f"ranking.weights: nothing scores {name!r} here{nearest(name, known)}")
    if not _experts(cosines):
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
        parts = _experts(queried) if name == EXPERTS else [name]
        of = [std for column, std in queried.items() if component(column) in parts]
        if of and name != AGREEMENT:
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
