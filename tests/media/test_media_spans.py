"""The arithmetic of kept parts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_mm_rank.errors import MediaError, TextError
from nemo_mm_rank.media.spans import clip, kept_text, merge, slice_middles, union

windows = st.lists(
    st.tuples(st.floats(0, 100), st.floats(0.01, 20)).map(lambda w: (w[0], w[0] + w[1])), min_size=1, max_size=8
)


@given(windows)
def test_merged_windows_are_apart_and_cover_the_same_moments(given_windows: list[tuple[float, float]]) -> None:
    merged = merge(given_windows)
    assert all(start < end for start, end in merged)
    assert all(before[1] < after[0] for before, after in pairwise(merged))
    moments = np.array([bound for window in given_windows for bound in window])
    moments = np.concatenate([moments - 1e-6, moments + 1e-6, (moments[:-1] + moments[1:]) / 2])

    def inside(parts: list[tuple[float, float]]) -> list[bool]:
        return [any(start <= moment < end for start, end in parts) for moment in moments]

    assert inside(merged) == inside(given_windows)


def test_merge_joins_touching_windows_and_starts_at_zero() -> None:
    assert merge([[2, 3], [-1, 1], [1, 2], [5, 6]]) == [(0.0, 3.0), (5.0, 6.0)]


@pytest.mark.parametrize("bad", [[], [[1, 1]], [[2, 1]], [[-2, 0]], [[0, float("nan")]], [[0, float("inf")]], [[1]]])
def test_merge_refuses_what_is_no_window(bad: list[list[float]]) -> None:
    with pytest.raises(MediaError):
        merge(bad)


@given(windows, st.integers(1, 40))
def test_slice_middles_are_equally_far_apart_in_kept_time(parts: list[tuple[float, float]], count: int) -> None:
    parts = merge(parts)
    moments = slice_middles(parts, count)
    assert moments.shape == (count,)
    kept_before = [sum(max(0.0, min(end, moment) - start) for start, end in parts) for moment in moments]
    total = sum(end - start for start, end in parts)
    np.testing.assert_allclose(kept_before, (np.arange(count) + 0.5) / count * total, rtol=1e-9, atol=1e-9)


def test_slice_middles_by_hand() -> None:
    assert slice_middles([(0, 8)], 4).tolist() == [1, 3, 5, 7]
    assert slice_middles([(0, 1), (10, 13)], 4).tolist() == [0.5, 10.5, 11.5, 12.5]


def test_clip() -> None:
    assert clip([(0, 2), (3, 9), (10, 11)], 5.0) == [(0, 2), (3, 5.0)]
    with pytest.raises(MediaError, match=r"behind its end at 2\.500 s"):
        clip([(3, 4)], 2.5)


def test_union_of_boxes() -> None:
    assert union([[10, 20, 5, 5], [0, 22, 3, 30]]) == [0, 20, 15, 32]
    for bad in ([], [[0, 0, 0, 5]], [[0, 0, 5]], [[0, 0, float("nan"), 5]]):
        with pytest.raises(MediaError):
            union(bad)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "missing"),
        ("", "empty"),
        (" \n\t", "empty"),
        ("a\0b", "NUL"),
        ("a\ud800b", "surrogate"),
        ("x" * 11, "11 characters, more than the 10 allowed"),
    ],
)
def test_what_is_not_usable_text(text: str | None, message: str) -> None:
    with pytest.raises(TextError, match=message):
        kept_text(text, None, " ", 10)


def test_kept_parts_of_a_text() -> None:
    assert kept_text("One. Two. Three.", [[0, 4], [10, 16]], "\n", 100) == "One.\nThree."
    assert kept_text("שלום 👩‍👩‍👧 עולם", None, " ", 100) == "שלום 👩‍👩‍👧 עולם"
    for bad in ([], [[3, 3]], [[-1, 2]], [[20, 30]], [[0]], [[float("nan"), 3.0]]):
        with pytest.raises(TextError):
            kept_text("One. Two.", bad, " ", 100)
