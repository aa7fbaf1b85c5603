"""Why a pair was or was not chosen, in a few lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nemo_mm_rank import frames
from nemo_mm_rank.config import RankingSettings
from nemo_mm_rank.console import printable
from nemo_mm_rank.errors import UserError, nearest
from nemo_mm_rank.frames import Frame
from nemo_mm_rank.ranking.blend import Ranking, label
from nemo_mm_rank.ranking.candidates import Groups, pool_ranks
from nemo_mm_rank.ranking.conditions import percent
from nemo_mm_rank.ranking.examples import Likeness, read_by_keys
from nemo_mm_rank.ranking.feedback import feedback_column
from nemo_mm_rank.ranking.query_scores import GIVEN, PREFIX, component
from nemo_mm_rank.ranking.scoring import WORDS, Scoring
from nemo_mm_rank.ranking.topic import EXPERTS
from nemo_mm_rank.schema import ANNOTATION_SPANS, DATA_SPANS, ERROR, MODALITY, PAIR_ID, POOL, SNS_REASON, SOURCE_RECORD
from nemo_mm_rank.shards import Shards

_TRIMMED = (DATA_SPANS, ANNOTATION_SPANS, SNS_REASON)
_SIMILAR = 1000


def explain(
    pair_id: str,
    shards: Shards,
    ranking: Ranking,
    scoring: Scoring,
    bad_rows: pa.Table | None = None,
    likes: Sequence[Likeness] = (),
) -> str:
    """Return what became of a pair: chosen or not, its rank, its score against the pool and the cut, what was kept.

    Args:
        pair_id: the pair, or the ``id`` of the record of another format that it was made of.
        shards: as the ranking was made from; with the SNS columns where there are any.
        ranking: what was chosen from them.
        scoring: by what it was chosen.
        bad_rows: rows that never became pairs: ``pair_id, step, error, message``.
        likes: of the queries by examples.

    Raises:
        UserError: there is no such pair (the message names the nearest one), or several are of such a record.
    """
    for part in range(shards.count):
        row = pc.index(shards.read(part, [PAIR_ID])[PAIR_ID], pair_id).as_py()
        if row >= 0:
            return _explain_row(part, row, shards, ranking, scoring, likes)
    if bad_rows is not None:
        for bad in bad_rows.filter(pc.equal(bad_rows[PAIR_ID], pair_id)).to_pylist():
            why = f"{bad['step']}: {bad['error']}: {bad['message']}"
            return f"{printable(pair_id)}: not ranked\n  {printable(why)}"
    match _of_record(pair_id, shards):
        case [(part, row, _)]:
            return _explain_row(part, row, shards, ranking, scoring, likes)
        case [(_, _, first), (_, _, second), *_]:
            raise UserError(f"several pairs are of records with the id {pair_id!r}; name one: {first}, {second}")
    raise UserError(f"this run has no pair {pair_id!r}{nearest(pair_id, _similar(pair_id, shards))}")


def _explain_row(
    part: int, row: int, shards: Shards, ranking: Ranking, scoring: Scoring, likes: Sequence[Likeness]
) -> str:
    beside = [name for condition in scoring.conditions.values() for name in condition.beside]
    table = shards.read(part, [*WORDS, ERROR, *scoring.reads, *beside, *_TRIMMED]).slice(row, 1)
    values = table.to_pylist()[0]
    title = printable(f"{values[PAIR_ID]} ({values[MODALITY]}, pool {values[POOL]})")
    if values.get(ERROR) is not None:
        return "\n".join([f"{title}: not ranked", f"  {printable(values[ERROR])}", *_kept(values)])
    settings = RankingSettings.model_validate(ranking.summary["settings"])
    batch = next(batch for batch in scoring.batches(shards) if batch.part == part)
    score = float(batch.scores[np.searchsorted(batch.rows, row)])
    place = int(pool_ranks(scoring.batches(shards), np.array([score]), [values[PAIR_ID]])[0])
    chosen = pc.index(ranking.chosen[PAIR_ID], values[PAIR_ID]).as_py()
    lines = [f"{title}: {'chosen' if chosen >= 0 else 'not chosen'}, rank {place:,} of {scoring.ranked:,} in the pool"]
    if chosen >= 0:
        lines.append(f"  place {chosen + 1:,} of {ranking.chosen.num_rows:,} in the blend")
        lines.append(f"  {printable(ranking.chosen['reason'][chosen].as_py())}")
    lines += _against_cut(values, score, ranking, settings)
    lines += _passed(values, chosen >= 0, ranking, settings)
    lines += _components(values, table, scoring)
    for like in likes:
        pair = shards.read(part, [*like.reads, *read_by_keys()]).slice(row, 1)
        lines += [f"  {printable(line)}" for line in _likeness(like, frames.from_table(pair))]
    return "\n".join([*lines, *_kept(values)])


def _against_cut(values: dict[str, Any], score: float, ranking: Ranking, settings: RankingSettings) -> Iterator[str]:
    """Say how far the score is from that of the last pair chosen in the pair's group."""
    of = settings.quota_by or MODALITY
    groups = Groups.of(of, settings.quotas)
    name = groups.names[int(groups.codes(pa.table({column: [values[column]] for column in WORDS}))[0])]
    shown = printable(label(name, settings.quotas))
    for kept in ranking.duplicates.filter(pc.equal(ranking.duplicates[PAIR_ID], values[PAIR_ID]))["kept"].to_pylist():
        yield f"  nearly equal to {kept!r}, which is in the blend"
    entry = next((entry for entry in ranking.summary["groups"] if entry["group"] == name), None)
    if entry is None or not entry["quota"]:
        yield f"  score {score:+.3f}; the quotas leave no place for {shown}"
    elif entry["cut"] is None:
        yield f"  score {score:+.3f}; no pair was chosen from {shown}"
    else:
        # Where others left their quota short, the last one that filled it may stand below the group's own last one.
        cuts = [cut for cut in (entry["cut"], ranking.summary["filling"]["cut"]) if cut is not None]
        cut = min(cuts, key=lambda cut: (cut["score"], cut[PAIR_ID]))
        distance = score - cut["score"]
        where = "at" if not distance else f"{abs(distance):.3f} {'above' if distance > 0 else 'below'}"
        yield f"  score {score:+.3f}, {where} the last one chosen from {shown} ({cut['score']:+.3f}, {cut[PAIR_ID]!r})"


