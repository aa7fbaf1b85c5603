"""Whole numbers divided among groups: by hand, and what must hold of any."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nemo_mm_rank.measures.statistics import apportion


def test_by_hand() -> None:
    assert apportion(10, [2, 2, 1], [10, 10, 10]).tolist() == [4, 4, 2]
    assert apportion(10, [2, 2, 1], [10, 1, 10]).tolist() == [6, 1, 3]
    assert apportion(1, [1, 1], [5, 5]).tolist() == [1, 0]
    # 30 of 153 are 19.6, 9.8 and .6: the greatest remainders are those of the second and the first.
    assert apportion(30, [100, 50, 3], [100, 50, 3]).tolist() == [20, 10, 0]
    assert apportion(30, [1, 1, 1], [100, 50, 3]).tolist() == [14, 13, 3]
    assert apportion(5, [0, 1], [10, 3]).tolist() == [0, 3]


@given(
    st.integers(0, 200),
    st.lists(st.tuples(st.just(0.0) | st.floats(0.01, 10), st.integers(0, 50)), min_size=1, max_size=5),
)
def test_all_that_there_is_room_for_is_given(total: int, groups: list[tuple[float, int]]) -> None:
    weights, caps = (np.array(column) for column in zip(*groups, strict=True))
    counts = apportion(total, weights, caps)
    assert (counts >= 0).all()
    assert (counts <= caps).all()
    assert counts.sum() == min(total, caps[weights > 0].sum())


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 240))
def test_equal_weights_give_equal_counts_but_for_one(caps: list[int], total: int) -> None:
    counts = apportion(total, np.ones(len(caps)), caps)
    open_ = counts[counts < np.array(caps)]
    assert not open_.size or open_.max() - open_.min() <= 1
