"""Conditions: what must hold of a pair besides being on topic, as chances whose logarithms count.

``match``, that the annotation is the data's own, is made by the matcher, and scores from elsewhere come from a file.
Conditions of the user's own are computed by `ConditionStep` once the pairs have been scored. In any case chances are a
column of the shards, so whoever reads a finished ranking needs none of the code that they come from.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from nemo_mm_rank import frames
from nemo_mm_rank.arrays import Floats
from nemo_mm_rank.config import ConditionSpec, RankingSettings
from nemo_mm_rank.errors import ConfigError, ModelError, nearest
from nemo_mm_rank.frames import Frame
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.base import answering, fulfil
from nemo_mm_rank.ranking.query_scores import GIVEN
from nemo_mm_rank.schema import LEAST_CHANCE, MATCH, MATCH_SENTENCE, MATCH_WHOLE, WEAKEST_SENTENCE
from nemo_mm_rank.steps import Added, Step

MATCHES = "match"
"""The condition that the annotation is the data's own."""

COMPUTED = "condition__"
"""Columns of chances by conditions of the user's own: ``condition__<name>``."""


class Condition(Protocol):
    """How likely something holds of a pair, read from columns of its row.

    A configuration names a class by its import path, with arguments beside it:
    ``ranking.conditions: {long: {class: "my_module:Long", strength: 1.0, words: 12}}``. Where the class takes ``name``
    or ``device`` it is given what the configuration calls it (``long``) and where models run. Everything that the run
    knows of a pair can be read: the pool's own columns, and those that steps have added before the pairs are ranked.

    >>> import numpy as np, pyarrow as pa
    >>> class Long:
    ...     columns = ("annotation",)
    ...     least = 0.05
    ...
    ...     def __init__(self, name: str, words: int) -> None:
    ...         self.name, self.words = name, words
    ...
    ...     def chances(self, table: pa.Table) -> np.ndarray:
    ...         counts = [len(text.split()) for text in table["annotation"].to_pylist()]
    ...         return np.minimum(np.array(counts) / self.words, 1.0)
    >>> chances_of(Long("long", words=4), pa.table({"annotation": ["a dog", "a dog on the beach", ""]}))
    array([0.5 , 1.  , 0.05])

    Attributes:
        name: what it is called in settings, reasons and the report.
        columns: the columns that it reads.
        least: the least chance, above 0: what tells no more than that counts as this much.

    It may have a ``revision``, a string: chances that were computed by another one are computed anew.
    """

    @property
    def name(self) -> str:  # noqa: D102
        ...

    @property
    def columns(self) -> Collection[str]:  # noqa: D102
        ...

    @property
    def least(self) -> float:  # noqa: D102
        ...

    def chances(self, table: pa.Table) -> Floats:
        """Return the chances ``(n,)`` float64 from 0 to 1, NaN where not known; each row by itself.

        Args:
            table: its columns, of ``n`` pairs.
        """
        ...


