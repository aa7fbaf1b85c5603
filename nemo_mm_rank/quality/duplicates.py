"""Groups of duplicates over all shards, from keys alone: equal keys, and 64-bit codes a few bits apart."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise
from math import comb

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from nemo_mm_rank.arrays import Ints, UInt64s
from nemo_mm_rank.schema import PAIR_ID
from nemo_mm_rank.text.ngrams import mix


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


BITS = 64
PAIRS_AT_ONCE = 1 << 18
"""Candidates that are compared at a time: bounds the memory where many codes have a band in common."""

LOOK_UP = 30
"""What it takes to look a band up, in comparisons of two codes."""

_ONES = np.array([bin(word).count("1") for word in range(1 << 16)], dtype=np.uint8)


def near(codes: UInt64s, salts: UInt64s, radius: int) -> Ints:
    """Return ``(n,)`` groups: the connected components of the graph that links codes at most ``radius`` bits apart.

    Multi-index hashing (Norouzi, Punjani and Fleet 2012): the bits are divided into ``b`` bands. Codes within the
    radius differ in some band by at most ``radius // b`` bits, so only those that do are compared.

    Args:
        codes: ``(n,)``, best each of its salt once: it is compared with all that share a band.
        salts: ``(n,)`` codes of different salts are never linked.
        radius: bits.
    """
    groups = np.arange(len(codes))
    links: list[tuple[Ints, Ints]] = []
    held = 0
    bands = band_count(len(codes), radius)
    edges = [BITS * band // bands for band in range(bands + 1)]
    own = mix(salts)
    for start, end in pairwise(edges):
        values = codes >> np.uint64(start) & np.uint64((1 << (end - start)) - 1)
        for left, right in _candidates(values, own, end - start, radius // bands):
            close = distances(codes[left], codes[right]) <= radius
            left, right = left[close], right[close]
            same = salts[left] == salts[right]
            links.append((left[same], right[same]))
            held += int(same.sum())
            if held > max(PAIRS_AT_ONCE, len(codes)):
                groups, links, held = _linked(groups, links), [], 0
    return _linked(groups, links) if links else groups


def _linked(groups: Ints, links: list[tuple[Ints, Ints]]) -> Ints:
    left, right = (np.concatenate([np.zeros(0, dtype=np.int64), *side]) for side in zip(*links, strict=True))
    return linked(groups, left, right)


def band_count(n: int, radius: int) -> int:
    """Return the number of bands that makes least work of ``n`` codes, were they random.

    Each band is looked up once for every way to turn up to ``radius // b`` of its bits, and a code finds
    ``n / 2^width`` others by chance each time. More than ``radius + 1`` bands are of no use.
    """

    def work(bands: int) -> float:
        width = BITS // bands
        ways = sum(comb(width, turned) for turned in range(radius // bands + 1))
        return bands * ways * (LOOK_UP + n / float(2**width))

    return min(range(1, radius + 2), key=work)


def _candidates(values: UInt64s, salts: UInt64s, width: int, most: int) -> Iterator[tuple[Ints, Ints]]:
    """Yield pairs of rows, each once, whose values of ``width`` bits differ by at most ``most``; some by chance."""
    keys = mix(values) ^ salts
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    ends = np.searchsorted(ordered, ordered, side="right")
    yield from _pairs(order, np.arange(1, len(order) + 1), ends, order)
    for turned in range(1, most + 1):
        for places in combinations(range(width), turned):
            flip = np.uint64(sum(1 << place for place in places))
            rows = np.flatnonzero(values & np.uint64(1 << places[0]) == 0)  # the other of a pair has that bit set
            wanted = mix(values[rows] ^ flip) ^ salts[rows]
            first, last = (np.searchsorted(ordered, wanted, side=side) for side in ("left", "right"))
            yield from _pairs(rows, first, last, order)


def _pairs(rows: Ints, first: Ints, last: Ints, order: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Yield each of ``rows`` with those at its places of ``order``, ``first`` to ``last``, in bounded pieces."""
    some = np.flatnonzero(last > first)
    rows, first, counts = rows[some], first[some], (last - first)[some]
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    for begin in range(0, total, PAIRS_AT_ONCE):
        end = min(begin + PAIRS_AT_ONCE, total)
        inside = slice(np.searchsorted(ends, begin, side="right"), np.searchsorted(ends, end, side="left") + 1)
        starts = ends[inside] - counts[inside]
        taken = np.minimum(ends[inside], end) - np.maximum(starts, begin)
        places = np.arange(begin, end) + np.repeat(first[inside] - starts, taken)
        yield np.repeat(rows[inside], taken), order[places]


def distances(left: UInt64s, right: UInt64s) -> npt.NDArray[np.uint8]:
    """Return ``(m,)`` the number of bits in which codes differ."""
    words = (left ^ right).view(np.uint16).reshape(-1, 4)
    total: npt.NDArray[np.uint8] = _ONES[words].sum(axis=1, dtype=np.uint8)
    return total
