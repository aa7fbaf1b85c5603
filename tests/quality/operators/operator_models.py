"""Models such as a user would name for operators."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from nemo_mm_rank.errors import EmbeddingError, PairError
from nemo_mm_rank.media.segment import Image, Item, Video
from nemo_mm_rank.models.base import Encoded, Grounded

COLOURS = ("red", "green", "blue")


class Colours:
    """One space for pictures, films and words: how red, green and blue the left upper quarter is, or is said to be."""

    modalities: frozenset[str] = frozenset({"text", "image", "video"})
    revision = "1"
    dim = 3

    def __init__(self, name: str = "colours") -> None:
        self.name = name
        self.texts: list[str] = []
        self.pictures = 0

    def encode(self, items: Sequence[Item], modality: str) -> Encoded:
        rows = torch.tensor([self._features(item) for item in items], dtype=torch.float32).reshape(-1, 3)
        dead = ~rows.any(dim=1)
        errors: dict[int, PairError] = {
            row: EmbeddingError("no colour") for row in torch.nonzero(dead).flatten().tolist()
        }
        return Encoded(F.normalize(rows, dim=1).masked_fill(dead[:, None], float("nan")), errors)

    def _features(self, item: Item) -> list[float]:
        if isinstance(item, str):
            self.texts.append(item)
            return [float(item.lower().count(colour)) for colour in COLOURS]
        assert isinstance(item, Image | Video)
        self.pictures += 1
        frames = np.asarray(item.pixels)[None] if isinstance(item, Image) else item.frames
        quarter = frames[:, : frames.shape[1] // 2, : frames.shape[2] // 2]
        return [float(value) for value in quarter.mean(axis=(0, 1, 2))]


class WordBoxes:
    """Finds a box for each phrase that names the picture's colour, surer the brighter that is; fails on grey."""

    modalities: frozenset[str] = frozenset({"image"})
    name, revision = "word-boxes", "1"

    def ground(
        self, items: Sequence[Item], phrases: Sequence[Sequence[str]], modality: str
    ) -> list[Grounded | PairError]:
        return [self._one(item, own) for item, own in zip(items, phrases, strict=True)]

    def _one(self, item: Item, phrases: Sequence[str]) -> Grounded | PairError:
        assert isinstance(item, Image)
        pixel = np.asarray(item.pixels)[0, 0].astype(np.float32) / 255
        if len(set(pixel.tolist())) == 1:
            return EmbeddingError("grey all over")
        scores = [
            [float(pixel[row]) if colour in phrase else 0.0 for phrase in phrases] for row, colour in enumerate(COLOURS)
        ]
        found = torch.tensor(scores).reshape(3, len(phrases))
        kept = found.amax(dim=1) > 0.1 if phrases else torch.zeros(3, dtype=torch.bool)
        return Grounded(torch.zeros((int(kept.sum()), 4)), found[kept], found=True)


class Lengths:
    """Rates texts by their length, and remembers which it has seen."""

    revision = "3"

    def __init__(self, name: str = "lengths", shape: int = 1) -> None:
        self.name, self._shape = name, shape
        self.seen: list[str] = []

    def score(self, texts: list[str]) -> npt.NDArray[np.float64]:
        self.seen += texts
        lengths = np.array([float(len(text)) for text in texts])
        return lengths if self._shape == 1 else lengths[:, None]


class Redness:
    """Says how red a picture or film is, and nothing of one that is said to be blue."""

    modalities: frozenset[str] = frozenset({"image", "video"})

    def __init__(self, name: str, revision: str = "1", times: float = 1.0, shape: int = 1) -> None:
        self.name, self.revision, self._times, self._shape = name, revision, times, shape

    def score(self, items: Sequence[Item], texts: Sequence[str], modality: str) -> npt.NDArray[np.float64]:
        reds = [np.asarray(item.pixels if isinstance(item, Image) else item.frames) for item in items]  # type: ignore[union-attr]
        scores = np.array([red[..., 0].mean() / 250 * self._times for red in reds])
        scores[["blue" in text for text in texts]] = np.nan
        return scores if self._shape == 1 else scores[:, None]


class Brittle(Redness):
    """Fails for what is said to be blue."""

    def score(self, items: Sequence[Item], texts: Sequence[str], modality: str) -> npt.NDArray[np.float64]:
        if any("blue" in text for text in texts):
            raise ValueError("no word for blue")
        return super().score(items, texts, modality)
