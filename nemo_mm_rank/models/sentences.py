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
        taken = components(annotations, "sentences")
        places: dict[str, int] = {}
        place = np.array([places.setdefault(text, len(places)) for texts in taken for text in texts], dtype=np.int64)
        owner = np.repeat(np.arange(len(taken)), list(map(len, taken)))
        if not places:
            return cls([], place, owner, torch.zeros((0, encoder.dim)))
        encoded = encoder.encode(list(places), Modality.TEXT)
        there = ~np.isin(place, list(encoded.errors))
        vectors = encoded.vectors.float().cpu()[torch.from_numpy(place[there])]
        return cls(list(places), place[there], owner[there], vectors)

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
