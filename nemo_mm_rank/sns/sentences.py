"""The sentences of annotations: each distinct one once, and whose they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nemo_mm_rank.arrays import Floats, Ints
from nemo_mm_rank.sns.components import components


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
