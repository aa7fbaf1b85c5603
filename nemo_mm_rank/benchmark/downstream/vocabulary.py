"""Annotations as numbers: frequent words are tokens of their own, the others are spelled."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch

END, UNKNOWN = 0, 1
"""The token that ends every annotation, and the one for a character that the vocabulary has not seen."""

_PIECES = re.compile(r"\w+|[^\w\s]")
_CONTINUED = "##"


@dataclass(frozen=True)
class Tokens:
    """Annotations as token ids, laid end to end.

    Attributes:
        ids: ``(total,)`` int64.
        starts: ``(n + 1,)`` int64: annotation ``i`` is ``ids[starts[i]:starts[i + 1]]``, with `END` as its last token
            where it has not been cut.
    """

    ids: torch.Tensor
    starts: torch.Tensor

    @property
    def lengths(self) -> torch.Tensor:
        """``(n,)`` int64: tokens of each annotation."""
        return self.starts.diff()


@dataclass(frozen=True)
class Vocabulary:
    """Words and characters, the same for whoever is compared: perplexity per token means nothing otherwise.

    A word that is no token is spelled by its characters, the first as it stands and the others marked as continued,
    so that every annotation can be written and no strategy gains by rare words that count as one unknown. Case is
    folded (Unicode NFKC, then `str.casefold`).

    Trained subwords would need a dependency, for annotations that are mostly a sentence or two of common words.

    Attributes:
        pieces: the tokens in the order of their ids, the first two being `END` and `UNKNOWN`.
    """

    pieces: tuple[str, ...]

    @classmethod
    def fit(cls, annotations: Iterable[str], size: int) -> Vocabulary:
        """Return the vocabulary of at most ``size`` tokens that ``annotations`` call for.

        Characters come first, at most a quarter of the places, so that rare words can be spelled; then the most
        frequent words, those that occur twice at least. Ties are broken by the alphabet: the order of the annotations
        changes nothing.
        """
        words = Counter(chain.from_iterable(map(split, annotations)))
        letters: Counter[str] = Counter()
        for word, count in words.items():
            for piece in _spelled(word):
                letters[piece] += count
        kept = _most_frequent(letters, size // 4)
        room = size - 2 - len(kept)
        longer = Counter({word: count for word, count in words.items() if count > 1 and len(word) > 1})
        return cls(("<end>", "<unknown>", *sorted(kept), *_most_frequent(longer, room)))

    def __len__(self) -> int:
        return len(self.pieces)

    def encode(self, annotations: Sequence[str], longest: int) -> Tokens:
        """Return ``annotations`` as tokens, each cut to ``longest`` of them (its end included)."""
        ids = {piece: number for number, piece in enumerate(self.pieces)}
        rows: list[npt.NDArray[np.int64]] = []
        for text in annotations:
            pieces = chain.from_iterable([word] if word in ids else _spelled(word) for word in split(text))
            row = [ids.get(piece, UNKNOWN) for piece in pieces]
            rows.append(np.array([*row, END][:longest], dtype=np.int64))
        starts = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in rows], out=starts[1:])
        flat = np.concatenate(rows) if rows else np.empty(0, dtype=np.int64)
        return Tokens(torch.from_numpy(flat), torch.from_numpy(starts))


def split(text: str) -> list[str]:
    """Return the words, numbers and signs of ``text``, case folded."""
    return _PIECES.findall(unicodedata.normalize("NFKC", text).casefold())


def _spelled(word: str) -> list[str]:
    return [word[0], *(_CONTINUED + character for character in word[1:])]


def _most_frequent(counts: Counter[str], most: int) -> list[str]:
    return sorted(counts, key=lambda piece: (-counts[piece], piece))[: max(0, most)]
