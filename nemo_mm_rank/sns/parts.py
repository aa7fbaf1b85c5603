"""The parts of pairs' sides as vectors, and how close each is to the other side: of its own pair, and of others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nemo_mm_rank.arrays import Floats, Floats32, Ints, Vectors
from nemo_mm_rank.models.base import Encoded, Encoder
from nemo_mm_rank.schema import Modality
from nemo_mm_rank.vectors import products

_NEAREST = 5
_SPREAD = 0.1
"""By so much less contrast a part counts e times less among those of its side."""

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
    counts: Ints

    @property
    def owner(self) -> Ints:
        """``(m,)`` which pair a part is of."""
        return np.repeat(np.arange(len(self.counts)), self.counts)


def embed_parts(texts: Sequence[Sequence[str]], encoder: Encoder) -> Parts:
    """Embed each pair's own texts, all in one call."""
    encoded = encoder.encode([text for own in texts for text in own], Modality.TEXT)
    return Parts(host(encoded), np.array([len(own) for own in texts], dtype=np.int64))


def cosines(left: Vectors, right: Vectors) -> Floats32:
    """Return the cosine of each row of ``left`` and the same row of ``right``: two times ``(n, d)`` -> ``(n,)``.

    The rows are L2-normalised. Each is summed on its own, so that a result does not depend on its neighbours, to the
    bit, as it would in a product of matrices.
    """
    return np.asarray(np.einsum("ij,ij->i", left, right))


def best_match(parts: Parts, others: Parts) -> Floats32:
    """Return the largest cosine of each part to any part of the same pair's other side: ``(m,)`` float32.

    NaN for a part that has no vector, or nothing to be compared with.
    """
    found = np.full(len(parts.vectors), np.nan, dtype=np.float32)
    for left, values in _own_cosines(parts, others):
        np.fmax.at(found, left, values)
    return found


def mean_match(parts: Parts, others: Parts) -> Floats32:
    """Return the mean cosine of each part to all parts of the same pair's other side that have a vector.

    Of a question's phrases most are those of all sentences beside it; the one with the answer fits several at once.

    Returns:
        ``(m,)`` float32; NaN for a part that has no vector, or nothing to be compared with.
    """
    total, count = np.zeros(len(parts.vectors)), np.zeros(len(parts.vectors))
    for left, values in _own_cosines(parts, others):
        there = ~np.isnan(values)
        np.add.at(total, left[there], values[there])
        np.add.at(count, left[there], 1)
    found = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
    matches: Floats32 = found.astype(np.float32)
    return matches


def _own_cosines(parts: Parts, others: Parts) -> Iterator[tuple[Ints, Floats32]]:
    """Yield parts and their cosines with a part each of the same pair's other side, a bounded number at a time."""
    rivals = others.counts[parts.owner]
    first = (np.cumsum(others.counts) - others.counts)[parts.owner]
    ends = np.cumsum(rivals)
    begin = 0
    while begin < len(rivals):
        done = int(ends[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, done + _COSINES, side="right")))
        count = rivals[begin:end]
        left = np.repeat(np.arange(begin, end), count)
        nth = np.arange(len(left)) - np.repeat(np.cumsum(count) - count, count)
        right = np.repeat(first[begin:end], count) + nth
        yield left, cosines(parts.vectors[left], others.vectors[right])
        begin = end


