"""How an annotation reads: scores of many texts at once, higher is better.

| score                | what                                                                                         |
|----------------------|----------------------------------------------------------------------------------------------|
| words                | number of words, as DataComp counts them (``len(text.split())``)                              |
| characters           | number of characters                                                                         |
| character_repetition | 1 - the share that the most frequent runs of 10 characters have in all of them                |
| word_repetition      | 1 - the share of runs of 10 words that are there more than once                               |
| caption_like         | share of seven plain marks of a caption that it has (`CAPTION_MARKS`)                         |
| concrete_words       | share of words that are no function words and have no ending of abstract nouns                |

The repetitions are those of EcoDatum's toolbox, Data-Juicer (Chen et al. 2023; ``character_repetition_filter`` and
``word_repetition_filter``), which has them from ROOTS (Laurençon et al. 2022). ``concrete_words`` is a stand-in for
concreteness, made for English, and no more than that: it knows no word's meaning.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nemo_mm_rank.arrays import Floats, Ints, UInt64s
from nemo_mm_rank.models.classical.ngrams import mix
from nemo_mm_rank.sns.components import FUNCTION_WORDS

RUN = 10
"""Characters, or words, of a run that may come again."""

CAPTION_MARKS: dict[str, str] = {
    "no address, file name or markup": r"(?i)https?:|www\.|\S@\S+\.\S|</?[a-z]|&[a-z]+;"
    r"|\.(?:jpe?g|png|gif|bmp|tiff?|webp|svg|pdf|html?|php|mp4)\b",
    "no boilerplate": r"(?i)click (?:here|to|for|on)|(?:stock|profile|royalty[- ]free) (?:photo|image|picture|vector)"
    r"|permalink|all rights reserved|copyright|©|for sale|free shipping|buy now|add to cart|read more|download",
    "no codes or dates": r"\d{5,}|\d{1,2}[./-]\d{1,2}[./-]\d{2,4}|\b[A-Z]{2,}[-_]?\d{2,}|_",
    "no shouting": r"\b\p{Lu}{2,}(?:\P{L}+\p{Lu}{2,}){2}|[!?]{2,}",
}
"""What a caption does not hold: patterns as in the rules by which Conceptual Captions (Sharma et al. 2018, section 3.2)
was cleaned. The other marks: at least three words and six characters (DataComp), at least two thirds of the
characters letters or spaces, and half of the words different."""

_ABSTRACT = re.compile(
    r"(?:tion|sion|ness|ity|ism|ment|ance|ence|hood|ship|acy|dom|logy|ics|ive|able|ible|ously|ly)s?$"
)
WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
"""A run of letters, with apostrophes and hyphens inside."""


def words(texts: Sequence[str]) -> Floats:
    """Return ``(n,)`` numbers of words."""
    return np.fromiter((len(text.split()) for text in texts), np.float64, len(texts))


def characters(texts: Sequence[str]) -> Floats:
    """Return ``(n,)`` numbers of characters."""
    return np.fromiter(map(len, texts), np.float64, len(texts))


def character_repetition(texts: Sequence[str]) -> Floats:
    """Return ``(n,)`` from 0 to 1; 1 for a text without a run that comes again.

    Of the ``m`` different runs of ten characters, those that come again are taken, most frequent first, but no more
    than sqrt(m) of them.
    """
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    rows, counts = _runs(codes, np.fromiter(map(len, texts), np.int64, len(texts)))
    order = np.lexsort((-counts, rows))
    rows, counts = rows[order], counts[order]
    different = np.bincount(rows, minlength=len(texts))
    place = np.arange(len(rows)) - (np.cumsum(different) - different)[rows]
    again = (counts > 1) & (place < np.floor(np.sqrt(different))[rows])
    return 1 - _share(rows, counts, again, len(texts))


def word_repetition(texts: Sequence[str]) -> Floats:
    """Return ``(n,)`` from 0 to 1; 1 for a text without a run of ten words (in lower case) that comes again."""
    split = [text.lower().split() for text in texts]
    numbers: dict[str, int] = {}
    flat = [numbers.setdefault(word, len(numbers)) for own in split for word in own]
    symbols = np.array(flat, dtype=np.uint64)
    rows, counts = _runs(symbols, np.fromiter(map(len, split), np.int64, len(split)))
    return 1 - _share(rows, counts, counts > 1, len(texts))


def _runs(symbols: UInt64s, lengths: Ints) -> tuple[Ints, Ints]:
    """Return the different runs of ten symbols within texts, text by text: ``(m,)`` which text, and how often.

    (Two runs are taken for one by a chance of 2^-64 per pair.)
    """
    owners = np.repeat(np.arange(len(lengths)), lengths)
    starts = np.cumsum(lengths) - lengths
    count = max(0, len(symbols) - RUN + 1)
    inside = np.arange(count) + RUN <= (starts + lengths)[owners[:count]]
    values = np.zeros(count, dtype=np.uint64)
    for offset in range(RUN):
        values = mix(values ^ symbols[offset : offset + count]) + np.uint64(offset + 1)
    rows, values = owners[:count][inside], values[inside]
    order = np.lexsort((values, rows))
    rows, values = rows[order], values[order]
    first = np.flatnonzero(np.append(True, (np.diff(rows) != 0) | (values[1:] != values[:-1]))[: len(rows)])
    return rows[first], np.diff(first, append=len(rows))


def _share(rows: Ints, counts: Ints, taken: npt.NDArray[np.bool_], n: int) -> Floats:
    """Return ``(n,)`` the share of the ``taken`` in each text's counts, 0 where it has none."""
    total = np.bincount(rows, counts, n)
    part = np.bincount(rows[taken], counts[taken], n)
    share: Floats = part / np.maximum(total, 1)
    return share


def caption_like(texts: Sequence[str]) -> Floats:
    """Return ``(n,)`` the share of seven marks of a caption: four of `CAPTION_MARKS`, length, letters, and variety."""
    array = pa.array(texts, pa.string())
    marks = [~_numpy(pc.match_substring_regex(array, pattern)) for pattern in CAPTION_MARKS.values()]
    split = [text.lower().split() for text in texts]
    counts = np.fromiter(map(len, split), np.float64, len(texts))
    different = np.fromiter((len(set(own)) for own in split), np.float64, len(texts))
    plain = _numpy(pc.count_substring_regex(array, r"[\p{L}\p{M}\s]"))
    sizes = characters(texts)
    marks += [(counts > 2) & (sizes > 5), 3 * plain >= 2 * sizes, 2 * different >= counts]
    share: Floats = np.mean(marks, axis=0, dtype=np.float64)
    return share


def _numpy(array: pa.Array) -> npt.NDArray[np.bool_]:
    values: npt.NDArray[np.bool_] = array.to_numpy(zero_copy_only=False)
    return values


def concrete_words(texts: Sequence[str]) -> Floats:
    """Return ``(n,)`` the share of words that are neither function words nor look abstract; 0 of none."""
    split = [[word.lower() for word in WORD.findall(text)] for text in texts]
    concrete = {word: _is_concrete(word) for own in split for word in own}
    shares = (sum(concrete[word] for word in own) / max(1, len(own)) for own in split)
    return np.fromiter(shares, np.float64, len(texts))


def _is_concrete(word: str) -> bool:
    return word not in FUNCTION_WORDS and len(word) > 2 and not _ABSTRACT.search(word)


SCORES: dict[str, Callable[[Sequence[str]], Floats]] = {
    "words": words,
    "characters": characters,
    "character_repetition": character_repetition,
    "word_repetition": word_repetition,
    "caption_like": caption_like,
    "concrete_words": concrete_words,
}
