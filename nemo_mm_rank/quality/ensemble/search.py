"""The search for labeling functions: thresholds that maximise EcoDatum's composite metric on a small labelled set.

M = a1 F1_tiny + a2 f_overlap - a3 f_conflict + a4 f_coverage (Xu et al.), the last three at data-set level on the raw
pool (equations 4 to 6, where "!= 0" is read as "does not abstain"). Small grids are tried one by one (algorithm 1; the
first of equals wins), larger ones by differential evolution (Storn and Price 1997) with a seed. The paper publishes
neither the coefficients nor the margins.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from math import prod
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field
from scipy.optimize import differential_evolution

from nemo_mm_rank import frames
from nemo_mm_rank.arrays import Floats, Ints
from nemo_mm_rank.config import Settings
from nemo_mm_rank.errors import ConfigError, nearest
from nemo_mm_rank.quality.ensemble import fit
from nemo_mm_rank.quality.ensemble.fit import LABELLED, MapShards, Settled
from nemo_mm_rank.quality.ensemble.model import LEAST, summarise
from nemo_mm_rank.quality.ensemble.settings import EnsembleSettings, FunctionSettings, Quantile
from nemo_mm_rank.quality.ensemble.votes import LabelingFunction, PatternCounts, Votes, label_votes
from nemo_mm_rank.schema import MODALITY
from nemo_mm_rank.shards import Shards
from nemo_mm_rank.steps import by_value

Bins = npt.NDArray[np.uint8]
Candidates = Sequence[LabelingFunction]
"""One function with different thresholds, all on the same column."""


@dataclass(frozen=True)
class Binning:
    """Bins of the functions as one modality has them.

    Attributes:
        columns: ``m`` columns of scores.
        edges: ``m`` arrays of thresholds, ascending: the least score of each bin but the first.
        votes: ``m`` arrays ``(candidates, bins)`` int8: how each candidate votes on each bin; the last is that of NaN.
    """

    columns: tuple[str, ...]
    edges: tuple[Floats, ...]
    votes: tuple[Votes, ...]

    @classmethod
    def of(cls, candidates: Sequence[Candidates]) -> Binning:
        """Return the bins that ``m`` functions with their candidates need."""
        edges = tuple(_edges(some) for some in candidates)
        votes = []
        for some, bounds in zip(candidates, edges, strict=True):
            least = pd.DataFrame({some[0].column: np.concatenate([[-np.inf], bounds, [np.nan]])})
            votes.append(label_votes(least, some).T)
        return cls(tuple(some[0].column for some in candidates), edges, tuple(votes))

    def bins(self, frame: frames.Frame) -> Bins:
        """Return ``(n, m)`` the bin of each score."""
        bins = np.empty((len(self.columns), len(frame)), dtype=np.uint8)
        for mine, column, edges in zip(bins, self.columns, self.edges, strict=True):
            scores = frames.numbers(frame, column)
            mine[:] = np.where(np.isnan(scores), len(edges) + 1, np.searchsorted(edges, scores, side="right"))
        return bins.T

    def pick(self, bins: Bins, choice: Sequence[int]) -> Votes:
        """Return ``(k, m)`` votes of the chosen candidate of each function."""
        votes = np.empty(bins.shape, dtype=np.int8)
        for function, (table, candidate) in enumerate(zip(self.votes, choice, strict=True)):
            votes[:, function] = table[candidate][bins[:, function]]
        return votes


def _edges(candidates: Candidates) -> Floats:
    # At or above a threshold, or above it: the least double that is.
    bounds = [candidate.high for candidate in candidates] + [
        np.nextafter(candidate.low, np.inf) for candidate in candidates if candidate.low > -np.inf
    ]
    edges = np.unique(np.array(bounds, dtype=np.float64))
    return edges[np.isfinite(edges)]


@dataclass(frozen=True)
class BinCounts:
    """How many pairs have scores in which bins.

    Attributes:
        bins: ``(k, m)``, different ones.
        counts: ``(k,)``.
    """

    bins: Bins
    counts: Ints

    @classmethod
    def of(cls, bins: Bins, counts: Ints | None = None) -> BinCounts:
        """Count the rows of ``(n, m)`` bins, each as often as ``counts`` says."""
        if counts is None:
            counts = np.ones(len(bins), dtype=np.int64)
        words = np.zeros((len(bins), -(-bins.shape[1] // 8) * 8), dtype=np.uint8)
        words[:, : bins.shape[1]] = bins
        keys = words.view(np.uint64)
        _, first, place = np.unique(
            keys[:, 0] if keys.shape[1] == 1 else keys,
            return_index=True,
            return_inverse=True,
            axis=0,
        )
        total = np.zeros(len(first), dtype=np.int64)
        np.add.at(total, place.reshape(-1), counts)
        return cls(bins[first], total)

    @classmethod
    def merged(cls, parts: Iterable[BinCounts]) -> BinCounts:
        """Add up the counts of shards."""
        pieces = list(parts)
        return cls.of(np.concatenate([part.bins for part in pieces]), np.concatenate([part.counts for part in pieces]))


Binned = Mapping[str, BinCounts]
"""Modality -> counts."""


def bin_table(table: pa.Table, binnings: Mapping[str, Binning]) -> dict[str, BinCounts]:
    """Count the rows of a table, modality by modality.

    Args:
        table: with ``modality`` and the columns of scores.
        binnings: by modality; others are left out.
    """
    frame = frames.from_table(table)
    groups = by_value([str(value) for value in frames.strings(frame, MODALITY)])
    return {
        modality: BinCounts.of(binnings[modality].bins(frame.iloc[rows]))
        for modality, rows in groups.items()
        if modality in binnings
    }


def merge(parts: Iterable[Binned]) -> dict[str, BinCounts]:
    """Add up the counts of shards."""
    by_modality: dict[str, list[BinCounts]] = {}
    for part in parts:
        for modality, counts in part.items():
            by_modality.setdefault(modality, []).append(counts)
    return {modality: BinCounts.merged(some) for modality, some in sorted(by_modality.items())}


def patterns(binned: Binned, binnings: Mapping[str, Binning], choice: Sequence[int]) -> PatternCounts:
    """Return the patterns of votes that a choice of candidates gives."""
    return PatternCounts.merged(
        PatternCounts(binnings[modality].pick(counts.bins, choice), counts.counts)
        for modality, counts in binned.items()
    )


Percent = Annotated[float, Field(ge=0, lt=100)]


class MetricWeights(Settings):
    """The coefficients of M; the paper's are not published."""

    f1: float = Field(1.0, ge=0)
    overlap: float = Field(1.0, ge=0)
    conflict: float = Field(1.0, ge=0)
    coverage: float = Field(1.0, ge=0)


