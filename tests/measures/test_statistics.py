"""Every statistic against scipy, or a case worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from nemo_mm_rank.measures.statistics import bootstrap_interval, holm, mean_interval, paired_difference

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20)


@given(VALUES)
def test_intervals_of_means_are_scipys(values: list[float]) -> None:
    found = mean_interval(values)
    theirs = stats.ttest_1samp(values, 0.0).confidence_interval(0.95) if np.std(values) > 1e-9 else None
    assert found.value == pytest.approx(np.mean(values))
    assert found.n == len(values)
    if theirs is not None:
        assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), rel=1e-6, abs=1e-9)


def test_an_interval_by_hand() -> None:
    # s = sqrt(2.5), n = 5, t(.975; 4) = 2.776445
    found = mean_interval([1, 2, 3, 4, 5])
    assert found.value == 3
    assert found.high - found.value == pytest.approx(2.776445 * math.sqrt(2.5 / 5), rel=1e-6)


def test_one_value_has_no_interval() -> None:
    found = mean_interval([2.5])
    assert found.value == 2.5
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    difference = paired_difference([2.5], [2.0])
    assert math.isnan(difference.p)
    assert not difference.separable


@given(st.lists(st.tuples(st.floats(-100, 100), st.floats(-100, 100)), min_size=2, max_size=15))
def test_paired_differences_are_scipys(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = (np.array(side) for side in zip(*pairs, strict=True))
    found = paired_difference(ours, theirs)
    if np.std(ours - theirs) < 1e-9:
        return
    expected = stats.ttest_rel(ours, theirs)
    interval = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-9)


def test_what_is_separable() -> None:
    # The poster's table: 7.732 +- .011 against 7.734 +- .013 with three seeds each says nothing.
    ours, theirs = [7.732 - 0.011, 7.732, 7.732 + 0.011], [7.734, 7.734 + 0.013, 7.734 - 0.013]
    assert not paired_difference(ours, theirs).separable
    assert paired_difference([1.0, 1.1, 0.9], [2.0, 2.1, 1.91]).separable


def test_differences_that_are_all_equal() -> None:
    same, apart = paired_difference([1.0, 2.0], [1.0, 2.0]), paired_difference([1.0, 2.0], [2.0, 3.0])
    assert (same.value, same.low, same.high, same.p, same.separable) == (0, 0, 0, 1, False)
    assert (apart.value, apart.low, apart.high, apart.p, apart.separable) == (-1, -1, -1, 0, True)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_values_that_say_nothing_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="statistics need"):
        mean_interval(values)


def test_unpaired_values_are_refused() -> None:
    with pytest.raises(ValueError, match="2 values cannot be paired with 3"):
        paired_difference([1, 2], [1, 2, 3])


def test_holm_by_hand() -> None:
    # The example of Holm's procedure with m = 4: .005 * 4, .01 * 3, .03 * 2 and .04 * 1, which may not fall below .06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == pytest.approx([1.0, 1.0])
    with_nothing = holm([math.nan, 0.02])
    assert math.isnan(with_nothing[0])
    assert with_nothing[1] == 0.02


def test_bootstrap_of_a_mean_is_close_to_students() -> None:
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = bootstrap_interval(lambda rows: values[rows].mean(1), 400, seed=0, samples=4000)
    expected = mean_interval(values)
    assert found.value == pytest.approx(expected.value)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.03)
    theirs = stats.bootstrap((values,), np.mean, method="basic", n_resamples=4000, rng=0).confidence_interval
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.03)


def test_bootstraps_repeat_and_are_done_in_chunks() -> None:
    values = np.random.default_rng(1).normal(size=3000)

    def mean(rows: np.ndarray) -> np.ndarray:
        assert rows.size <= 1 << 22
        return np.asarray(values[rows].mean(1))

    assert bootstrap_interval(mean, 3000, seed=5, samples=3000) == bootstrap_interval(mean, 3000, seed=5, samples=3000)
    assert math.isnan(bootstrap_interval(mean, 1, seed=5).low)
