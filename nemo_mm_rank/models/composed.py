"""Models made of models: describe media in words, then embed the words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nemo_mm_rank.errors import PairError
from nemo_mm_rank.models.base import Describer, Encoded, Encoder, Item, encode_queries
from nemo_mm_rank.models.contract import support, told, usable
from nemo_mm_rank.schema import Modality


class DescribedEncoder:
    """Embeds media by the words that describers find for them; text and code are embedded as they are.

    All modalities share the text encoder's space, so it serves queries and grounding as well.

    Args:
        describers: modality -> the describer that takes it.
        encoder: embeds text (and code, where it lists it).
        name: what the configuration calls it; default: the parts' own names.
    """

    def __init__(self, describers: Mapping[str, Describer], encoder: Encoder, name: str | None = None) -> None:
        self._describers = {str(modality): describer for modality, describer in describers.items()}
        self._encoder = encoder
        for modality, describer in self._describers.items():
            support(describer, modality)
        support(encoder, Modality.TEXT)
        parts = {describer.name: describer.revision for describer in self._describers.values()}
        parts[encoder.name] = encoder.revision
        self.name = name or "+".join(parts)
        self.revision = " ".join(f"{part}@{revision}" for part, revision in parts.items())
        self.modalities = frozenset(self._describers) | (encoder.modalities & {Modality.TEXT, Modality.CODE})
        self.dim = encoder.dim

    def encode(self, items: Sequence[Item], modality: str) -> Encoded:
        """Embed ``items``; for media, ``texts`` holds the descriptions.

        Raises:
            ModelError: a modality that is not listed, or a part that breaks its contract.
        """
        support(self, modality)
        if modality not in self._describers:
            return usable(self._encoder.encode(items, modality), self._encoder, len(items))
        describer = self._describers[modality]
        described = told(describer.describe(items, modality), describer.name, len(items))
        errors: dict[int, PairError] = dict(described.errors)
        rows = [row for row in range(len(items)) if row not in errors]
        texts = [described.texts[row] or "" for row in rows]
        encoded = usable(self._encoder.encode(texts, Modality.TEXT), self._encoder, len(texts))
        errors.update({rows[row]: error for row, error in encoded.errors.items()})
        vectors = encoded.vectors
        if len(rows) < len(items):
            vectors = vectors.new_full((len(items), self.dim), float("nan"))
            vectors[rows] = encoded.vectors
        shown = [None if row in described.errors else text for row, text in enumerate(described.texts)]
        return Encoded(vectors, errors, shown)

    def encode_queries(self, texts: Sequence[str]) -> Encoded:
        """Embed search queries as the text encoder does."""
        return usable(encode_queries(self._encoder, texts), self._encoder, len(texts))
