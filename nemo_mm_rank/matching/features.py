"""What tells own annotations from others: cosines of the two sides, and which cosines are usual for either.

An annotation that says little ("The answer is 42.") is close to nothing, and one that says much is close to its own
data only. So beside each cosine stand the mean and the deviation of the cosines that either side has with a *bank* of
others of its modality, and a linear model of the three knows what would be expected. A sentence is also compared with
the rest of its annotation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F

from nemo_mm_rank.arrays import Floats, Ints
from nemo_mm_rank.frames import Vectors
from nemo_mm_rank.vectors import all_rows, on_host, rowwise, take, threads, to_numpy

BANK = 128
"""Pairs of a modality that all others are compared with."""

_NEAREST = 5
_SAME = 1 - 1e-4
_BLOCK = 256


@dataclass(frozen=True)
class Space:
    """A space that holds both sides of a pair.

    Attributes:
        name: ``fused``, or what the expert's scores are called.
        data: the column with the data's embeddings.
        model: the model that embeds annotations into it.
    """

    name: str
    data: str
    model: str


@dataclass(frozen=True)
class Bank:
    """Some pairs of one modality, normalised, on the host.

    Attributes:
        data: space -> ``(b, d)``.
        annotations: model -> ``(b, d)``.
        sentences: ``(b, d)`` sentences of annotations, by the anchor; none where annotations have only one.
    """

    data: Mapping[str, torch.Tensor]
    annotations: Mapping[str, torch.Tensor]
    sentences: torch.Tensor


@dataclass(frozen=True)
class Pairs:
    """Data and annotations of one modality, as embedded; any of either may be paired.

    Attributes:
        data: space -> ``n`` rows.
        annotations: model -> ``m`` rows.
    """

    data: Mapping[str, Vectors]
    annotations: Mapping[str, Vectors]


class WholeFeatures:
    """Features of data beside whole annotations.

    Args:
        spaces: ``s`` of them.
        anchor: the model whose space tells which annotations resemble each other.
        pairs: what is paired.
        bank: of the same modality.
    """

    def __init__(self, spaces: Sequence[Space], anchor: str, pairs: Pairs, bank: Bank) -> None:
        self.spaces, self.pairs = spaces, pairs
        self.of_data = [usual(pairs.data[one.name], bank.annotations[one.model]) for one in spaces]
        self.of_annotation = [usual(pairs.annotations[one.model], bank.data[one.name]) for one in spaces]
        self.resemblance = resemblance(pairs.annotations[anchor], bank.annotations[anchor])

    def __call__(self, data: Ints, annotations: Ints) -> Floats:
        """Return ``(k, 5 s + 2)`` features of rows of the one beside rows of the other; NaN where a vector is missing.

        The last two say how much the annotation resembles others of the modality.
        """
        columns: list[Floats] = []
        for place, space in enumerate(self.spaces):
            cosine = rowwise(
                take(self.pairs.data[space.name], data), take(self.pairs.annotations[space.model], annotations)
            )
            columns += [to_numpy(cosine)[:, None], self.of_data[place][data], self.of_annotation[place][annotations]]
        return np.concatenate([*columns, self.resemblance[annotations]], axis=1)


class SentenceFeatures:
    """Features of data beside single sentences of annotations, in the spaces of the anchor.

    Args:
        whole: of the same data.
        anchor: the model that embedded the sentences.
        owner: ``(u,)`` whose each sentence is, ascending.
        vectors: ``(u, d)`` of the sentences, by the anchor.
        extra: ``x`` vectors of sentences of other modalities, if any.
        bank: of the same modality.
    """

    def __init__(
        self, whole: WholeFeatures, anchor: str, owner: Ints, vectors: torch.Tensor, extra: torch.Tensor, bank: Bank
    ) -> None:
        self.spaces = [(place, one) for place, one in enumerate(whole.spaces) if one.model == anchor]
        self.whole, self.owner, self._bank = whole, owner, bank
        own = F.normalize(vectors, dim=1)
        self.vectors = torch.cat([own, F.normalize(extra, dim=1)]) if len(extra) else own
        every = all_rows(self.vectors)
        self.of_sentence = [usual(every, bank.data[one.name]) for _, one in self.spaces]
        self.resemblance = resemblance(every, bank.sentences)
        rows = len(next(iter(whole.pairs.data.values())).valid)
        # Sums of few vectors, one row after the other: index_add_ on the host keeps their order.
        where = torch.from_numpy(owner)
        total = torch.zeros(rows, own.shape[1]).index_add_(0, where, own)
        self.count = np.bincount(owner, minlength=rows)
        self._all_of = Vectors(total, torch.from_numpy(self.count > 0))
        self._rest_of = Vectors(total[where] - own, torch.from_numpy(self.count[owner] > 1))

    def own(self) -> Floats:
        """Return ``(u, f)`` features of every sentence where it stands."""
        return self._features(self.owner, np.arange(len(self.owner)), self._rest_of)

    def added(self, data: Ints, sentences: Ints) -> Floats:
        """Return ``(k, f)`` features of sentences that are added to the annotations of other data."""
        return self._features(data, sentences, take(self._all_of, data))

    def _features(self, data: Ints, sentences: Ints, rest: Vectors) -> Floats:
        spoken = all_rows(self.vectors[torch.from_numpy(sentences)])
        columns: list[Floats] = []
        for place, (number, space) in enumerate(self.spaces):
            vectors = take(self.whole.pairs.data[space.name], data)
            columns += [to_numpy(rowwise(on_host(vectors), spoken))[:, None]]
            columns += [self.whole.of_data[number][data], self.of_sentence[place][sentences]]
        together = np.nan_to_num(to_numpy(rowwise(rest, spoken)))[:, None]
        alone = rest.valid.numpy().astype(np.float64)[:, None]
        expected = np.nan_to_num(usual(rest, self._bank.sentences))
        # The last two: as in `WholeFeatures`.
        return np.concatenate([*columns, together, expected, alone, self.resemblance[sentences]], axis=1)


def usual(vectors: Vectors, bank: torch.Tensor) -> Floats:
    """Return ``(n, 2)``: mean and deviation of each row's cosines with a bank; NaN where there is no vector."""
    return _against(vectors, bank, lambda cosines: [cosines.mean(1), cosines.std(1, correction=0)])