def _passed(values: dict[str, Any], chosen: bool, ranking: Ranking, settings: RankingSettings) -> Iterator[str]:
    """Say why a pair was passed by for variety."""
    if settings.select.how == "top" or chosen:
        return
    of = f"of {ranking.summary['select']['candidates']:,} candidates, chosen by {settings.select.how}"
    place = pc.index(ranking.passed[PAIR_ID], values[PAIR_ID]).as_py()
    yield f"  {of}: {printable(ranking.passed['why'][place].as_py())}" if place >= 0 else f"  not one {of}"


def _components(values: dict[str, Any], table: pa.Table, scoring: Scoring) -> Iterator[str]:
    for name, value in scoring.components(table).items():
        yield f"  {name:<12} {value[0]:+.2f} standard deviations x weight {scoring.topic.weight(name):.3g}"
    if scoring.topic.breadth:
        counts = percent(scoring.topic.breadth)
        yield f"  much of the pool fits the objective: closeness to the best pairs counts for {counts}"
    chances = scoring.chances(table)
    for name, chance in chances.items():
        known = None if np.isnan(chance[0]) else float(chance[0])
        yield f"  {name:<12} {percent(known)} likely x weight {scoring.conditions[name].strength:g} of its logarithm"
    weights = scoring.topic.narrow.weights
    for column, moments in scoring.topic.narrow.moments.items():
        used = component(column) in weights or (EXPERTS in weights and column.startswith(PREFIX))
        if used or component(column) in chances:
            of = f"(pool {moments.mean:.3f} +- {moments.std:.3f})"
            yield f"  {_named(column)}: {_number(values[column])}{_near(values, column, scoring)} {of}"
    for condition in scoring.conditions.values():
        yield from (f"  {line}" for line in condition.told(values))