class SearchSettings(Settings):
    """The thresholds that are tried."""

    weights: MetricWeights = MetricWeights()
    tops: tuple[Percent, ...] = Field(
        (20, 30, 40, 50, 60, 70, 80), min_length=1, description="Percent of the pool that lie above the boundary."
    )
    margins: tuple[Percent, ...] = Field(
        (0, 10), min_length=1, description="Percent of the pool on each side of the boundary that get no vote."
    )
    functions: tuple[str, ...] | None = Field(
        None,
        description="The labeling functions to search thresholds for. Default: all whose thresholds are shares of"
        " the pool.",
    )
    exhaustive: int = Field(2_000, ge=1, description="A grid with at most this many points is searched completely.")
    evaluations: int = Field(2_000, ge=10, description="About how many points of a larger grid are tried.")
    seed: int = Field(0, ge=0, lt=2**32)


class Candidate(NamedTuple):
    """One boundary of one function."""

    top: float | None
    margin: float | None
    settings: FunctionSettings


@dataclass(frozen=True)
class SearchResult:
    """What a search has found.

    Attributes:
        settings: the ensemble with the best thresholds.
        trace: one row per point that was tried, in that order: ``<function>__top`` and ``<function>__margin`` in
            percent, ``f1, overlap, conflict, coverage, m``, and ``best``. ``m`` is null where fewer than three
            functions were left that say anything.
    """

    settings: EnsembleSettings
    trace: pa.Table

    @property
    def best(self) -> dict[str, Any]:
        """The row of the trace that won."""
        row: dict[str, Any] = self.trace.filter(self.trace["best"]).to_pylist()[0]
        return row


