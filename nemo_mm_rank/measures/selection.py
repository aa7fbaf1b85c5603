"""What a blend is worth against a known truth, how it is mixed, and what it shares with others."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from nemo_mm_rank.arrays import Bools, Ints
from nemo_mm_rank.schema import PAIR_ID

NEAR_DUPLICATE = "near-duplicate"


@dataclass(frozen=True)
class Labels:
    """What is known of a pool's pairs.

    Attributes:
        pair_ids: ``(n,)``, all different.
        clean: ``(n,)`` bool: nothing was planted.
        relevant: ``(n,)`` bool: on topic. A near-duplicate's is that of the pair it copies.
        copies: ``(n,)`` int64: the row that a near-duplicate copies, -1 for all others.
    """

    pair_ids: Sequence[str]
    clean: Bools
    relevant: Bools
    copies: Ints

    @classmethod
    def of(cls, truth: pa.Table, relevant: Bools) -> Labels:
        """Return the labels of a planted pool.

        Args:
            truth: ``pair_id, clean, kinds, donor``, as `planting.plant` writes it.
            relevant: ``(n,)``, row by row as ``truth``.
        """
        ids = truth[PAIR_ID].to_pylist()
        row = {pair_id: place for place, pair_id in enumerate(ids)}
        doubles = [kinds == [NEAR_DUPLICATE] for kinds in truth["kinds"].to_pylist()]
        copies = np.array(
            [row[donor] if double else -1 for double, donor in zip(doubles, truth["donor"].to_pylist(), strict=True)],
            dtype=np.int64,
        )
        on_topic = np.where(copies >= 0, relevant[copies], relevant)
        return cls(ids, truth["clean"].to_numpy().astype(bool), on_topic, copies)

    @property
    def wanted(self) -> int:
        """How many pairs a perfect blend could have: clean ones on topic."""
        return int((self.clean & self.relevant).sum())

    def rows(self, blend: Sequence[str]) -> Ints:
        """Return the rows of a blend's pairs.

        Raises:
            ValueError: a pair that the pool does not have, or one that is there twice.
        """
        unknown = [pair_id for pair_id in blend if pair_id not in self._rows]
        if unknown:
            raise ValueError(f"the pool has no pair {unknown[0]!r}")
        rows = np.array([self._rows[pair_id] for pair_id in blend], dtype=np.int64)
        if len(np.unique(rows)) < len(rows):
            raise ValueError("a pair is in the blend twice")
        return rows

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {pair_id: row for row, pair_id in enumerate(self.pair_ids)}

    def sound(self, rows: Ints) -> Bools:
        """Return ``(k,)`` whether each of a blend's pairs is clean.

        A near-duplicate is as good as what it copies, unless that one, or another copy before it, is there as well.
        """
        copies = self.copies[rows]
        first = np.zeros(len(rows), dtype=bool)
        first[np.unique(copies, return_index=True)[1]] = True
        alone: Bools = (copies >= 0) & first & ~np.isin(copies, rows)
        return self.clean[rows] | alone


def selection(blend: Sequence[str], labels: Labels, repaired: Collection[str] = ()) -> dict[str, float]:
    """Return what a blend is worth, best pair first.

    ``precision``: share of its pairs that are clean and on topic; ``precision_clean`` and ``precision_on_topic``: of
    each alone; ``recall``: share of the pool's clean pairs on topic that it has; ``average_precision``: the mean of
    the precision at each such pair's rank, over as many as the blend could have had (its length or the pool's number);
    ``precision_repaired`` and ``clean_repaired``: as ``precision`` and ``precision_clean``, where a spoilt pair that
    has been repaired counts as clean.

    Args:
        blend: pair ids by rank.
        labels: of the pool.
        repaired: ids of spoilt pairs that were rid of what is wrong with them.

    Raises:
        ValueError: an empty blend, or pairs that are not in the pool or there twice.
    """
    if not len(blend):
        raise ValueError("an empty blend")
    rows = labels.rows(blend)
    sound, relevant = labels.sound(rows), labels.relevant[rows]
    hits = sound & relevant
    found = np.cumsum(hits)
    at_hits = found[hits] / (np.flatnonzero(hits) + 1)
    possible = min(labels.wanted, len(rows))
    mended = np.array([pair_id in repaired for pair_id in blend], dtype=bool)
    return {
        "precision": float(hits.mean()),
        "precision_repaired": float(((sound | mended) & relevant).mean()),
        "recall": float(hits.sum() / labels.wanted) if labels.wanted else 0.0,
        "average_precision": float(at_hits.sum() / possible) if possible else 0.0,
        "precision_clean": float(sound.mean()),
        "clean_repaired": float((sound | mended).mean()),
        "precision_on_topic": float(relevant.mean()),
    }


def shares(values: Sequence[str]) -> dict[str, float]:
    """Return value -> share of ``values``, by name."""
    names, counts = np.unique(np.asarray(values, dtype=object).astype(str), return_counts=True)
    return {str(name): float(count / len(values)) for name, count in zip(names, counts, strict=True)}


def total_variation(first: dict[str, float], second: dict[str, float]) -> float:
    """Return half the sum of absolute differences of two mixes: 0 for equal ones, 1 for ones with nothing in common.

    >>> total_variation({"image": 0.5, "text": 0.5}, {"image": 1.0})
    0.5
    """
    return 0.5 * sum(abs(first.get(name, 0.0) - second.get(name, 0.0)) for name in sorted({*first, *second}))


def overlap(first: Sequence[str], second: Sequence[str]) -> float:
    """Return the share of the pairs of two blends that both have: ``|a & b| / |a | b|`` (Jaccard, 1912).

    Raises:
        ValueError: both are empty.

    >>> overlap(["a", "b"], ["b", "c"])
    0.3333333333333333
    """
    left, right = set(first), set(second)
    if not left | right:
        raise ValueError("two empty blends")
    return len(left & right) / len(left | right)
