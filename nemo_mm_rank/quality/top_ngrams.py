"""Curator's filter for the most frequent n-gram, made repeatable. Imports Curator: import it only where it is used."""

from __future__ import annotations

from collections import Counter

from nemo_curator.stages.text.filters.heuristic.repetition import RepeatingTopNGramsFilter
from nemo_curator.stages.text.utils.text_utils import get_ngrams


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
