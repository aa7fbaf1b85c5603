"""From a pair's cosines to its score: how well it is on topic, less what its conditions cost it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import TypeAdapter

from nemo_mm_rank.arrays import Floats, Ints
from nemo_mm_rank.config import RankingSettings
from nemo_mm_rank.errors import ConfigError, MissingColumnError, ModelError
from nemo_mm_rank.io import mirror
from nemo_mm_rank.io.files import write_bytes
from nemo_mm_rank.ranking.calibrate import ANNOTATION_COSINE, FUSED_COSINE, Comoments, Matched, Moments, Quantiles
from nemo_mm_rank.ranking.conditions import Stored, chances_of, stored
from nemo_mm_rank.ranking.feedback import Means, feedback_column
from nemo_mm_rank.ranking.query_scores import GIVEN, PREFIX, component
from nemo_mm_rank.ranking.topic import (
    FEWEST,
    ONE_KIND,
    Mixture,
    Topic,
    breadth_of,
    broad_weights,
    experts_among,
    tells_of,
)
from nemo_mm_rank.schema import MODALITY, PAIR_ID, POOL
from nemo_mm_rank.shards import Shards, live

WORDS = (PAIR_ID, POOL, MODALITY)


@dataclass(frozen=True)
class Scoring:
    """How cosines become scores.

    `topic.Topic` says how well a pair is on topic, in standard deviations over the pool. *Conditions* are chances in
    (0, 1]: that the annotation is the data's own, or a score from elsewhere. Each adds ``strength * log(chance)``: the
    score is the logarithm of a product, so a pair must be on topic *and* meet the conditions, and neither makes up for
    the other. A pair whose chance is not known counts as the others do in the mean of the logarithms. Last, scores are
    calibrated within the pairs' modalities where that is asked for.

    Attributes:
        topic: how well a pair is on topic.
        calibration: modality -> statistics of the score over its ranked pairs; empty for none.
        matched: what puts fused cosines on their annotations' scale within each modality; None for nothing.
        counts: ``modality`` and ``pool`` -> value -> ranked pairs.
        ranked: number of pairs without an error.
        conditions: by name; those without strength are left out.
        logarithms: name of a condition -> statistics of the logarithms of its known chances.
        feedback: column of cosines -> weight of the feedback beside it.
        means: what feedback columns are made with, for pairs that are yet to be scored.
    """

    topic: Topic
    calibration: Mapping[str, Moments | Quantiles] = field(default_factory=dict)
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    ranked: int = 0
    conditions: Mapping[str, Stored] = field(default_factory=dict)
    logarithms: Mapping[str, Moments] = field(default_factory=dict)
    feedback: Mapping[str, float] = field(default_factory=dict)
    means: Means = field(default_factory=dict)
    matched: Matched | None = None

    @classmethod
    def fit(cls, shards: Shards, columns: Sequence[str], settings: RankingSettings) -> Scoring:
        """Take the statistics of all shards: two passes over the small columns, three where scores are calibrated.

        Args:
            shards: with ``pair_id, pool, modality``, and the columns.
            columns: the columns of cosines, of feedback, of scores from elsewhere, and of chances.
            settings: weights, conditions and calibration.

        Raises:
            ConfigError: a weight or condition for a component that has no column; a condition out of [0, 1].
            MissingColumnError: a shard lacks a column.
        """
        names = sorted(name for name in columns if name.startswith((PREFIX, GIVEN)))
        beside = [name for name in names if feedback_column(name) in columns]
        near = settings.broad.feedback_weight if settings.broad is not None else 0.0
        none = Mixture({}, dict.fromkeys(names, Moments()))
        scoring = cls(
            Topic(none, none if beside else None),
            conditions=stored(settings, columns),
            feedback=dict.fromkeys(beside, near),
        )
        together = {}
        if settings.broad is not None and ANNOTATION_COSINE in names:
            experts = experts_among(names)
            together = {name: Comoments() for name in names if name.startswith(PREFIX) and component(name) in experts}
        scoring = scoring._counted(shards, _matched(settings, names), together)
        if together and not scoring.topic.narrow.moments[ANNOTATION_COSINE].count:
            together = {}  # examples without words: experts cannot be told by what annotations say
        return scoring._weighted(shards, names, settings, tells_of(together))

    def _counted(self, shards: Shards, matched: Matched | None, together: dict[str, Comoments]) -> Scoring:
        """Count what columns and conditions hold, and how experts go together with annotations."""
        names = list(self.topic.narrow.moments)
        plain = {name: Moments() for name in names}
        near = {name: Moments() for name in names}
        logarithms = {name: Moments() for name in self.conditions}
        counts: dict[str, Counter[str]] = {MODALITY: Counter(), POOL: Counter()}
        ranked = 0
        for part, _, table in live(shards, [MODALITY, POOL, *self.reads]):
            missing = [name for name in (MODALITY, POOL, *self.reads) if name not in table.column_names]
            if missing:
                raise MissingColumnError(f"shard {part} lacks {', '.join(map(repr, missing))}")
            values = {name: _numbers(table, name) for name in names}
            plain = {name: seen + Moments.of(values[name]) for name, seen in plain.items()}
            if matched is not None:
                matched.add(values[FUSED_COSINE], values[ANNOTATION_COSINE], _by_value(table[MODALITY]))
            if self.feedback:
                near = {name: seen + Moments.of(self._with_feedback(table, name)) for name, seen in near.items()}
            for name in together:
                together[name] += Comoments.of(values[name], values[ANNOTATION_COSINE])
            for name, chances in self.chances(table).items():
                logarithms[name] += Moments.of(np.log(chances))
            for by, counter in counts.items():
                counter.update({entry["values"]: entry["counts"] for entry in table[by].value_counts().to_pylist()})
            ranked += table.num_rows
        if matched is not None and not plain[ANNOTATION_COSINE].count:  # examples without words: nothing to match
            matched = None
        if matched is not None:
            plain[FUSED_COSINE] = plain[ANNOTATION_COSINE]
            near[FUSED_COSINE] = near[ANNOTATION_COSINE]
        topic = Topic(Mixture({}, plain), Mixture({}, near if self.feedback else plain))
        return replace(
            self,
            topic=topic,
            matched=matched,
            counts={by: dict(sorted(seen.items())) for by, seen in counts.items()},
            ranked=ranked,
            logarithms=logarithms,
        )

    def _weighted(
        self, shards: Shards, names: Sequence[str], settings: RankingSettings, tells: Mapping[str, float]
    ) -> Scoring:
        """Weigh the components, see how broad the objective is, and calibrate."""
        assert self.topic.broad is not None  # noqa: S101 (`_counted` makes both)
        narrow = Mixture.of(settings.weights, self.topic.narrow.moments, settings.spread, tells)
        broad = None
        kinds = self.counts[MODALITY].values()
        mixed = self.ranked >= FEWEST and max(kinds, default=0) <= ONE_KIND * self.ranked
        if settings.broad is not None and mixed and (weights := broad_weights(settings, names)):
            broad = Mixture.of(weights, self.topic.broad.moments, 0.0, tells)
        narrow_total, broad_total = Moments(), Moments()
        scoring = replace(self, topic=Topic(narrow, broad))
        for _, _, table in live(shards, [MODALITY, *self.reads]):
            plain, near = scoring.columns(table)
            narrow_total += Moments.of(narrow.sum(plain))
            if broad is not None:
                broad_total += Moments.of(broad.sum(near))
        topic = Topic(replace(narrow, total=narrow_total))
        if broad is not None and settings.broad is not None:
            seen = Quantiles()
            for _, _, table in live(shards, [MODALITY, *self.reads]):
                seen = seen + Quantiles.of(topic.narrow.standard(scoring.columns(table)[0]))
            breadth, skewness = breadth_of(seen, settings.broad)
            topic = Topic(topic.narrow, replace(broad, total=broad_total), breadth, skewness)
        scoring = replace(self, topic=topic)
        how = settings.calibration or "off"
        return scoring._calibrated(shards, how) if how in ("zscore", "quantile") else scoring

    def _calibrated(self, shards: Shards, how: str) -> Scoring:
        kind: type[Moments] | type[Quantiles] = Moments if how == "zscore" else Quantiles
        calibrations: dict[str, Any] = {modality: kind() for modality in self.counts[MODALITY]}
        for batch in self.batches(shards):
            for modality, rows in batch.by(MODALITY).items():
                calibrations[modality] = calibrations[modality] + kind.of(batch.scores[rows])
        return replace(self, calibration=calibrations)

    @property
    def by_modality(self) -> bool:
        """Whether a score depends on its pair's modality, which then must be one that was ranked."""
        return bool(self.calibration) or self.matched is not None

    @property
    def reads(self) -> list[str]:
        """The columns that scores are made of."""
        judged = (condition.column for condition in self.conditions.values())
        return list(dict.fromkeys([*self.topic.narrow.moments, *map(feedback_column, self.feedback), *judged]))

    def columns(self, table: pa.Table) -> tuple[dict[str, Floats], dict[str, Floats]]:
        """Return the columns as numbers, NaN where there is none: as they are, and with feedback added."""
        plain = {name: _numbers(table, name) for name in self.topic.narrow.moments}
        near = {name: self._with_feedback(table, name) for name in plain} if self.feedback else dict(plain)
        if self.matched is not None:
            rows = _by_value(table[MODALITY])
            for found in (plain, near):
                found[FUSED_COSINE] = self.matched.match(found[FUSED_COSINE], rows).astype(np.float64)
        return plain, near

    def _with_feedback(self, table: pa.Table, name: str) -> Floats:
        values = _numbers(table, name)
        if weight := self.feedback.get(name):
            values = values + weight * _numbers(table, feedback_column(name))
        return values

    def batches(self, shards: Shards) -> Iterator[Batch]:
        """Yield the scored live rows, shard by shard."""
        for part, rows, table in live(shards, [*WORDS, *self.reads]):
            chances = self.chances(table)
            scores = self.scores(table, chances)
            yield Batch(part, rows, table.select(WORDS), self.components(table), chances, scores)

    def scores(self, table: pa.Table, chances: Mapping[str, Floats]) -> Floats:
        """Return ``(n,)`` scores, given the chances ``(n,)``.

        Where scores go `by_modality`, every modality must be one that was ranked.
        """
        total = self.topic(*self.columns(table))
        for cost in self.costs(chances).values():
            total = total + cost
        if self.calibration:
            for value, inside in _by_value(table[MODALITY]).items():
                total[inside] = self.calibration[value].standardise(total[inside])
        return total

    def components(self, table: pa.Table) -> dict[str, Floats]:
        """Return the standardised value of each weighted component, ``(n,)``, without feedback."""
        return self.topic.narrow.components(self.columns(table)[0])

    def chances(self, table: pa.Table) -> dict[str, Floats]:
        """Return the chance by each condition, ``(n,)``, at least its least one; NaN where it is not known."""
        return {name: chances_of(condition, table) for name, condition in self.conditions.items()}

    def costs(self, chances: Mapping[str, Floats]) -> dict[str, Floats]:
        """Return what each condition adds to the scores, ``(n,)`` and mostly below 0, given the chances."""
        return {
            name: self.conditions[name].strength
            * np.where(np.isnan(values), self.logarithms[name].mean, np.log(values))
            for name, values in chances.items()
        }

    def about(self) -> dict[str, Any]:
        """Return statistics, conditions and weights, for the manifest."""
        topic = self.topic
        return {
            "statistics": {
                name: {"pairs": moments.count, "mean": moments.mean, "std": moments.std}
                for name, moments in topic.narrow.moments.items()
            },
            "conditions": {
                name: {"strength": condition.strength, "known": self.logarithms[name].count}
                for name, condition in self.conditions.items()
            },
            "topic": {
                "weights": {name: topic.weight(name) for name in topic.narrow.weights},
                "breadth": topic.breadth,
                "skewness": topic.skewness,
            },
        }

    def as_json(self) -> bytes:
        """Return it as JSON: what is read back gives the same scores to the bit."""
        return _JSON.dump_json(self)

    def save(self, file: Path) -> None:
        """Write it as JSON, atomically."""
        write_bytes(file, self.as_json())

    @classmethod
    def load(cls, file: Path) -> Scoring:
        """Read what `save` wrote.

        Raises:
            ModelError: there is no such file, or it holds something else.
        """
        try:
            mirror.fetch(file)
            return _JSON.validate_json(file.read_bytes())
        except (OSError, ValueError) as error:
            raise ModelError(f"{file} holds no scoring: {type(error).__name__}") from error


_JSON = TypeAdapter(Scoring)


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
    rows: Ints
    words: pa.Table
    components: Mapping[str, Floats]
    chances: Mapping[str, Floats]
    scores: Floats

    def by(self, column: str) -> dict[str, Ints]:
        """Return value -> positions of the rows that have it."""
        return _by_value(self.words[column])


def _numbers(table: pa.Table, name: str) -> Floats:
    numbers: Floats = table[name].to_numpy().astype(np.float64)
    return numbers


def _by_value(column: pa.ChunkedArray) -> dict[str, Ints]:
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
