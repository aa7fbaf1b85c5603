"""Small real models behind the protocols: what a user's own classes, named by import path, look like."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image as PILImage

from nemo_mm_rank.errors import EmbeddingError, ModelError, PairError
from nemo_mm_rank.media.segment import Audio, Image, Item, Video
from nemo_mm_rank.models.base import Described, Encoded, support

Scores = npt.NDArray[np.float32]

SIDE = 224
RATE, WINDOW, HOP = 16_000, 15_600, 7_800


class Network:
    """A .tflite file. One input at a time: larger batches are no faster, and not every file takes them."""

    def __init__(self, path: Path, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        if not path.is_file():
            raise ModelError(f"no such file: {path}")
        self.revision = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        self._interpreter: Any = Interpreter(str(path), num_threads=threads)
        self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._outputs = self._interpreter.get_output_details()

    def __call__(self, inputs: npt.NDArray[Any], batched: bool) -> Scores:
        """Return ``(n, d)`` outputs for ``n`` inputs, which the network takes one by one (as a batch of one)."""
        rows = range(len(inputs))
        return np.stack([self.all(inputs[row : row + 1] if batched else inputs[row])[0].reshape(-1) for row in rows])

    def all(self, one: npt.NDArray[Any]) -> list[Scores]:
        """Return all outputs for one input, as the file orders them."""
        self._interpreter.set_tensor(self._input, one)
        self._interpreter.invoke()
        found = []
        for output in self._outputs:
            scale, zero = output["quantization"]
            raw = self._interpreter.get_tensor(output["index"]).astype(np.float32)
            found.append((raw - np.float32(zero)) * np.float32(scale or 1.0))
        return found


def pictures_of(item: Item) -> list[PILImage.Image]:
    """Return a picture, or the frames of a video."""
    if isinstance(item, Image):
        return [item.pixels]
    if isinstance(item, Video):
        return [PILImage.fromarray(frame) for frame in item.frames]
    raise ModelError(f"{type(item).__name__} is neither an image nor a video")


class _Pictures:
    """A network over pictures: the mean over a video's frames."""

    modalities: frozenset[str] = frozenset({"image", "video"})

    def __init__(self, file: Path, threads: int) -> None:
        self._network = Network(file, threads)
        self.revision = self._network.revision

    def scores(self, item: Item) -> Scores:
        frames = pictures_of(item)
        squares = [np.asarray(frame.resize((SIDE, SIDE), PILImage.Resampling.BILINEAR)) for frame in frames]
        mean: Scores = self._network(np.stack(squares), batched=True).mean(axis=0)
        return mean


class _Sounds:
    """A network over windows of sound, half overlapping, the last one flush with the end: their mean."""

    modalities: frozenset[str] = frozenset({"audio"})

    def __init__(self, file: Path, threads: int) -> None:
        self._network = Network(file, threads)
        self.revision = self._network.revision

    def scores(self, item: Item) -> Scores:
        if not isinstance(item, Audio):
            raise ModelError(f"{type(item).__name__} is no audio")
        if item.rate != RATE:
            raise ModelError(f"this network hears {RATE} samples per second, not {item.rate}")
        samples = np.pad(item.samples, (0, max(0, WINDOW - len(item.samples))))
        starts = np.unique(np.append(np.arange(0, len(samples) - WINDOW + 1, HOP), len(samples) - WINDOW))
        windows = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[starts]
        mean: Scores = self._network(windows, batched=False).mean(axis=0)
        return mean


class MobileNetWords(_Pictures):
    """Describes pictures and videos by their likeliest ImageNet labels."""

    def __init__(self, folder: str, name: str = "mobilenet-words", top: int = 5, num_threads: int = 1) -> None:
        super().__init__(Path(folder) / "mobilenet_v2_1.0_224_quant.tflite", num_threads)
        lines = (Path(folder) / "imagenet_labels.txt").read_text(encoding="utf-8").splitlines()
        self._labels = [line.split(",")[0] for line in lines]
        self.name, self._top = name, top

    def describe(self, items: Sequence[Item], modality: str) -> Described:
        support(self, modality)
        return Described([words(self.scores(item), self._labels, self._top) for item in items])


class YamnetWords(_Sounds):
    """Describes sounds by their likeliest AudioSet tags."""

    def __init__(self, folder: str, name: str = "yamnet-words", top: int = 5, num_threads: int = 1) -> None:
        super().__init__(Path(folder) / "yamnet_classification.tflite", num_threads)
        with (Path(folder) / "yamnet_class_map.csv").open(encoding="utf-8", newline="") as file:
            self._labels = [row["display_name"] for row in csv.DictReader(file)]
        self.name, self._top = name, top

    def describe(self, items: Sequence[Item], modality: str) -> Described:
        support(self, modality)
        return Described([words(self.scores(item), self._labels, self._top) for item in items])


class MobileNetFeatures(_Pictures):
    """Embeds pictures and videos: 1,024 features."""

    dim = 1024

    def __init__(self, folder: str, name: str = "mobilenet", num_threads: int = 1) -> None:
        super().__init__(Path(folder) / "mobilenet_v1_1.0_224_quant_embedding_extractor.tflite", num_threads)
        self.name = name

    def encode(self, items: Sequence[Item], modality: str) -> Encoded:
        support(self, modality)
        return unit_vectors([self.scores(item) for item in items], self.dim, self.name)


class YamnetFeatures(_Sounds):
    """Embeds sounds: the probabilities of 521 tags."""

    dim = 521

    def __init__(self, folder: str, name: str = "yamnet", num_threads: int = 1) -> None:
        super().__init__(Path(folder) / "yamnet_classification.tflite", num_threads)
        self.name = name

    def encode(self, items: Sequence[Item], modality: str) -> Encoded:
        support(self, modality)
        return unit_vectors([self.scores(item) for item in items], self.dim, self.name)


def words(scores: Scores, labels: Sequence[str], top: int) -> str:
    """Return the labels of the ``top`` scores, highest first, none that has no score at all."""
    best = np.argsort(-scores, kind="stable")[:top]
    return ", ".join(labels[label] for label in best if scores[label] > 0)


def unit_vectors(rows: Sequence[Scores], dim: int, name: str) -> Encoded:
    """Return the rows L2-normalised; a row of nothing but zeros has no direction and fails."""
    values = torch.from_numpy(np.stack(rows)) if rows else torch.empty((0, dim))
    dead = ~values.any(dim=1)
    errors: dict[int, PairError] = {
        row: EmbeddingError(f"{name}: every feature is zero") for row in torch.nonzero(dead).flatten().tolist()
    }
    return Encoded(F.normalize(values, dim=1).masked_fill(dead[:, None], float("nan")), errors)
