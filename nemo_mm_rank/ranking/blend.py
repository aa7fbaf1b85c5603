"""The blend: how many pairs of which group, the best of them over all shards, and why each was chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nemo_mm_rank.arrays import Ints
from nemo_mm_rank.config import Budget, RankingSettings, SelectSettings
from nemo_mm_rank.errors import ConfigError, UserError, nearest
from nemo_mm_rank.io.files import read_sealed, read_table, write_sealed, write_table
from nemo_mm_rank.ranking.candidates import CHANCE, SCORE, Candidates, Groups, pool_ranks
from nemo_mm_rank.ranking.conditions import percent
from nemo_mm_rank.ranking.feedback import FeedbackStep, Means, means_of
from nemo_mm_rank.ranking.scoring import WORDS, Scoring
from nemo_mm_rank.ranking.select import REST, BestFirst, DistinctFirst, check_shortage, quota_counts
from nemo_mm_rank.ranking.variety import Order, vary
from nemo_mm_rank.schema import FUSED, MODALITY, PAIR_ID, POOL
from nemo_mm_rank.shards import Shards, read_vectors

_PLACE = ("shard", "row")

PASSED = pa.schema([(PAIR_ID, pa.string()), ("why", pa.string())])

_SHARE = 20
"""At most one pair in so many says what a query means."""


@dataclass(frozen=True)
class Ranking:
    """A blend, without the users' own columns. All but ``places`` is the same however the pool is sharded.

    Attributes:
        chosen: best first: ``pair_id, pool, modality, rank`` (in the blend, from 1), ``pool_rank`` (among all ranked
            pairs), ``score``, ``score_<component>`` (standardised, before its weight), ``chance_<condition>``,
            ``reason``.
        places: ``(k, 2)`` shard number and row of each.
        duplicates: ``pair_id, kept``: pairs passed by as near-equal to one in the blend.
        passed: ``pair_id, why``: candidates that were looked at and passed by for more variety.
        summary: counts, weights, statistics, conditions, and per group its quota and its cut (the last pair chosen);
            JSON-able.
    """

    chosen: pa.Table
    places: Ints
    duplicates: pa.Table
    summary: dict[str, Any]
    passed: pa.Table = field(default_factory=PASSED.empty_table)

    def save(self, folder: Path) -> None:
        """Write ``chosen.parquet``, ``duplicates.parquet``, ``passed.parquet`` and, last, ``ranking.json``."""
        chosen = self.chosen.append_column(_PLACE[0], pa.array(self.places[:, 0]))
        write_table(folder / "chosen.parquet", chosen.append_column(_PLACE[1], pa.array(self.places[:, 1])))
        write_table(folder / "duplicates.parquet", self.duplicates)
        write_table(folder / "passed.parquet", self.passed)
        write_sealed(folder / "ranking.json", self.summary)

    @classmethod
    def load(cls, folder: Path) -> Ranking:
        """Read a ranking back.

        Raises:
            UserError: there is none in ``folder``, or it is damaged.
        """
        if not folder.exists():
            raise UserError(f"no pair has been ranked in {folder}")
        summary = read_sealed(folder / "ranking.json")
        tables = (read_table(folder / f"{name}.parquet") for name in ("chosen", "duplicates", "passed"))
        chosen, duplicates, passed = tables
        places = np.stack([chosen[name].to_numpy() for name in _PLACE], axis=1)
        return cls(chosen.drop_columns(list(_PLACE)), places, duplicates, summary, passed)


def rank(shards: Shards, columns: Sequence[str], settings: RankingSettings, budget: Budget) -> Ranking:
    """Fit a `Scoring` on shards that have been through `ScoreStep`, and `choose` by it; arguments as for both."""
    return choose(shards, Scoring.fit(shards, columns, settings), settings, budget)


def choose(shards: Shards, scoring: Scoring, settings: RankingSettings, budget: Budget) -> Ranking:
    """Choose the blend from shards that have been through `ScoreStep`.

    Streams over the small columns once to choose, and once for the places in the pool, where quotas or duplicates make
    them differ from those in the blend.
    Memory: one shard's small columns, and three times the blend's rows at most. Only near-duplicates need embeddings,
    and only those of candidates near the top: twice the blend's number, doubled until the budget is filled.

    Args:
        shards: with ``pair_id, pool, modality, error``, the columns, and ``emb_fused`` where duplicates collapse or
            more than the top is chosen (by entries: ``annotation`` as well).
        scoring: what was fitted on the same shards with the same settings.
        settings: weights, conditions, calibration, quotas, duplicates.
        budget: how many, or from which score on.

    Raises:
        ConfigError: weights or quotas that do not fit the pool.
        UserError: a group is too small for its quota, and the settings say ``fail``.
    """
    if settings.quota_by == POOL:
        check_pools(settings.quotas, shards)
    groups = Groups.of(settings.quota_by or MODALITY, settings.quotas)
    sizes = _rows_by_group(scoring, shards, groups, budget.threshold)
    total = int(sizes.sum()) if budget.threshold is not None else budget.pairs(scoring.ranked)
    wanted = quota_counts(total, settings.quotas)
    room = np.array([wanted.get(name, 0) for name in groups.names], dtype=np.int64)
    choice = _Choice(shards, scoring, settings, budget, groups, sizes, room)
    picked = choice.pick()
    if settings.shortage == "fail":
        got = groups.count(picked.candidates.codes[picked.taken]).tolist()
        check_shortage(wanted, dict(zip(groups.names, got, strict=True)))
    return choice.ranking(picked)


def fit_scoring(
    shards: Shards,
    columns: Sequence[str],
    settings: RankingSettings,
    spaces: Mapping[str, str],
    add: Callable[[FeedbackStep], Shards],
) -> Scoring:
    """Fit a `Scoring` and, where the objective is broad, what closeness to the best pairs is made with.

    Args:
        shards: with ``pair_id, pool, modality, error``, the columns, and the embeddings.
        columns: of cosines and of scores from elsewhere (`ScoreStep.scores`), and of chances.
        settings: weights, conditions and calibration.
        spaces: column of cosines -> column of embeddings.
        add: takes the shards through the step that adds closeness to the best pairs.

    Raises:
        ConfigError: weights or conditions that do not fit the pool.
    """
    scoring = Scoring.fit(shards, columns, settings)
    feedback = FeedbackStep(spaces, _best(shards, scoring, settings, spaces))
    if not feedback.columns:
        return scoring
    return replace(Scoring.fit(add(feedback), [*columns, *feedback.provides], settings), means=feedback.means)


def _best(shards: Shards, scoring: Scoring, settings: RankingSettings, spaces: Mapping[str, str]) -> Means:
    """Return the means of the best pairs, by what counts for broad objectives; none where it is a narrow one."""
    broad, topic = settings.broad, scoring.topic
    if broad is None or not broad.feedback or not broad.feedback_weight or topic.broad is None or not topic.breadth:
        return {}
    plain: dict[str, Any] = {
        "broad": None,
        "spread": 0.0,
        "select": SelectSettings(),
        "quota_by": None,
        "quotas": {},
        "collapse_duplicates": False,
    }
    alone = settings.model_copy(update={**plain, "weights": dict(topic.broad.weights)})
    budget = Budget(count=max(1, min(broad.feedback, scoring.ranked // _SHARE)))
    return means_of(rank(shards, scoring.reads, alone, budget).places, shards, spaces)


@dataclass(frozen=True)
class _Picked:
    """Candidates in rank order, and what became of them.

    Attributes:
        candidates: the top of the ranking.
        taken: ``(n,)`` bool.
        filling: ``(n,)`` bool, those taken beyond their group's quota, in place of what other groups lack.
        double_of: ``(n,)`` the candidate that each was passed by for, -1 for none.
        order: in which they were taken; None for rank order.
    """

    candidates: Candidates
    taken: npt.NDArray[np.bool_]
    filling: npt.NDArray[np.bool_]
    double_of: Ints
    order: Order | None = None


def check_pools(names: Iterable[str], shards: Shards) -> None:
    """Refuse quotas for pools that are not there (a quarantined one is only short); the settings know modalities."""
    known = {name for part in range(shards.count) for name in shards.read(part, [POOL])[POOL].unique().to_pylist()}
    for name in names:
        if name not in known:
            raise ConfigError(f"ranking.quotas: there is no pool {name!r}{nearest(name, known)}")


def _rows_by_group(scoring: Scoring, shards: Shards, groups: Groups, threshold: float | None) -> Ints:
    """Return ``(g,)`` how many pairs each group offers: all of them, or those that reach the threshold."""
    if threshold is not None or groups.column not in scoring.counts:
        counts, least = np.zeros(len(groups.names), dtype=np.int64), -np.inf if threshold is None else threshold
        for batch in scoring.batches(shards):
            counts += groups.count(groups.codes(batch.words)[batch.scores >= least])
        return counts
    by_name = scoring.counts[groups.column]
    sizes = np.zeros(len(groups.names), dtype=np.int64)
    for code, count in zip(groups.codes_of(list(by_name)), by_name.values(), strict=True):
        sizes[code] += count
    return sizes


def label(group: str, quotas: Mapping[str, float]) -> str:
    """Return what a person reads for a group."""
    return group if group != REST else "others" if quotas else "all"


@dataclass(frozen=True)
class _Choice:
    """What is chosen from, and by what.

    Attributes:
        shards, scoring, settings, budget: see `choose`.
        groups: those that have a quota, and the rest.
        there: ``(g,)`` how many pairs each group offers.
        room: ``(g,)`` how many pairs of each group the quotas allow.
    """

    shards: Shards
    scoring: Scoring
    settings: RankingSettings
    budget: Budget
    groups: Groups
    there: Ints
    room: Ints

    def pick(self) -> _Picked:
        """Take the best of every group, and what fills up where groups are short."""
        settings, there, room = self.settings, self.there, self.room
        total, pool = int(room.sum()), int(there.sum())
        # Whatever fills a shortage is among the pool's best `total`: those chosen and those filling are no more.
        leading = total if settings.quotas and settings.shortage == "fill" else 0
        threshold = -np.inf if self.budget.threshold is None else self.budget.threshold
        depth = 2 if settings.collapse_duplicates else 1
        varied = settings.select.how != "top"
        over = settings.select.over if varied else 1
        while True:
            limits = np.minimum(np.ceil(room * depth * over).astype(np.int64), there)
            most = min(leading * depth, pool)
            candidates = Candidates.collect(self.scoring, self.shards, self.groups, limits, most, threshold)
            picker = self._picker(candidates)
            order = vary(settings.select, candidates, room, self.shards) if varied else None
            first = np.arange(len(candidates.scores)) if order is None else order.positions
            picker.take(first, candidates.codes[first], room)
            by_quota = picker.taken.copy()
            missing = total - int(by_quota.sum())
            if leading and missing:
                rest = np.flatnonzero(~by_quota[: candidates.leading])
                picker.take(rest, np.zeros_like(rest), np.array([missing]))
            double_of = picker.double_of if isinstance(picker, DistinctFirst) else np.full(len(by_quota), -1)
            unread = (self.groups.count(candidates.codes[by_quota]) < room) & (limits < there)
            unfilled = leading and int(picker.taken.sum()) < total and candidates.leading < pool
            if not settings.collapse_duplicates or not (unread.any() or unfilled):
                return _Picked(candidates, picker.taken, picker.taken & ~by_quota, double_of, order)
            depth *= 2

    def _picker(self, found: Candidates) -> BestFirst | DistinctFirst:
        if not self.settings.collapse_duplicates:
            return BestFirst(len(found.scores))
        return DistinctFirst(read_vectors(found.places, self.shards, FUSED), self.settings.duplicate_similarity)

    def ranking(self, picked: _Picked) -> Ranking:
        """Return the blend of what was picked."""
        candidates, scoring = picked.candidates, self.scoring
        ranks = np.flatnonzero(picked.taken)
        rows, scores = candidates.rows.take(pa.array(ranks)), candidates.scores[ranks]
        in_order = not self.settings.quotas and not self.settings.collapse_duplicates and picked.order is None
        places = np.arange(1, len(ranks) + 1)
        in_pool = places if in_order else pool_ranks(scoring.batches(self.shards), scores, rows[PAIR_ID].to_pylist())
        beside = [SCORE + name for name in scoring.topic.narrow.weights]
        beside += [CHANCE + name for name in scoring.conditions]
        named = {"rank": pa.array(places), "pool_rank": pa.array(in_pool), "score": pa.array(scores)}
        table = pa.table({**{name: rows[name] for name in WORDS}, **named, **{name: rows[name] for name in beside}})
        reasons = self._reasons(table, candidates.codes[ranks], picked.filling[ranks])
        passed = PASSED.empty_table()
        if picked.order is not None:
            why = np.array(picked.order.why, dtype=object)
            reasons = [
                f"{line}; {word or 'takes the place of a near-duplicate'}"
                for line, word in zip(reasons, why[ranks], strict=True)
            ]
            told = np.array([word is not None for word in picked.order.why], dtype=bool)
            left = np.flatnonzero(~picked.taken & (picked.double_of < 0) & told)
            passed = pa.table([candidates.rows[PAIR_ID].take(pa.array(left)), why[left]], schema=PASSED)
        doubles = np.flatnonzero(picked.double_of >= 0)
        pairs = {PAIR_ID: doubles, "kept": picked.double_of[doubles]}
        return Ranking(
            table.append_column("reason", pa.array(reasons, pa.string())),
            candidates.places[ranks],
            pa.table({name: candidates.rows[PAIR_ID].take(pa.array(positions)) for name, positions in pairs.items()}),
            self._summary(picked),
            passed,
        )

    def _reasons(self, chosen: pa.Table, codes: Ints, filling: npt.NDArray[np.bool_]) -> list[str]:
        """Return lines like ``rank 3 of 3,230: fused +2.1, experts +1.3; match 97 %; quota image 12/40``."""
        scoring, quotas = self.scoring, self.settings.quotas
        chances = {name: chosen[CHANCE + name].to_pylist() for name in scoring.conditions}
        components = [
            [f"{name} {value:+.1f}" for value in chosen[SCORE + name].to_pylist()]
            for name in scoring.topic.narrow.weights
        ]
        taken = [0] * len(self.groups.names)
        lines = []
        columns = (chosen[name].to_pylist() for name in ("pool_rank", "score", MODALITY))
        for row, (place, score, modality) in enumerate(zip(*columns, strict=True)):
            line = f"rank {place:,} of {scoring.ranked:,}: {', '.join(values[row] for values in components)}"
            line += "".join(f"; {name} {percent(values[row])}" for name, values in chances.items())
            if scoring.calibration:
                line += f"; {self.settings.calibration} within {modality} {score:+.2f}"
            if filling[row]:
                line += "; fills a place that another quota left empty"
            elif quotas:
                code = int(codes[row])
                taken[code] += 1
                line += f"; quota {label(self.groups.names[code], quotas)} {taken[code]:,}/{self.room[code]:,}"
            lines.append(line)
        return lines

    def _summary(self, picked: _Picked) -> dict[str, Any]:
        scoring, candidates = self.scoring, picked.candidates

        def last(mask: npt.NDArray[np.bool_]) -> dict[str, Any] | None:
            ranks = np.flatnonzero(mask)
            if not len(ranks):
                return None
            return {
                "score": float(candidates.scores[ranks[-1]]),
                PAIR_ID: candidates.rows[PAIR_ID][int(ranks[-1])].as_py(),
            }

        entries = []
        by_quota = picked.taken & ~picked.filling
        for code, (name, quota) in enumerate(zip(self.groups.names, self.room.tolist(), strict=True)):
            in_group = by_quota & (candidates.codes == code)
            if quota or name != REST:
                entries.append({"group": name, "quota": quota, "chosen": int(in_group.sum()), "cut": last(in_group)})
        return {
            "ranked": scoring.ranked,
            "chosen": int(picked.taken.sum()),
            "filling": {"chosen": int(picked.filling.sum()), "cut": last(picked.filling)},
            "groups": entries,
            "duplicates": int((picked.double_of >= 0).sum()),
            **({"select": picked.order.about} if picked.order else {}),
            **scoring.about(),
            "settings": self.settings.model_dump(mode="json", by_alias=True),
            "budget": self.budget.model_dump(mode="json", exclude_none=True),
            "columns": sorted(scoring.reads),
        }
