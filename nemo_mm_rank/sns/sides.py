"""The two sides of many pairs as vectors, whole, in parts and trimmed, and how close they are to each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nemo_mm_rank.arrays import Bools, Vectors
from nemo_mm_rank.config import SNSSettings
from nemo_mm_rank.errors import PairError
from nemo_mm_rank.models.base import Encoded, Encoder
from nemo_mm_rank.schema import Modality
from nemo_mm_rank.sns.selection import nucleus, threshold

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


Spans = list[list[float]]


@dataclass(frozen=True)
class Cut:
    """What trimming one side of one pair would keep.

    Attributes:
        spans: the kept parts; None where the side stays whole.
        what: how much that is, or why it stays whole, in words.
    """

    spans: Spans | None
    what: str


UNTOUCHED = Cut(None, "")
ONE, ALL, NONE = (Cut(None, what) for what in ("one segment", "every segment is relevant", "no segment is relevant"))


@dataclass(frozen=True)
class Side:
    """One side of ``n`` pairs.

    Attributes:
        whole: ``(n, d)`` float32, the side as it is; NaN where it has no vector.
        cuts: what trimming would keep of each.
        trimmed: ``(n, d)`` float32, that and nothing else; NaN where there is no cut.
        errors: position -> why the side as it is has no vector.
    """

    whole: Vectors
    cuts: list[Cut]
    trimmed: Vectors
    errors: dict[int, PairError]


@dataclass(frozen=True)
class Selector:
    """Decides which parts to keep: by their relevance, as the settings say."""

    settings: SNSSettings
    tau: float

    def __call__(self, relevance: npt.NDArray[np.float32], owner: npt.NDArray[np.int64]) -> Bools:
        """Return which parts to keep."""
        if self.settings.select == "threshold":
            return threshold(relevance, self.tau)
        return nucleus(relevance, owner, self.settings.nucleus, self.settings.temperature)


def make_cut(spans: Spans, kept: int, of: int, noun: str) -> Cut:
    """Return the cut that leaves ``spans``, where ``kept`` of ``of`` parts are relevant; parts are called ``noun``."""
    if of < 2:
        return ONE
    if not kept:
        return NONE
    return ALL if kept == of else Cut(spans, f"{kept} of {of} {noun}")


def per_pair(values: npt.NDArray[Any], counts: npt.NDArray[np.int64]) -> list[npt.NDArray[Any]]:
    """Return each pair's own part of ``values``, which are laid end to end."""
    return np.split(values, np.cumsum(counts)[:-1])
