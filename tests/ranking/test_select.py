"""Quotas exact, shortages named, the best first."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_mm_rank.errors import ConfigError, UserError
from nemo_mm_rank.ranking.select import REST, BestFirst, check_shortage, quota_counts


@given(total=st.integers(0, 10_000), parts=st.lists(st.integers(0, 50), min_size=1, max_size=6))
def test_counts_sum_and_stay_within_one_of_their_share(total: int, parts: list[int]) -> None:
    shares = {f"g{i}": part / 300 for i, part in enumerate(parts)}
    counts = quota_counts(total, shares)
    assert sum(counts.values()) == total
    for name, share in shares.items():
        assert abs(counts[name] - share * total) < 1 + 1e-9


def test_largest_remainders() -> None:
    assert quota_counts(10, {"image": 0.25, "audio": 0.25, "text": 0.5}) == {"audio": 3, "image": 2, "text": 5}
    assert quota_counts(7, {"image": 0.3}) == {"image": 2, REST: 5}
    assert quota_counts(3, {}) == {REST: 3}
    assert quota_counts(0, {"image": 0.5}) == {"image": 0, REST: 0}


def test_decimal_shares_are_exact() -> None:
    # In floats .1 + .2 + .7 is not 1, and .29 * 100 is less than 29.
    assert quota_counts(10, {"a": 0.1, "b": 0.2, "c": 0.7}) == {"a": 1, "b": 2, "c": 7}
    assert quota_counts(100, {"a": 0.29, "b": 0.71}) == {"a": 29, "b": 71}


def test_impossible_shares() -> None:
    with pytest.raises(ConfigError, match=r"sum to 1\.2"):
        quota_counts(10, {"a": 0.6, "b": 0.6})
    with pytest.raises(ConfigError, match="between 0 and 1"):
        quota_counts(10, {"a": -0.1})


def test_shortage_names_every_short_group() -> None:
    check_shortage({"a": 1}, {"a": 1})
    with pytest.raises(UserError, match=r"a has 1 of 2; c has 0 of 1 .*fill or leave"):
        check_shortage({"a": 2, "b": 1, "c": 1}, {"a": 1, "b": 5})


def test_best_first_takes_from_each_group_until_it_is_full() -> None:
    picker = BestFirst(6)
    picker.take(np.arange(6), np.array([0, 0, 1, 0, 1, 1]), np.array([2, 1]))
    assert picker.taken.tolist() == [True, True, True, False, False, False]
    picker.take(np.array([3, 5]), np.array([0, 0]), np.array([1]))
    assert picker.taken.tolist() == [True, True, True, True, False, False]
