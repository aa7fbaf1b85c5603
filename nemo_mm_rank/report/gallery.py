"""The pairs of a page as its scripts read them: every pair in a line, and those that are looked at first in full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from nemo_mm_rank.arrays import Ints
from nemo_mm_rank.ranking.candidates import pool_ranks
from nemo_mm_rank.report.charts import colour
from nemo_mm_rank.report.details import Details, excerpt
from nemo_mm_rank.report.run import Run, leading
from nemo_mm_rank.schema import ANNOTATION, MODALITY, PAIR_ID, POOL
from nemo_mm_rank.shards import attach_rows

MAX_PAIRS = 10_000
"""Ranked pairs that a page names; of a larger pool, those shown in full and a sample."""
OVERALL, EACH = 24, 8
"""Of each view, so many pairs are shown in full, and so many of each modality."""
QUARANTINED, PER_REASON = 240, 24
"""Quarantined pairs that a page names, and of each step and error class."""

_LINE = 160  # characters


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
    positions: Ints


def gallery(
    run: Run, blends: Sequence[Blend], sample: Ints, trimmed: Ints | None = None
) -> tuple[dict[str, Any], Ints]:
    """Return the pairs for the page's scripts, and which ranked pairs they are (ascending by rank).

    Args:
        run: the finished run.
        blends: the first is the run's own.
        sample: positions that have to be among them.
        trimmed: positions of pairs that show what SNS did.
    """
    scored = run.scored
    trimmed = np.zeros(0, dtype=np.int64) if trimmed is None else trimmed
    distance = run.distance
    best = np.argsort(-scored.scores, kind="stable")
    near = np.argsort(np.abs(distance), kind="stable")[: int(np.isfinite(distance).sum())]
    orders = [*(b.positions for b in blends), near, best[::-1], trimmed]
    full = leading(orders, scored.modality, OVERALL, EACH)
    shown, words = _shown(run, full, sample)
    where = np.full(len(scored.scores), -1)
    where[shown] = np.arange(len(shown))
    lost = _quarantine(run)
    details = Details(run)
    in_full = dict(zip(where[full].tolist(), details.ranked(full), strict=True))
    in_full |= {len(shown) + place: detail for place, detail in enumerate(details.lost(lost))}
    modality, pool = (words[name] + [entry[name] for entry in lost] for name in (MODALITY, POOL))
    modalities, pools = _names(modality), _names(pool)
    values: dict[str, Any] = {
        "ranked": len(scored.scores),
        "shown": len(shown),
        "quarantined": run.quarantine.num_rows,
        "modalities": [{"name": name, "colour": colour(name, place)} for place, name in enumerate(modalities)],
        "pools": [{"name": name, "colour": place} for place, name in enumerate(pools)],
        "blends": [
            {"name": blend.name, "note": blend.note, "size": blend.size, "pairs": _known(where[blend.positions])}
            for blend in blends
        ],
        "trimmed": _known(where[trimmed]),
        "id": words[PAIR_ID] + [entry[PAIR_ID] or "" for entry in lost],
        "modality": _codes(modality, modalities),
        "pool": _codes(pool, pools),
        "text": [excerpt(text or "", _LINE) for text in words[ANNOTATION] + [entry["message"] for entry in lost]],
        "rank": pool_ranks(run.scoring.batches(run.shards), scored.scores[shown], words[PAIR_ID]).tolist(),
        "score": np.round(scored.scores[shown], 4).tolist(),
        "distance": [round(value, 4) if np.isfinite(value) else None for value in distance[shown].tolist()],
        "details": {str(index): detail for index, detail in in_full.items()},
        "media": {"count": details.copies, "left_out": details.left_out},
    }
    return values, shown


def _shown(run: Run, full: Ints, sample: Ints) -> tuple[Ints, dict[str, list[Any]]]:
    """Return the ranked pairs that a page names, by rank, and their words."""
    scored = run.scored
    drawn = np.concatenate([full, sample, scored.sample(MAX_PAIRS)])
    shown = drawn[np.sort(np.unique(drawn, return_index=True)[1])][: max(MAX_PAIRS, len(full) + len(sample))]
    words = _words(run, shown)
    order = np.lexsort([np.array(words[PAIR_ID], dtype=object).astype(str), -scored.scores[shown]])
    return shown[order], {name: [values[place] for place in order.tolist()] for name, values in words.items()}


def _words(run: Run, positions: Ints) -> dict[str, list[Any]]:
    """Return id, modality, pool and the beginning of the annotation, a bounded number of whole texts at a time."""
    places = run.scored.places[positions]
    by_place = np.lexsort(places.T[::-1])  # so that a shard is read once or twice, not with every batch
    names = (PAIR_ID, MODALITY, POOL, ANNOTATION)
    columns: dict[str, list[Any]] = {name: [None] * len(positions) for name in names}
    for start in range(0, len(by_place), 1024):
        batch = by_place[start : start + 1024]
        table = attach_rows(pa.table({"place": batch}), places[batch], run.shards, names)
        for name in names:
            for place, value in zip(batch.tolist(), table[name].to_pylist(), strict=True):
                columns[name][place] = value[: 2 * _LINE] if name == ANNOTATION and value else value
    return columns


def _known(indices: Ints) -> list[int]:
    shown: list[int] = indices[indices >= 0].tolist()
    return shown


def _names(values: Sequence[str | None]) -> list[str]:
    return sorted({value for value in values if value is not None})


def _codes(values: Sequence[str | None], names: Sequence[str]) -> list[int]:
    place = {name: code for code, name in enumerate(names)}
    return [-1 if value is None else place[value] for value in values]


def _quarantine(run: Run) -> list[dict[str, Any]]:
    """Return quarantined pairs, in their order, a bounded number of each reason."""
    table = run.quarantine
    seen: dict[tuple[str, str], int] = {}
    chosen = []
    for row, key in enumerate(zip(table["step"].to_pylist(), table["error"].to_pylist(), strict=True)):
        seen[key] = seen.get(key, 0) + 1
        if seen[key] <= PER_REASON:
            chosen.append((seen[key], row))
    rows = sorted(row for _, row in sorted(chosen)[:QUARANTINED])
    entries: list[dict[str, Any]] = table.take(pa.array(rows, pa.int64())).to_pylist()
    return entries
