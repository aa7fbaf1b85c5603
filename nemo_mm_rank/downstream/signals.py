"""Frozen features that take data as signals: small pictures, small spectrograms, pairs of letters.

For where the classical features rank: another view of the same data, with no weight in common.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from nemo_mm_rank.arrays import Floats
from nemo_mm_rank.models.base import Encoded, Item
from nemo_mm_rank.models.classical.audio import BANDS, MIDDLE, SCALE, log_mel, sound
from nemo_mm_rank.models.classical.image import luma, squares
from nemo_mm_rank.models.classical.vectors import encoded
from nemo_mm_rank.models.contract import support
from nemo_mm_rank.models.parts import pictures
from nemo_mm_rank.schema import Modality

SIDE = 16
SLICES = 8
LETTERS = 37
"""a to z, ten digits, and everything else."""

_LETTER = np.full(256, LETTERS - 1)
_LETTER[np.frombuffer(b"abcdefghijklmnopqrstuvwxyz0123456789", dtype=np.uint8)] = np.arange(LETTERS - 1)


class _Signals(ABC):
    """An encoder of single items, whose features do not depend on each other."""

    name: str
    modalities: frozenset[str]
    revision = "1"
    dim: int

    def __init__(self, name: str | None = None, device: str = "cpu") -> None:
        self.name = name or type(self).__name__
        self._device = device

    def encode(self, items: Sequence[Item], modality: str) -> Encoded:
        """Embed ``items``; one that is empty or constant fails."""
        support(self, modality)
        features = np.full((len(items), self.dim), np.nan)
        for row, item in enumerate(items):
            features[row] = self._features(item)
        return encoded(features, self.name, self._device)

    @abstractmethod
    def _features(self, item: Item) -> Floats:
        """Return ``(dim,)`` features of one item; NaN where it says nothing."""


class Thumbnails(_Signals):
    """Pictures and videos as 16 x 16 pixels about middle grey; of a video the mean frame, and how it changes."""

    modalities = frozenset({Modality.IMAGE, Modality.VIDEO})
    dim = 4 * SIDE**2

    def _features(self, item: Item) -> Floats:
        pixels = squares(pictures(item), SIDE)
        mean = pixels.mean(axis=0) - 127.5
        change = (
            np.abs(np.diff(luma(pixels), axis=0)).mean(axis=0) / 1000 if len(pixels) > 1 else np.zeros((SIDE, SIDE))
        )
        return np.concatenate([mean.reshape(-1), change.reshape(-1)])


class Spectrograms(_Signals):
    """Sounds as log-mel spectrograms of eight slices of time."""

    modalities = frozenset({Modality.AUDIO})
    dim = SLICES * BANDS

    def _features(self, item: Item) -> Floats:
        frames = (np.concatenate(list(log_mel(sound(item)))) - MIDDLE) / SCALE
        edges = np.linspace(0, len(frames), SLICES + 1).astype(int)
        slices = [frames[first : max(last, first + 1)].mean(axis=0) for first, last in pairwise(edges)]
        return np.concatenate(slices)


class LetterPairs(_Signals):
    """Texts and code as how often one letter, digit or sign follows another (square root), case folded."""

    modalities = frozenset({Modality.TEXT, Modality.CODE})
    dim = LETTERS**2

    def _features(self, item: Item) -> Floats:
        codes = _LETTER[np.frombuffer(str(item).casefold().encode("utf-8", "surrogatepass"), dtype=np.uint8)]
        return np.sqrt(np.bincount(codes[:-1] * LETTERS + codes[1:], minlength=self.dim))
