"""The top of a ranking, overall and of each group, collected over all shards in one pass."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from nemo_mm_rank.arrays import Floats, Ints
from nemo_mm_rank.config.ranking import GROUPINGS
from nemo_mm_rank.errors import ConfigError, nearest
from nemo_mm_rank.io.files import read_table
from nemo_mm_rank.mix import type_of
from nemo_mm_rank.ranking.scoring import WORDS, Batch, Scoring
from nemo_mm_rank.ranking.select import REST
from nemo_mm_rank.schema import MODALITY, PAIR_ID
from nemo_mm_rank.shards import Shards
from nemo_mm_rank.topk import TopK, top_k

_PART, _ROW, SCORE, CHANCE = "_part", "_row", "score_", "chance_"
"""Columns that candidates carry: where the row lies, ``score_<component>`` and ``chance_<condition>``."""


@dataclass(frozen=True)
class Groups:
    """How rows fall into groups: those with a quota, and the rest.

    Attributes:
        by: the column that says, ``type``, which the modality decides, or a Parquet file of `GROUP` by ``pair_id``.
        names: the groups, `REST` last; a row's code is its group's place here.
        given: ``pair_id`` -> group, where a file says so.
    """

    by: str
    names: tuple[str, ...]
    given: pd.Series[str] | None = None

    @classmethod
    def of(cls, by: str, shares: Mapping[str, float]) -> Groups:
        """Make groups of those that have a share.

        Raises:
            ConfigError: a file that cannot be read, or that does not know a group.
        """
        names = (*sorted(shares), REST)
        if by in GROUPINGS:
            return cls(by, names)
        given = read_groups(by)
        known = set(given)
        for name in shares:
            if name not in known:
                raise ConfigError(f"ranking.quotas: {by} has no group {name!r}{nearest(name, known)}")
        return cls(by, names, given)

    @property
    def column(self) -> str:
        """The column that decides."""
        return PAIR_ID if self.given is not None else MODALITY if self.by == "type" else self.by

    def codes(self, words: pa.Table) -> Ints:
        """Return ``(n,)`` int64 codes."""
        if self.given is not None:
            return self.codes_of(self.given.reindex(words[PAIR_ID].to_pylist()).tolist())
        encoded = words[self.column].combine_chunks().dictionary_encode()
        values = self.codes_of(encoded.dictionary.to_pylist())
        rest = len(self.names) - 1  # a row whose column holds nothing
        codes: Ints = np.append(values, rest)[encoded.indices.fill_null(len(values)).to_numpy()]
        return codes

    def codes_of(self, values: Sequence[str]) -> Ints:
        """Return the codes of rows by what their column holds: ``(v,)`` int64."""
        place = {name: code for code, name in enumerate(self.names[:-1])}
        named = [type_of(value) if self.by == "type" else value for value in values]
        return np.array([place.get(name, len(place)) for name in named], dtype=np.int64)

    def count(self, codes: Ints) -> Ints:
        """Return ``(g,)`` int64, how many rows each group has."""
        return np.bincount(codes, minlength=len(self.names)).astype(np.int64)


GROUP = "group"
"""The column of a file that says which group a pair is in."""


def read_groups(file: str) -> pd.Series[str]:
    """Return ``pair_id`` -> group, as a Parquet file says.

    Raises:
        ConfigError: it cannot be read, lacks a column, or has a pair twice.
    """
    try:
        schema = pq.read_schema(file)
        for wanted in (PAIR_ID, GROUP):
            if wanted not in schema.names:
                raise ConfigError(f"ranking.quota_by: {file} has no column {wanted!r}; {', '.join(schema.names)}")
        table = read_table(Path(file), [PAIR_ID, GROUP], our=False)
    except (OSError, pa.ArrowInvalid) as error:
        line = " ".join(str(error).split())
        raise ConfigError(f"ranking.quota_by: {file} cannot be read as Parquet: {line}") from error
    ids, groups = (table[name].cast(pa.string()).to_pylist() for name in (PAIR_ID, GROUP))
    given = pd.Series(groups, index=pd.Index(ids), dtype=object)
    if not given.index.is_unique:
        raise ConfigError(f"ranking.quota_by: {file} has a {PAIR_ID} twice")
    return given


@dataclass(frozen=True)
class Candidates:
    """The best rows of every group, in rank order: score, then ``pair_id``.

    Attributes:
        rows: ``pair_id, pool, modality``, components, and where the row lies.
        scores: ``(n,)``.
        codes: ``(n,)`` each one's group.
        leading: so many of the first are the best of the whole pool, without gaps.
    """

    rows: pa.Table
    scores: Floats
    codes: Ints
    leading: int

    @property
    def places(self) -> Ints:
        """``(n, 2)`` shard number and row of each."""
        places: Ints = np.stack([self.rows[_PART].to_numpy(), self.rows[_ROW].to_numpy()], axis=1)
        return places

    def take(self, positions: Ints) -> Candidates:
        """Return some of them, in the order of ``positions``; what leads the pool is not said."""
        return Candidates(self.rows.take(pa.array(positions)), self.scores[positions], self.codes[positions], 0)

    @classmethod
    def collect(
        cls, scoring: Scoring, shards: Shards, groups: Groups, limits: Ints, leading: int, threshold: float
    ) -> Candidates:
        """Keep the best ``limits[g]`` of each group ``g`` and the best ``leading`` of all, from ``threshold`` on."""
        schema = _schema(scoring)
        best = [TopK(int(limit)) for limit in limits]
        overall = TopK(leading)
        for batch in scoring.batches(shards):
            rows = _carried(batch, schema)
            codes = groups.codes(rows)
            inside = batch.scores >= threshold
            for code, top in enumerate(best):
                _add(top, batch.scores, rows, inside & (codes == code))
            _add(overall, batch.scores, rows, inside)
        held = [found for top in (*best, overall) if (found := top.result()) is not None]
        if not held:
            return cls(schema.empty_table(), np.zeros(0), np.zeros(0, dtype=np.int64), 0)
        scores = np.concatenate([found[0] for found in held])
        rows = pa.concat_tables([found[2] for found in held])
        # The overall best are among their groups' best too: each row once.
        place = (rows[_PART].to_numpy() << 40) | rows[_ROW].to_numpy()
        once = np.unique(place, return_index=True)[1]
        scores, rows = scores[once], rows.take(pa.array(once))
        order = top_k(scores, len(scores), rows[PAIR_ID])
        rows = rows.take(pa.array(order)).combine_chunks()
        return cls(rows, scores[order], groups.codes(rows), min(leading, len(order)))


def _add(top: TopK, scores: Floats, rows: pa.Table, inside: npt.NDArray[np.bool_]) -> None:
    where = np.flatnonzero(inside & (scores >= top.floor))
    if top.k and len(where):
        taken = rows.take(pa.array(where))
        top.add(scores[where], taken[PAIR_ID], taken)


def _schema(scoring: Scoring) -> pa.Schema:
    words = [(name, pa.string()) for name in WORDS]
    components = [(SCORE + name, pa.float64()) for name in scoring.topic.narrow.weights]
    chances = [(CHANCE + name, pa.float64()) for name in scoring.conditions]
    return pa.schema([*words, *components, *chances, (_PART, pa.int64()), (_ROW, pa.int64())])


def _carried(batch: Batch, schema: pa.Schema) -> pa.Table:
    components = [pa.array(values) for values in batch.components.values()]
    chances = [pa.array(values, mask=np.isnan(values)) for values in batch.chances.values()]
    place = [pa.array(np.full(len(batch.rows), batch.part)), pa.array(batch.rows)]
    words = [batch.words[name].cast(pa.string()) for name in WORDS]
    return pa.table([*words, *components, *chances, *place], schema=schema)


def pool_ranks(batches: Iterable[Batch], scores: Floats, pair_ids: Sequence[str]) -> Ints:
    """Return for each given pair its rank from 1 among all pairs of ``batches``, the given ones among them.

    One pass, in memory of one batch.

    Args:
        batches: the whole pool, scored.
        scores: ``(k,)`` of the given pairs, best first.
        pair_ids: ``(k,)``, ascending where scores are equal.
    """
    falling = -scores
    # places[p]: pairs that stand before the given pair p or at it, but after given pair p - 1.
    places = np.zeros(len(scores) + 1, dtype=np.int64)
    for batch in batches:
        first = np.searchsorted(falling, -batch.scores, side="left")
        last = np.searchsorted(falling, -batch.scores, side="right")
        tied = np.flatnonzero(last > first)
        ids = batch.words[PAIR_ID].take(pa.array(tied)).to_pylist()
        for row, pair_id in zip(tied.tolist(), ids, strict=True):
            first[row] = bisect_left(pair_ids, pair_id, int(first[row]), int(last[row]))
        places += np.bincount(first, minlength=len(places))
    return np.cumsum(places)[:-1]
