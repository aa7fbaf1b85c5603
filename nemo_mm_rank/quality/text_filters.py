"""The text-only filters: their settings, Curator's filters made from them, and the step that adds what each says."""

from __future__ import annotations

import ast
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from pydantic import AfterValidator, Field, model_validator

from nemo_mm_rank.arrays import Floats
from nemo_mm_rank.config import OFF, MediaSettings, Settings, Share
from nemo_mm_rank.errors import ModelError, PairError, TextError, require
from nemo_mm_rank.frames import Frame
from nemo_mm_rank.io.files import file_digest
from nemo_mm_rank.media.rows import annotation_texts
from nemo_mm_rank.schema import ANNOTATION
from nemo_mm_rank.steps import Added, Portable, Step
from nemo_mm_rank.text.minhash import NearDuplicateSettings, band_keys

Off = Literal["off"]
Ratio = Annotated[Share | Off, OFF]
Length = Annotated[int, Field(ge=2, le=100)]
"""Words in an n-gram."""


class Range(Settings):
    """The least and the greatest value that a filter keeps."""

    least: float = Field(ge=0)
    most: float = Field(ge=0)

    @model_validator(mode="after")
    def _in_order(self) -> Range:
        if self.least > self.most:
            raise ValueError(f"nothing lies between {self.least:g} and {self.most:g}")
        return self


class FilterSettings(Settings):
    """Thresholds of Curator's English cascade, in its order; ``off`` leaves a filter out.

    Ratios are shares of the text's own characters, words or lines.
    """

    alpha_numeric: Ratio = Field(
        0.25, description="Most characters that are no letters, no digits and none of .,!? (share)."
    )
    symbol_to_word: Ratio = Field(0.1, description="Most words that are # or an ellipsis (share).")
    numbers_ratio: Ratio = Field(0.15, description="Most characters that are digits (share).")
    urls_ratio: Ratio = Field(0.2, description="Most characters that belong to URLs (share).")
    white_space: Ratio = Field(0.25, description="Most characters that are white space (share).")
    parentheses_ratio: Ratio = Field(0.1, description="Most characters that are brackets (share).")
    boilerplate_string_ratio: Ratio = Field(0.4, description="Most paragraphs that are boilerplate (share).")
    repeated_lines: Ratio = Field(0.7, description="Fewest lines that remain when repeated lines are left out (share).")
    repeated_paragraphs: Ratio = Field(
        0.7, description="Fewest paragraphs that remain when repeated paragraphs are left out (share)."
    )
    repeated_lines_char: Ratio = Field(
        0.8, description="Fewest characters that remain when repeated lines are left out (share)."
    )
    repeated_paragraphs_char: Ratio = Field(
        0.8, description="Fewest characters that remain when repeated paragraphs are left out (share)."
    )
    word_count: Annotated[Range | Off, OFF] = Range(least=50, most=100_000)
    punctuation: Ratio = Field(0.85, description="Most lines that end without a punctuation mark (share).")
    words_without_alphabets: Ratio = Field(0.8, description="Fewest words that contain a letter (share).")
    common_english_words: Annotated[int | Off, Field(description="Fewest common English words (number)."), OFF] = 2
    mean_word_length: Annotated[Range | Off, OFF] = Range(least=3, most=10)
    max_word_length: Annotated[int | Off, Field(description="Most characters in a word (number)."), OFF] = 1000
    ellipsis: Ratio = Field(0.3, description="Most lines that end with an ellipsis (share).")
    repeating_top_ngrams: Annotated[dict[Length, Share] | Off, OFF] = Field(
        {2: 0.2, 3: 0.18, 4: 0.16},
        description="For n-grams of n words: most characters in the most frequent n-gram (share).",
    )
    repeating_dup_ngrams: Annotated[dict[Length, Share] | Off, OFF] = Field(
        {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10},
        description="For n-grams of n words: most characters in n-grams that occurred before (share).",
    )
    bullet_ratio: Ratio = Field(0.9, description="Most lines that begin with a bullet (share).")


def existing_file(path: str) -> str:
    """Return ``path`` made absolute; `ValueError` where no file is there."""
    file = Path(path).expanduser().absolute()  # workers may stand elsewhere
    if not file.is_file():
        raise ValueError(f"no such file: {path}")
    return str(file)


class LanguageSettings(Settings):
    """Language identification by a fastText file of yours (Curator has none of its own)."""

    model: Annotated[str, AfterValidator(existing_file)] = Field(
        description="Path of a fastText file, such as lid.176.ftz."
    )
    lang: str | None = Field(
        None, description="Keep only texts in this language. Default: any language that is recognised."
    )
    min_score: Share = Field(0.3, description="Least confidence of the language identification.")


