"""Which names have been seen, and where first: 16 bytes a name, whatever its length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from nemo_mm_rank.arrays import Ints, UInt64s

_LINE_BITS = 40


class Seen:
    """A set of strings by 64-bit hash, each with the number of the place it was first seen at.

    Kept as a few sorted arrays, each at least twice as long as the next, so that adding n names costs
    O(n log n) in all and nothing is held in Python objects. Two different names share a hash with a probability of
    n^2 / 2^65: three in a million at ten million names.
    """

    def __init__(self) -> None:
        self._runs: list[tuple[UInt64s, Ints]] = []
        self._files: list[str] = []

    def add(self, names: Sequence[str], file: str, lines: Ints) -> dict[int, str]:
        """Add ``names`` (n) that stand in ``file`` on ``lines`` (n, from 0).

        Returns:
            For the positions of names that were there before, ``file:line`` of their first appearance.
        """
        if not self._files or self._files[-1] != file:
            self._files.append(file)
        places = (len(self._files) - 1 << _LINE_BITS) + lines
        hashes: UInt64s = pd.util.hash_array(np.array(names, dtype=object), categorize=False)
        first = np.full(len(hashes), -1, dtype=np.int64)
        for known, known_places in self._runs:
            at = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
            hit = known[at] == hashes
            first[hit] = known_places[at[hit]]
        unique, index, inverse = np.unique(hashes, return_index=True, return_inverse=True)
        repeats = (index[inverse] != np.arange(len(hashes))) & (first < 0)
        first[repeats] = places[index[inverse[repeats]]]
        new = first[index] < 0
        self._push(unique[new], places[index[new]])
        return {int(row): self._place(int(first[row])) for row in np.flatnonzero(first >= 0)}

    def _place(self, place: int) -> str:
        return f"{self._files[place >> _LINE_BITS]}:{place & (1 << _LINE_BITS) - 1}"

    def _push(self, hashes: UInt64s, places: Ints) -> None:
        if not len(hashes):
            return
        self._runs.append((hashes, places))
        while len(self._runs) > 1 and len(self._runs[-2][0]) < 2 * len(self._runs[-1][0]):
            (a, a_places), (b, b_places) = self._runs.pop(), self._runs.pop()
            merged = np.concatenate([a, b])
            order = np.argsort(merged, kind="stable")
            self._runs.append((merged[order], np.concatenate([a_places, b_places])[order]))
