"""How close the parts of one side of a pair are to the parts of the other, for many pairs at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nemo_mm_rank.arrays import Vectors
from nemo_mm_rank.models.base import Encoded, Encoder
from nemo_mm_rank.schema import Modality

# Cosines computed at a time: two vectors are gathered for each.
_COSINES = 1 << 14


def host(encoded: Encoded) -> Vectors:
    """Return an encoder's vectors on the host: ``(n, d)`` float32, NaN where an item has none."""
    vectors = encoded.vectors.detach().to("cpu").numpy()
    if encoded.errors:
        vectors = vectors.copy()
        vectors[list(encoded.errors)] = np.nan
    return vectors


@dataclass(frozen=True)
class Parts:
    """The parts of one side of ``n`` pairs, end to end.

    Attributes:
        vectors: ``(m, d)`` float32, L2-normalised; NaN for a part that has none.
        counts: ``(n,)`` how many of them are each pair's, in the pairs' order; they add up to m.
    """

    vectors: Vectors
    counts: npt.NDArray[np.int64]

    @property
    def owner(self) -> npt.NDArray[np.int64]:
        """``(m,)`` which pair a part is of."""
        return np.repeat(np.arange(len(self.counts)), self.counts)


def embed_parts(texts: Sequence[Sequence[str]], encoder: Encoder) -> Parts:
    """Embed each pair's own texts, all in one call."""
    encoded = encoder.encode([text for own in texts for text in own], Modality.TEXT)
    return Parts(host(encoded), np.array([len(own) for own in texts], dtype=np.int64))


def cosines(left: Vectors, right: Vectors) -> npt.NDArray[np.float32]:
    """Return the cosine of each row of ``left`` and the same row of ``right``: two times ``(n, d)`` -> ``(n,)``.

    The rows are L2-normalised. Each is summed on its own, so that a result does not depend on its neighbours, to the
    bit, as it would in a product of matrices.
    """
    return np.asarray(np.einsum("ij,ij->i", left, right))


def best_match(parts: Parts, others: Parts) -> npt.NDArray[np.float32]:
    """Return the relevance of each part: its largest cosine to any part of the same pair's other side.

    Returns:
        ``(m,)`` float32; NaN for a part that has no vector, or nothing to be compared with.
    """
    relevance = np.full(len(parts.vectors), np.nan, dtype=np.float32)
    rivals = others.counts[parts.owner]
    first = (np.cumsum(others.counts) - others.counts)[parts.owner]
    ends = np.cumsum(rivals)
    begin = 0
    while begin < len(relevance):
        done = int(ends[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, done + _COSINES, side="right")))
        count = rivals[begin:end]
        left = np.repeat(np.arange(begin, end), count)
        nth = np.arange(len(left)) - np.repeat(np.cumsum(count) - count, count)
        right = np.repeat(first[begin:end], count) + nth
        np.fmax.at(relevance, left, cosines(parts.vectors[left], others.vectors[right]))
        begin = end
    return relevance
