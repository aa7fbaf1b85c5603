"""The sentences of annotations, embedded: each distinct one once, and whose they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nemo_mm_rank.arrays import Floats, Ints
from nemo_mm_rank.frames import Vectors
from nemo_mm_rank.models.base import Encoder
from nemo_mm_rank.schema import Modality
from nemo_mm_rank.text.phrases import components
from nemo_mm_rank.vectors import all_rows, on_host, rowwise, take, to_numpy


@dataclass(frozen=True)
class Sentences:
    """Sentences of ``n`` annotations.

    Attributes:
        texts: the distinct ones.
        place: ``(m,)`` of each sentence among ``texts``, annotation by annotation.
        owner: ``(m,)`` whose it is, ascending.
    """

    texts: list[str]
    place: Ints
    owner: Ints

    @classmethod
    def of(cls, annotations: Sequence[str], fewest: int = 1) -> Sentences:
        """Take annotations apart; those of fewer than ``fewest`` different sentences are passed by."""
        found = [own if len(own) >= fewest else [] for own in components(annotations, "sentences")]
        places: dict[str, int] = {}
        place = [places.setdefault(sentence, len(places)) for own in found for sentence in own]
        owner = np.repeat(np.arange(len(found)), [len(own) for own in found])
        return cls(list(places), np.array(place, dtype=np.int64), owner)

    def least(self, scores: Floats) -> tuple[Ints, Ints]:
        """Return ``(k,)`` the annotations with a scored sentence, and which of the ``m`` has the least score of each.

        Of equal ones the first.

        Args:
            scores: ``(m,)`` of the sentences, NaN for none.
        """
        order = np.lexsort((scores, self.owner))
        order = order[~np.isnan(scores[order])]
        rows, first = np.unique(self.owner[order], return_index=True)
        return rows, order[first]


@dataclass(frozen=True)
class Spoken:
    """The sentences of ``n`` annotations that could be embedded.

    Attributes:
        texts: the distinct ones.
        place: ``(u,)`` of each sentence among ``texts``, annotation by annotation.
        owner: ``(u,)`` whose it is, ascending.
        vectors: ``(u, d)`` float32 on the host.
    """

    texts: Sequence[str]
    place: Ints
    owner: Ints
    vectors: torch.Tensor

    @classmethod
    def of(cls, annotations: Sequence[str], encoder: Encoder) -> Spoken:
        """Take annotations apart, and embed each distinct sentence once."""
        sentences = Sentences.of(annotations)
        if not sentences.texts:
            return cls([], sentences.place, sentences.owner, torch.zeros((0, encoder.dim)))
        encoded = encoder.encode(sentences.texts, Modality.TEXT)
        valid = np.ones(len(sentences.texts), dtype=bool)
        valid[list(encoded.errors)] = False
        keep = valid[sentences.place]
        place = sentences.place[keep]
        vectors = encoded.vectors.float().cpu()[torch.from_numpy(place)]
        return cls(sentences.texts, place, sentences.owner[keep], vectors)

    def cosines(self, data: Vectors) -> Floats:
        """Return ``(u,)`` cosines of every sentence with its pair's data, ``n`` rows in the same space."""
        return to_numpy(rowwise(on_host(take(data, self.owner)), all_rows(self.vectors)))

    def lowest(self, scores: Floats) -> tuple[Ints, Ints]:
        """Return ``(k,)`` the annotations with a sentence, and which sentence has the lowest of ``(u,)`` scores.

        Of equal ones the first.
        """
        order = np.lexsort((scores, self.owner))
        rows, first = np.unique(self.owner[order], return_index=True)
        return rows, order[first]
