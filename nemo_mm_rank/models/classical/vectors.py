"""Blocks of features to unit vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from nemo_mm_rank.errors import EmbeddingError, PairError
from nemo_mm_rank.models.base import Encoded

Floats: TypeAlias = npt.NDArray[np.float64]


def unit_rows(values: npt.NDArray[Any]) -> Floats:
    """L2-normalise the rows of ``(n, k)`` values; a row of zeros stays one."""
    rows = np.ascontiguousarray(values, dtype=np.float64)
    norms = np.sqrt(np.square(rows).sum(axis=1, keepdims=True))
    unit: Floats = rows / np.where(norms > 0, norms, 1.0)
    return unit


def join_blocks(blocks: Sequence[npt.NDArray[Any]]) -> Floats:
    """Return the blocks ``(n, k)``, each L2-normalised by row so that none outweighs another, side by side."""
    return np.concatenate([unit_rows(block) for block in blocks], axis=1)


def encoded(features: Floats, name: str, device: str) -> Encoded:
    """Return ``(n, d)`` features as L2-normalised float32 on ``device``; a row of zeros, or not finite, fails."""
    vectors = unit_rows(features).astype(np.float32)
    dead = ~(np.isfinite(vectors).all(axis=1) & vectors.any(axis=1))
    vectors[dead] = np.nan
    errors: dict[int, PairError] = {
        int(row): EmbeddingError(f"{name}: no features, all are zero or not finite") for row in np.flatnonzero(dead)
    }
    return Encoded(torch.from_numpy(vectors).to(device), errors)