def resemblance(vectors: Vectors, bank: torch.Tensor) -> Floats:
    """Return ``(n, 2)``: mean of each row's cosines with a bank, and of the nearest five; equal ones are left out."""

    def summarise(cosines: torch.Tensor) -> Sequence[torch.Tensor]:
        there = cosines < _SAME
        mean = torch.where(there, cosines, 0.0).sum(1) / there.sum(1).clamp(min=1)
        nearest = torch.where(there, cosines, -1.0).topk(min(_NEAREST, cosines.shape[1]), dim=1).values
        return [mean, nearest.mean(1)]

    return _against(vectors, bank, summarise)


Summary: TypeAlias = Callable[[torch.Tensor], Sequence[torch.Tensor]]


def _against(vectors: Vectors, bank: torch.Tensor, summarise: Summary) -> Floats:
    """Summarise each row's cosines with a bank, in blocks of one shape, so that no row depends on another."""
    found = np.full((len(vectors.valid), 2), np.nan)
    rows = torch.nonzero(vectors.valid).view(-1)
    if not len(rows) or not len(bank):
        return found
    device = vectors.values.device
    transposed = bank.to(device).T.contiguous()
    with torch.inference_mode(), threads(1):
        for chosen in torch.split(rows, _BLOCK):
            block = vectors.values.new_zeros((_BLOCK, vectors.values.shape[1]), dtype=torch.float32)
            block[: len(chosen)] = F.normalize(vectors.values[chosen].float(), dim=1)
            summary = torch.stack(list(summarise(block @ transposed)), dim=1)
            found[chosen.cpu().numpy()] = summary[: len(chosen)].double().cpu().numpy()
    return found


def bank_of(pairs: Pairs, rows: Ints, sentences: torch.Tensor) -> Bank:
    """Return some pairs as a bank; those without a vector in a space are left out of it there."""
    return Bank(
        {name: _present(take(column, rows)) for name, column in pairs.data.items()},
        {name: _present(take(column, rows)) for name, column in pairs.annotations.items()},
        F.normalize(sentences.float(), dim=1).cpu(),
    )


def _present(column: Vectors) -> torch.Tensor:
    return F.normalize(column.values[column.valid].float(), dim=1).cpu()


def least(values: Floats, owner: Ints, rows: int) -> Floats:
    """Return ``(rows,)`` the least value of each owner, NaN for one that has none."""
    found = np.full(rows, np.inf)
    np.minimum.at(found, owner, values)
    return np.where(np.isinf(found), np.nan, found)