class TraditionalSettings(Settings):
    """The text-only baseline."""

    filters: FilterSettings = FilterSettings()
    language: LanguageSettings | None = None
    exact_duplicates: bool = True
    near_duplicates: Annotated[NearDuplicateSettings | Off, OFF] = NearDuplicateSettings()

    @model_validator(mode="after")
    def _something(self) -> TraditionalSettings:
        filters = any(value != "off" and value != {} for _, value in self.filters)
        if not (filters or self.language or self.exact_duplicates or self.near_duplicates != "off"):
            raise ValueError("every filter is off, and nothing is left to choose by")
        return self


LANGUAGE = "lang_id"
"""Curator's name for its language filter."""

_STRING = "nemo_curator.stages.text.filters.heuristic.string"
_REPETITION = "nemo_curator.stages.text.filters.heuristic.repetition"
_LANGUAGE = "nemo_mm_rank.quality.curator_filters"
_TOP_NGRAMS = "nemo_mm_rank.quality.curator_filters"

# name: module, class, and its arguments for the least and for the most that it keeps ("" where it has no such bound)
_CLASSES: dict[str, tuple[str, str, str, str]] = {
    "alpha_numeric": (_STRING, "NonAlphaNumericFilter", "", "max_non_alpha_numeric_to_text_ratio"),
    "symbol_to_word": (_STRING, "SymbolsToWordsFilter", "", "max_symbol_to_word_ratio"),
    "numbers_ratio": (_STRING, "NumbersFilter", "", "max_number_to_text_ratio"),
    "urls_ratio": (_STRING, "UrlsFilter", "", "max_url_to_text_ratio"),
    "white_space": (_STRING, "WhiteSpaceFilter", "", "max_white_space_ratio"),
    "parentheses_ratio": (_STRING, "ParenthesesFilter", "", "max_parentheses_ratio"),
    "boilerplate_string_ratio": (_STRING, "BoilerPlateStringFilter", "", "max_boilerplate_string_ratio"),
    "repeated_lines": (_REPETITION, "RepeatedLinesFilter", "max_repeated_line_fraction", ""),
    "repeated_paragraphs": (_REPETITION, "RepeatedParagraphsFilter", "max_repeated_paragraphs_ratio", ""),
    "repeated_lines_char": (_REPETITION, "RepeatedLinesByCharFilter", "max_repeated_lines_char_ratio", ""),
    "repeated_paragraphs_char": (
        _REPETITION,
        "RepeatedParagraphsByCharFilter",
        "max_repeated_paragraphs_char_ratio",
        "",
    ),
    "word_count": (_STRING, "WordCountFilter", "min_words", "max_words"),
    "punctuation": (_STRING, "PunctuationFilter", "", "max_num_sentences_without_endmark_ratio"),
    "words_without_alphabets": (_STRING, "WordsWithoutAlphabetsFilter", "min_words_with_alphabets", ""),
    "common_english_words": (_STRING, "CommonEnglishWordsFilter", "min_num_common_words", ""),
    "mean_word_length": (_STRING, "MeanWordLengthFilter", "min_mean_word_length", "max_mean_word_length"),
    "max_word_length": (_STRING, "LongWordFilter", "", "max_word_length"),
    "ellipsis": (_STRING, "EllipsisFilter", "", "max_num_lines_ending_with_ellipsis_ratio"),
    "repeating_top_ngrams": (_TOP_NGRAMS, "TopNGramsFilter", "", "max_repeating_ngram_ratio"),
    "repeating_dup_ngrams": (
        _REPETITION,
        "RepeatingDuplicateNGramsFilter",
        "",
        "max_repeating_duplicate_ngram_ratio",
    ),
    "bullet_ratio": (_STRING, "BulletsFilter", "", "max_bullet_lines_ratio"),
}

_NGRAM_NAMES = {"repeating_top_ngrams": "repeating_top_{}grams", "repeating_dup_ngrams": "repeating_dup_{}gram"}

_COUNTS = ("word_count", "common_english_words", "mean_word_length", "max_word_length")
"""Filters whose scores are words or characters; all others are shares of the text's own size."""


