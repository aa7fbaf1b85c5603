"""Each distinct text or media segment once: within a call, and across calls as long as memory of it is kept."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeAlias, TypeVar

import torch

from nemo_mm_rank.errors import PairError
from nemo_mm_rank.models.base import Described, Describer, Encoded, Encoder, Item, Items, encode_queries, taken_together
from nemo_mm_rank.models.contract import answering, told, usable

Key: TypeAlias = tuple[str, bytes]
V = TypeVar("V")

QUERY = "query"


def item_key(item: Item | Items, modality: str) -> Key:
    """Return what tells ``item`` from others: its modality, and a digest of the text or the segment's own key.

    Of several parts it is a digest of theirs.
    """
    if isinstance(item, tuple):
        text = " ".join(f"{type(part).__name__} {item_key(part, modality)[1].hex()}" for part in item)
    else:
        text = item if isinstance(item, str) else item.key
    return modality, hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class Recent(Generic[V]):
    """The values of the ``max_items`` keys used last.

    Args:
        max_items: the bound; 0 keeps nothing between calls.
    """

    def __init__(self, max_items: int) -> None:
        if max_items < 0:
            raise ValueError(f"max_items is at least 0, not {max_items}")
        self._max_items = max_items
        self._values: OrderedDict[Key, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, keys: Sequence[Key], make: Callable[[list[int]], list[V]]) -> list[V]:
        """Return one value per key; ``make`` is called at most once, with the first positions of unknown keys."""
        found: dict[Key, V] = {}
        first: dict[Key, int] = {}
        for position, key in enumerate(keys):
            if key in self._values:
                found[key] = self._values[key]
                self._values.move_to_end(key)
            else:
                first.setdefault(key, position)
        if first:
            made = dict(zip(first, make(list(first.values())), strict=True))
            found.update(made)
            self._values.update(made)
            while len(self._values) > self._max_items:
                self._values.popitem(last=False)
        return [found[key] for key in keys]


class _Embedding(NamedTuple):
    vector: torch.Tensor
    error: PairError | None
    text: str | None


class CachedEncoder:
    """Gives each distinct item to ``encoder`` once; results are the same, to the bit.

    Args:
        encoder: whose vector of an item does not depend on its batch.
        max_items: how many embeddings are kept between calls (each ``4 * dim`` bytes, on the encoder's device).
    """

    def __init__(self, encoder: Encoder, max_items: int = 20_000) -> None:
        self._encoder = encoder
        self._recent: Recent[_Embedding] = Recent(max_items)
        self.computed = 0
        """Items that the encoder was given."""
        self.name = encoder.name
        self.revision = encoder.revision
        self.modalities = encoder.modalities
        self.dim = encoder.dim
        self.together = taken_together(encoder)

    def encode(self, items: Sequence[Item], modality: str) -> Encoded:
        """Embed ``items``, those that are not known yet in one call."""

        def make(positions: list[int]) -> Encoded:
            return self._encoder.encode([items[position] for position in positions], modality)

        return self._get([item_key(item, modality) for item in items], make)

    def encode_queries(self, texts: Sequence[str]) -> Encoded:
        """Embed search queries, those that are not known yet in one call."""

        def make(positions: list[int]) -> Encoded:
            return encode_queries(self._encoder, [texts[position] for position in positions])

        return self._get([item_key(text, QUERY) for text in texts], make)

    def _get(self, keys: list[Key], encode: Callable[[list[int]], Encoded]) -> Encoded:
        def make(positions: list[int]) -> list[_Embedding]:
            self.computed += len(positions)
            with answering(self.name):
                encoded = encode(positions)
            encoded = usable(encoded, self._encoder, len(positions))
            texts = encoded.texts or [None] * len(positions)
            # Copies, because a row that is a view would keep its whole batch in memory.
            rows = [row.clone() for row in encoded.vectors.detach()]
            return [_Embedding(row, encoded.errors.get(i), texts[i]) for i, row in enumerate(rows)]

        if not keys:
            return encode([])
        got = self._recent.get(keys, make)
        texts = [one.text for one in got]
        return Encoded(
            torch.stack([one.vector for one in got]),
            {row: one.error for row, one in enumerate(got) if one.error is not None},
            texts if any(text is not None for text in texts) else None,
        )


class CachedDescriber:
    """Gives each distinct segment to ``describer`` once; results are the same.

    Args:
        describer: whose words for an item do not depend on its batch.
        max_items: how many descriptions are kept between calls.
    """

    def __init__(self, describer: Describer, max_items: int = 50_000) -> None:
        self._describer = describer
        self._recent: Recent[tuple[str | None, PairError | None]] = Recent(max_items)
        self.computed = 0
        """Segments that the describer was given."""
        self.name = describer.name
        self.revision = describer.revision
        self.modalities = describer.modalities

    def describe(self, items: Sequence[Item], modality: str) -> Described:
        """Describe ``items``, those that are not known yet in one call."""

        def make(positions: list[int]) -> list[tuple[str | None, PairError | None]]:
            self.computed += len(positions)
            with answering(self.name):
                described = self._describer.describe([items[position] for position in positions], modality)
            described = told(described, self.name, len(positions))
            return [(text, described.errors.get(i)) for i, text in enumerate(described.texts)]

        got = self._recent.get([item_key(item, modality) for item in items], make)
        errors = {row: error for row, (_, error) in enumerate(got) if error is not None}
        return Described([None if row in errors else text for row, (text, _) in enumerate(got)], errors)
