from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_mm_rank.sns import select_windows, union_box

TIME = st.integers(0, 12).map(float)
CANDIDATE = st.tuples(TIME, TIME, st.integers(0, 4).map(float) | st.just(math.nan))


def overlap(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def test_windows_are_chosen_by_score_and_returned_by_start() -> None:
    candidates = [(0.0, 2.0, 0.1), (1.0, 3.0, 0.9), (3.0, 5.0, 0.5), (4.0, 6.0, 0.8)]
    assert select_windows(candidates, 3, 1.0) == [(1.0, 3.0), (4.0, 6.0)]
    assert select_windows(candidates, 1, 1.0) == [(1.0, 3.0)]
    assert select_windows([], 3, 1.0) == []


def test_touching_is_not_overlapping() -> None:
    assert select_windows([(0, 2, 1.0), (2, 4, 2.0)], 5, 1.0) == [(0, 2), (2, 4)]


def test_of_equal_scores_the_earlier_start_wins_whatever_the_order() -> None:
    candidates = [(2, 5, 1.0), (1, 4, 1.0), (1, 3, 1.0)]
    for order in itertools.permutations(candidates):
        assert select_windows(order, 5, 1.0) == [(1, 3)]


def test_short_empty_and_unjudged_windows_are_passed_over() -> None:
    assert select_windows([(0, 0.5, 9.0), (1, 1, 9.0), (3, 2, 9.0), (4, 6, math.nan), (7, 8, 0.0)], 5, 1.0) == [(7, 8)]
    assert select_windows([(1, 1, 9.0)], 5, 0.0) == []


@given(st.lists(CANDIDATE, max_size=12), st.integers(1, 5), st.integers(0, 4).map(float))
def test_windows_hold_what_is_promised(
    candidates: list[tuple[float, float, float]], most: int, shortest: float
) -> None:
    chosen = select_windows(candidates, most, shortest)
    assert len(chosen) <= most
    assert chosen == sorted(chosen)
    assert set(chosen) <= {(start, end) for start, end, _ in candidates}
    assert all(end > start and end - start >= shortest for start, end in chosen)
    assert not any(overlap(one, other) for one, other in itertools.combinations(chosen, 2))
    assert chosen == select_windows(candidates[::-1], most, shortest)


@given(st.lists(CANDIDATE, max_size=12), st.integers(1, 5))
def test_a_window_is_left_out_only_for_a_better_one_or_for_want_of_room(
    candidates: list[tuple[float, float, float]], most: int
) -> None:
    chosen = select_windows(candidates, most, 1.0)
    score = {window: max(s for a, b, s in candidates if (a, b) == window and s == s) for window in chosen}
    for start, end, value in candidates:
        if end - start < 1 or math.isnan(value) or (start, end) in chosen:
            continue
        rivals = [window for window in chosen if overlap(window, (start, end)) and score[window] >= value]
        full = len(chosen) == most and min(score.values()) >= value
        assert rivals or full


@pytest.mark.parametrize(
    ("boxes", "padding", "expected"),
    [
        ([], 0, None),
        ([(10, 20, 30, 40)], 0, (10, 20, 40, 60)),
        ([(10, 20, 30, 40)], 5, (5, 15, 45, 65)),
        ([(10, 20, 5, 5), (50, 10, 10, 10)], 0, (10, 10, 60, 25)),
        ([(0.4, 0.6, 1.2, 1.2)], 0, (0, 0, 2, 2)),
        ([(-5, -5, 20, 20)], 2, (0, 0, 17, 17)),
        ([(90, 70, 50, 50)], 0, (90, 70, 100, 80)),
        ([(0, 0, 100, 80)], 10, (0, 0, 100, 80)),
        ([(100, 0, 10, 10)], 0, None),
        ([(-20, 0, 10, 10)], 0, None),
        ([(10, 10, 0, 0)], 0, None),
    ],
)
def test_union_box_exactly(
    boxes: list[tuple[float, float, float, float]], padding: float, expected: tuple[int, int, int, int] | None
) -> None:
    assert union_box(boxes, 100, 80, padding) == expected


COORDINATE = st.floats(-1e4, 1e4)
SIZE = st.floats(0, 1e4)


@given(
    st.lists(st.tuples(COORDINATE, COORDINATE, SIZE, SIZE), max_size=6),
    st.integers(1, 500),
    st.integers(1, 500),
    st.floats(0, 100),
)
def test_union_box_lies_in_the_picture_and_holds_every_box_in_it(
    boxes: list[tuple[float, float, float, float]], width: int, height: int, padding: float
) -> None:
    box = union_box(boxes, width, height, padding)
    inside = [b for b in boxes if max(0, b[0]) < min(width, b[0] + b[2]) and max(0, b[1]) < min(height, b[1] + b[3])]
    if box is None:
        assert not inside
        return
    left, upper, right, lower = box
    assert all(type(side) is int for side in box)
    assert 0 <= left < right <= width
    assert 0 <= upper < lower <= height
    for x, y, w, h in inside:
        assert left <= max(0, x) < min(width, x + w) <= right
        assert upper <= max(0, y) < min(height, y + h) <= lower
