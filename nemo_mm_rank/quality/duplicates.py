"""Groups of duplicates over all shards, from keys alone: rows that share a key are one group, and one of them stays."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from nemo_mm_rank.arrays import Ints, UInt64s
from nemo_mm_rank.schema import PAIR_ID


def join(groups: Ints, keys: UInt64s) -> Ints:
    """Return ``groups`` with those merged that have a row with the same key.

    Called once per band, it gives the connected components of the graph in which rows that share a key are linked,
    in memory of one band.

    Args:
        groups: ``(n,)`` from 0 to ``n - 1``; at first each row its own.
        keys: ``(n,)``.
    """
    order = np.argsort(keys, kind="stable")
    same = np.flatnonzero(keys[order[1:]] == keys[order[:-1]])
    return linked(groups, order[same], order[same + 1])


def linked(groups: Ints, left: Ints, right: Ints) -> Ints:
    """Return ``groups`` with those merged of which a row ``left[i]`` is linked to a row ``right[i]``."""
    if not len(left):
        return groups
    n = len(groups)
    graph = coo_array((np.ones(len(left), dtype=np.int8), (groups[left], groups[right])), shape=(n, n))
    labels: Ints = connected_components(graph.tocsr(), directed=False)[1].astype(np.int64)
    return labels[groups]


class Keepers:
    """Finds the row of each group that stays: the best score, then the lowest ``pair_id``. Fed shard by shard.

    Args:
        groups: ``(n,)`` of all rows, as `join` returns them.
    """

    def __init__(self, groups: Ints) -> None:
        self._groups = groups
        self._shared = np.bincount(groups, minlength=1)[groups] > 1 if len(groups) else np.zeros(0, dtype=bool)
        self._best: pa.Table | None = None

    def add(self, start: int, scores: npt.NDArray[np.float64], pair_ids: pa.ChunkedArray) -> None:
        """Take in the rows ``start, start + 1, ...``; only those in a group of several are held."""
        inside = np.flatnonzero(self._shared[start : start + len(scores)])
        if not len(inside):
            return
        rows = inside + start
        found = pa.table(
            {
                "group": self._groups[rows],
                "score": scores[inside],
                PAIR_ID: pair_ids.take(pa.array(inside)),
                "row": rows,
            }
        )
        held = found if self._best is None else pa.concat_tables([self._best, found])
        held = held.sort_by([("group", "ascending"), ("score", "descending"), (PAIR_ID, "ascending")])
        first = np.flatnonzero(np.diff(held["group"].to_numpy(), prepend=-1))
        self._best = held.take(pa.array(first)).combine_chunks()

    @property
    def kept(self) -> npt.NDArray[np.bool_]:
        """``(n,)``: rows without a duplicate, and the one of each group that stays."""
        kept = ~self._shared
        if self._best is not None:
            kept[self._best["row"].to_numpy()] = True
        return kept

    def keeper(self, rows: Ints) -> pa.Array:
        """Return the ``pair_id`` that stays in the group of each row; null where the row has no duplicate."""
        if self._best is None:
            return pa.nulls(len(rows), pa.string())
        shared = self._shared[rows]
        place = np.searchsorted(self._best["group"].to_numpy(), self._groups[rows])
        ids = self._best[PAIR_ID].combine_chunks()
        return ids.take(pa.array(np.where(shared, place, 0), mask=~shared))
