"""Models such as a user would write: what the loader, the cache and the composed encoder are tried on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F

from nemo_mm_rank.errors import EmbeddingError, PairError
from nemo_mm_rank.media.segment import Item
from nemo_mm_rank.models.base import Described, Encoded


class LetterCounts:
    """Embeds text by its letters; remembers how often, and with what, it was called."""

    modalities: frozenset[str] = frozenset({"text", "code"})
    revision = "1"

    def __init__(self, name: str = "letters", alphabet: str = "abcdefghijklmnopqrstuvwxyz") -> None:
        self.name = name
        self.alphabet = alphabet
        self.dim = len(alphabet)
        self.calls: list[list[Item]] = []

    def encode(self, items: Sequence[Item], modality: str) -> Encoded:
        self.calls.append(list(items))
        counts = [[float(str(item).count(letter)) for letter in self.alphabet] for item in items]
        vectors = torch.tensor(counts).reshape(len(items), self.dim)
        errors: dict[int, PairError] = {
            row: EmbeddingError(f"no letters in {items[row]!r}") for row in range(len(items)) if not vectors[row].any()
        }
        vectors[list(errors)] = float("nan")
        return Encoded(F.normalize(vectors, dim=1), errors)


class SizeWords:
    """Describes images by their width; one of a single pixel leaves it speechless."""

    modalities: frozenset[str] = frozenset({"image"})
    revision = "7"
    words: ClassVar[dict[int, str]] = {2: "tiny", 3: "small"}

    def __init__(self, name: str = "sizes") -> None:
        self.name = name
        self.calls = 0

    def describe(self, items: Sequence[Item], modality: str) -> Described:
        self.calls += 1
        widths = [item.pixels.width for item in items]  # type: ignore[union-attr]
        return Described([None if width == 1 else self.words.get(width, "large") for width in widths])


class NotQuite:
    """Lacks what makes an encoder."""

    name = "not quite"
    dim = 3

    def __init__(self, strength: int = 1) -> None:
        if strength > 9:
            raise RuntimeError("too\nstrong")