@dataclass(frozen=True)
class Scored:
    """The parts of one side of some pairs, beside the other side of their own pair and of others.

    Attributes:
        relevance: ``(m,)`` how close each is to the own pair's other side (`best_match`, `mean_match`).
        owner: ``(m,)`` which pair a part is of, ascending.
        across: ``(m, b)`` likewise to the other sides of the bank's pairs; ``(m, 0)`` where there is none.
        vectors: ``(m, d)`` of the parts; None where whatever scores them keeps theirs to itself.
    """

    relevance: Floats | Floats32
    owner: Ints
    across: Floats | Floats32
    vectors: Vectors | None = None

    def joined(self, other: Scored) -> Scored:
        """Return both, end to end; the other's owners come behind these."""
        first = int(self.owner.max(initial=-1)) + 1
        vectors = None
        if self.vectors is not None and other.vectors is not None:
            vectors = np.concatenate([self.vectors, other.vectors])
        return Scored(
            np.concatenate([self.relevance, other.relevance]),
            np.concatenate([self.owner, other.owner + first]),
            np.concatenate([self.across, other.across]),
            vectors,
        )

    def features(self, blocks: bool) -> Floats:
        """Return ``(m, 9)`` of what tells own parts from foreign ones; NaN where it is not known.

        How close a part is to the other side; how close it is to others' in the mean, how that varies, and to the
        nearest; how far its contrast (the first less the second) lies below the best of its side; how close it is to
        the part of its side that contrasts most, and to all of them, weighed by their contrast; and these two of its
        neighbours. A part that says nothing is close to all sides, and one that nothing speaks of may stand in the
        midst of others that something does.

        Args:
            blocks: whether foreign parts stand side by side, so that neighbours say something of a part.
        """
        unknown = np.full(len(self.relevance), np.nan)
        relevance = self.relevance.astype(np.float64)
        usual = [unknown] * 3
        if self.across.shape[1]:
            across = self.across.astype(np.float64)
            nearest = np.partition(across, -min(_NEAREST, across.shape[1]), axis=1)[:, -_NEAREST:]
            usual = [across.mean(axis=1), across.std(axis=1), np.sort(nearest, axis=1).mean(axis=1)]
        contrast = relevance - np.nan_to_num(usual[0])
        best = leaders(contrast, self.owner)
        below = contrast - contrast[best]
        kin, near = [unknown] * 2, [unknown] * 2
        if self.vectors is not None:
            kin = [_cosines(self.vectors, self.vectors[best]), self._family(np.exp(below / _SPREAD))]
        if blocks:
            near = [self._of_neighbours(values) for values in (kin if self.vectors is not None else [below, unknown])]
        return np.stack([relevance, *usual, below, *kin, *near], axis=1)

    def _of_neighbours(self, values: Floats) -> Floats:
        """Return ``(m,)`` the mean of the parts before and behind each; NaN for one that stands alone."""
        together = self.owner[1:] == self.owner[:-1]
        before, behind = (np.full(len(values), np.nan) for _ in range(2))
        before[1:][together], behind[:-1][together] = values[:-1][together], values[1:][together]
        either = np.stack([np.where(np.isnan(before), behind, before), np.where(np.isnan(behind), before, behind)])
        mean: Floats = either.mean(axis=0)
        return mean

    def _family(self, weights: Floats) -> Floats:
        """Return ``(m,)`` cosine with the weighted sum of the side's parts; NaN counts nothing."""
        assert self.vectors is not None  # noqa: S101 (asked only then)
        total = np.zeros((int(self.owner.max(initial=-1)) + 1, self.vectors.shape[1]))
        np.add.at(total, self.owner, np.nan_to_num(self.vectors * weights[:, None]))
        lengths = np.sqrt(np.einsum("ij,ij->i", total, total))[self.owner]
        found = _cosines(self.vectors, total[self.owner])
        cosine: Floats = np.divide(found, lengths, out=np.full(len(found), np.nan), where=lengths > 0)
        return cosine


def _cosines(left: Vectors, right: Vectors | Floats) -> Floats:
    found: Floats = np.einsum("ij,ij->i", left, right, dtype=np.float64)
    return found


def leaders(values: Floats, owner: Ints) -> Ints:
    """Return ``(m,)`` the position of the highest value of each one's owner, the earlier of equals."""
    order = np.lexsort((np.arange(len(values)), -np.nan_to_num(values, nan=-np.inf), owner))
    first = np.concatenate([[True], owner[order][1:] != owner[order][:-1]]) if len(order) else np.zeros(0, dtype=bool)
    found: Ints = order[first][np.cumsum(np.concatenate([[0], owner[1:] != owner[:-1]]))] if len(order) else order
    return found


def across(parts: Parts, bank: Parts | None, mean: bool) -> Floats32:
    """Return ``(m, b)`` how each part matches each pair of the bank: by the mean or the largest cosine."""
    if bank is None or not len(bank.counts):
        return np.zeros((len(parts.vectors), 0), dtype=np.float32)
    starts = np.cumsum(bank.counts) - bank.counts
    out = np.empty((len(parts.vectors), len(starts)), dtype=np.float32)
    for rows, block in products(torch.from_numpy(parts.vectors), torch.from_numpy(bank.vectors)):
        if mean:
            out[rows] = np.add.reduceat(block.numpy(), starts, axis=1) / bank.counts
        else:
            out[rows] = np.maximum.reduceat(block.numpy(), starts, axis=1)
    return out
