"""How an annotation reads: the operators that look at texts, each distinct text once."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nemo_mm_rank.arrays import Floats, Ints, UInt64s
from nemo_mm_rank.config import MediaSettings, ModelSpec
from nemo_mm_rank.errors import ConfigError, ModelError, TextError, require
from nemo_mm_rank.frames import Frame
from nemo_mm_rank.io.files import file_digest
from nemo_mm_rank.media.rows import annotation_texts
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.base import answering, fulfil
from nemo_mm_rank.quality.operators.settings import OperatorSettings, column
from nemo_mm_rank.quality.text_filters import AnnotationStep
from nemo_mm_rank.schema import ANNOTATION_SPANS
from nemo_mm_rank.text.ngrams import mix
from nemo_mm_rank.text.phrases import FUNCTION_WORDS

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
        columns = [[names.index(name) for name in known if name in names] for known in (WORDS, RATINGS)]
        if not all(columns):
            raise ConfigError(f"concreteness: {path} needs columns 'word' and 'rating'; it has {', '.join(names)}")
        word, rating = columns[0][0], columns[1][0]
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


LABEL = "__label__"


def identify(texts: Sequence[str], path: str, lowercase: bool = False) -> tuple[list[str], npt.NDArray[np.float64]]:
    """Return the likeliest language of each text, as the file calls it, and its probability.

    DataComp's reading of texts (``baselines/apply_filter.py``): line ends become spaces, and nothing else is changed.
    fastText's probabilities can be some 1e-5 above 1. A text of which nothing is known has the language "" and 0.

    Args:
        texts: ``n`` of them.
        path: of the fastText file.
        lowercase: read them in lower case.

    Raises:
        UserError: no reader of fastText files is installed.
        ModelError: the file is none, or is no classifier.
    """
    model = load(path)
    labels, probabilities = [], np.zeros(len(texts))
    for row, text in enumerate(texts):
        line = text.replace("\n", " ")
        # One by one: what a list of lines returns depends on which reader of fastText files is installed.
        found, likely = model.predict(line.lower() if lowercase else line, k=1)
        labels.append(found[0].removeprefix(LABEL) if len(found) else "")
        probabilities[row] = likely[0] if len(found) else 0.0
    return labels, probabilities


@lru_cache(maxsize=2)
def load(path: str) -> Any:
    """Open a fastText file, once per process; raises as `identify` does."""
    fasttext = require("fasttext", "curator")
    try:
        model = fasttext.load_model(path)
        model.predict("a", k=1)
    except (ValueError, RuntimeError) as error:
        raise ModelError(f"language: {path} is not a fastText classifier: {' '.join(str(error).split())}") from error
    return model


LANGUAGE, CONCRETENESS, ICC = "language", "concreteness", "icc"
LANGUAGE_LABEL = f"{column(LANGUAGE)}_label"
"""The likeliest language as the fastText file calls it (string)."""


@runtime_checkable
class TextScorer(Protocol):
    """A model that rates texts; ``revision`` names its weights."""

    name: str
    revision: str

    def score(self, texts: list[str]) -> npt.NDArray[np.floating[Any]]:
        """Return ``(n,)`` ratings, higher is better, none of which depends on its neighbours."""
        ...


@dataclass
class TextStep(AnnotationStep):
    """Adds what the annotation's words say of a pair, of every modality.

    Args:
        settings: which operators.
        models: the configuration's models by name.
        media: bounds on texts.
    """

    settings: OperatorSettings
    models: Mapping[str, ModelSpec] = field(default_factory=dict)
    media: MediaSettings = field(default_factory=MediaSettings)
    name: str = "quality-texts"

    @property
    def uses(self) -> tuple[str, ...]:
        """What SNS kept of it."""
        return (ANNOTATION_SPANS,)

    @property
    def provides(self) -> Mapping[str, pa.DataType]:
        """One column per operator, and the language."""
        columns: dict[str, pa.DataType] = {column(name): pa.float32() for name in self._operators}
        return {**columns, LANGUAGE_LABEL: pa.string()} if LANGUAGE in self._operators else columns

    @property
    def _operators(self) -> list[str]:
        settings, concreteness = self.settings, self.settings.concreteness
        names = [
            *settings.texts,
            *([LANGUAGE] if settings.language else []),
            *([CONCRETENESS] if concreteness and concreteness.norms else []),
            *([ICC] if concreteness and concreteness.model else []),
        ]
        return [name for name in dict.fromkeys(names) if name not in settings.given]

    def setup(self, device: str | None = None) -> None:
        """Open the files, and load the model (nothing happens where this process has them)."""
        if LANGUAGE in self._operators and self.settings.language:
            load(self.settings.language.model)
        concreteness = self.settings.concreteness
        if CONCRETENESS in self._operators and concreteness and concreteness.norms:
            read_norms(concreteness.norms)
        if ICC in self._operators and concreteness and concreteness.model:
            self._scorer = _load_scorer(concreteness.model, self.models, loader.pick_device(device))

    def identity(self) -> dict[str, Any]:
        """Operators, what their files hold, and the model's revision."""
        values: dict[str, Any] = {"step": self.name, "operators": self._operators, "version": 1}
        if LANGUAGE in self._operators and self.settings.language:
            settings = self.settings.language
            values[LANGUAGE] = {**settings.model_dump(mode="json"), "model": file_digest(settings.model)}
        concreteness = self.settings.concreteness
        if CONCRETENESS in self._operators and concreteness and concreteness.norms:
            values[CONCRETENESS] = file_digest(concreteness.norms)
        if ICC in self._operators and concreteness and concreteness.model:
            values[ICC] = loader.identities({concreteness.model: self.models[concreteness.model]})
        return values

    def read(self, rows: Frame) -> Sequence[str | TextError]:
        """What SNS kept of them."""
        return annotation_texts(rows, self.media)

    def judge(self, texts: list[str]) -> dict[str, pa.Array]:
        """Apply the operators."""
        columns: dict[str, pa.Array] = {}
        for name in self._operators:
            if name == LANGUAGE and self.settings.language:
                settings = self.settings.language
                labels, probabilities = identify(texts, settings.model, settings.lowercase)
                allowed = np.isin(np.array(labels, dtype=object), settings.languages)
                columns[column(name)] = _floats(np.where(allowed, probabilities, 0.0))
                columns[LANGUAGE_LABEL] = pa.array(labels, pa.string())
            elif name == CONCRETENESS and self.settings.concreteness and self.settings.concreteness.norms:
                columns[column(name)] = _floats(mean_ratings(texts, read_norms(self.settings.concreteness.norms)))
            elif name == ICC:
                columns[column(name)] = _floats(_scored(self._scorer, texts))
            else:
                columns[column(name)] = _floats(SCORES[name](texts))
        return columns


def _floats(scores: npt.NDArray[Any]) -> pa.Array:
    """Return scores as float32, null where they are not numbers."""
    return pa.array(scores.astype(np.float32), from_pandas=True)


def _load_scorer(name: str, models: Mapping[str, ModelSpec], device: str) -> TextScorer:
    spec = models[name]
    scorer: TextScorer = loader.load(name, spec.class_, spec.arguments, device)
    fulfil(name, scorer, TextScorer)
    return scorer


def _scored(scorer: TextScorer, texts: list[str]) -> npt.NDArray[Any]:
    if not texts:
        return np.zeros(0)
    with answering(scorer.name):
        scores = np.asarray(scorer.score(texts))
    if scores.shape != (len(texts),):
        raise ModelError(f"{scorer.name} returned scores of shape {scores.shape} for {len(texts)} texts")
    return scores
