"""Curator's language filter on any reader of fastText files. Imports Curator: import it only where it is used."""

from __future__ import annotations

from typing import Any

import fasttext
import numpy as np
from nemo_curator.stages.text.filters.fasttext import FastTextLangId


class _Lines:
    """Answers for a list of lines as the original fastText does, by a reader that does so for single lines only.

    ``fasttext-predict`` (which needs no compiler, as the original does) returns pairs for a list, and Curator's
    filter expects labels and arrays.
    """

    def __init__(self, model: Any) -> None:
        self._model = model

    def predict(self, lines: list[str], k: int = 1) -> tuple[list[tuple[str, ...]], list[np.ndarray[Any, Any]]]:
        """Return per line its ``k`` likeliest labels and their probabilities."""
        found = [self._model.predict(line, k=k) for line in lines]
        return [labels for labels, _ in found], [np.asarray(probabilities) for _, probabilities in found]


class LanguageFilter(FastTextLangId):  # type: ignore[misc]  # Curator publishes no types
    """Curator's ``FastTextLangId``; its scores and verdicts are Curator's own."""

    def load_model(self) -> None:
        """Open the fastText file."""
        super().load_model()
        if not hasattr(fasttext, "train_supervised"):
            self._fasttext_langid_model: Any = _Lines(self._fasttext_langid_model)
