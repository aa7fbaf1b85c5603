"""DataComp's filtering baselines, with its exact definitions (Gadre et al. 2023; ``baselines/apply_filter.py``).

Each is a pure function from columns to ``(n,)`` bool: whether a pair is kept. `basic`, `laion2b` and `image_based` ask
for English by the label that a classifier puts first, whatever its probability. (For LAION's, DataComp has gcld3; here
it is whichever made the labels.) A score that is not there (NaN) is below every threshold.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from safetensors import SafetensorError, safe_open

from nemo_mm_rank import frames
from nemo_mm_rank.arrays import Bools
from nemo_mm_rank.errors import ConfigError
from nemo_mm_rank.frames import Frame
from nemo_mm_rank.io.files import file_digest
from nemo_mm_rank.quality.operators.settings import DataCompSettings, column
from nemo_mm_rank.quality.operators.text import LANGUAGE_LABEL
from nemo_mm_rank.schema import ANNOTATION, MODALITY, VECTOR, Modality
from nemo_mm_rank.steps import Added, Step

Floats: TypeAlias = npt.NDArray[np.floating]
Numbers: TypeAlias = npt.NDArray[np.number]

ENGLISH = "en"
MIN_SIDE, MAX_ASPECT = 200, 3.0
LAION_THRESHOLD = 0.28
"""Of the cosine by CLIP ViT-B/32."""
ROWS_AT_ONCE = 4096

_WORD = re.compile(r"\n|[^ \n\r\t\v\f\0]+")


def basic(languages: Sequence[str | None], texts: Sequence[str], widths: Numbers, heights: Numbers) -> Bools:
    """Keep English captions of more than two words and five characters, of images that are large and not too long.

    Args:
        languages: ``n`` labels.
        texts: captions.
        widths, heights: ``(n,)`` pixels of the original images: the shorter side at least 200, the longer one at
            most three times that.
    """
    words = np.fromiter((len(text.split()) for text in texts), np.int64, len(texts))
    characters = np.fromiter(map(len, texts), np.int64, len(texts))
    shorter, longer = np.minimum(widths, heights), np.maximum(widths, heights)
    images = (shorter >= MIN_SIDE) & (longer <= MAX_ASPECT * shorter)
    return english(languages) & (words > 2) & (characters > 5) & images


def clip_score(scores: Floats, threshold: float) -> Bools:
    """Keep scores of at least ``threshold`` (DataComp's examples: .3 of ViT-L/14, .25 of ViT-B/32)."""
    kept: Bools = scores >= threshold
    return kept


def laion2b(languages: Sequence[str | None], clip_b32: Floats) -> Bools:
    """Keep English captions with a CLIP score (ViT-B/32) of at least .28."""
    return english(languages) & clip_score(clip_b32, LAION_THRESHOLD)


def image_based(
    languages: Sequence[str | None],
    texts: Sequence[str],
    features: torch.Tensor,
    centroids: torch.Tensor,
    targets: npt.NDArray[np.integer],
) -> Bools:
    """Keep English captions of more than a word and five characters, of images in a cluster that has target images.

    Args:
        languages: ``n`` labels.
        texts: captions.
        features: ``(n, d)`` embeddings of the images (DataComp: CLIP ViT-L/14).
        centroids: ``(k, d)`` of a clustering of the pool (100,000 by k-means).
        targets: the clusters to keep, for example `nearest_centroids` of ImageNet's training images.
    """
    characters = np.fromiter(map(len, texts), np.int64, len(texts))
    inside = np.isin(nearest_centroids(features, centroids), targets)
    kept: Bools = english(languages) & (fasttext_words(texts) > 1) & (characters > 5) & inside
    return kept


def nearest_centroids(features: torch.Tensor, centroids: torch.Tensor) -> npt.NDArray[np.int64]:
    """Return ``(n,)`` the centroid with the greatest inner product with each of ``(n, d)`` features."""
    transposed = centroids.float().T
    blocks = [
        (block.to(centroids.device).float() @ transposed).argmax(dim=1) for block in torch.split(features, ROWS_AT_ONCE)
    ]
    nearest: npt.NDArray[np.int64] = torch.cat(blocks).cpu().numpy() if blocks else np.zeros(0, dtype=np.int64)
    return nearest


def fasttext_words(texts: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return ``(n,)`` the number of words as ``fasttext.tokenize`` parts them: a line end is one too."""
    counts = (len(_WORD.findall(text)) for text in texts)
    return np.fromiter(counts, np.int64, len(texts))


def english(languages: Sequence[str | None]) -> Bools:
    """Whether each label is that of English."""
    return np.fromiter((label == ENGLISH for label in languages), np.bool_, len(languages))


WIDTH, HEIGHT = "original_width", "original_height"
"""What DataComp's metadata call the sizes in pixels; where a table has none, those of the decoded image count."""


@dataclass
class DataCompStep(Step):
    """Adds a column for each baseline; null for what is no image, which DataComp's are not made for.

    Args:
        settings: which baselines.
    """

    settings: DataCompSettings
    name: str = "quality-datacomp"

    @property
    def requires(self) -> Mapping[str, pa.DataType]:
        """The annotation with its language, and what the baselines ask for."""
        settings = self.settings
        columns: dict[str, pa.DataType] = {MODALITY: pa.string(), ANNOTATION: pa.string()}
        if settings.basic or settings.laion2b or settings.image_based:
            columns[LANGUAGE_LABEL] = pa.string()
        if settings.laion2b:
            columns[column(settings.laion2b)] = pa.float32()
        if settings.clip_score:
            columns[column(settings.clip_score.operator)] = pa.float32()
        if settings.image_based:
            columns[settings.image_based.features] = VECTOR
        return columns

    @property
    def uses(self) -> tuple[str, ...]:
        """Sizes of images."""
        return (WIDTH, HEIGHT, column("resolution"), column("geometric"))

    @property
    def provides(self) -> Mapping[str, pa.DataType]:
        """One column per baseline."""
        return {column(f"datacomp_{name}"): pa.float32() for name, value in self.settings if value}

    def identity(self) -> dict[str, Any]:
        """Settings, and what the file of centroids holds."""
        values: dict[str, Any] = {"step": self.name, "settings": self.settings.model_dump(mode="json")}
        if self.settings.image_based:
            values["settings"]["image_based"]["centroids"] = file_digest(self.settings.image_based.centroids)
        return values

    def process(self, rows: Frame) -> Added:
        """Apply the baselines.

        Raises:
            ConfigError: there are no sizes, or the file of centroids holds something else.
        """
        settings = self.settings
        texts = [text or "" for text in frames.strings(rows, ANNOTATION)]
        languages = frames.strings(rows, LANGUAGE_LABEL) if LANGUAGE_LABEL in rows.columns else []
        kept: dict[str, Bools] = {}
        if settings.basic:
            kept["basic"] = basic(languages, texts, *_sizes(rows))
        if settings.clip_score:
            scores = _numbers(rows, column(settings.clip_score.operator))
            kept["clip_score"] = clip_score(scores, settings.clip_score.threshold)
        if settings.laion2b:
            kept["laion2b"] = laion2b(languages, _numbers(rows, column(settings.laion2b)))
        if settings.image_based:
            centroids, targets = read_centroids(settings.image_based.centroids)
            features = frames.vectors(rows, settings.image_based.features)
            if features.valid.any() and features.values.shape[1] != centroids.shape[1]:
                sizes = f"{features.values.shape[1]} and {centroids.shape[1]}"
                raise ConfigError(f"datacomp.image_based: features and centroids have {sizes} dimensions")
            kept["image_based"] = np.zeros(len(rows), dtype=np.bool_)
            embedded = features.valid.numpy()
            kept["image_based"][embedded] = image_based(
                [languages[row] for row in np.flatnonzero(embedded)],
                [texts[row] for row in np.flatnonzero(embedded)],
                features.values[features.valid],
                centroids,
                targets,
            )
        others = np.array([modality != Modality.IMAGE for modality in frames.strings(rows, MODALITY)], dtype=bool)
        return Added(
            {
                column(f"datacomp_{name}"): pa.array(values.astype(np.float32), mask=others)
                for name, values in kept.items()
            }
        )


@dataclass
class BasicStep(Step):
    """DataComp's basic filter for a pool of several modalities: what it asks of captions holds for all annotations.

    Args:
        english: whether annotations have to be English, by the labels of ``language``.
    """

    english: bool
    name: str = "quality-basic"

    @property
    def requires(self) -> Mapping[str, pa.DataType]:
        """The annotation, and its language where that is asked for."""
        label = {LANGUAGE_LABEL: pa.string()} if self.english else {}
        return {MODALITY: pa.string(), ANNOTATION: pa.string(), **label}

    @property
    def uses(self) -> tuple[str, ...]:
        """Sizes of images."""
        return (WIDTH, HEIGHT, column("resolution"), column("geometric"))

    @property
    def provides(self) -> Mapping[str, pa.DataType]:
        """1 kept, 0 dropped."""
        return {column("datacomp_basic"): pa.float32()}

    def identity(self) -> dict[str, Any]:
        """Whether English is asked for."""
        return {"step": self.name, "english": self.english}

    def process(self, rows: Frame) -> Added:
        """See `basic`; data that is no image counts as one of any size."""
        texts = [text or "" for text in frames.strings(rows, ANNOTATION)]
        languages = frames.strings(rows, LANGUAGE_LABEL) if self.english else [ENGLISH] * len(texts)
        pictures = np.array([modality == Modality.IMAGE for modality in frames.strings(rows, MODALITY)], dtype=bool)
        widths, heights = _sizes(rows)
        any_size = np.full(len(texts), float(MIN_SIDE))
        kept = basic(languages, texts, np.where(pictures, widths, any_size), np.where(pictures, heights, any_size))
        return Added({column("datacomp_basic"): pa.array(kept.astype(np.float32))})


def _numbers(rows: Frame, name: str) -> npt.NDArray[np.float64]:
    values: npt.NDArray[np.float64] = frames.array(rows, name).cast(pa.float64()).to_numpy(zero_copy_only=False)
    return values


def _sizes(rows: Frame) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return ``(n,)`` widths and heights, or the shorter and the longer sides; NaN where they are not known."""
    if WIDTH in rows.columns and HEIGHT in rows.columns:
        return _numbers(rows, WIDTH), _numbers(rows, HEIGHT)
    if any(column(name) not in rows.columns for name in ("resolution", "geometric")):
        raise ConfigError(f"datacomp.basic: needs {WIDTH} and {HEIGHT}, or the operators resolution and geometric")
    shorter = _numbers(rows, column("resolution"))
    return shorter, np.rint(shorter / _numbers(rows, column("geometric")))


@lru_cache(maxsize=1)
def read_centroids(path: str) -> tuple[torch.Tensor, npt.NDArray[np.int64]]:
    """Return ``(k, d)`` float32 centroids, and the numbers of those to keep.

    Raises:
        ConfigError: the file is no safetensors with ``centroids`` and ``targets``.
    """
    try:
        with safe_open(path, framework="pt") as file:
            centroids, targets = file.get_tensor("centroids").float(), file.get_tensor("targets").long()
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"datacomp.image_based: {path}: {' '.join(str(error).split())}") from error
    if centroids.ndim != 2 or targets.ndim != 1:
        raise ConfigError(f"datacomp.image_based: {path}: centroids are a matrix, and targets a list of their rows")
    return centroids, targets.numpy()
