"""From features to chances: the line against scikit-learn's, the bound and the chances against what is known."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from nemo_mm_rank.matching.judge import Judge
from nemo_mm_rank.measures.line import Line, by_fold, cross_fit
from nemo_mm_rank.measures.separation import separation, wrong_at_most
from nemo_mm_rank.schema import LEAST_CHANCE

Floats = npt.NDArray[np.float64]


def made(rows: int, features: int, seed: int, shift: float = 1.0) -> Floats:
    """Features of different scales, the first two of which tell."""
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(rows, features))
    found[:, :2] += shift
    return found * np.geomspace(0.01, 10, features) + np.arange(features)


@pytest.mark.parametrize(("own", "spoilt"), [(60, 60), (40, 200), (300, 50)])
def test_the_line_is_that_of_scikit_learn(own: int, spoilt: int) -> None:
    first, second = made(own, 5, 0), made(spoilt, 5, 1, 0.0)
    line = Line.fit(first, second)
    np.testing.assert_allclose(line.means, first.mean(0))
    np.testing.assert_allclose(line.scales, first.std(0))
    rows = (np.concatenate([first, second]) - first.mean(0)) / first.std(0)
    least = min(own, spoilt)
    weights = np.repeat([least / own, least / spoilt], [own, spoilt])
    other = LogisticRegression(C=1.0, tol=1e-12, max_iter=10_000)
    other.fit(rows, np.repeat([1, 0], [own, spoilt]), sample_weight=weights)
    np.testing.assert_allclose(line.weights, other.coef_[0], atol=1e-6)
    assert line.intercept == pytest.approx(other.intercept_[0], abs=1e-5)  # ours has a ridge of a millionth there
    np.testing.assert_allclose(line(first), other.decision_function(rows[:own]), atol=1e-5)


def test_a_feature_that_is_missing_or_constant_counts_nothing() -> None:
    own, spoilt = made(80, 4, 2), made(80, 4, 3, 0.0)
    own[:, 2], spoilt[:, 2] = np.nan, np.nan
    own[:, 3], spoilt[:, 3] = 5.0, 5.0
    line, fewer = Line.fit(own, spoilt), Line.fit(own[:, :2], spoilt[:, :2])
    assert line.weights[2:].tolist() == [0, 0]
    np.testing.assert_allclose(line.weights[:2], fewer.weights, atol=1e-9)
    row = own[:1].copy()
    row[0, 0] = np.nan
    mean = own[:1].copy()
    mean[0, 0] = own[:, 0].mean()
    assert line(row) == pytest.approx(line(mean), abs=1e-9)


def test_each_row_by_itself() -> None:
    own, spoilt = made(64, 6, 4), made(64, 6, 5, 0.0)
    line = Line.fit(own, spoilt)
    whole = line(own)
    assert np.concatenate([line(own[:7]), line(own[7:8]), line(own[8:])]).tolist() == whole.tolist()
    assert line(own[::-1]).tolist() == whole[::-1].tolist()


def test_a_fold_is_scored_by_a_line_that_never_saw_it() -> None:
    own, spoilt = made(80, 3, 6), made(160, 3, 7, 0.0)
    folds, of = np.arange(80) % 4, np.arange(160) % 4
    lines, observed, scored = cross_fit(own, folds, spoilt, of, 4)
    for fold in range(4):
        expected = Line.fit(own[folds != fold], spoilt[of != fold])
        assert lines[fold].weights.tolist() == expected.weights.tolist()
        assert observed[folds == fold].tolist() == expected(own[folds == fold]).tolist()
        assert scored[of == fold].tolist() == expected(spoilt[of == fold]).tolist()
    assert by_fold(lines, own, folds).tolist() == observed.tolist()
    # Of one fold only there is nothing else to learn from.
    alone, _, _ = cross_fit(own, np.zeros(80, int), spoilt, np.zeros(160, int), 2)
    assert alone[0].weights.tolist() == Line.fit(own, spoilt).weights.tolist()


def test_separation_by_hand() -> None:
    assert separation(np.array([2.0, 3.0]), np.array([1.0, 1.5])) == 1
    assert separation(np.array([0.0]), np.array([1.0, 2.0])) == 0
    assert separation(np.array([1.0, 2.0]), np.array([1.0, 2.0])) == 0.5
    # 2 beats one of four and ties with one; 4 beats all.
    assert separation(np.array([2.0, 4.0]), np.array([1.0, 2.0, 3.0, 3.0])) == (1.5 + 4) / 8


def test_the_share_of_wrong_pairs_is_bounded_by_hand() -> None:
    spoilt = np.arange(101.0)  # quantiles of .2, .3, .4 and .5 at 20, 30, 40 and 50
    assert wrong_at_most(np.full(10, 200.0), spoilt) == 0
    assert wrong_at_most(spoilt, spoilt) == 1
    own = np.array([10.0, 25.0, 35.0, *np.full(7, 200.0)])  # .1, .2, .3 and .3 of them lie below
    assert wrong_at_most(own, spoilt) == pytest.approx(min(0.1 / 0.2, 0.2 / 0.3, 0.3 / 0.4, 0.3 / 0.5))


def normal(mean: float, count: int, seed: int) -> Floats:
    found: Floats = np.random.default_rng(seed).normal(mean, 1, count)
    return found


@pytest.mark.parametrize("count", [60, 400, 2000])
def test_in_a_clean_pool_all_chances_are_one(count: int) -> None:
    own = normal(3, count, 0)
    judge = Judge.of([], own, normal(0, 4 * count, 1))
    assert judge.about["wrong"] == 0
    assert judge.about["told"] > 0.95
    assert set(judge.chance(own).tolist()) == {1.0}


@pytest.mark.parametrize("seed", range(5))
def test_replaced_annotations_are_found(seed: int) -> None:
    own, replaced = normal(3, 360, seed), normal(0, 240, seed + 100)
    judge = Judge.of([], np.concatenate([own, replaced]), normal(0, 2400, seed + 200))
    assert 0.3 < judge.about["wrong"] < 0.45
    assert judge.about["told"] > 0.9  # though 40 % of the observed pairs are as spoilt ones
    assert judge.chance(own).mean() > 0.85
    assert judge.chance(replaced).mean() < 0.3
    low, high = judge.chance(np.array([-2.0, 5.0])).tolist()
    assert LEAST_CHANCE <= low < 0.1
    assert high == 1


@pytest.mark.parametrize("count", [50, 300, 2000])
def test_where_nothing_can_be_told_nothing_is_held_against_anyone(count: int) -> None:
    # One seed in eight was told apart by chance alone once: see `_SURE`.
    for seed in range(40):
        own = normal(0, count, seed)
        judge = Judge.of([], own, normal(0, 4 * count, 1000 + seed))
        assert judge.about["wrong"] == 0
        assert set(judge.chance(own).tolist()) == {1.0}


def test_a_few_wrong_pairs_are_no_more_than_honest_ones_may_make_up() -> None:
    own = np.concatenate([normal(4, 990, 0), normal(0, 10, 1)])
    assert Judge.of([], own, normal(0, 4000, 2)).about["wrong"] == 0


scores = st.lists(st.floats(-50, 50, allow_nan=False), min_size=2, max_size=120).map(np.array)


@given(own=scores, spoilt=scores)
@settings(max_examples=150, deadline=None)
def test_chances_never_fall_and_the_best_is_one(own: Floats, spoilt: Floats) -> None:
    judge = Judge.of([], own, spoilt)
    assert 0 <= judge.about["told"] <= 1
    assert all(first <= second for first, second in pairwise(judge.places.tolist()))
    assert all(first <= second for first, second in pairwise(judge.chances.tolist()))
    line = judge.chance(np.linspace(-60, 60, 500))
    assert (np.diff(line) >= 0).all()
    assert line.min() >= LEAST_CHANCE
    assert judge.chances.max() == line.max() == 1
    assert 0 <= judge.about["wrong"] <= 1
    assert np.isnan(judge.chance(np.array([np.nan, 0.0]))).tolist() == [True, False]


@given(own=scores, spoilt=scores, seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_written_down_and_read_back_to_the_bit(own: Floats, spoilt: Floats, seed: int) -> None:
    lines = [Line.fit(made(20, 3, seed + fold), made(20, 3, seed + 50 + fold, 0.0)) for fold in range(2)]
    judge = Judge.of(lines, own, spoilt)
    again = Judge.of_json(json.loads(json.dumps(judge.as_json())))
    assert again.as_json() == judge.as_json()
    rows, folds = made(30, 3, seed), np.arange(30) % 2
    assert again.score(rows, folds).tolist() == judge.score(rows, folds).tolist()
    assert again.chance(own).tolist() == judge.chance(own).tolist()
