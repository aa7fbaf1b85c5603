"""Filters of Curator's kind that Curator itself lacks. Imports Curator: import it only where it is used."""

from __future__ import annotations

from collections import Counter
from typing import Any

import fasttext
import numpy as np
from nemo_curator.stages.text.filters.fasttext import FastTextLangId
from nemo_curator.stages.text.filters.heuristic.repetition import RepeatingTopNGramsFilter
from nemo_curator.stages.text.utils.text_utils import get_ngrams


class _Lines:
    """Answers for a list of lines as the original fastText does, by a reader that does so for single lines only.

    ``fasttext-predict`` (which needs no compiler, as the original does) returns pairs for a list, and Curator's
    filter expects labels and arrays.
    """

    def __init__(self, model: Any) -> None:
        self._model = model

    def predict(self, lines: list[str], k: int = 1) -> tuple[list[tuple[str, ...]], list[np.ndarray[Any, Any]]]:
        """Return per line its ``k`` likeliest labels and their probabilities."""
        predictions = [self._model.predict(line, k=k) for line in lines]
        return [labels for labels, _ in predictions], [np.asarray(probabilities) for _, probabilities in predictions]


class LanguageFilter(FastTextLangId):  # type: ignore[misc]  # Curator publishes no types
    """Curator's ``FastTextLangId``; its scores and verdicts are Curator's own."""

    def load_model(self) -> None:
        """Open the fastText file."""
        super().load_model()
        if not hasattr(fasttext, "train_supervised"):
            self._fasttext_langid_model: Any = _Lines(self._fasttext_langid_model)


class TopNGramsFilter(RepeatingTopNGramsFilter):  # type: ignore[misc]  # Curator publishes no types
    """Curator's ``RepeatingTopNGramsFilter``, which of several n-grams that are equally frequent takes the first.

    Curator's own takes whichever comes first out of a set of strings, whose order Python changes from process to
    process. In a short text, where most often no n-gram is there twice, its score is that of an n-gram drawn by lot.
    """

    def score_document(self, text: str) -> float:
        """Return the share of the text's characters that its most frequent n-gram takes up; 1 where it has none."""
        ngrams = get_ngrams(self._word_splitter(text.strip()), self._n)
        self.ngrams = [ngram for ngram, _ in Counter(ngrams).most_common(1)] or None
        return float(super().score_document(text))
