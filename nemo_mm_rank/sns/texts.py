"""Sides that are text or code: embedded whole and in parts, trimmed to the parts that matter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nemo_mm_rank.arrays import Vectors
from nemo_mm_rank.errors import PairError
from nemo_mm_rank.media.spans import kept_text
from nemo_mm_rank.models.base import Encoder
from nemo_mm_rank.sns.relevance import Parts, best_match, host
from nemo_mm_rank.sns.sides import UNTOUCHED, Selector, Side, make_cut, per_pair
from nemo_mm_rank.sns.split import CharSpan, merge_neighbours

MAX_PARTS = 256
"""Parts of a text; one with more sentences is cut into groups of neighbouring ones."""


@dataclass(frozen=True)
class Texts:
    """One side of ``n`` pairs that is text (or code), embedded whole and in parts.

    Attributes:
        texts: as they are.
        spans: of the parts of each.
        whole: ``(n, d)`` float32, NaN where a text has no vector.
        parts: the parts' vectors.
        errors: position -> why a text has no vector.
    """

    texts: Sequence[str]
    spans: list[list[CharSpan]]
    whole: Vectors
    parts: Parts
    errors: dict[int, PairError]

    @classmethod
    def embed(
        cls, texts: Sequence[str], split: Callable[[str], list[CharSpan]], encoder: Encoder, modality: str
    ) -> Texts:
        """Split and embed ``texts``: wholes and parts in one call."""
        spans = [merge_neighbours(split(text), MAX_PARTS) for text in texts]
        pieces = [text[start:end] for text, own in zip(texts, spans, strict=True) for start, end in own]
        encoded = encoder.encode([*texts, *pieces], modality)
        vectors, n = host(encoded), len(texts)
        errors = {row: error for row, error in encoded.errors.items() if row < n}
        counts = np.array([len(own) for own in spans], dtype=np.int64)
        return cls(texts, spans, vectors[:n], Parts(vectors[n:], counts), errors)

    def untrimmed(self) -> Side:
        """Return the side with no cut in it."""
        return Side(self.whole, [UNTOUCHED] * len(self.texts), np.full_like(self.whole, np.nan), self.errors)

    def trim(self, others: Parts, select: Selector, noun: str, joint: str, encoder: Encoder, modality: str) -> Side:
        """Keep the parts that fit the other side's parts, and embed what is left of each text, in one call.

        Args:
            others: the parts of the other side.
            select: which parts to keep.
            noun: what the parts are called.
            joint: what kept parts are joined by.
            encoder: the one that the texts were embedded by.
            modality: text or code.
        """
        mask = select(best_match(self.parts, others), self.parts.owner)
        cuts = []
        for own, keep in zip(self.spans, per_pair(mask, self.parts.counts), strict=True):
            kept = [[float(start), float(end)] for (start, end), keeps in zip(own, keep, strict=True) if keeps]
            cuts.append(make_cut(kept, len(kept), len(own), noun))
        rows = [row for row, cut in enumerate(cuts) if cut.spans is not None]
        left = [kept_text(self.texts[row], cuts[row].spans, joint, len(self.texts[row])) for row in rows]
        trimmed = np.full_like(self.whole, np.nan)
        if rows:
            trimmed[rows] = host(encoder.encode(left, modality))
        return Side(self.whole, cuts, trimmed, self.errors)
