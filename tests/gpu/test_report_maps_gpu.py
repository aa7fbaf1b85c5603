"""Maps by cuML: neighbours stay neighbours."""

from __future__ import annotations

import numpy as np
import pytest

from nemo_mm_rank.measures.plane import flatten

pytest.importorskip("cuml")


def test_a_map_by_cuml_keeps_neighbours() -> None:
    rng = np.random.default_rng(0)
    centres = np.repeat(np.eye(3, 60, dtype=np.float32), 40, axis=0)
    plane = flatten(centres + 0.05 * rng.standard_normal((120, 60)).astype(np.float32), seed=1)
    distances = np.linalg.norm(plane[:, None] - plane[None], axis=2) + 1e9 * np.eye(120)
    assert plane.shape == (120, 2)
    assert (distances.argmin(axis=1) // 40 == np.arange(120) // 40).all()