def candidates(ensemble: EnsembleSettings, settings: SearchSettings) -> dict[str, list[Candidate]]:
    """Return what is tried of each function; one that is not searched has its own thresholds as the only candidate.

    Raises:
        ConfigError: a function to be searched that there is not, or that has no candidate.
    """
    for name in settings.functions or ():
        if name not in ensemble.functions:
            raise ConfigError(f"search: no labeling function {name!r}{nearest(name, ensemble.functions)}")
    choices = {}
    for name, function in ensemble.functions.items():
        levels = [level for level in (function.select, *function.rejects) if level is not None]
        by_share = all(isinstance(level, Quantile) for level in levels)
        if name in settings.functions if settings.functions is not None else by_share:
            choices[name] = list(_candidates(function, settings))
            if not choices[name]:
                raise ConfigError(
                    f"search: {name!r} has no candidate: every margin is wider than its tops leave room for"
                )
        else:
            choices[name] = [Candidate(None, None, function)]
    return choices


def _candidates(function: FunctionSettings, settings: SearchSettings) -> Iterator[Candidate]:
    for top, margin in product(settings.tops, settings.margins):
        above, beside = Fraction(str(top)) / 100, Fraction(str(margin)) / 100
        select, reject = above - beside, 1 - above - beside
        levels: dict[str, dict[str, float]] = {}
        if function.select is not None:
            levels["select"] = {"share": float(select)}
        if function.reject is not None:
            levels["reject"] = {"share": float(reject)}
        if all(0 < level["share"] < 1 for level in levels.values()):
            same = {"column": function.column, "veto": function.veto}
            yield Candidate(top, margin, FunctionSettings.model_validate({**same, **levels}))


def search(shards: Shards, ensemble: EnsembleSettings, settings: SearchSettings, map_shards: MapShards) -> SearchResult:
    """Search for the thresholds of an ensemble's functions; see `Search`.

    Args:
        shards: with ``modality``, the columns of scores, and ``labelled``: true for clean pairs and false for noisy
            ones of the small set, null for the raw pool.
        ensemble: the functions to begin with.
        settings: what is tried.
        map_shards: counts shard by shard.

    Raises:
        MissingColumnError: a shard lacks a column.
        ConfigError: there is nothing to search, or nothing labelled.
    """
    options = candidates(ensemble, settings)
    modalities = fit.modalities_of(shards)
    binnings: dict[str, list[list[LabelingFunction]]] = {modality: [] for modality in modalities}
    for some in options.values():
        scores = fit.sorted_scores(shards, some[0].settings.column, modalities, ensemble.by_modality)
        for modality in modalities:
            binnings[modality].append([fit.resolve(candidate.settings, scores[modality]) for candidate in some])
    counting = CountBins(shards, {modality: Binning.of(functions) for modality, functions in binnings.items()})
    parts = [counts for _, counts in map_shards(counting, range(shards.count))]
    pool, clean, noisy = (merge(part[place] for part in parts) for place in range(3))
    for what, counts in (("clean", clean), ("noisy", noisy)):
        if not counts:
            raise ConfigError(f"search: the labelled set has no {what} pair that could be judged")
    return Search(ensemble, settings, options, counting.binnings, pool, clean, noisy).run()


@dataclass(frozen=True)
class CountBins:
    """Counts a shard's scores by bin: the raw pool's, and those of clean and of noisy pairs. Callable on any worker.

    Attributes:
        shards: with the columns of scores.
        binnings: by modality.
    """

    shards: Shards
    binnings: Mapping[str, Binning]

    def __call__(self, part: int) -> tuple[Binned, Binned, Binned]:
        """Count one shard."""
        columns = sorted({column for binning in self.binnings.values() for column in binning.columns})
        pool = fit.voting_rows(self.shards, part, columns)
        labelled = fit.labelled_rows(self.shards, part, columns)
        good = labelled[LABELLED]
        raw, clean, noisy = (
            bin_table(table, self.binnings) for table in (pool, labelled.filter(good), labelled.filter(pc.invert(good)))
        )
        return raw, clean, noisy


