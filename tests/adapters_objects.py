"""A small real detector behind the protocols: the things it finds as words, and as boxes for what phrases speak of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PILImage

from nemo_mm_rank.errors import PairError
from nemo_mm_rank.media.segment import Item
from nemo_mm_rank.models.base import Described, Grounded, support
from nemo_mm_rank.models.sentence_transformers import SentenceTransformersEncoder
from tests.adapters import MobileNetWords, Network, pictures_of

SIDE = 300


@dataclass(frozen=True)
class Found:
    """What was found in one picture, the surest first.

    Attributes:
        labels: of what it is.
        boxes: ``(n, 4)`` float64 x, y, width and height in pixels, inside the picture.
        scores: of 1, one each.
    """

    labels: list[str]
    boxes: torch.Tensor
    scores: list[float]


class Detector:
    """SSD MobileNetV2, which knows 80 kinds of things (COCO's)."""

    def __init__(self, folder: str, threshold: float, threads: int) -> None:
        self._network = Network(Path(folder) / "mobilenet_ssd_v2_coco_quant_postprocess.tflite", threads)
        self.revision = self._network.revision
        lines = (Path(folder) / "coco_labels.txt").read_text(encoding="utf-8").splitlines()
        self.labels = {int(number): label.strip() for number, label in (line.split(maxsplit=1) for line in lines)}
        self._threshold = threshold

    def __call__(self, picture: PILImage.Image) -> Found:
        """Return what is found with at least the threshold's score."""
        square = np.asarray(picture.resize((SIDE, SIDE), PILImage.Resampling.BILINEAR))
        boxes, classes, scores, _ = (output[0] for output in self._network.all(square[None]))
        kept = [place for place in np.argsort(-scores, kind="stable") if scores[place] >= self._threshold]
        edges = torch.from_numpy(boxes[kept]).double().clamp(0, 1)  # top, left, bottom, right
        top, left, bottom, right = (edges * torch.tensor([picture.height, picture.width] * 2)).unbind(dim=1)
        return Found(
            [self.labels[int(classes[place])] for place in kept],
            torch.stack([left, top, right - left, bottom - top], dim=1),
            [float(scores[place]) for place in kept],
        )


class ObjectWords:
    """Describes pictures and videos by the things found in them, counted, and after these by ImageNet labels.

    Args:
        folder: of both networks.
        name: what the configuration calls it.
        top: how many labels.
        threshold: of the detector.
        num_threads: of each network.
    """

    modalities: frozenset[str] = frozenset({"image", "video"})

    def __init__(
        self, folder: str, name: str = "object-words", top: int = 3, threshold: float = 0.3, num_threads: int = 1
    ) -> None:
        self._labels = MobileNetWords(folder, top=top, num_threads=num_threads)
        self._detector = Detector(folder, threshold, num_threads)
        self.name = name
        self.revision = f"{self._labels.revision} {self._detector.revision}"

    def describe(self, items: Sequence[Item], modality: str) -> Described:
        support(self, modality)
        labels = self._labels.describe(items, modality).texts
        texts = [", ".join(filter(None, [*self._things(item), own])) for item, own in zip(items, labels, strict=True)]
        return Described([*texts])

    def _things(self, item: Item) -> list[str]:
        """Return what is in it, the surest first: of the frames of a video, as many as are in one of them."""
        count: Counter[str] = Counter()
        sure: dict[str, float] = {}
        for found in map(self._detector, pictures_of(item)):
            count |= Counter(found.labels)
            for label, score in zip(found.labels, found.scores, strict=True):
                sure[label] = max(score, sure.get(label, 0.0))
        ordered = sorted(count, key=lambda label: (-sure[label], label))
        return [f"{count[label]} {label}s" if count[label] > 1 else label for label in ordered]


class ObjectGrounder:
    """Finds in pictures what phrases speak of: the things whose names a sentence encoder takes for a phrase's.

    Args:
        folder: of the detector.
        encoder: folder of a sentence-transformers model.
        name: what the configuration calls it.
        threshold: of the detector.
        likeness: cosine of a phrase and a name from which on they are taken for the same.
        num_threads: of the detector.
    """

    modalities: frozenset[str] = frozenset({"image"})

    def __init__(
        self,
        folder: str,
        encoder: str,
        name: str = "objects",
        threshold: float = 0.5,
        likeness: float = 0.5,
        num_threads: int = 1,
    ) -> None:
        self._detector = Detector(folder, threshold, num_threads)
        self._encoder = SentenceTransformersEncoder(encoder)
        self.name = name
        self.revision = f"{self._detector.revision} {self._encoder.revision}"
        self._likeness = likeness
        self._names = list(self._detector.labels.values())
        self._vectors = self._encoder.encode(self._names, "text").vectors

    def ground(
        self, items: Sequence[Item], phrases: Sequence[Sequence[str]], modality: str
    ) -> list[Grounded | PairError]:
        support(self, modality)
        distinct = {phrase: row for row, phrase in enumerate(dict.fromkeys(one for own in phrases for one in own))}
        like = self._vectors @ self._encoder.encode(list(distinct), "text").vectors.T
        grounded: list[Grounded | PairError] = []
        for item, own in zip(items, phrases, strict=True):
            found = self._detector(pictures_of(item)[0])
            scores = like[[self._names.index(label) for label in found.labels]][:, [distinct[one] for one in own]]
            kept = (scores >= self._likeness).any(dim=1)
            grounded.append(Grounded(found.boxes[kept], scores[kept], found=True))
        return grounded
