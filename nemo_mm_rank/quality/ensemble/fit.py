"""An ensemble is fitted to a pool: thresholds from sorted scores, the label model from counts of patterns alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nemo_mm_rank import frames
from nemo_mm_rank.errors import ConfigError, MissingColumnError
from nemo_mm_rank.quality.ensemble.artifact import Ensemble, Functions, vote_by_modality
from nemo_mm_rank.quality.ensemble.guards import Fault, idle
from nemo_mm_rank.quality.ensemble.model import LEAST
from nemo_mm_rank.quality.ensemble.patterns import PatternCounts
from nemo_mm_rank.quality.ensemble.settings import EnsembleSettings
from nemo_mm_rank.quality.ensemble.settle import settle
from nemo_mm_rank.quality.ensemble.summary import Rates, Summary, summarise
from nemo_mm_rank.quality.ensemble.thresholds import Scores, resolve
from nemo_mm_rank.quality.ensemble.votes import LabelingFunction
from nemo_mm_rank.ranking.pool import Shards, live_rows
from nemo_mm_rank.schema import MODALITY

DUPLICATE_OF = "duplicate_of"
"""The pair that stays in the place of this one (string, null for a pair that stays): no vote of it is counted."""

LABELLED = "labelled"
"""Whether a pair of a small labelled set is clean (bool, null for all others): it is there to search with, no vote of
it is counted, and it is never chosen."""

T = TypeVar("T")


class MapShards(Protocol):
    """An engine's ``map``."""

    def __call__(self, task: Callable[[int], T], parts: Sequence[int], /) -> Iterable[tuple[int, T]]:
        """Yield ``(part, result)`` in any order."""
        ...


@dataclass(frozen=True)
class Fitted:
    """An ensemble, and what is known of it.

    Attributes:
        ensemble: of the functions that say something.
        summary: how often those vote, in the order of their names, vetoes among them.
        pairs: that were counted.
        left_out: name -> why a function is no part of it.
    """

    ensemble: Ensemble
    summary: Summary
    pairs: int
    left_out: Mapping[str, Fault]

    @property
    def warnings(self) -> list[str]:
        """What somebody should read."""
        names = self.ensemble.voters
        lines = [f"labeling function {name!r} {fault.message}; it is left out" for name, fault in self.left_out.items()]
        return lines + [
            f"labeling function {names[fault.function]!r} {fault.message}; its votes count the other way round"
            for fault in self.ensemble.model.inverted
        ]

    def as_json(self) -> dict[str, Any]:
        """Return plain values for a manifest; a veto has no weight."""
        functions: Rates[Any] = self.summary.functions
        weights = dict(zip(self.ensemble.voters, self.ensemble.model.weights.tolist(), strict=True))
        table = {
            name: {
                "coverage": float(functions.coverage[place]),
                "overlap": float(functions.overlap[place]),
                "conflict": float(functions.conflict[place]),
                "selects": float(self.summary.selects[place]),
                "rejects": float(self.summary.rejects[place]),
                "veto": name in self.ensemble.vetoes,
                "weight": weights.get(name),
                "thresholds": {
                    modality: {"low": values[1], "high": values[2]}
                    for modality, found in self.ensemble.as_json()["functions"].items()
                    for values in [found[place]]
                },
            }
            for place, name in enumerate(self.ensemble.names)
        }
        data = self.summary.data
        return {
            "pairs": self.pairs,
            "functions": table,
            "data": {"coverage": data.coverage, "overlap": data.overlap, "conflict": data.conflict},
            "left_out": {name: fault.kind for name, fault in self.left_out.items()},
            "warnings": self.warnings,
        }


def fit(shards: Shards, settings: EnsembleSettings, map_shards: MapShards) -> Fitted:
    """Fit thresholds and label model to a pool. Pairs with an error and duplicates are not looked at.

    Scores are held for one column at a time, to sort them; of the votes only counts of patterns leave a shard.

    Args:
        shards: with ``modality``, the columns of scores, and ``duplicate_of`` where duplicates are known.
        settings: the functions.
        map_shards: counts shard by shard.

    Raises:
        MissingColumnError: a shard lacks a column of scores.
        ConfigError: fewer than three functions are left that say anything.
    """
    functions = thresholds(shards, settings)
    names = list(settings.functions)
    counting = CountVotes(shards, functions, len(names))
    counted = PatternCounts.merged(counts for _, counts in map_shards(counting, range(shards.count)))
    settled = settle(counted, settings)
    if settled is None:
        why = "; ".join(f"{names[fault.function]!r} {fault.message}" for fault in idle(counted, settings.alike))
        raise ConfigError(
            f"ensemble: at least {LEAST} labeling functions, vetoes aside, have to say something"
            + (f": {why}" if why else "")
        )
    kept = sorted([*settled.voters, *settled.vetoes])
    mine = {modality: tuple(found[place] for place in kept) for modality, found in functions.items()}
    vetoes = frozenset(names[place] for place in settled.vetoes)
    ensemble = Ensemble(tuple(names[place] for place in kept), mine, settled.model, vetoes)
    left_out = {names[place]: fault for place, fault in settled.left_out.items()}
    return Fitted(ensemble, summarise(counted.only(kept)), counted.n, left_out)


