"""Near-duplicates against the definition, pair by pair."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_mm_rank.ranking import near, select
from nemo_mm_rank.ranking.select import DistinctFirst


def naive(vectors: np.ndarray, groups: np.ndarray, room: np.ndarray, similarity: float) -> tuple[list[int], list[int]]:
    room = room.copy()
    taken: list[int] = []
    double_of = [-1] * len(vectors)
    wide = vectors.astype(np.float64)
    for row, group in enumerate(groups.tolist()):
        if not room[group]:
            continue
        for kept in taken:
            xy, xx, yy = wide[row] @ wide[kept], wide[row] @ wide[row], wide[kept] @ wide[kept]
            if xx * yy and xy / np.sqrt(xx * yy) >= similarity:
                double_of[row] = kept
                break
        else:
            taken.append(row)
            room[group] -= 1
    return taken, double_of


@given(
    angles=st.lists(st.integers(0, 60), max_size=60),
    data=st.data(),
    similarity=st.sampled_from([0.9, 0.99, 1.0]),
    block=st.integers(1, 9),
    alone=st.sampled_from([4, 8192]),
)
@settings(deadline=None)
def test_equals_the_definition(
    angles: list[int], data: st.DataObject, similarity: float, block: int, alone: int
) -> None:
    vectors = np.stack([np.cos(np.array(angles) / 8), np.sin(np.array(angles) / 8)], axis=1).astype(np.float32)
    groups = np.array(
        data.draw(st.lists(st.integers(0, 2), min_size=len(angles), max_size=len(angles))), dtype=np.int64
    )
    room = np.array(data.draw(st.lists(st.integers(0, 20), min_size=3, max_size=3)), dtype=np.int64)
    before = select._BLOCK, near._CHUNK, near._ALONE
    select._BLOCK, near._CHUNK, near._ALONE = block, 3, alone
    try:
        picker = DistinctFirst(vectors, similarity)
        picker.take(np.arange(len(vectors)), groups, room)
    finally:
        select._BLOCK, near._CHUNK, near._ALONE = before
    taken, double_of = naive(vectors, groups, room, similarity)
    assert np.flatnonzero(picker.taken).tolist() == taken
    assert picker.double_of.tolist() == double_of


def test_close_calls_do_not_depend_on_the_shape() -> None:
    # 3,000 vectors whose cosine with the first lies within float32 rounding of the similarity.
    rng = np.random.default_rng(0)
    first = rng.normal(size=64)
    first /= np.linalg.norm(first)
    other = rng.normal(size=(3000, 64))
    other -= np.outer(other @ first, first)
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    vectors = np.vstack([first, 0.98 * first + np.sqrt(1 - 0.98**2) * other]).astype(np.float32)
    index = near.NearIndex(vectors, 0.98)
    rows = np.arange(len(vectors))
    whole = index.matrix(rows[1:], rows[:1])[:, 0]
    assert 100 < whole.sum() < 2900
    for size in (1, 7, 500):
        pieces = [index.matrix(rows[1:][start : start + size], rows[:1]) for start in range(0, 3000, size)]
        assert np.array_equal(np.concatenate(pieces)[:, 0], whole)


def test_equal_vectors_are_near_at_similarity_one_and_zeros_to_none() -> None:
    vectors = np.array([[0.3, 0.7], [0.3, 0.7], [0, 0], [0, 0], [0.6, 1.4]], dtype=np.float32)
    picker = DistinctFirst(vectors, 1.0)
    picker.take(np.arange(5), np.zeros(5, dtype=np.int64), np.array([5]))
    assert picker.taken.tolist()[:4] == [True, False, True, True]
    assert picker.double_of.tolist()[1] == 0
