"""The pairs of a page as its scripts read them: every pair in a line, and those that are looked at first in full."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nemo_mm_rank.ranking.pool import Rows, attach_rows
from nemo_mm_rank.ranking.ranks import pool_ranks
from nemo_mm_rank.ranking.score import PREFIX
from nemo_mm_rank.report.colours import colour
from nemo_mm_rank.report.media import Copy, copy
from nemo_mm_rank.report.pairs import leading
from nemo_mm_rank.report.run import Run
from nemo_mm_rank.report.texts import excerpt, pieces
from nemo_mm_rank.run.store import Shards
from nemo_mm_rank.schema import (
    ANNOTATION,
    ANNOTATION_SPANS,
    DATA,
    DATA_BYTES,
    DATA_SPANS,
    ERROR,
    MEDIA_ROOT,
    MODALITY,
    PAIR_ID,
    POOL,
    SNS_REASON,
    Modality,
    description_column,
)

MAX_PAIRS = 10_000
"""Ranked pairs that a page names; of a larger pool, those shown in full and a sample."""
OVERALL, EACH = 24, 8
"""Of each view, so many pairs are shown in full, and so many of each modality."""
QUARANTINED, PER_REASON = 240, 24
"""Quarantined pairs that a page names, and of each step and error class."""
MAX_MEDIA, MAX_MEDIA_BYTES = 240, 12_000_000
"""Copies of media that a page carries, and the characters that they take together."""

_LINE, _DATA, _ANNOTATION, _VALUE = 160, 1500, 1000, 200  # characters
_OWN = 12  # of the user's own columns


@dataclass(frozen=True)
class Blend:
    """A choice of pairs to filter by.

    Attributes:
        name: as the page calls it.
        note: what it is.
        size: how many pairs.
        positions: of the chosen pairs among the ranked ones, best first; a strategy may choose others besides.
    """

    name: str
    note: str
    size: int
    positions: Rows


def gallery(run: Run, blends: Sequence[Blend], sample: Rows) -> tuple[dict[str, Any], Rows]:
    """Return the pairs for the page's scripts, and which ranked pairs they are (ascending by rank).

    Args:
        run: the finished run.
        blends: the first is the run's own.
        sample: positions that have to be among them.
    """
    scored = run.scored
    distance = _distance(run)
    best = np.argsort(-scored.scores, kind="stable")
    near = np.argsort(np.abs(distance), kind="stable")[: int(np.isfinite(distance).sum())]
    full = leading([*(b.positions for b in blends), near, best[::-1]], scored.modality, OVERALL, EACH)
    drawn = np.concatenate([full, sample, scored.sample(MAX_PAIRS)])
    shown = drawn[np.sort(np.unique(drawn, return_index=True)[1])][: max(MAX_PAIRS, len(full) + len(sample))]
    words = _words(run, shown)
    order = np.lexsort([np.array(words[PAIR_ID], dtype=object).astype(str), -scored.scores[shown]])
    shown = shown[order]
    words = {name: [values[place] for place in order.tolist()] for name, values in words.items()}
    quarantine = _quarantine(run)
    scores = scored.scores[shown]
    ranks = pool_ranks(run.scoring.batches(run.shards), scores, words[PAIR_ID])
    where = np.full(len(scored.scores), -1)
    where[shown] = np.arange(len(shown))
    media = _Media(run)
    lost = {len(shown) + place: entry for place, entry in enumerate(quarantine)}
    details = {
        **_details(run, full, where[full].tolist(), media),
        **{index: _lost(run, entry, media) for index, entry in lost.items()},
    }
    modalities = _names([*words[MODALITY], *(entry[MODALITY] for entry in quarantine)])
    pools = _names([*words[POOL], *(entry[POOL] for entry in quarantine)])
    values: dict[str, Any] = {
        "ranked": len(scored.scores),
        "shown": len(shown),
        "quarantined": run.quarantine.num_rows,
        "modalities": [{"name": name, "colour": colour(name, place)} for place, name in enumerate(modalities)],
        "pools": [{"name": name, "colour": place} for place, name in enumerate(pools)],
        "blends": [
            {"name": b.name, "note": b.note, "size": b.size, "pairs": _known(where[b.positions])} for b in blends
        ],
        "id": words[PAIR_ID] + [entry[PAIR_ID] or "" for entry in quarantine],
        "modality": _codes(words[MODALITY] + [entry[MODALITY] for entry in quarantine], modalities),
        "pool": _codes(words[POOL] + [entry[POOL] for entry in quarantine], pools),
        "text": [excerpt(text or "", _LINE) for text in words[ANNOTATION]] + [entry["line"] for entry in quarantine],
        "rank": ranks.tolist(),
        "score": np.round(scores, 4).tolist(),
        "distance": [round(value, 4) if np.isfinite(value) else None for value in distance[shown].tolist()],
        "details": {str(index): detail for index, detail in details.items()},
        "media": {"count": media.count, "left_out": media.left_out},
    }
    return values, shown


def _distance(run: Run) -> Any:
    """Return ``(n,)`` how far each score is from the cut of its group; NaN where nothing was chosen from that."""
    cuts = np.array([np.nan if cut is None else cut for cut in run.cuts])
    return run.scored.scores - cuts[run.scored.group]


def _known(indices: Rows) -> list[int]:
    found: list[int] = indices[indices >= 0].tolist()
    return found


def _names(values: Sequence[str | None]) -> list[str]:
    return sorted({value for value in values if value is not None})


def _codes(values: Sequence[str | None], names: Sequence[str]) -> list[int]:
    place = {name: code for code, name in enumerate(names)}
    return [-1 if value is None else place[value] for value in values]


def _words(run: Run, positions: Rows) -> dict[str, list[Any]]:
    """Return id, modality, pool and the beginning of the annotation, a bounded number of whole texts at a time."""
    places = run.scored.places[positions]
    by_place = np.lexsort(places.T[::-1])  # so that a shard is read once or twice, not with every batch
    names = (PAIR_ID, MODALITY, POOL, ANNOTATION)
    found: dict[str, list[Any]] = {name: [None] * len(positions) for name in names}
    for start in range(0, len(by_place), 1024):
        mine = by_place[start : start + 1024]
        table = attach_rows(pa.table({"place": mine}), places[mine], run.shards, names)
        for name in names:
            for place, value in zip(mine.tolist(), table[name].to_pylist(), strict=True):
                found[name][place] = value[: 2 * _LINE] if name == ANNOTATION and value else value
    return found


_CONTENT = (MODALITY, DATA, ANNOTATION, DATA_SPANS, ANNOTATION_SPANS, SNS_REASON, MEDIA_ROOT, DATA_BYTES)


def _details(run: Run, positions: Rows, indices: Sequence[int], media: _Media) -> dict[int, dict[str, Any]]:
    """Return what the page shows of ranked pairs in full, by their index on the page."""
    there = run.shards.columns()
    own = _own_columns(run)
    cosines = list(run.scoring.moments)
    told = [name for name in there if name.startswith(description_column(""))]
    wanted = dict.fromkeys([*_CONTENT, *told, *cosines, *own])
    table = attach_rows(
        pa.table({PAIR_ID: _ids(run, positions)}),
        run.scored.places[positions],
        run.shards,
        [name for name in wanted if name in there],
    )
    components = run.scoring.components(table)
    reasons = dict(zip(*(run.ranking.chosen[name].to_pylist() for name in (PAIR_ID, "reason")), strict=True))
    doubles = dict(zip(*(run.ranking.duplicates[name].to_pylist() for name in (PAIR_ID, "kept")), strict=True))
    found = {}
    for place, (index, row) in enumerate(zip(indices, table.to_pylist(), strict=True)):
        detail = _content(run, row, media)
        detail["parts"] = [
            [name, round(float(values[place]), 3), round(run.scoring.weights[name], 4)]
            for name, values in components.items()
        ]
        detail["cosines"] = [
            [name.removeprefix(PREFIX).replace("__", " "), round(row[name], 4), round(moments.mean, 4)]
            for name, moments in run.scoring.moments.items()
            if row[name] is not None
        ]
        detail["own"] = [[name, excerpt(str(row[name]), _VALUE)] for name in own if row[name] is not None]
        if row[PAIR_ID] in reasons:
            detail["reason"] = reasons[row[PAIR_ID]]
        if row[PAIR_ID] in doubles:
            detail["double"] = doubles[row[PAIR_ID]]
        found[index] = detail
    return found


def _ids(run: Run, positions: Rows) -> pa.Array:
    table = attach_rows(pa.table({"place": positions}), run.scored.places[positions], run.shards, [PAIR_ID])
    return table[PAIR_ID].combine_chunks()


def _own_columns(run: Run) -> list[str]:
    """Return the user's own columns of plain values, a few of them."""
    pool = Shards(run.shards.stages[:1], run.shards.count).columns()
    plain = [
        name
        for name, kind in pool.items()
        if name not in (PAIR_ID, POOL, ERROR, *_CONTENT)
        and (pa.types.is_string(kind) or pa.types.is_boolean(kind) or pa.types.is_primitive(kind))
    ]
    return plain[:_OWN]


