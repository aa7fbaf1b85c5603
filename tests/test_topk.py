"""top_k against a full sort, and TopK against top_k."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemo_mm_rank.ranking import TopK, top_k

scores_with_ties = st.lists(st.sampled_from([-1.0, -0.0, 0.0, 0.5, 0.5000001, 2.0, float("inf"), float("-inf")]))


def naive(scores: list[float], k: int, keys: list[str]) -> list[int]:
    return sorted(range(len(scores)), key=lambda i: (-scores[i], keys[i], i))[:k]


@given(scores=scores_with_ties, k=st.integers(0, 12), data=st.data())
def test_equals_a_full_sort(scores: list[float], k: int, data: st.DataObject) -> None:
    keys = data.draw(st.lists(st.text(max_size=3), min_size=len(scores), max_size=len(scores)))
    keys = [key.encode("utf-8", "replace").decode() for key in keys]
    expected = naive(scores, k, keys)
    array = np.array(scores, dtype=np.float64)
    assert top_k(array, k, keys).tolist() == expected
    assert top_k(torch.from_numpy(array), k, pa.array(keys, pa.string())).tolist() == expected
    assert top_k(array.astype(np.float32), k, np.array(keys, dtype=object)).tolist() == naive(
        array.astype(np.float32).tolist(), k, keys
    )


@given(
    scores=st.lists(st.floats(allow_nan=False, width=32), max_size=40),
    k=st.integers(0, 50),
    data=st.data(),
)
def test_shards_in_any_order_equal_the_whole(scores: list[float], k: int, data: st.DataObject) -> None:
    values = np.array(scores, dtype=np.float64)
    ids = pa.array([f"{i:03d}" for i in range(len(scores))], pa.string())
    rows = pa.table({"row": np.arange(len(scores))})
    cuts = sorted(data.draw(st.lists(st.integers(0, len(scores)), max_size=6)))
    shards = data.draw(st.permutations(list(zip([0, *cuts], [*cuts, len(scores)], strict=True))))
    best = TopK(k)
    for start, stop in shards:
        best.add(values[start:stop], ids.slice(start, stop - start), rows.slice(start, stop - start))
    found = best.result()
    expected = top_k(values, k, ids)
    if found is None:
        assert not len(expected)
        return
    assert found[2]["row"].to_pylist() == expected.tolist()
    assert found[1].to_pylist() == ids.take(pa.array(expected)).to_pylist()
    assert found[0].tolist() == values[expected].tolist()


def test_ties_at_the_boundary_go_to_the_lowest_keys() -> None:
    scores = torch.tensor([0.5, 0.9, 0.5, 0.5, 0.1])
    assert top_k(scores, 3, ["d", "z", "b", "c", "a"]).tolist() == [1, 2, 3]
    assert top_k(scores, 3, [4, 9, 2, 3, 1]).tolist() == [1, 2, 3]
    assert top_k(scores, 3, pd.Series(["d", "z", "b", "c", "a"], index=[9, 8, 7, 6, 5])).tolist() == [1, 2, 3]
    assert top_k(scores, 3, torch.tensor([4, 9, 2, 3, 1])).tolist() == [1, 2, 3]
    assert top_k(scores, 3, pa.chunked_array([["d", "z"], ["b", "c", "a"]])).tolist() == [1, 2, 3]
    assert top_k(scores, 3).tolist() == [1, 0, 2]


def test_keys_compare_by_code_point() -> None:
    assert top_k(np.zeros(4), 4, ["b", "é", "B", "\U0001f600"]).tolist() == [2, 0, 1, 3]


def test_large_and_many_ties() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 50, 20_000).astype(np.float32)
    keys = rng.permutation(20_000)
    expected = np.lexsort((keys, -scores))[:777]
    assert top_k(scores, 777, keys).tolist() == expected.tolist()
    assert top_k(torch.from_numpy(scores).bfloat16(), 777, keys).tolist() == expected.tolist()


def test_more_than_there_are_and_none() -> None:
    assert top_k(np.array([1.0, 3.0, 2.0]), 10, ["a", "b", "c"]).tolist() == [1, 2, 0]
    assert top_k(np.array([1.0]), 0, ["a"]).tolist() == []
    assert top_k(np.zeros(0), 5, []).tolist() == []
    assert TopK(3).result() is None


def test_the_input_is_left_alone() -> None:
    scores = np.array([1.0, 3.0, 2.0])
    scores.flags.writeable = False
    top_k(scores, 2)
    assert scores.tolist() == [1.0, 3.0, 2.0]


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_nan_is_refused(kind: type) -> None:
    with pytest.raises(ValueError, match="1 of the scores are NaN"):
        top_k(kind([0.5, float("nan"), 1.0]), 1, ["a", "b", "c"])


def test_nan_is_refused_by_the_merge() -> None:
    with pytest.raises(ValueError, match="NaN"):
        TopK(1).add(np.array([np.nan]), pa.array(["a"]), pa.table({"row": [0]}))


def test_arguments_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="2 scores, but 1 keys"):
        top_k(np.zeros(2), 1, ["a"])
    with pytest.raises(ValueError, match="one dimension"):
        top_k(np.zeros((2, 2)), 1)
    with pytest.raises(ValueError, match="at least 0"):
        top_k(np.zeros(2), -1)


def test_the_merge_holds_no_more_than_twice_k() -> None:
    best = TopK(10)
    for shard in range(200):
        best.add(np.full(7, float(shard)), pa.array([f"{shard}-{i}" for i in range(7)]), pa.table({"row": range(7)}))
        assert sum(map(len, best._scores)) <= 20
    found = best.result()
    assert found is not None
    assert found[1].to_pylist() == [f"199-{i}" for i in range(7)] + [f"198-{i}" for i in range(3)]


@pytest.mark.parametrize("k", [1, 3, 5, 6])
def test_of_several_columns_of_keys_each_decides_where_the_one_before_says_equal(k: int) -> None:
    scores = np.array([1.0, 2.0, 1.0, 1.0, 2.0, 1.0])
    keys = pa.table({"first": [2.0, 0.0, None, 1.0, 0.0, 1.0], "then": ["a", "d", "a", "c", "b", "b"]})
    expected = [4, 1, 5, 3, 0, 2]  # nulls last
    assert top_k(scores, k, keys).tolist() == expected[:k]
    top = TopK(k)
    for start in range(0, 6, 2):
        rows = slice(start, start + 2)
        top.add(scores[rows], keys.slice(start, 2), pa.table({"row": np.arange(6)[rows]}))
    found = top.result()
    assert found is not None
    assert found[2]["row"].to_pylist() == expected[:k]
