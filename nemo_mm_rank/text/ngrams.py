"""Texts to hashed n-grams, all texts of a block at once: no Python loop over words or characters."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nemo_mm_rank.arrays import UInt64s

FAMILIES = 2
"""Words, and runs of 3 to 5 characters within a word and its borders."""
CHARACTER_RUNS = (3, 4, 5)

_BASE = np.uint64(0x9E3779B97F4A7C15)


class Grams(NamedTuple):
    """The distinct n-grams of a block of texts, sorted by text.

    Attributes:
        rows: ``(m,)`` int64, the text.
        grams: ``(m,)`` int64 below ``FAMILIES * buckets``: family * buckets + bucket.
        counts: ``(m,)`` int64, how often.
    """

    rows: npt.NDArray[np.int64]
    grams: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]


def mix(values: UInt64s) -> UInt64s:
    """Scramble 64-bit integers one to one (the finaliser of SplitMix64, Steele, Lea and Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def hashed_ngrams(texts: Sequence[str], bucket_bits: int) -> Grams:
    """Return the distinct n-grams of ``texts``, hashed to ``2 ** bucket_bits`` buckets per family.

    Texts are compared in compatibility form and without case (NFKC, casefold). A word is a run of letters, marks,
    digits and pictographs; everything else separates.
    """
    folded = [unicodedata.normalize("NFKC", text).casefold() for text in texts]
    # One separator before each text, so that no gram reaches from one into the next.
    codes = np.frombuffer((" " + " ".join(folded) + " ").encode("utf-32-le", "surrogatepass"), np.uint32)
    lengths = np.fromiter((len(text) + 1 for text in folded), np.int64, len(folded))
    rows = np.repeat(np.arange(len(folded)), lengths)
    inside = _word_characters()[codes]
    # Runs of separators shrink to one zero, which then stands for both borders that meet there.
    kept = inside.copy()
    kept[1:] |= inside[:-1]
    kept[0] = True
    rows = np.append(rows, len(folded) - 1)[kept]
    symbols = np.where(inside, codes, 0)[kept].astype(np.uint64)
    packed = np.concatenate(
        [_packed(0, *_words(symbols, rows), bucket_bits)]
        + [_packed(1, *runs, bucket_bits) for runs in _runs(symbols, rows)]
    )
    packed.sort()
    first = np.flatnonzero(np.diff(packed, prepend=-1))
    counts = np.diff(first, append=len(packed))
    packed = packed[first]
    return Grams(packed >> (bucket_bits + 1), packed & ((FAMILIES << bucket_bits) - 1), counts)


def _packed(family: int, rows: npt.NDArray[np.int64], hashes: UInt64s, bucket_bits: int) -> npt.NDArray[np.int64]:
    """Return row, family and bucket in one sortable integer."""
    buckets = (mix(hashes) >> np.uint64(64 - bucket_bits)).astype(np.int64)
    return (rows * FAMILIES + family) << bucket_bits | buckets


def _words(symbols: UInt64s, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], UInt64s]:
    """Return each word's text, and its hash: the polynomial of its characters, modulo 2^64."""
    border = symbols == 0
    starts = np.flatnonzero(border[:-1] & ~border[1:]) + 1
    if not len(starts):
        return rows[:0], symbols[:0]
    place = np.arange(len(symbols)) - np.flatnonzero(border)[np.cumsum(border) - 1]
    powers = np.multiply.accumulate(np.full(int(place.max()) + 1, _BASE))
    return rows[starts], np.add.reduceat(symbols * powers[place], starts)


def _runs(symbols: UInt64s, rows: npt.NDArray[np.int64]) -> Iterator[tuple[npt.NDArray[np.int64], UInt64s]]:
    """Yield, for each length, the runs' texts and hashes."""
    value, whole = symbols, np.ones(len(symbols), dtype=bool)
    for n in range(2, CHARACTER_RUNS[-1] + 1):
        # A run may begin and end at a border, but not cross one.
        whole = whole[: len(symbols) - n + 1] & ((symbols[n - 2 : -1] != 0) | (n == 2))
        value = value[: len(whole)] * _BASE + symbols[n - 1 :]
        if n in CHARACTER_RUNS:
            yield rows[1 : len(whole) + 1][whole], value[whole] + np.uint64(n)


@lru_cache(maxsize=1)
def _word_characters() -> npt.NDArray[np.bool_]:
    categories = (unicodedata.category(chr(code)) for code in range(sys.maxunicode + 1))
    return np.fromiter((c[0] in "LMN" or c == "So" for c in categories), np.bool_, sys.maxunicode + 1)