@dataclass
class Search:
    """A search over counted scores.

    Args:
        ensemble: the functions to begin with.
        settings: what is tried.
        options: what `candidates` returns.
        binnings: of those, by modality, thresholds as scores of the pool.
        pool: the raw pool, counted.
        clean, noisy: the labelled set, counted.
    """

    ensemble: EnsembleSettings
    settings: SearchSettings
    options: Mapping[str, Sequence[Candidate]]
    binnings: Mapping[str, Binning]
    pool: Binned
    clean: Binned
    noisy: Binned

    def run(self) -> SearchResult:
        """Try the grid, and return the best of it with the whole trace.

        Raises:
            ConfigError: no point leaves three functions that say anything.
        """
        sizes = [len(options) for options in self.options.values()]
        tried: dict[tuple[int, ...], dict[str, float | None]] = {}

        def value(point: Sequence[float]) -> float:
            choice = tuple(round(place) for place in point)
            if choice not in tried:
                tried[choice] = self.measure(choice)
            m = tried[choice]["m"]
            return np.inf if m is None else -m

        if prod(sizes) <= self.settings.exhaustive:
            for choice in product(*map(range, sizes)):
                value(choice)
        else:
            self._evolve(value, sizes)
        good = {choice: row["m"] for choice, row in tried.items() if row["m"] is not None}
        if not good:
            raise ConfigError(f"search: no thresholds leave {LEAST} labeling functions that say anything")
        best = max(good, key=lambda choice: good[choice])  # the first of equals
        functions = {
            name: options[place].settings for (name, options), place in zip(self.options.items(), best, strict=True)
        }
        return SearchResult(self.ensemble.model_copy(update={"functions": functions}), self._trace(tried, best))

    def _evolve(self, value: Any, sizes: Sequence[int]) -> None:
        free = [place for place, size in enumerate(sizes) if size > 1]
        population = max(20, 4 * len(free))

        def of_free(point: Sequence[float]) -> float:
            whole = np.zeros(len(sizes))
            whole[free] = point
            return float(value(whole.tolist()))

        random = np.random.RandomState(self.settings.seed)
        start = np.stack([random.randint(0, sizes[place], population) for place in free], axis=1)
        differential_evolution(
            of_free,
            bounds=[(0, sizes[place] - 1) for place in free],
            integrality=[True] * len(free),
            init=start.astype(np.float64),
            maxiter=max(1, self.settings.evaluations // population - 1),
            tol=0,
            polish=False,
            seed=random,
        )

    def measure(self, choice: Sequence[int]) -> dict[str, float | None]:
        """Return ``f1, overlap, conflict, coverage`` and ``m`` of one point."""
        settled = fit.settle(patterns(self.pool, self.binnings, choice), self.ensemble)
        if settled is None:
            return dict.fromkeys(("f1", "overlap", "conflict", "coverage", "m"))
        right, wrong = (self._selected(labelled, choice, settled) for labelled in (self.clean, self.noisy))
        positives = sum(int(counts.counts.sum()) for counts in self.clean.values())
        f1 = 2 * right / (right + wrong + positives) if right else 0.0
        data, weights = summarise(settled.counted).data, self.settings.weights
        m = (
            weights.f1 * f1
            + weights.overlap * data.overlap
            - weights.conflict * data.conflict
            + weights.coverage * data.coverage
        )
        return {"f1": f1, "overlap": data.overlap, "conflict": data.conflict, "coverage": data.coverage, "m": m}

    def _selected(self, labelled: Binned, choice: Sequence[int], settled: Settled) -> int:
        """Return how many labelled pairs are more likely good than not; a tie selects nobody."""
        counted = patterns(labelled, self.binnings, choice)
        return int(counted.counts[settled.predict(counted.patterns) > 0.5].sum())

    def _trace(self, tried: Mapping[tuple[int, ...], Mapping[str, float | None]], best: tuple[int, ...]) -> pa.Table:
        columns: dict[str, list[Any]] = {}
        for place, (name, options) in enumerate(self.options.items()):
            if len(options) > 1:
                columns[f"{name}__top"] = [options[choice[place]].top for choice in tried]
                columns[f"{name}__margin"] = [options[choice[place]].margin for choice in tried]
        for measure in ("f1", "overlap", "conflict", "coverage", "m"):
            columns[measure] = [row[measure] for row in tried.values()]
        table = pa.table({name: pa.array(values, pa.float64()) for name, values in columns.items()})
        return table.append_column("best", pa.array([choice == best for choice in tried]))
