"""Blends of pairs whose truth is known, worked by hand."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_mm_rank.measures.geometry import average_precision
from nemo_mm_rank.measures.selection import Labels, overlap, selection, shares, total_variation


def labels() -> Labels:
    """Return a pool: a, b, c clean on topic; d clean off topic; e, f swapped; g and h copy a."""
    planted = {"e": ["swap-within"], "f": ["swap-within"], "g": ["near-duplicate"], "h": ["near-duplicate"]}
    ids = list("abcdefgh")
    truth = pa.table(
        {
            "pair_id": ids,
            "clean": [pair not in planted for pair in ids],
            "kinds": pa.array([planted.get(pair, []) for pair in ids], pa.list_(pa.string())),
            "donor": pa.array([None, None, None, None, "f", "e", "a", "a"], pa.string()),
        }
    )
    return Labels.of(truth, np.array([True, True, True, False, True, False, False, False]))


def test_by_hand() -> None:
    pool = labels()
    assert pool.wanted == 3
    found = selection(list("aebd"), pool)
    assert found == {
        "precision": 2 / 4,
        "precision_repaired": 2 / 4,
        "recall": 2 / 3,
        "average_precision": pytest.approx((1 / 1 + 2 / 3) / 3),
        "precision_clean": 3 / 4,
        "clean_repaired": 3 / 4,
        "precision_on_topic": 3 / 4,
    }
    assert selection(list("abc"), pool)["average_precision"] == 1
    assert selection(list("ef"), pool) == {
        **dict.fromkeys(["precision", "precision_repaired", "recall", "average_precision"], 0.0),
        "precision_clean": 0.0,
        "clean_repaired": 0.0,
        "precision_on_topic": 0.5,
    }


def test_a_repaired_pair_counts_as_clean_beside_the_other_count() -> None:
    pool = labels()
    assert not pool.clean[4]
    found = selection(list("aebd"), pool, {"e", "d"})
    assert found["precision"] == 2 / 4
    assert found["precision_repaired"] == 3 / 4  # d is off topic
    assert (found["precision_clean"], found["clean_repaired"]) == (3 / 4, 1)


def test_a_copy_counts_where_nothing_else_of_it_is_there() -> None:
    pool = labels()
    assert selection(["g"], pool)["precision"] == 1  # on topic as its original is
    assert selection(["g", "a"], pool)["precision"] == 0.5
    assert selection(["h", "g"], pool)["precision"] == 0.5
    assert pool.sound(pool.rows(["h", "g", "b"])).tolist() == [True, False, True]


def test_blends_that_cannot_be_are_refused() -> None:
    pool = labels()
    for blend, message in ((["a", "a"], "twice"), (["a", "x"], "no pair 'x'"), ([], "empty")):
        with pytest.raises(ValueError, match=message):
            selection(blend, pool)


@given(st.permutations(range(12)), st.lists(st.booleans(), min_size=12, max_size=12))
def test_of_a_whole_pool_it_is_the_average_precision(order: list[int], relevant: list[bool]) -> None:
    ids = [f"p{row}" for row in range(12)]
    pool = Labels(ids, np.ones(12, bool), np.array(relevant), np.full(12, -1))
    found = selection([ids[row] for row in order], pool)
    assert found["precision"] == pytest.approx(sum(relevant) / 12)
    if any(relevant):
        scores = np.empty(12)
        scores[order] = -np.arange(12)
        assert found["average_precision"] == pytest.approx(average_precision(scores, relevant))
        assert found["recall"] == 1


def test_mixes_and_overlaps() -> None:
    assert shares(["image", "text", "image", "image"]) == {"image": 0.75, "text": 0.25}
    assert total_variation({"a": 0.75, "b": 0.25}, {"b": 0.5, "c": 0.5}) == 0.75
    assert total_variation({"a": 1.0}, {"a": 1.0}) == 0
    assert overlap(["a", "b", "c"], ["b", "c", "d"]) == 0.5
    with pytest.raises(ValueError, match="empty"):
        overlap([], [])
