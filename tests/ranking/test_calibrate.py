"""Statistics: right, and the same bits however the scores are divided."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_mm_rank.errors import ConfigError
from nemo_mm_rank.ranking.calibrate import Moments, Quantiles

score_lists = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=60)


@given(score_lists)
def test_mean_and_deviation(scores: list[float]) -> None:
    moments = Moments.of(np.array(scores, dtype=np.float32))
    assert moments.mean == pytest.approx(statistics.fmean(scores), abs=1e-6)
    assert moments.std == pytest.approx(statistics.pstdev(scores), abs=2e-6)


@given(scores=score_lists, data=st.data())
def test_shards_in_any_order_give_the_same_statistics(scores: list[float], data: st.DataObject) -> None:
    values = np.array(data.draw(st.permutations(scores)))
    cut = data.draw(st.integers(0, len(scores)))
    whole = np.array(scores)
    assert Moments.of(values[:cut]) + Moments.of(values[cut:]) == Moments.of(whole)
    divided = Quantiles.of(values[:cut]) + Quantiles.of(values[cut:])
    assert np.array_equal(divided.counts, Quantiles.of(whole).counts)


def test_sums_are_exact_where_int64_would_overflow() -> None:
    values = np.array([2.0**20, -(2.0**20), 3.25, -(2.0**-20)] * 50_000)
    moments = Moments.of(values)
    units = [round(value * 2**20) for value in values.tolist()]
    assert (moments.count, moments.total) == (200_000, sum(units))
    assert moments.squares == sum(unit * unit for unit in units) > 2**63


def test_missing_scores_are_left_out_and_stay_missing() -> None:
    moments = Moments.of(np.array([1.0, np.nan, 3.0]))
    assert (moments.count, moments.mean, moments.std) == (2, 2.0, 1.0)
    assert moments.standardise(np.array([3.0, np.nan, 0.0])).tolist() == pytest.approx(
        [1.0, math.nan, -2.0], nan_ok=True
    )


def test_scores_that_do_not_differ_are_zero() -> None:
    values = np.full(1000, 0.1, dtype=np.float32)
    assert Moments.of(values).standardise(values).tolist() == [0.0] * 1000
    assert Moments().standardise(np.array([5.0])).tolist() == [0.0]


def test_a_score_beyond_reason_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"use lower values in ranking\.weights"):
        Moments.of(np.array([2.0**21]))


@given(score_lists)
def test_quantiles_keep_the_order_and_lie_in_the_unit_interval(scores: list[float]) -> None:
    values = np.sort(np.array(scores))
    quantiles = Quantiles.of(values).standardise(values)
    assert ((quantiles >= 0) & (quantiles <= 1)).all()
    assert (np.diff(quantiles) >= 0).all()


def test_quantiles_are_the_share_below() -> None:
    values = np.random.default_rng(0).normal(size=20_000)
    quantiles = Quantiles.of(values).standardise(values)
    exact = np.argsort(np.argsort(values)) / len(values)
    assert np.abs(quantiles - exact).max() < 1e-3
    assert len(np.unique(quantiles)) == len(values)