@dataclass(frozen=True)
class Stored:
    """A condition whose chances are a column already.

    Attributes:
        name: see `Condition`.
        column: the column, float64, null where the chance is not known.
        strength: how much the logarithm of the chance counts, in standard deviations of the topic.
        least: see `Condition`.
    """

    name: str
    column: str
    strength: float = 1.0
    least: float = LEAST_CHANCE

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Condition`."""
        return (self.column,)

    @property
    def beside(self) -> tuple[str, ...]:
        """Columns that say more of the chance to a person, where they are there."""
        return (MATCH_WHOLE, MATCH_SENTENCE, WEAKEST_SENTENCE) if self.column == MATCH else ()

    def chances(self, table: pa.Table) -> Floats:
        """See `Condition`."""
        chances: Floats = table[self.column].to_numpy().astype(np.float64)
        return chances

    def told(self, values: Mapping[str, Any]) -> Iterator[str]:
        """Yield lines that say more of a pair's chance, by what the columns `beside` it hold."""
        if self.column == MATCH:
            yield f"the annotation as a whole belongs to the data: {percent(values.get(MATCH_WHOLE))} likely"
            yield f"none of its sentences belongs to another pair: {percent(values.get(MATCH_SENTENCE))} likely"
            if sentence := values.get(WEAKEST_SENTENCE):
                yield f"the least likely sentence: {sentence!r}"


def percent(chance: float | None) -> str:
    """Return what a person reads for a chance."""
    return "not known" if chance is None else f"{chance:.0%}".replace("%", " %")


def stored(settings: RankingSettings, columns: Collection[str]) -> dict[str, Stored]:
    """Return the conditions that count, by name.

    ``match`` without ``match_probability`` is left out: it is in the default settings.

    Args:
        settings: how much each counts.
        columns: those of chances and of scores from elsewhere that the shards have.

    Raises:
        ConfigError: a condition that no column is of.
    """
    known = {MATCHES: Stored(MATCHES, MATCH)}
    for column in columns:
        for prefix, least in ((GIVEN, LEAST_CHANCE), (COMPUTED, 0.0)):  # what was computed has its least already
            if column.startswith(prefix):
                name = column.removeprefix(prefix)
                known[name] = Stored(name, column, least=least)
    conditions = {}
    for name, strength in sorted(settings.strengths.items()):
        if strength and name not in known:
            raise ConfigError(f"ranking.conditions: this run has no values of {name!r}{nearest(name, known)}")
        if strength and known[name].column in columns:
            conditions[name] = replace(known[name], strength=strength)
    return conditions


def chances_of(condition: Condition, table: pa.Table) -> Floats:
    """Return the chances ``(n,)`` float64 by a condition, at least its least one; NaN where it is not known.

    Raises:
        ConfigError: chances out of [0, 1], or not one for each pair.
    """
    values = np.asarray(condition.chances(table), dtype=np.float64)
    if values.shape != (table.num_rows,):
        raise ConfigError(
            f"ranking.conditions: {condition.name!r} has probabilities of shape {values.shape} for "
            f"{table.num_rows} pairs"
        )
    if ((values < 0) | (values > 1)).any():
        raise ConfigError(
            f"ranking.conditions: {condition.name!r} has values outside of [0, 1], which are not probabilities"
        )
    return np.where(np.isnan(values), np.nan, np.maximum(values, condition.least))


class ConditionStep(Step):
    """Adds the probabilities by the user's own conditions; null where a probability is not known.

    Args:
        specs: name -> class and arguments.
    """

    name = "conditions"

    def __init__(self, specs: Mapping[str, ConditionSpec]) -> None:
        self.specs = dict(specs)
        self._device = "cpu"

    @property
    def requires(self) -> Mapping[str, pa.DataType]:
        """What the conditions read, of whatever type."""
        return {column: pa.null() for condition in self._conditions() for column in condition.columns}

    @property
    def provides(self) -> Mapping[str, pa.DataType]:
        """One column of chances for each condition."""
        return {COMPUTED + name: pa.float64() for name in self.specs}

    def setup(self, device: str | None = None) -> None:
        """Make the conditions (nothing happens where this process has them)."""
        self._device = loader.pick_device(device)
        self._conditions()

    def identity(self) -> dict[str, Any]:
        """Classes, arguments, least chances, and revisions."""
        about = {
            condition.name: [spec.class_, spec.arguments, condition.least, str(getattr(condition, "revision", ""))]
            for condition, spec in zip(self._conditions(), self.specs.values(), strict=True)
        }
        return {**super().identity(), "conditions": about}

    def process(self, rows: Frame) -> Added:
        """Ask each condition.

        Raises:
            UserError: a condition fails, or its chances are none.
        """
        columns: dict[str, Any] = {}
        for condition in self._conditions():
            table = frames.to_table(rows[list(condition.columns)])
            with answering(f"condition {condition.name!r}"):
                columns[COMPUTED + condition.name] = pa.array(chances_of(condition, table), from_pandas=True)
        return Added(columns)

    def _conditions(self) -> list[Condition]:
        return [
            loader.load(name, spec.class_, spec.arguments, self._device, _checked) for name, spec in self.specs.items()
        ]


def _checked(name: str, condition: Condition) -> Condition:
    """Refuse what is no condition."""
    fulfil(name, condition, Condition)
    if condition.name != name:
        raise ModelError(f"condition {name!r} calls itself {condition.name!r}: let its class take its `name`")
    if not 0 < condition.least <= 1:
        raise ModelError(
            f"condition {name!r}: its least probability must be above 0 and at most 1, not {condition.least}"
        )
    return condition
