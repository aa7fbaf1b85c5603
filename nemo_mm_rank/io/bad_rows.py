"""Rows of a manifest that cannot be pairs, the table that they are kept in, and names that were seen before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from nemo_mm_rank.arrays import Ints, UInt64s
from nemo_mm_rank.console import without_passwords
from nemo_mm_rank.schema import MODALITY, PAIR_ID, POOL

MISSING_FILE = "no such file"
"""What is found where a file is not there: begins the ``found`` of such a row."""


@dataclass(frozen=True)
class BadRow:
    """Where a row stands, what was expected of it, and what was found.

    Attributes:
        file: the manifest, as the user would name it.
        line: line number of a JSONL file, row number of a Parquet file; both from 1.
        field: the canonical field at fault, or ``row`` where the row itself cannot be read.
    """

    file: str
    line: int
    field: str
    expected: str
    found: str
    pair_id: str | None = None
    pool: str | None = None
    modality: str | None = None

    @property
    def message(self) -> str:
        """What is wrong, without the place."""
        return f"{self.field}: expected {self.expected}, found {self.found}"

    @property
    def missing_file(self) -> bool:
        """Whether all that is wrong is a file that is not there, which may come while the manifest stays."""
        return self.found.startswith(MISSING_FILE)

    def __str__(self) -> str:
        pair = "" if self.pair_id is None else f" pair {shown(self.pair_id)}:"
        return f"{self.file}:{self.line}:{pair} {self.message}"


def shown(value: Any, limit: int = 60) -> str:
    """Return ``value`` as it may stand in a message: on one line, printable, and short."""
    text = without_passwords(repr(value[: limit + 1]) if isinstance(value, (str, bytes)) else repr(value))
    return text if len(text) <= limit else f"{text[:limit]}..."


SCHEMA = pa.schema(
    [(name, pa.string()) for name in (PAIR_ID, POOL, MODALITY, "step", "error", "message", "file")]
    + [("line", pa.int64())]
)


def bad_rows_table(rows: Iterable[BadRow]) -> pa.Table:
    """Return bad rows as quarantined pairs: ``step`` is ``pool``, ``error`` is ``BadRow``."""
    same = {"step": "pool", "error": "BadRow"}
    table = [{name: same.get(name) or getattr(row, name) for name in SCHEMA.names} for row in rows]
    return pa.Table.from_pylist(table, schema=SCHEMA)


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
