"""What a model has to be: three small protocols, and the result that says per item what went wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

import torch

from nemo_mm_rank.errors import PairError
from nemo_mm_rank.media.segment import Audio, Image, Video
from nemo_mm_rank.schema import Modality

Item: TypeAlias = str | Image | Audio | Video
"""One side of a pair, decoded: text and code are plain strings."""

Items: TypeAlias = tuple[Item, ...]
"""Data of several parts, in the order of `Modality`."""


@dataclass(frozen=True)
class Encoded:
    """Embeddings of ``n`` items, in the items' order.

    Attributes:
        vectors: ``(n, d)`` float32, L2-normalised; the rows of failed items are NaN.
        errors: position -> why this item has no vector.
        texts: for encoders that describe media first, the descriptions (None where there is none).
    """

    vectors: torch.Tensor
    errors: dict[int, PairError] = field(default_factory=dict)
    texts: list[str | None] | None = None


@dataclass(frozen=True)
class Described:
    """Texts for ``n`` items, in the items' order; None where ``errors`` says why."""

    texts: list[str | None]
    errors: dict[int, PairError] = field(default_factory=dict)


@dataclass(frozen=True)
class Grounded:
    """For one item, where its phrases were found.

    Attributes:
        spans: ``(c, 2)`` seconds or ``(c, 4)`` boxes ``x, y, w, h`` in pixels: the candidates.
        scores: ``(c, p)`` float32 similarity of each candidate to each phrase; NaN where either has no embedding.
        found: the candidates are what a detector has found, by a threshold of its own, and all of them count;
            otherwise they divide the item up, for the most relevant to be chosen.
    """

    spans: torch.Tensor
    scores: torch.Tensor
    found: bool = False


@runtime_checkable
class Encoder(Protocol):
    """Embeds items of its modalities into one space.

    ``revision`` names what the weights are (a commit, a digest, a version); it enters fingerprints and manifests.
    An encoder that lists ``text`` beside other modalities puts both into the same space, which is what makes it
    usable for queries and for grounding.
    """

    name: str
    revision: str
    modalities: frozenset[str]
    dim: int

    def encode(self, items: Sequence[Item], modality: str) -> Encoded:
        """Embed ``items``, all of one modality. One result per item, in order; batching is the encoder's own."""
        ...


@runtime_checkable
class QueryEncoder(Encoder, Protocol):
    """An encoder that embeds queries in another way than documents, with a prompt of their own for example."""

    def encode_queries(self, texts: Sequence[str]) -> Encoded:
        """Embed search queries. One result per text, in order."""
        ...


def encode_queries(encoder: Encoder, texts: Sequence[str]) -> Encoded:
    """Embed search queries by ``encoder``'s own way for them, where it has one, or else as any text."""
    if isinstance(encoder, QueryEncoder):
        return encoder.encode_queries(texts)
    return encoder.encode(texts, Modality.TEXT)


def taken_together(encoder: Encoder) -> frozenset[str]:
    """Return the classes of several parts (``text+image``) that ``encoder`` embeds as one, by its ``together``.

    It is then given a tuple of items for each, in the order of `Modality`.
    """
    return frozenset(getattr(encoder, "together", ()))


@runtime_checkable
class Describer(Protocol):
    """Turns media into words."""

    name: str
    revision: str
    modalities: frozenset[str]

    def describe(self, items: Sequence[Item], modality: str) -> Described:
        """Describe ``items``, all of one modality. One result per item, in order."""
        ...


@runtime_checkable
class Grounder(Protocol):
    """Finds the regions or windows of media that phrases speak of."""

    name: str
    revision: str
    modalities: frozenset[str]

    def ground(
        self, items: Sequence[Item], phrases: Sequence[Sequence[str]], modality: str
    ) -> list[Grounded | PairError]:
        """For each item, score its candidate parts against its own phrases, all in as few model calls as possible."""
        ...
