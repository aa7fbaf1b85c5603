"""Models of a user's that misbehave, found by import path."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nemo_mm_rank.media.segment import Image, Item
from nemo_mm_rank.models.base import Described, Encoded
from nemo_mm_rank.models.classical.describe import PlainWords
from nemo_mm_rank.models.classical.text import HashedText


class _Text:
    """Hashed n-grams, without statistics of the pool."""

    modalities = HashedText.modalities
    revision = "1"
    dim = 128

    def __init__(self, word: str = "") -> None:
        self.name = type(self).__name__
        self._word = word
        self._hashed = HashedText(dim=self.dim)

    def encode(self, items: Sequence[Item], modality: str) -> Encoded:
        return self._hashed.encode(items, modality)

    def _seen(self, items: Sequence[Item]) -> list[int]:
        return [row for row, item in enumerate(items) if self._word in str(item)]


class NotANumber(_Text):
    """Has no number for texts that hold ``word``, and says nothing of it."""

    def encode(self, items: Sequence[Item], modality: str) -> Encoded:
        encoded = super().encode(items, modality)
        encoded.vectors[self._seen(items), 3] = float("nan")
        return encoded


class OutOfMemory(_Text):
    """Fails for every batch that holds ``word``."""

    def encode(self, items: Sequence[Item], modality: str) -> Encoded:
        if self._seen(items):
            raise RuntimeError("out of\nmemory")
        return super().encode(items, modality)


class Speechless(PlainWords):
    """Describes pictures, but fails on films, and has nothing to say of small pictures."""

    def __init__(self) -> None:
        super().__init__("speechless")

    def describe(self, items: Sequence[Item], modality: str) -> Described:
        if modality == "video":
            raise KeyError("film")
        described = super().describe(items, modality)
        small = [isinstance(item, Image) and item.nbytes < 100 for item in items]
        texts = [None if nothing else text for nothing, text in zip(small, described.texts, strict=True)]
        return Described(texts, described.errors)


class KillsItsWorker(_Text):
    """Kills its own process with SIGKILL, once, or every time, as soon as it sees ``word``."""

    def __init__(self, word: str, marker: str, always: bool = False) -> None:
        super().__init__(word)
        self._marker, self._always = Path(marker), always

    def encode(self, items: Sequence[Item], modality: str) -> Encoded:
        if self._seen(items) and (self._always or not self._marker.exists()):
            self._marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(items, modality)


class Waits(_Text):
    """Says by a file that it is at work, and waits for another."""

    def __init__(self, started: str, go: str) -> None:
        super().__init__()
        self._started, self._go = Path(started), Path(go)

    def encode(self, items: Sequence[Item], modality: str) -> Encoded:
        self._started.touch()
        while not self._go.exists():
            time.sleep(0.02)
        return super().encode(items, modality)


def expert_of(model: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a configuration that has ``model`` embed texts, and nothing else."""
    return {
        "models": {"text": model},
        "experts": [{"name": "words", "kind": "text-based", "encoder": "text"}],
        "anchor": "text",
    }