def thresholds(shards: Shards, settings: EnsembleSettings) -> Functions:
    """Return the functions with their thresholds as scores, for every modality of the pool."""
    modalities = modalities_of(shards)
    found: dict[str, list[LabelingFunction]] = {modality: [] for modality in modalities}
    held: dict[str, dict[str, Scores]] = {}
    for function in settings.functions.values():
        if function.column not in held:
            # Functions on one column mostly stand side by side: no more than one column is held.
            held = {function.column: sorted_scores(shards, function.column, modalities, settings.by_modality)}
        for modality in modalities:
            found[modality].append(resolve(function, held[function.column][modality]))
    return {modality: tuple(functions) for modality, functions in found.items()}


def modalities_of(shards: Shards) -> list[str]:
    """Return the modalities of the pairs whose votes count."""
    return sorted({value for table in voters(shards, []) for value in table[MODALITY].unique().to_pylist()})


def sorted_scores(shards: Shards, column: str, modalities: Sequence[str], by_modality: bool) -> dict[str, Scores]:
    """Return a column's scores in the pool, sorted, without NaN, for each modality: its own, or those of all."""
    pieces: dict[str, list[Scores]] = {modality: [np.zeros(0)] for modality in modalities}
    for table in voters(shards, [column]):
        scores = frames.numbers(frames.from_table(table), column)
        for modality in table[MODALITY].unique().to_pylist():
            mine = scores[pc.equal(table[MODALITY], modality).to_numpy()]
            pieces[modality if by_modality else modalities[0]].append(mine[~np.isnan(mine)])
    found = {modality: np.sort(np.concatenate(pieces[modality])) for modality in modalities}
    return found if by_modality else dict.fromkeys(modalities, found[modalities[0]])


@dataclass(frozen=True)
class CountVotes:
    """Counts a shard's patterns of votes. Callable for one shard, on any worker.

    Attributes:
        shards: with the columns of scores.
        functions: by modality.
        m: number of functions.
    """

    shards: Shards
    functions: Functions
    m: int

    def __call__(self, part: int) -> PatternCounts:
        """Count one shard."""
        columns = {function.column for functions in self.functions.values() for function in functions}
        table = voting_rows(self.shards, part, sorted(columns))
        return PatternCounts.of(vote_by_modality(frames.from_table(table), self.functions, self.m))


def voters(shards: Shards, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yield per shard modality and ``columns`` of the pairs whose votes count."""
    for part in range(shards.count):
        yield voting_rows(shards, part, columns)


def voting_rows(shards: Shards, part: int, columns: Sequence[str]) -> pa.Table:
    """Return modality and ``columns`` of one shard's pairs that have no error, are no duplicate and not labelled.

    Raises:
        MissingColumnError: the shard lacks a column.
    """
    table = _rows(shards, part, [MODALITY, *columns], [DUPLICATE_OF, LABELLED])
    for name in (DUPLICATE_OF, LABELLED):
        if name in table.column_names:
            table = table.filter(pc.is_null(table[name])).drop_columns([name])
    return table


def labelled_rows(shards: Shards, part: int, columns: Sequence[str]) -> pa.Table:
    """Return modality, ``labelled`` and ``columns`` of one shard's labelled pairs, duplicates too.

    Raises:
        MissingColumnError: the shard lacks a column.
    """
    table = _rows(shards, part, [MODALITY, LABELLED, *columns], [])
    return table.filter(pc.is_valid(table[LABELLED]))


def _rows(shards: Shards, part: int, columns: Sequence[str], besides: Sequence[str]) -> pa.Table:
    _, table = live_rows(shards, part, [*columns, *besides])
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise MissingColumnError(f"ensemble: shard {part} lacks {', '.join(map(repr, missing))}")
    return table