def _likeness(like: Likeness, pair: Frame) -> Iterator[str]:
    """Say which of the examples the pair is the closest to, and which are itself."""
    closest, own = like.nearest(pair)
    spaces = (f"{_space(column)}: {name!r} {cosine:+.3f}" for column, (name, cosine) in closest.items())
    what = "un" if like.query.weight < 0 else ""
    yield f"{what}{like.query.label} ({len(like.examples.rows):,} examples), closest in {', '.join(spaces) or 'none'}"
    if own:
        more = f" and {len(own) - 3:,} more" if len(own) > 3 else ""
        yield f"  does not count as an example of itself: {', '.join(map(repr, own[:3]))}{more}"


def _space(column: str) -> str:
    return column.removeprefix("emb_").removeprefix("data__").replace("__", " ")


def _named(column: str) -> str:
    for prefix, kind in ((PREFIX, "cosine"), (GIVEN, "given")):
        if column.startswith(prefix):
            return f"{kind} {column.removeprefix(prefix).replace('__', ' ')}"
    return column


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _near(values: dict[str, Any], column: str, scoring: Scoring) -> str:
    """Say how close the pair is to the best ones, where that counts: the pool's figures are of the sum."""
    if not (weight := scoring.feedback.get(column)):
        return ""
    return f" + {weight:g} x {_number(values[feedback_column(column)])} with the best pairs"


def _kept(values: dict[str, Any]) -> Iterator[str]:
    for name, side in ((DATA_SPANS, "data"), (ANNOTATION_SPANS, "annotation")):
        if values.get(name) is not None:
            spans = ", ".join("[" + ", ".join(f"{number:g}" for number in span) + "]" for span in values[name])
            yield f"  kept of the {side}: {spans or 'nothing'}"
    if values.get(SNS_REASON) is not None:
        yield f"  trimming: {printable(values[SNS_REASON])}"


def _of_record(name: str, shards: Shards) -> list[tuple[int, int, str]]:
    """Return shard, row and id of the pairs that were made of records with the id ``name``, as they were written."""
    found: list[tuple[int, int, str]] = []
    for part in range(shards.count):
        table = shards.read(part, [PAIR_ID, SOURCE_RECORD])
        if SOURCE_RECORD not in table.column_names:
            continue
        mask = pc.fill_null(pc.match_substring(table[SOURCE_RECORD], json.dumps(name, ensure_ascii=False)[1:-1]), False)
        found += [
            (part, row, table[PAIR_ID][row].as_py())
            for row in np.flatnonzero(mask.to_numpy()).tolist()
            if str(json.loads(table[SOURCE_RECORD][row].as_py()).get("id")) == name
        ]
    return found


def _similar(pair_id: str, shards: Shards) -> list[str]:
    """Return up to 3,000 ids that start or end as ``pair_id`` does: comparing with a whole pool would take minutes."""
    half = max(1, len(pair_id) // 2)
    found: list[list[str]] = [[], [], []]
    for part in range(shards.count):
        ids = shards.read(part, [PAIR_ID])[PAIR_ID]
        masks = (
            pc.starts_with(ids, pair_id[:half]),
            pc.ends_with(ids, pair_id[-half:]),
            pc.match_substring(ids, pair_id, ignore_case=True),
        )
        for held, mask in zip(found, masks, strict=True):
            if len(held) < _SIMILAR:
                held.extend(ids.filter(mask).slice(0, _SIMILAR - len(held)).to_pylist())
    return [name for held in found for name in held]
