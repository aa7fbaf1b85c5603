"""Hashed n-grams as a text encoder: no vocabulary, no training, no download."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file

from nemo_mm_rank.errors import EmbeddingError, ModelError, PairError
from nemo_mm_rank.io import mirror
from nemo_mm_rank.io.files import write_tensors
from nemo_mm_rank.media.segment import Item
from nemo_mm_rank.models.base import Encoded, support
from nemo_mm_rank.models.batching import gathered
from nemo_mm_rank.schema import Modality
from nemo_mm_rank.text.ngrams import FAMILIES, hashed_ngrams, mix

BUCKET_BITS = 19
BUCKETS = FAMILIES << BUCKET_BITS
FAMILY_WEIGHTS = np.array([1.0, 0.5])
"""Of words and of runs of characters."""

SIGNS = 8
"""Non-zero entries per row of the random projection."""
SEED = np.uint64(0x6E656D6F2D6D6D72)
BLOCK_TEXTS, BLOCK_CHARACTERS = 1024, 2**18
"""Texts that are hashed at a time: bounds the memory, and cannot change a result."""


class HashedText:
    """Embeds text and code as hashed word and character n-grams.

    Sublinear term frequency ``1 + ln(count)`` times ``idf = ln((1 + n) / (1 + df)) + 1`` (Manning, Raghavan and
    Schuetze, Introduction to Information Retrieval, 2008, sections 6.2.1 and 6.4.1; smoothed), reduced to ``dim`` by
    a fixed sparse signed random projection (Kane and Nelson, Sparser Johnson-Lindenstrauss Transforms, 2014, the
    block construction), L2-normalised. A vector depends on its text and on the statistics alone.

    Args:
        name: what the configuration calls it.
        dim: a multiple of 8.
        statistics: a file from `save_statistics`; without one every n-gram weighs the same (``idf = 1``).
        device: where the vectors are put.

    Raises:
        ModelError: impossible ``dim``, or a file that holds no such statistics.
    """

    modalities: frozenset[str] = frozenset({Modality.TEXT, Modality.CODE})

    def __init__(
        self, name: str = "hashed-text", dim: int = 512, statistics: str | None = None, device: str = "cpu"
    ) -> None:
        if dim < SIGNS or dim % SIGNS:
            raise ModelError(f"{name}: dim is a multiple of {SIGNS}, not {dim}")
        self.name = name
        self.dim = dim
        self.revision = self.revision_of(statistics=statistics)
        self._device = device
        self._weights = np.repeat(FAMILY_WEIGHTS, 1 << BUCKET_BITS)
        if statistics is not None:
            counts, n = read_statistics(statistics)
            self._weights *= np.log((1 + n) / (1 + counts)) + 1

    @staticmethod
    def revision_of(statistics: str | None = None, **_: Any) -> str:
        """Return the version of the method, with a digest of the statistics' content."""
        if statistics is None:
            return "1"
        counts, n = read_statistics(statistics)
        return f"1-{hashlib.sha256(n.to_bytes(8, 'little') + counts.tobytes()).hexdigest()[:16]}"

    @staticmethod
    def count(texts: Sequence[str | None]) -> npt.NDArray[np.int64]:
        """Return in how many of ``texts`` each n-gram occurs: ``(buckets,)`` int64, which add over shards.

        None counts as an empty text.
        """
        counts = np.zeros(BUCKETS, dtype=np.int64)
        for block in gathered([text or "" for text in texts], len, BLOCK_TEXTS, BLOCK_CHARACTERS):
            counts += np.bincount(hashed_ngrams(block, BUCKET_BITS).grams, minlength=BUCKETS)
        return counts

    @staticmethod
    def save_statistics(path: str | Path, counts: npt.NDArray[np.int64], n: int) -> None:
        """Save the document frequencies ``counts`` of ``n`` texts as safetensors, atomically."""
        write_tensors(Path(path), {"counts": torch.from_numpy(counts.astype(np.int64)), "n": torch.tensor([n])})

    def encode(self, items: Sequence[Item], modality: str) -> Encoded:
        """Embed texts; one without a letter, digit or pictograph fails."""
        support(self, modality)
        texts = [str(item) for item in items]
        vectors = np.empty((len(texts), self.dim), dtype=np.float32)
        row = 0
        for block in gathered(texts, len, BLOCK_TEXTS, BLOCK_CHARACTERS):
            vectors[row : row + len(block)] = self._embed(block)
            row += len(block)
        errors: dict[int, PairError] = {
            int(row): EmbeddingError(f"{self.name}: nothing but white space and punctuation")
            for row in np.flatnonzero(np.isnan(vectors[:, 0]))
        }
        return Encoded(torch.from_numpy(vectors).to(self._device), errors)

    def _embed(self, texts: list[str]) -> npt.NDArray[np.float32]:
        rows, grams, counts = hashed_ngrams(texts, BUCKET_BITS)
        weights = self._weights[grams] * (1 + np.log(counts))
        width = self.dim // SIGNS
        scattered = mix(grams.astype(np.uint64) + SEED)
        dense = np.empty((SIGNS, len(texts), width))
        for block in range(SIGNS):
            # One signed entry in each block of the row, from its own hash.
            scattered = mix(scattered + SEED)
            column = (scattered >> np.uint64(1)) % np.uint64(width)
            signed = np.where(scattered & np.uint64(1), weights, -weights)
            place = rows * width + column.astype(np.int64)
            dense[block] = np.bincount(place, signed, len(texts) * width).reshape(len(texts), width)
        vectors = np.ascontiguousarray(dense.transpose(1, 0, 2)).reshape(len(texts), self.dim)
        norms = np.sqrt(np.square(vectors).sum(axis=1, keepdims=True))
        with np.errstate(invalid="ignore"):  # a text without n-grams becomes NaN
            normalised: npt.NDArray[np.float32] = (vectors / norms).astype(np.float32)
        return normalised


def read_statistics(path: str | Path) -> tuple[npt.NDArray[np.int64], int]:
    """Return the document frequencies and the number of texts that `HashedText.save_statistics` saved.

    Raises:
        ModelError: no such file, or another content.
    """
    try:
        mirror.bring(Path(path))
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"statistics {path}: {' '.join(str(error).split())}") from error
    counts, n = tensors.get("counts", np.empty(0)), tensors.get("n", np.empty(0))
    fits = counts.shape == (BUCKETS,) and counts.dtype == np.int64 and n.shape == (1,) and n.dtype == np.int64
    if not fits or counts.min() < 0 or counts.max() > n[0]:
        raise ModelError(f"statistics {path}: not document frequencies of {BUCKETS} n-grams")
    return counts, int(n[0])
