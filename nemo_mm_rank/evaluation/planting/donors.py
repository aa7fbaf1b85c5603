"""Whom a pair gets something from: annotations that go round, others of a group, and sentences or words of others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from nemo_mm_rank.arrays import Bools, Ints

_ROUNDS = 1000
"""Trades among those that still meet their like; what is left then gets something from elsewhere."""
_TRIES = 8
"""Draws at random before all that may be drawn is looked through."""

NONE = -1


def alike(texts: Iterable[str]) -> Ints:
    """Return a number for each text, equal for those that differ in case and white space alone."""
    return numbered([" ".join(text.casefold().split()) for text in texts])


def numbered(values: Sequence[object]) -> Ints:
    """Return a number for each value, in order of first appearance."""
    known: dict[object, int] = {}
    return np.array([known.setdefault(value, len(known)) for value in values], dtype=np.int64)


def joint(first: Ints, second: Ints) -> Ints:
    """Return a number for each row, equal where both numbers are."""
    return first * (int(second.max(initial=0)) + 1) + second


def counted(codes: Ints) -> Ints:
    """Return for each row how many have the same number, itself among them."""
    _, which, counts = np.unique(codes, return_inverse=True, return_counts=True)
    return counts[which].astype(np.int64)


def derange(label: Ints, also: Ints, rng: np.random.Generator) -> Ints:
    """Return for each item the item it gets something from, none from one with the same ``label`` or ``also``.

    Sorted by label and turned by the size of the largest group, no item meets its own label; what then meets an equal
    ``also`` trades with others at random.

    Args:
        label: ``(n,)`` numbers.
        also: ``(n,)`` numbers.
        rng: decides the order within labels, and of them.

    Returns:
        ``(n,)`` a permutation, but for items that there is nothing for (more than half are alike, say): `NONE`.
    """
    n = len(label)
    if n < 2:
        return np.full(n, NONE, dtype=np.int64)
    codes = np.unique(label, return_inverse=True)[1]
    sizes = np.bincount(codes)
    order = np.lexsort((rng.permutation(n), rng.permutation(len(sizes))[codes]))
    source = np.empty(n, dtype=np.int64)
    source[order] = np.roll(order, sizes.max())

    def wrong(rows: Ints) -> Bools:
        given = source[rows]
        found: Bools = (label[given] == label[rows]) | (also[given] == also[rows])
        return found

    least = max(0, *(2 * int(np.bincount(numbers).max()) - n for numbers in (label, also)))
    for _ in range(_ROUNDS):
        if int(wrong(np.arange(n)).sum()) <= least:
            break
        # All meet someone at random; where one of the two is wrong, they trade, unless that leaves more of them wrong.
        met = rng.permutation(n)
        first, second = met[: n // 2], met[n // 2 : n // 2 * 2]
        before = wrong(first).astype(int) + wrong(second)
        first, second, before = first[before > 0], second[before > 0], before[before > 0]
        source[first], source[second] = source[second], source[first]
        back = wrong(first).astype(int) + wrong(second) > before
        source[first[back]], source[second[back]] = source[second[back]], source[first[back]]
    return np.where(wrong(np.arange(n)), NONE, source)


def draw_others(
    rows: Ints, keys: Ints, may: Callable[[Ints, Ints], Bools], among: Ints, rng: np.random.Generator
) -> Ints:
    """Draw for each row one of ``among`` that it may have, by chance alone.

    Args:
        rows: ``(m,)`` that something is drawn for.
        keys: ``(m,)`` equal for rows that may have the same ones.
        may: ``(rows, donors) -> bool``, broadcast against each other.
        among: what can be drawn.
        rng: draws.

    Returns:
        ``(m,)``; `NONE` where there is nothing that the row may have.
    """
    donors = np.full(len(rows), NONE, dtype=np.int64)
    if not len(among):
        return donors
    open_ = np.arange(len(rows))
    for _ in range(_TRIES):
        drawn = among[rng.integers(len(among), size=len(open_))]
        good = may(rows[open_], drawn)
        donors[open_[good]] = drawn[good]
        open_ = open_[~good]
    for key in np.unique(keys[open_]):
        these = open_[keys[open_] == key]
        candidates = among[may(rows[these[:1]], among)]
        if len(candidates):
            donors[these] = rng.choice(candidates, size=len(these))
    return donors


@dataclass(frozen=True)
class Pieces:
    """Sentences or words of all annotations, one after the other, those of an annotation together.

    Attributes:
        text: ``(p,)`` what they are.
        owner: ``(p,)`` whose, ascending.
        code: ``(p,)`` equal for equal ones.
        lent: ``(p,)`` whether others may get them.
    """

    text: Sequence[str]
    owner: Ints
    code: Ints
    lent: Bools

    @classmethod
    def of(cls, parts: Sequence[Sequence[str]]) -> Pieces:
        """Return the pieces of all annotations, each of which others may get."""
        text = [part for own in parts for part in own]
        owner = np.repeat(np.arange(len(parts)), [len(own) for own in parts])
        return cls(text, owner, alike(text), np.ones(len(text), dtype=bool))

    def foreign(self, n: int) -> Bools:
        """Return for each of ``n`` rows whether there is a piece to get that it does not have itself."""
        lent = np.unique(self.code[self.lent])
        theirs = np.isin(self.code, lent)
        _, first = np.unique(joint(self.owner, self.code)[theirs], return_index=True)
        found: Bools = np.bincount(self.owner[theirs][first], minlength=n) < len(lent)
        return found

    def draw(self, rows: Ints, group: Ints, rng: np.random.Generator) -> Ints:
        """Draw for each row a piece that it does not have: of a donor of its group at random, else of anyone.

        Args:
            rows: ``(m,)`` for which `foreign` holds.
            group: ``(n,)`` of every annotation.
            rng: draws.

        Returns:
            ``(m,)`` places among the pieces.
        """
        lent = np.flatnonzero(self.lent)
        count = np.bincount(self.owner[lent], minlength=len(group))
        start = np.cumsum(count) - count
        order = np.argsort(group, kind="stable")
        first = np.searchsorted(group[order], group)
        size = np.searchsorted(group[order], group, side="right") - first
        width = int(self.code.max()) + 1
        known = np.unique(joint(self.owner, self.code))
        found = np.full(len(rows), NONE, dtype=np.int64)
        open_ = np.arange(len(rows))
        for _ in range(_TRIES):
            own = rows[open_]
            donor = order[first[own] + rng.integers(size[own])]
            place = lent[np.minimum(start[donor] + rng.integers(np.maximum(count[donor], 1)), len(lent) - 1)]
            good = (count[donor] > 0) & ~np.isin(own * width + self.code[place], known)
            found[open_[good]] = place[good]
            open_ = open_[~good]
        for at in open_.tolist():
            found[at] = rng.choice(lent[~np.isin(rows[at] * width + self.code[lent], known)])
        return found