def _content(run: Run, row: Mapping[str, Any], media: _Media) -> dict[str, Any]:
    """Return both sides of a pair, with what was trimmed, and what describers said."""
    detail: dict[str, Any] = {}
    modality, data = row[MODALITY], row.get(DATA)
    if modality in (Modality.TEXT, Modality.CODE):
        detail["data"] = pieces(data or "", row.get(DATA_SPANS), _DATA)
    else:
        detail["media"] = media.take(row)
        detail["name"] = excerpt(data or "", _VALUE)
    detail["annotation"] = pieces(row.get(ANNOTATION) or "", row.get(ANNOTATION_SPANS), _ANNOTATION)
    told = description_column("")
    detail["told"] = [
        [name.removeprefix(told), excerpt(text, _VALUE)] for name, text in row.items() if name.startswith(told) and text
    ]
    if row.get(SNS_REASON) is not None:
        detail["sns"] = row[SNS_REASON]
    return detail


class _Media:
    """Copies of media until there are enough of them on the page."""

    def __init__(self, run: Run) -> None:
        self._settings = run.config.media
        self.count, self.left_out, self._bytes = 0, 0, 0

    def take(self, row: Mapping[str, Any]) -> Copy:
        """Return a copy of a pair's media, or why there is none."""
        if self.count >= MAX_MEDIA or self._bytes >= MAX_MEDIA_BYTES:
            self.left_out += 1
            return {"missing": "left out: this page carries copies of so many others"}
        found = copy(
            row[DATA] or "data_bytes",
            row[MODALITY],
            row.get(DATA_SPANS),
            row.get(MEDIA_ROOT) or ".",
            row.get(DATA_BYTES),
            self._settings,
        )
        self.count += "src" in found
        self._bytes += len(found.get("src", ""))
        return found