@dataclass(frozen=True)
class Rule:
    """One of Curator's filters and the bounds of what it keeps.

    Attributes:
        name: Curator's name for it.
        module, class_name: where it is.
        arguments: what it is made with.
        least, most: it keeps scores from ``least`` to ``most``; infinite where there is no such bound.
        is_ratio: its score is a share of the text's own size (or a probability), from 0 to 1.
    """

    name: str
    module: str
    class_name: str
    arguments: Mapping[str, Any] = field(hash=False)
    least: float = -inf
    most: float = inf
    is_ratio: bool = True

    def make(self) -> Any:
        """Return the ``DocumentFilter``; Curator's stages load its model where it has one.

        Raises:
            UserError: Curator is not installed.
        """
        require("nemo_curator", "curator")
        return getattr(require(self.module, "curator"), self.class_name)(**self.arguments)

    def load(self) -> Any:
        """Return the ``DocumentFilter``, ready to judge.

        Raises:
            UserError: Curator is not installed.
            ModelError: its file is none of fastText, or one that predicts nothing.
        """
        document_filter = self.make()
        if hasattr(document_filter, "load_model"):
            try:
                document_filter.load_model()
                document_filter.score_document("a")
            except ValueError as error:
                raise ModelError(f"{self.name}: {error}") from error
        return document_filter

    def margin(self, scores: Floats) -> Floats:
        """Return how far from the threshold scores lie on its good side: 1 the best there is, 0 at or beyond it.

        Args:
            scores: ``(n,)`` of a filter with `is_ratio`.
        """
        if self.most < inf:
            room, distance = self.most, self.most - scores
        else:
            room, distance = 1 - self.least, scores - self.least
        if not room:  # a threshold that only the best score reaches
            return (distance >= 0).astype(np.float64)
        return np.clip(distance / room, 0.0, 1.0)

    @property
    def bound(self) -> str:
        """The bounds in words."""
        if lang := self.arguments.get("lang"):
            return f"{lang}, at least {self.least:g}"
        if self.least == -inf:
            return f"at most {self.most:,g}"
        return f"at least {self.least:g}" if self.most == inf else f"from {self.least:g} to {self.most:,g}"


def rules(settings: TraditionalSettings) -> list[Rule]:
    """Return the filters that the settings ask for, in the order of Curator's own cascade, language last."""
    filters = list(_heuristics(settings))
    if settings.language is not None:
        language = settings.language
        arguments = {"model_path": language.model, "min_langid_score": language.min_score, "lang": language.lang}
        filters.append(Rule(LANGUAGE, _LANGUAGE, "LanguageFilter", arguments, least=language.min_score))
    return filters


def _heuristics(settings: TraditionalSettings) -> Iterator[Rule]:
    for name, threshold in settings.filters:
        if threshold == "off":
            continue
        module, class_name, low, high = _CLASSES[name]
        if isinstance(threshold, dict):
            for n, share in sorted(threshold.items()):
                yield Rule(_NGRAM_NAMES[name].format(n), module, class_name, {"n": n, high: share}, most=share)
            continue
        least, most = (threshold.least, threshold.most) if isinstance(threshold, Range) else (threshold, threshold)
        yield Rule(
            name,
            module,
            class_name,
            {argument: value for argument, value in ((low, least), (high, most)) if argument},
            least if low else -inf,
            most if high else inf,
            name not in _COUNTS,
        )


PREFIX = "traditional__"
"""How the names of all columns begin that this baseline adds."""

ROW_FILTERS_PASSED, MARGIN = f"{PREFIX}row_filters_passed", f"{PREFIX}margin"
LABEL = f"{PREFIX}{LANGUAGE}__label"
EXACT_KEY = f"{PREFIX}exact_key"


def score_column(name: str) -> str:
    """Name of the column with a filter's scores."""
    return f"{PREFIX}{name}"


def passed_column(name: str) -> str:
    """Name of the column that says whether a filter keeps the pair."""
    return f"{PREFIX}{name}__passed"


def band_columns(settings: TraditionalSettings) -> list[str]:
    """Names of the columns with the MinHash keys, one a band."""
    near = settings.near_duplicates
    return [] if near == "off" else [f"{PREFIX}band_{band:03d}" for band in range(near.bands)]


class AnnotationStep(Portable, Step):
    """A step that judges annotations alone, each distinct one of a frame once."""

    @property
    def requires(self) -> Mapping[str, pa.DataType]:
        """The annotation."""
        return {ANNOTATION: pa.string()}

    @abstractmethod
    def read(self, rows: Frame) -> Sequence[str | TextError]:
        """Return the annotation of each row, or why it has none."""

    @abstractmethod
    def judge(self, texts: list[str]) -> dict[str, pa.Array]:
        """Return this step's columns for distinct texts."""

    def process(self, rows: Frame) -> Added:
        """Judge each distinct annotation, and give every row what is said of its own."""
        texts = self.read(rows)
        errors: dict[int, PairError] = {row: text for row, text in enumerate(texts) if isinstance(text, PairError)}
        readable = np.array([text if isinstance(text, str) else None for text in texts], dtype=object)
        codes, distinct = pd.factorize(readable)
        taken = pa.array(codes, mask=codes < 0)
        return Added({name: said.take(taken) for name, said in self.judge(list(distinct)).items()}, errors)


