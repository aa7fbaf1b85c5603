"""At which place among all ranked pairs given pairs stand."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from nemo_mm_rank.arrays import Floats, Ints
from nemo_mm_rank.ranking.scoring import Batch
from nemo_mm_rank.schema import PAIR_ID


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
