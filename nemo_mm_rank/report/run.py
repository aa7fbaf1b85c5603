"""A finished run's folder, opened for a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nemo_mm_rank.arrays import Floats, Ints
from nemo_mm_rank.config import Config, RankingSettings
from nemo_mm_rank.io.files import read_sealed, read_table
from nemo_mm_rank.ranking.blend import Ranking
from nemo_mm_rank.ranking.candidates import Groups
from nemo_mm_rank.ranking.scoring import Scoring
from nemo_mm_rank.run.finished import FinishedRun, State
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.run.store import ShardStore
from nemo_mm_rank.sampling import hashes
from nemo_mm_rank.schema import MODALITY, PAIR_ID
from nemo_mm_rank.shards import Shards


@dataclass(frozen=True)
class Scored:
    """Every ranked pair of a pool, in 40 bytes each.

    Attributes:
        scores: ``(n,)`` float64.
        places: ``(n, 2)`` int64 shard number and row.
        modality: ``(n,)`` codes of ``modalities``.
        modalities: sorted names.
        group: ``(n,)`` codes of the ranking's groups: those with a quota, and the rest.
        key: ``(n,)`` uint64 stable hashes of the ids, to draw samples by.
    """

    scores: Floats
    places: Ints
    modality: Ints
    modalities: tuple[str, ...]
    group: Ints
    key: npt.NDArray[np.uint64]

    @classmethod
    def read(cls, scoring: Scoring, shards: Shards, groups: Groups, seed: int) -> Scored:
        """Score the pool in one pass."""
        modalities = tuple(sorted(scoring.counts[MODALITY]))
        known = pa.array(modalities, pa.string())
        columns: list[tuple[Any, ...]] = []
        for batch in scoring.batches(shards):
            codes = pc.index_in(batch.words[MODALITY], value_set=known).to_numpy()
            places = np.stack([np.full(len(batch.rows), batch.part), batch.rows], axis=1)
            keys = hashes(batch.words[PAIR_ID].to_pylist(), seed)
            columns.append((batch.scores, places, codes, groups.codes(batch.words), keys))
        scores, places, codes, group, keys = (np.concatenate(column) for column in zip(*columns, strict=True))
        return cls(scores, places.astype(np.int64), codes.astype(np.int64), modalities, group, keys)

    def find(self, places: Ints) -> Ints:
        """Return the positions of the pairs at ``places`` ``(k, 2)``, all of which have been ranked."""
        width = int(self.places[:, 1].max(initial=0)) + 1
        keys, asked = self.places @ [width, 1], places @ [width, 1]
        order = np.argsort(keys)
        positions: Ints = order[np.searchsorted(keys[order], asked)]
        return positions

    def named(self, pair_ids: Sequence[str], seed: int) -> Ints:
        """Return the positions of the pairs of these names, found by the hashes of ``seed``; none for unknown ones."""
        keys = hashes(pair_ids, seed)
        order = np.argsort(self.key)
        positions: Ints = order[np.minimum(np.searchsorted(self.key[order], keys), len(order) - 1)]
        known: Ints = positions[self.key[positions] == keys]
        return known

    def sample(self, count: int) -> Ints:
        """Return the positions of ``count`` pairs drawn by the hash of their ids; a larger sample begins with it."""
        return np.argsort(self.key, kind="stable")[:count]


def leading(orders: Sequence[Ints], modality: Ints, overall: int, each: int) -> Ints:
    """Return positions that begin the ``orders``: the first ``overall`` of each, and the first ``each`` per modality.

    Modalities and orders take turns, so that where a caller stops early none has been left out. Each comes once.

    Args:
        orders: positions, best first.
        modality: ``(n,)`` codes, by position.
        overall: of each order.
        each: of each modality in each order.
    """
    firsts, turns = [], []
    for order in orders:
        turn = _turns(modality[order])
        first = (np.arange(len(order)) < overall) | (turn < each)
        firsts.append(order[first])
        turns.append(turn[first])
    in_turn = np.concatenate(firsts)[np.argsort(np.concatenate(turns), kind="stable")]
    return in_turn[np.sort(np.unique(in_turn, return_index=True)[1])]


def _turns(codes: Ints) -> Ints:
    """Return ``(n,)`` how many before each have the same code."""
    order = np.argsort(codes, kind="stable")
    _, starts, counts = np.unique(codes[order], return_index=True, return_counts=True)
    turns = np.empty(len(codes), dtype=np.int64)
    turns[order] = np.arange(len(codes)) - np.repeat(starts, counts)
    return turns


@dataclass(frozen=True)
class Run:
    """What a report reads of a finished run.

    Attributes:
        folder: where it lies.
        manifest: what vouches for its blend.
        config: as it was ranked last.
        shards: the pool with all that steps have added, scores last.
        ranking: the blend and its summary.
        scoring: from cosines to scores.
        groups: those that have a quota, and the rest.
        scored: every ranked pair.
        quarantine: the pairs that were not ranked.
    """

    folder: RunFolder
    manifest: dict[str, Any]
    config: Config
    shards: ShardStore
    ranking: Ranking
    scoring: Scoring
    groups: Groups
    scored: Scored
    quarantine: pa.Table

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Read a run's folder: one pass over the columns of cosines for the statistics, one for the scores.

        Raises:
            UserError: it is no run, or not finished.
        """
        finished = FinishedRun.load(path, trust=None)
        folder = RunFolder.at(path)
        shards = State.load(folder).scored(folder)
        ranking = Ranking.load(folder.ranking)
        settings = RankingSettings.model_validate(ranking.summary["settings"])
        groups = Groups.of(settings.quota_by or MODALITY, settings.quotas)
        return cls(
            folder=folder,
            manifest=read_sealed(folder.manifest),
            config=finished.config,
            shards=shards,
            ranking=ranking,
            scoring=finished.scoring,
            groups=groups,
            scored=Scored.read(finished.scoring, shards, groups, finished.config.seed),
            quarantine=read_table(folder.quarantine),
        )

    @property
    def cuts(self) -> list[float | None]:
        """The score of the last pair chosen, by group; where quotas were filled up by others, the lower of the two."""
        summary = self.ranking.summary
        filling = summary["filling"]["cut"]
        by_group = {entry["group"]: entry["cut"] for entry in summary["groups"]}
        cuts: list[float | None] = []
        for name in self.groups.names:
            scores = [cut["score"] for cut in (by_group.get(name), filling) if cut is not None]
            cuts.append(min(scores) if scores else None)
        return cuts

    @cached_property
    def distance(self) -> Floats:
        """``(n,)`` how far each score is from the cut of its group; NaN where nothing was chosen from that."""
        cuts = np.array([np.nan if cut is None else cut for cut in self.cuts])
        distance: Floats = self.scored.scores - cuts[self.scored.group]
        return distance

    @cached_property
    def chosen(self) -> Ints:
        """``(k,)`` the positions of the blend's pairs among the ranked ones, best first."""
        return self.scored.find(self.ranking.places)
