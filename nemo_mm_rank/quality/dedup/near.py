"""Which 64-bit codes lie within a few bits of each other, without comparing all with all."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import numpy.typing as npt

from nemo_mm_rank.models.classical.ngrams import mix
from nemo_mm_rank.quality.duplicates import linked

Ints = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]

BITS = 64
PAIRS_AT_ONCE = 1 << 22
"""Candidates that are compared at a time: bounds the memory where many codes have a band in common."""

_ONES = np.array([bin(word).count("1") for word in range(1 << 16)], dtype=np.uint8)


def near(codes: UInt64s, salts: UInt64s, radius: int) -> Ints:
    """Return ``(n,)`` groups: the connected components of the graph that links codes at most ``radius`` bits apart.

    Multi-index hashing (Norouzi, Punjani and Fleet 2012): the bits are divided into ``b`` bands. Codes within the
    radius differ in some band by at most ``radius / b`` bits, so only those are compared. With more codes the bands
    are longer, so that few share one by chance.

    Args:
        codes: ``(n,)``, best each of its salt once: it is compared with all that share a band.
        salts: ``(n,)`` codes of different salts are never linked.
        radius: bits.
    """
    n = len(codes)
    groups = np.arange(n)
    bands = band_count(n, radius)
    edges = np.linspace(0, BITS, bands + 1).round().astype(int).tolist()
    for start, end in zip(edges[:-1], edges[1:], strict=True):
        mask = np.uint64((1 << (end - start)) - 1)
        values = (codes >> np.uint64(start)) & mask
        for left, right in _candidates(values, mix(salts), end - start, radius // bands):
            good = (distances(codes[left], codes[right]) <= radius) & (salts[left] == salts[right])
            groups = linked(groups, left[good], right[good])
    return groups


def band_count(n: int, radius: int) -> int:
    """Return the number of bands for ``n`` codes: of about log2(n) bits each, but no more than the radius can use."""
    if radius == 0:
        return 1
    longest = max(8, int(np.log2(max(n, 2))))
    return max(1, min(radius + 1, BITS // longest))


def _candidates(values: UInt64s, salts: UInt64s, width: int, most: int) -> Iterator[tuple[Ints, Ints]]:
    """Yield pairs of rows whose values, ``width`` bits, differ by at most ``most`` bits; some of them by chance."""
    keys = mix(values) ^ salts
    order = np.argsort(keys, kind="stable")
    sorted_keys = keys[order]
    for flipped in range(most + 1):
        for places in combinations(range(width), flipped):
            flip = np.uint64(sum(1 << place for place in places))
            wanted = mix(values ^ flip) ^ salts
            first = np.searchsorted(sorted_keys, wanted, side="left")
            counts = np.searchsorted(sorted_keys, wanted, side="right") - first
            yield from _pairs(first, counts, order)


def _pairs(first: Ints, counts: Ints, order: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Yield each row with those at places ``first`` to ``first + count``, once per pair, in bounded pieces."""
    ends = np.cumsum(counts)
    for begin in range(0, int(ends[-1]) if len(ends) else 0, PAIRS_AT_ONCE):
        number = np.arange(begin, min(begin + PAIRS_AT_ONCE, int(ends[-1])))
        left = np.searchsorted(ends, number, side="right")
        right = order[first[left] + number - (ends - counts)[left]]
        once = left < right
        yield left[once], right[once]


def distances(left: UInt64s, right: UInt64s) -> npt.NDArray[np.uint8]:
    """Return ``(m,)`` the number of bits in which codes differ."""
    words = (left ^ right).view(np.uint16).reshape(-1, 4)
    total: npt.NDArray[np.uint8] = _ONES[words].sum(axis=1, dtype=np.uint8)
    return total
