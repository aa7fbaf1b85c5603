"""Blocks of features to unit vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from nemo_mm_rank.arrays import Floats
from nemo_mm_rank.errors import EmbeddingError, PairError
from nemo_mm_rank.models.base import Encoded


def unit_rows(values: npt.NDArray[Any], floor: float = 0.0) -> Floats:
    """L2-normalise the rows of ``(n, k)`` values; a row of zeros stays one.

    Rows not much longer than ``floor`` stay shorter than 1, so that what is next to nothing is not blown up.
    """
    rows = np.ascontiguousarray(values, dtype=np.float64)
    norms = np.sqrt(np.square(rows).sum(axis=1, keepdims=True) + floor**2)
    unit: Floats = rows / np.where(norms > 0, norms, 1.0)
    return unit


def join_blocks(blocks: Sequence[npt.NDArray[Any]], floors: Sequence[float] | None = None) -> Floats:
    """Return the blocks ``(n, k)`` side by side, each L2-normalised by row so that none outweighs another.

    Args:
        blocks: all of ``n`` rows.
        floors: for each block, the length that is next to nothing; default: 0.
    """
    floors = floors or [0.0] * len(blocks)
    return np.concatenate([unit_rows(block, floor) for block, floor in zip(blocks, floors, strict=True)], axis=1)


def encoded(features: Floats, name: str, device: str) -> Encoded:
    """Return ``(n, d)`` features as L2-normalised float32 on ``device``; a row of zeros, or not finite, fails."""
    vectors = unit_rows(features).astype(np.float32)
    dead = ~(np.isfinite(vectors).all(axis=1) & vectors.any(axis=1))
    vectors[dead] = np.nan
    errors: dict[int, PairError] = {
        int(row): EmbeddingError(f"{name}: no features, all are zero or not finite") for row in np.flatnonzero(dead)
    }
    return Encoded(torch.from_numpy(vectors).to(device), errors)