def _quarantine(run: Run) -> list[dict[str, Any]]:
    """Return quarantined pairs by reason, a bounded number of each, with their contents where the pool has them."""
    table = run.quarantine
    seen: dict[tuple[str, str], int] = {}
    chosen = []
    for row, key in enumerate(zip(table["step"].to_pylist(), table["error"].to_pylist(), strict=True)):
        seen[key] = seen.get(key, 0) + 1
        if seen[key] <= PER_REASON:
            chosen.append((seen[key], row))
    rows = [row for _, row in sorted(chosen)[:QUARANTINED]]
    entries = table.take(pa.array(sorted(rows), pa.int64())).to_pylist()
    contents = _failed(run, [entry[PAIR_ID] for entry in entries if entry["file"] is None])
    for entry in entries:
        entry["content"] = contents.get(entry[PAIR_ID]) if entry["file"] is None else None
        text = entry["content"][ANNOTATION] if entry["content"] else None
        entry["line_number"] = entry["line"]
        entry["line"] = excerpt(text or entry["message"], _LINE)
    return entries


def _failed(run: Run, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the rows of pairs that failed in a step, by id."""
    found: dict[str, dict[str, Any]] = {}
    if not ids:
        return found
    wanted = pa.array(ids, pa.string())
    there = [name for name in (PAIR_ID, *_CONTENT) if name in run.shards.columns()]
    for part in range(run.shards.count):
        words = run.shards.read(part, [PAIR_ID, ERROR])
        mask = pc.and_(pc.is_valid(words[ERROR]), pc.is_in(words[PAIR_ID], value_set=wanted))
        rows = np.flatnonzero(mask.to_numpy())
        if len(rows):
            table = run.shards.read(part, there).take(pa.array(rows))
            found.update({row[PAIR_ID]: row for row in table.to_pylist()})
    return found


def _lost(run: Run, entry: Mapping[str, Any], media: _Media) -> dict[str, Any]:
    """Return what the page shows of a pair that was not ranked."""
    detail = _content(run, entry["content"], media) if entry["content"] else {}
    detail["lost"] = [entry["step"], entry["error"], entry["message"]]
    if entry["file"] is not None:
        detail["place"] = f"{entry['file'].rsplit('/', 1)[-1]}, line {entry['line_number']}"
    return detail
