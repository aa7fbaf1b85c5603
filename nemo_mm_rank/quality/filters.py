"""Curator's own filters, from the settings: what each is called, where its bounds lie, and what its score is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

import numpy as np

from nemo_mm_rank.arrays import Floats
from nemo_mm_rank.errors import ModelError, require
from nemo_mm_rank.quality.settings import Range, TraditionalSettings

LANGUAGE = "lang_id"
"""Curator's name for its language filter."""

_STRING = "nemo_curator.stages.text.filters.heuristic.string"
_REPETITION = "nemo_curator.stages.text.filters.heuristic.repetition"
_LANGUAGE = "nemo_mm_rank.quality.language"
_TOP_NGRAMS = "nemo_mm_rank.quality.top_ngrams"

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
    found = list(_heuristics(settings))
    if settings.language is not None:
        language = settings.language
        arguments = {"model_path": language.model, "min_langid_score": language.min_score, "lang": language.lang}
        found.append(Rule(LANGUAGE, _LANGUAGE, "LanguageFilter", arguments, least=language.min_score))
    return found


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