@dataclass
class TraditionalStep(AnnotationStep):
    """Adds score and verdict of each of Curator's row filters, their number passed, the margin, and duplicates' keys.

    Judged is the annotation as it stands in the pool, for every modality: what SNS kept of it is not looked at, and
    neither is the data side, not even of text and code. Each distinct annotation of a frame is judged once.

    The margin is a number from 0 to below 1, higher for better: over the filters whose score is a share of the
    text's own size (or a probability), the sum of how far the score lies on the good side of its threshold
    (`filters.Rule.margin`), divided by one more than there are of them.

    Args:
        settings: which filters, and their thresholds.
    """

    settings: TraditionalSettings
    name: str = "traditional"

    @property
    def provides(self) -> Mapping[str, pa.DataType]:
        """Per filter a score and a verdict, what they come to, and keys that are equal for duplicates."""
        columns: dict[str, pa.DataType] = {}
        for rule in rules(self.settings):
            columns[score_column(rule.name)] = pa.float64()
            if rule.name == LANGUAGE:
                columns[LABEL] = pa.string()
            columns[passed_column(rule.name)] = pa.bool_()
        columns |= {ROW_FILTERS_PASSED: pa.int32(), MARGIN: pa.float64()}
        if self.settings.exact_duplicates:
            columns[EXACT_KEY] = pa.uint64()
        return columns | dict.fromkeys(band_columns(self.settings), pa.uint64())

    def setup(self, device: str | None = None) -> None:
        """Make the filters, and open the fastText file.

        Raises:
            UserError: Curator is not installed.
            ModelError: the file cannot be used.
        """
        if not hasattr(self, "_filters"):
            self._filters = [(rule, rule.load()) for rule in rules(self.settings)]

    def identity(self) -> dict[str, Any]:
        """Settings, Curator's version, and what the fastText file is."""
        require("nemo_curator", "curator")
        values = self.settings.model_dump(mode="json")
        if self.settings.language is not None:
            values["language"]["model"] = file_digest(self.settings.language.model)
        return {"step": self.name, "settings": values, "nemo_curator": version("nemo-curator")}

    def read(self, rows: Frame) -> Sequence[str | TextError]:
        """As they stand in the pool."""
        return annotation_texts(rows, MediaSettings(), use_spans=False)

    def judge(self, texts: list[str]) -> dict[str, pa.Array]:
        """Ask every filter."""
        columns: dict[str, pa.Array] = {}
        passed_count = np.zeros(len(texts), dtype=np.int32)
        margin, ratios = np.zeros(len(texts)), 0
        for rule, document_filter in self._filters:
            said = [document_filter.score_document(text) for text in texts]
            passed = np.array([document_filter.keep_document(score) for score in said], dtype=bool)
            if rule.name == LANGUAGE:  # Curator writes "[confidence, 'label']", so that any engine can carry it
                pairs = [ast.literal_eval(score) for score in said]
                columns[LABEL] = pa.array([label for _, label in pairs], pa.string())
                said = [confidence for confidence, _ in pairs]
            scores = np.array(said, dtype=np.float64)
            columns |= {score_column(rule.name): pa.array(scores), passed_column(rule.name): pa.array(passed)}
            passed_count += passed
            if rule.is_ratio:
                margin += np.where(passed, rule.margin(scores), 0.0)  # certain of the wrong language is no merit
                ratios += 1
        columns |= {ROW_FILTERS_PASSED: pa.array(passed_count), MARGIN: pa.array(margin / (ratios + 1))}
        return columns | self._keys(texts)

    def _keys(self, texts: list[str]) -> dict[str, pa.Array]:
        columns: dict[str, pa.Array] = {}
        if self.settings.exact_duplicates:
            columns[EXACT_KEY] = pa.array(pd.util.hash_array(np.array(texts, dtype=object), categorize=False))
        if self.settings.near_duplicates != "off":
            keys = band_keys(texts, self.settings.near_duplicates)
            names = band_columns(self.settings)
            columns |= {name: pa.array(np.ascontiguousarray(keys[:, band])) for band, name in enumerate(names)}
        return columns
