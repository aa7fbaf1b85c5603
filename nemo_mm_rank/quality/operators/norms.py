"""Ratings of single words, such as those of concreteness by Brysbaert, Warriner and Kuperman (2014), of the user's."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nemo_mm_rank.errors import ConfigError
from nemo_mm_rank.quality.operators.text import WORD

WORDS, RATINGS = ("word",), ("rating", "conc.m", "concreteness", "score")
"""What the two columns may be called, in any case; others are passed over."""


@lru_cache(maxsize=2)
def read_norms(path: str) -> Mapping[str, float]:
    """Read a CSV (or TSV) with a column of words and one of ratings, once per process.

    Raises:
        ConfigError: it lacks one of them, or a rating is no number.
    """
    with Path(path).open(encoding="utf-8-sig", newline="") as file:
        head = file.readline()
        file.seek(0)
        rows = csv.reader(file, delimiter="\t" if "\t" in head else ",")
        names = [name.strip().lower() for name in next(rows, [])]
        found = [[names.index(name) for name in known if name in names] for known in (WORDS, RATINGS)]
        if not all(found):
            raise ConfigError(f"concreteness: {path} needs columns 'word' and 'rating'; it has {', '.join(names)}")
        word, rating = found[0][0], found[1][0]
        try:
            return {row[word].strip().lower(): float(row[rating]) for row in rows if row}
        except (ValueError, IndexError) as error:
            raise ConfigError(f"concreteness: {path}: line {rows.line_num}: {error}") from error


def mean_ratings(texts: Sequence[str], norms: Mapping[str, float]) -> npt.NDArray[np.float64]:
    """Return ``(n,)`` the mean rating of the words of each text that are rated; NaN where none is."""
    means = np.full(len(texts), np.nan)
    for row, text in enumerate(texts):
        known = [norms[word] for word in map(str.lower, WORD.findall(text)) if word in norms]
        if known:
            means[row] = sum(known) / len(known)
    return means
