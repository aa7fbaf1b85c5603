"""Near-equal candidates are passed by exactly as if each had been compared with all that were taken before."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_mm_rank.arrays import Ints, Vectors
from nemo_mm_rank.ranking import near
from nemo_mm_rank.ranking.select import DistinctFirst


def all_compared(
    vectors: Vectors, similarity: float, takes: list[tuple[Ints, Ints, Ints]]
) -> tuple[list[bool], list[int]]:
    """Take as `DistinctFirst` says it does, by the cosines of all pairs in float64."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0).astype(np.float64)
    squares = np.einsum("ij,ij->i", unit, unit)
    with np.errstate(invalid="ignore", divide="ignore"):
        close = np.einsum("id,jd->ij", unit, unit) / np.sqrt(np.outer(squares, squares)) >= similarity
    taken, double_of = np.zeros(len(vectors), bool), np.full(len(vectors), -1)
    for candidates, groups, room in takes:
        room = room.copy()
        for place, (row, group) in enumerate(zip(candidates.tolist(), groups.tolist(), strict=True)):
            if not room[group]:
                continue
            if double_of[row] < 0:
                start = place // 1024 * 1024
                block = [one for one in candidates[start:place].tolist() if taken[one] and close[row, one]]
                before = np.flatnonzero(taken & close[row] & ~np.isin(np.arange(len(vectors)), candidates[start:place]))
                double_of[row] = before[0] if len(before) else block[0] if block else -1
            if double_of[row] < 0:
                taken[row] = True
                room[group] -= 1
    return taken.tolist(), double_of.tolist()


def bunches(n: int, seed: int, noise: float, dimensions: int = 24) -> Vectors:
    """Return vectors in bunches, of which many lie about as near to each other as the limit; some are zeros."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(1, n // 6), dimensions)) + 1.0
    vectors = centres[rng.integers(len(centres), size=n)] + noise * rng.standard_normal((n, dimensions))
    vectors[rng.random(n) < 0.02] = 0
    return vectors.astype(np.float32)


@pytest.mark.parametrize("alone", [8192, 16])
@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 300),
    seed=st.integers(0, 2**32 - 1),
    similarity=st.sampled_from([0.0, 0.5, 0.9, 0.95, 1.0]),
    noise=st.sampled_from([0.0, 0.1, 0.3, 1.0]),
    varied=st.booleans(),
)
def test_as_if_all_had_been_compared(
    alone: int, n: int, seed: int, similarity: float, noise: float, varied: bool
) -> None:
    rng, vectors = np.random.default_rng(seed), bunches(n, seed, noise)
    order = rng.permutation(n) if varied else np.arange(n)
    takes = [(order, rng.integers(0, 3, n)[order], rng.integers(0, n, 3))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near, "_ALONE", alone)
        picker = DistinctFirst(vectors, similarity)
    picker.take(*takes[0])
    takes.append((rest := np.flatnonzero(~picker.taken), np.zeros_like(rest), np.array([n])))
    picker.take(*takes[1])
    assert (picker.taken.tolist(), picker.double_of.tolist()) == all_compared(vectors, similarity, takes)


def test_over_many_blocks_and_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "_ALONE", 1000)
    n = 3000
    vectors, whole = bunches(n, 1, 0.15), (np.arange(n), np.zeros(n, np.int64), np.array([n]))
    picker = DistinctFirst(vectors, 0.95)
    picker.take(*whole)
    assert 500 < picker.taken.sum() < 2500
    assert (picker.taken.tolist(), picker.double_of.tolist()) == all_compared(vectors, 0.95, [whole])
