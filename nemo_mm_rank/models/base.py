"""What a model has to be: small protocols, results that say per item what went wrong, and checks of both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch

from nemo_mm_rank.arrays import Floats
from nemo_mm_rank.errors import (
    AnswerError,
    EmbeddingError,
    MemoryShortError,
    ModelError,
    PairError,
    UserError,
    in_one_line,
)
from nemo_mm_rank.media.segment import Item, Segment
from nemo_mm_rank.schema import Modality
from nemo_mm_rank.vectors import unit_rows


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

    It is then given a tuple of items for each, in the order of `modality.names`.
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


R = TypeVar("R")


def attempt(make: Callable[[Any], R], items: Iterable[tuple[int, Any]]) -> tuple[dict[int, R], dict[int, PairError]]:
    """Make something of items by their positions; return position -> what was made, and position -> why it cannot."""
    made: dict[int, R] = {}
    errors: dict[int, PairError] = {}
    for row, item in items:
        try:
            made[row] = make(item)
        except PairError as error:
            errors[row] = error
    return made, errors


NORM_TOLERANCE = 1e-2
"""How far from 1 a vector's length may lie: half-precision models round their own normalisation."""


def fulfil(name: str, model: object, protocol: Any) -> None:
    """Check that ``model`` is what its place needs.

    Args:
        name: what the configuration calls it.
        model: a loaded object.
        protocol: what it has to be: `Encoder`, `Describer` or `Grounder`.

    Raises:
        ModelError: naming the attributes and methods that it lacks.
    """
    methods = [method for method, value in vars(protocol).items() if callable(value) and not method.startswith("_")]
    properties = [name for name, value in vars(protocol).items() if isinstance(value, property)]
    missing = [name for name in (*protocol.__annotations__, *properties) if not hasattr(model, name)]
    missing += [f"{method}()" for method in methods if not callable(getattr(model, method, None))]
    if missing:
        kind = protocol.__name__.lower()
        raise ModelError(
            f"model {name!r} ({type(model).__name__}) cannot be used as {kind}: it lacks {', '.join(missing)}"
        )


def support(model: Any, modality: str) -> None:
    """Refuse a modality that the model does not list.

    Raises:
        ModelError: naming the model, the modality and those that it takes.
    """
    if modality not in model.modalities:
        raise ModelError(f"{model.name} takes {', '.join(sorted(model.modalities))}, not {modality}")


@contextmanager
def answering(name: str) -> Iterator[None]:
    """Turn what the model called ``name`` raises into one line; `steps.Step` finds the items that it raises for.

    Raises:
        AnswerError: naming the model, its error, and the line of code that raised it.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        short = isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError))
        kind = MemoryShortError if short else AnswerError
        raise kind(f"{name} failed with {in_one_line(error)}") from error


def usable(encoded: Encoded, encoder: Encoder, n: int) -> Encoded:
    """Check an encoder's result for ``n`` items; rows that are not finite, or zero, become their items' errors.

    Raises:
        ModelError: the shape is not ``(n, encoder.dim)``, the type not float32, or a vector not L2-normalised: what
            is wrong with one batch is wrong with the model.
    """
    vectors = encoded.vectors
    if vectors.ndim != 2 or vectors.shape[0] != n or vectors.shape[1] != encoder.dim:
        raise ModelError(f"{encoder.name} returned {tuple(vectors.shape)} for {n} items, not ({n}, {encoder.dim})")
    if vectors.dtype != torch.float32:
        raise ModelError(f"{encoder.name} returned {vectors.dtype}, not torch.float32")
    if encoded.texts is not None and len(encoded.texts) != n:
        raise ModelError(f"{encoder.name} returned {len(encoded.texts)} texts for {n} items")
    _known(encoded.errors, encoder.name, n)
    # Of a row that is not finite, neither is the norm: one pass finds all faults.
    norms = torch.linalg.vector_norm(vectors, dim=1)
    finite = torch.isfinite(norms) & (norms > 0)
    off = (norms[finite] - 1).abs()
    if bool((off > NORM_TOLERANCE).any()):
        worst = float(norms[finite][off.argmax()])
        raise ModelError(f"{encoder.name} returned a vector of length {worst:.4g}: vectors are L2-normalised")
    if bool(finite.all()):
        return encoded
    broken: dict[int, PairError] = {
        row: EmbeddingError(f"{encoder.name} gave a vector that is not finite, or zero")
        for row in torch.nonzero(~finite).flatten().tolist()
    }
    return Encoded(vectors.masked_fill(~finite[:, None], float("nan")), {**broken, **encoded.errors}, encoded.texts)


def told(described: Described, name: str, n: int) -> Described:
    """Check the result of the describer called ``name`` for ``n`` items; an empty text becomes an error.

    Raises:
        ModelError: it holds another number of texts.
    """
    if len(described.texts) != n:
        raise ModelError(f"{name} returned {len(described.texts)} texts for {n} items")
    _known(described.errors, name, n)
    empty: dict[int, PairError] = {
        row: EmbeddingError(f"{name} has no description for it")
        for row, text in enumerate(described.texts)
        if not (text and text.strip())
    }
    return Described(described.texts, {**empty, **described.errors}) if empty else described


def _known(errors: dict[int, PairError], name: str, n: int) -> None:
    if any(not 0 <= row < n for row in errors):
        raise ModelError(f"{name} returned errors for rows {sorted(errors)} of {n} items")


class FeatureEncoder(ABC):
    """An encoder by features that are computed, not learnt; those of an item do not depend on the others.

    Args:
        name: what the configuration calls it; default: the class's.
        device: where the vectors are put.
    """

    name: str
    modalities: frozenset[str]
    revision = "1"
    dim: int

    def __init__(self, name: str | None = None, device: str = "cpu") -> None:
        self.name = name or str(getattr(self, "name", type(self).__name__))
        self._device = device

    @abstractmethod
    def _features(self, item: Item) -> Floats:
        """Return features of one item, ``(dim,)`` or ``(1, dim)``; NaN where it says nothing."""

    def encode(self, items: Sequence[Item], modality: str) -> Encoded:
        """Embed items as L2-normalised features; one whose features are zero, or not finite, fails."""
        support(self, modality)
        features = np.full((len(items), self.dim), np.nan)
        for row, item in enumerate(items):
            features[row] = self._features(item)
        vectors = unit_rows(features).astype(np.float32)
        dead = ~(np.isfinite(vectors).all(axis=1) & vectors.any(axis=1))
        vectors[dead] = np.nan
        errors: dict[int, PairError] = {
            int(row): EmbeddingError(f"{self.name}: no features, all are zero or not finite")
            for row in np.flatnonzero(dead)
        }
        return Encoded(torch.from_numpy(vectors).to(self._device), errors)


S = TypeVar("S", bound=Segment)


def of_kind(item: Item, kind: type[S]) -> S:
    """Return ``item`` as what it has to be.

    Raises:
        ModelError: it is something else.
    """
    if not isinstance(item, kind):
        raise ModelError(f"{kind.__name__.lower()} was expected, not {type(item).__name__}")
    return item
