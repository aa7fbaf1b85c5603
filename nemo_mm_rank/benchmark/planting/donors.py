"""What a pair is given from elsewhere: annotations that go round, sentences and words that are added and taken."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nemo_mm_rank.arrays import Bools, Ints
from nemo_mm_rank.schema import Modality
from nemo_mm_rank.text.split import text_medium

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
        lent = source[rows]
        unfit: Bools = (label[lent] == label[rows]) | (also[lent] == also[rows])
        return unfit

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
        enough: Bools = np.bincount(self.owner[theirs][first], minlength=n) < len(lent)
        return enough

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
        drawn = np.full(len(rows), NONE, dtype=np.int64)
        open_ = np.arange(len(rows))
        for _ in range(_TRIES):
            owners = rows[open_]
            donor = order[first[owners] + rng.integers(size[owners])]
            place = lent[np.minimum(start[donor] + rng.integers(np.maximum(count[donor], 1)), len(lent) - 1)]
            good = (count[donor] > 0) & ~np.isin(owners * width + self.code[place], known)
            drawn[open_[good]] = place[good]
            open_ = open_[~good]
        for at in open_.tolist():
            drawn[at] = rng.choice(lent[~np.isin(rows[at] * width + self.code[lent], known)])
        return drawn


_WORD = re.compile(r"\w+")


def words(text: str) -> set[str]:
    """Return the words of a text, in lower case."""
    return set(_WORD.findall(text.lower()))


def rarity(texts: Sequence[str]) -> dict[str, float]:
    """Return of each word ``log(n / texts that have it)``: the inverse document frequency (Sparck Jones, 1972)."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(words(text))
    return {word: float(np.log(len(texts) / count)) for word, count in counts.items()}


def with_sentence(own: Sequence[str], foreign: str, rng: np.random.Generator) -> str:
    """Return a text of its own sentences, and a foreign one before, between or behind them."""
    place = int(rng.integers(len(own) + 1))
    return joined([*own[:place], foreign, *own[place:]])


def with_replaced(own: Sequence[str], foreign: str, rng: np.random.Generator) -> str:
    """Return a text of its own sentences, one of which has given its place to a foreign one."""
    place = int(rng.integers(len(own)))
    return joined([*own[:place], foreign, *own[place + 1 :]])


def without_one(own: Sequence[str], rng: np.random.Generator) -> str:
    """Return a text of its own sentences but one."""
    place = int(rng.integers(len(own)))
    return joined([*own[:place], *own[place + 1 :]])


def with_word(text: str, old: str, new: str) -> str:
    """Return a text in which every ``old`` is ``new``, with a capital where ``old`` had one."""

    def changed(match: re.Match[str]) -> str:
        word = match.group()
        if word.lower() != old:
            return word
        return new[:1].upper() + new[1:] if word[:1].isupper() else new

    return _WORD.sub(changed, text)


def joined(sentences: Sequence[str]) -> str:
    """Return sentences as one text; one that ends in no stop gets a full stop."""
    return " ".join(sentence if sentence[-1] in ".!?" else f"{sentence}." for sentence in sentences)


def parts(text: str, modality: str) -> list[str]:
    """Return the sentences of a text, the blocks of code."""
    return [text[start:end] for start, end in text_medium(modality).split(text)]


def divisible(modality: str, data: str) -> bool:
    """Whether a key sentence can be taken away and something is left."""
    return modality in (Modality.TEXT, Modality.CODE) and len(parts(data, modality)) > 1


def without_key(modality: str, data: str, annotation: str, rare: Mapping[str, float]) -> str:
    """Return a text or code without the part that has most in common with the annotation, by the rarity of words."""
    asked = words(annotation)
    pieces = parts(data, modality)
    key = int(np.argmax([_weight(words(part) & asked, rare) for part in pieces]))
    between = "\n" if modality == Modality.CODE else " "
    return between.join(part for place, part in enumerate(pieces) if place != key)


def nearly_text(modality: str, data: str, rng: np.random.Generator) -> str:
    """Return a text or code with a change that no reader would notice."""
    if modality == Modality.CODE:
        return f"\n{data}\n"
    tokens = data.split(" ")
    if len(tokens) > 3:
        del tokens[int(rng.integers(len(tokens)))]
    return " ".join(tokens) + " "


def _weight(found: Iterable[str], rare: Mapping[str, float]) -> float:
    return sum(rare.get(word, 0.0) for word in sorted(found))
