"""An ensemble is fitted to a pool: thresholds from sorted scores, the label model from counts of patterns alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nemo_mm_rank import frames
from nemo_mm_rank.arrays import Floats
from nemo_mm_rank.errors import ConfigError, MissingColumnError, UserError
from nemo_mm_rank.frames import Frame
from nemo_mm_rank.io.files import read_sealed, write_sealed
from nemo_mm_rank.io.owned import Claim
from nemo_mm_rank.quality.ensemble.model import LEAST, Fault, LabelModel, Rates, Summary, idle, summarise
from nemo_mm_rank.quality.ensemble.settings import EnsembleSettings, FunctionSettings, Quantile, Reject
from nemo_mm_rank.quality.ensemble.votes import ABSTAIN, LabelingFunction, PatternCounts, Votes, label_votes, vetoed
from nemo_mm_rank.schema import MODALITY
from nemo_mm_rank.shards import Shards, live_rows
from nemo_mm_rank.steps import by_value

FILE = "ensemble.json"

Functions = Mapping[str, tuple[LabelingFunction, ...]]
"""Modality -> the labeling functions as it has them: the same ones, each with thresholds of its own."""


@dataclass(frozen=True)
class Ensemble:
    """Labeling functions, and the label model that was fitted to the votes of those that are no veto.

    Attributes:
        names: of the ``m`` functions.
        functions: by modality.
        model: fitted.
        vetoes: names of the functions that veto.
    """

    names: tuple[str, ...]
    functions: Functions
    model: LabelModel
    vetoes: frozenset[str] = frozenset()

    @cached_property
    def voters(self) -> tuple[str, ...]:
        """Names of the functions that vote in the label model, in its order."""
        return tuple(name for name in self.names if name not in self.vetoes)

    def votes(self, frame: Frame) -> Votes:
        """Return ``(n, m)`` votes; nobody votes for a pair of a modality that the ensemble has not seen."""
        return vote_by_modality(frame, self.functions, len(self.names))

    def predict(self, votes: Votes) -> Floats:
        """Return ``(n,)`` P(good | votes), lowered by vetoes, of ``(n, m)`` votes."""
        veto = np.array([name in self.vetoes for name in self.names], dtype=bool)
        return vetoed(self.model.predict_proba(votes[:, ~veto]), votes[:, veto])

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON-able values; infinite thresholds are null."""
        return {
            "names": list(self.names),
            "vetoes": sorted(self.vetoes),
            "functions": {
                modality: [[f.column, _finite(f.low), _finite(f.high), list(f.allowed)] for f in functions]
                for modality, functions in self.functions.items()
            },
            "mu": self.model.mu.tolist(),
            "coverage": self.model.coverage.tolist(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Ensemble:
        """Return the ensemble that `as_json` described, to the bit."""
        functions = {
            modality: tuple(
                LabelingFunction(
                    column,
                    -math.inf if low is None else low,
                    math.inf if high is None else high,
                    tuple(allowed),
                )
                for column, low, high, allowed in found
            )
            for modality, found in values["functions"].items()
        }
        model = LabelModel.restored(np.array(values["mu"]), np.array(values["coverage"]))
        return cls(tuple(values["names"]), functions, model, frozenset(values.get("vetoes", ())))

    def save(self, folder: Path) -> None:
        """Write it into a folder, in one file.

        Raises:
            UserError: the folder is not ours to write.
        """
        folder = Claim("ensemble").make(folder)
        write_sealed(folder / FILE, self.as_json())

    @classmethod
    def load(cls, folder: Path) -> Ensemble:
        """Read it back.

        Raises:
            UserError: there is none, or it is damaged.
        """
        if not (folder / FILE).exists():
            raise UserError(f"{folder} contains no fitted ensemble (there is no {FILE})")
        return cls.from_json(read_sealed(folder / FILE))


def vote_by_modality(frame: Frame, functions: Functions, m: int) -> Votes:
    """Return ``(n, m)`` votes, each pair's by the functions of its modality; -1 where there are none.

    Raises:
        MissingColumnError: the frame lacks a column of scores.
    """
    votes = np.full((len(frame), m), ABSTAIN, dtype=np.int8)
    for modality, rows in by_value([str(value) for value in frames.strings(frame, MODALITY)]).items():
        if modality in functions:
            votes[rows] = label_votes(frame.iloc[rows], functions[modality])
    return votes


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class Settled:
    """A label model of the functions that are left, and the vetoes beside it.

    Attributes:
        model: fitted to the voters.
        voters: numbers of the functions that vote in it, ascending.
        vetoes: numbers of those that veto, ascending.
        counted: patterns of the voters' votes.
        left_out: number of a function -> why it is neither.
    """

    model: LabelModel
    voters: Sequence[int]
    vetoes: Sequence[int]
    counted: PatternCounts
    left_out: Mapping[int, Fault]

    def predict(self, votes: Votes) -> Floats:
        """Return ``(n,)`` the quality of pairs by ``(n, m)`` votes of all functions, those left out among them."""
        return vetoed(self.model.predict_proba(votes[:, self.voters]), votes[:, self.vetoes])


def settle(counted: PatternCounts, settings: EnsembleSettings) -> Settled | None:
    """Fit a label model to the functions that tell pairs apart, and let go of those that it turns round.

    One goes at a time, the least believed first, since the others may look better without it. Three are kept in any
    case. None where there are not even three that tell pairs apart. Vetoes have no part in it: one is left out only
    where it tells no pairs apart.

    Args:
        counted: patterns of all functions' votes.
        settings: what counts as telling nothing, which are vetoes, what is done to inverted functions, and of the
            label model.
    """
    left_out = {fault.function: fault for fault in idle(counted, settings.alike)}
    vetoes = [
        place for place, function in enumerate(settings.functions.values()) if function.veto and place not in left_out
    ]
    places = [place for place in range(counted.patterns.shape[1]) if place not in {*left_out, *vetoes}]
    if len(places) < LEAST:
        return None
    while True:
        counts = counted.only(places)
        model = settings.label_model.make().fit_counts(counts.patterns, counts.counts)
        faults = model.inverted
        if settings.inverted == "keep" or not faults or len(places) == LEAST:
            return Settled(model, places, vetoes, counts, left_out)
        worst = min(faults, key=lambda fault: float(model.weights[fault.function]))
        place = places.pop(worst.function)
        left_out[place] = Fault(place, worst.kind, worst.message)


Scores = npt.NDArray[np.floating]

FEW = 30
"""Of fewer scores the quartiles say too little to call any of them an outlier."""
WHISKER = 1.5
"""Interquartile ranges from a quartile to Tukey's inner fence."""


def resolve(settings: FunctionSettings, scores: Scores) -> LabelingFunction:
    """Return a labeling function with its thresholds as scores.

    Args:
        settings: of the function.
        scores: ``(n,)`` of its column in the pool, sorted, without NaN.
    """
    high = _top(scores, settings.select) if settings.select is not None else np.inf
    low = max((_low(scores, level) for level in settings.rejects), default=-np.inf)
    # A number and a share may cross: what is selected is not rejected.
    return LabelingFunction(settings.column, min(low, high), high, settings.allowed)


def _top(scores: Scores, level: float | Quantile) -> float:
    """Return the least score that no more than ``level`` of all reach; infinite where the highest are too many.

    Where many scores are equal, "top 40 %" is less than that, and may be none: a function that selected the whole
    crowd at its edge would say the same of nearly every pair.
    """
    if not isinstance(level, Quantile):
        return level
    most = _count(level, len(scores))
    if most == 0:
        return np.inf
    edge = len(scores) - most
    if edge and scores[edge - 1] == scores[edge]:
        edge = int(np.searchsorted(scores, scores[edge], side="right"))
    return float(scores[edge]) if edge < len(scores) else np.inf


def _low(scores: Scores, level: Reject) -> float:
    """Return the greatest score that is rejected: of a share, one that no more than so many stay at or below."""
    if isinstance(level, Quantile):
        return -_top(-scores[::-1], level)
    return level if isinstance(level, float) else _outlying(scores)


def _outlying(scores: Scores) -> float:
    """Return the greatest number below Tukey's inner fence, ``Q1 - 1.5 (Q3 - Q1)``; -infinity for few scores.

    Tukey, "Exploratory Data Analysis" (1977), section 2C. A quartile is one of the scores: the least that a quarter
    (three quarters) of all stay at or below. The fence itself is no outlier, so that of scores which are nearly all
    alike the common one is never rejected.
    """
    if len(scores) < FEW:
        return -np.inf
    first, third = (float(scores[-(-quarters * len(scores) // 4) - 1]) for quarters in (1, 3))
    # Equal ones may be infinite, and would have no difference.
    return float(np.nextafter(first - WHISKER * (third - first if third > first else 0.0), -np.inf))


def _count(level: Quantile, n: int) -> int:
    return int(n * Fraction(str(level.share)))


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
            f"ensemble: at least {LEAST} labeling functions (not counting vetoes) must have something to say"
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
    by_modality: dict[str, list[LabelingFunction]] = {modality: [] for modality in modalities}
    held: dict[str, dict[str, Scores]] = {}
    for function in settings.functions.values():
        if function.column not in held:
            # Functions on one column mostly stand side by side: no more than one column is held.
            held = {function.column: sorted_scores(shards, function.column, modalities, settings.by_modality)}
        for modality in modalities:
            by_modality[modality].append(resolve(function, held[function.column][modality]))
    return {modality: tuple(functions) for modality, functions in by_modality.items()}


def modalities_of(shards: Shards) -> list[str]:
    """Return the modalities of the pairs whose votes count."""
    return sorted({value for table in voters(shards, []) for value in table[MODALITY].unique().to_pylist()})


def sorted_scores(shards: Shards, column: str, modalities: Sequence[str], by_modality: bool) -> dict[str, Scores]:
    """Return a column's scores in the pool, sorted, without NaN, for each modality: its own, or those of all."""
    pieces: dict[str, list[Scores]] = {modality: [np.zeros(0)] for modality in modalities}
    for table in voters(shards, [column]):
        scores = frames.numbers(frames.from_table(table), column)
        for modality in table[MODALITY].unique().to_pylist():
            of_modality = scores[pc.equal(table[MODALITY], modality).to_numpy()]
            pieces[modality if by_modality else modalities[0]].append(of_modality[~np.isnan(of_modality)])
    ordered = {modality: np.sort(np.concatenate(pieces[modality])) for modality in modalities}
    return ordered if by_modality else dict.fromkeys(modalities, ordered[modalities[0]])


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
