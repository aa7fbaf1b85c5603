"""Cosines: right, and the same bits whatever stands beside a row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_mm_rank.errors import ConfigError
from nemo_mm_rank.frames import Vectors
from nemo_mm_rank.vectors import _rows_torch, combine, cosines, rowwise


def unit(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


@given(n=st.integers(0, 50), d=st.integers(1, 70), q=st.integers(1, 3), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_is_the_cosine(n: int, d: int, q: int, seed: int) -> None:
    vectors, queries = unit(n, d, seed) * 3.7, unit(q, d, seed + 1)
    expected = torch.nn.functional.normalize(vectors.double(), dim=1) @ queries.double().T
    torch.testing.assert_close(cosines(vectors, queries).double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dim", [1, 3, 37, 384, 512])
def test_a_row_keeps_its_bits_in_any_company(dim: int) -> None:
    vectors, queries = unit(9001, dim, 0), unit(2, dim, 1)
    whole = cosines(vectors, queries)
    for size in (1, 2, 7, 100, 4096, 5000):
        for start in (0, 1, 3, 4090):
            assert torch.equal(cosines(vectors[start : start + size], queries), whole[start : start + size])
    order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(2))
    assert torch.equal(cosines(vectors[order], queries), whole[order])


def test_a_row_keeps_its_bits_at_any_address() -> None:
    vectors, queries = unit(10, 37, 0), unit(1, 37, 1)
    raw = torch.empty(10 * 37 + 16)
    for offset in range(16):
        shifted = raw[offset : offset + 370].view(10, 37)
        shifted.copy_(vectors)
        assert torch.equal(cosines(shifted, queries), cosines(vectors, queries))


def test_one_and_two_threads_agree() -> None:
    vectors, queries = unit(20_000, 64, 0), unit(3, 64, 1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = cosines(vectors, queries)
        torch.set_num_threads(2)
        assert torch.equal(cosines(vectors, queries), alone)
    finally:
        torch.set_num_threads(before)


def test_the_path_of_other_devices_agrees() -> None:
    vectors, queries = unit(5000, 48, 0), unit(2, 48, 1)
    out = torch.empty(5000, 2)
    _rows_torch(vectors, queries, out)
    torch.testing.assert_close(out, cosines(vectors, queries), atol=1e-6, rtol=0)


def test_vectors_without_a_direction_have_no_cosine() -> None:
    vectors = torch.tensor([[0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0], [1e30, 0.0], [3.0, 4.0]])
    query, other = torch.tensor([[0.0, 1.0]]), torch.empty(5, 1)
    _rows_torch(vectors, query, other)
    for found in (cosines(vectors, query)[:, 0], other[:, 0]):
        assert found.isfinite().tolist() == [False] * 4 + [True]
        assert found[4] == pytest.approx(0.8)


def test_mean_is_one_weighted_dot() -> None:
    queries = torch.tensor([[2.0, 0.0], [0.0, 5.0], [-1.0, 0.0]])
    best, rest = combine(queries, [1.0, 3.0, -2.0], "mean")
    assert best.tolist() == [[0.75, 0.75]]
    assert rest.shape == (0, 2)


def test_max_keeps_positive_queries_apart_and_negative_ones_together() -> None:
    queries = torch.tensor([[2.0, 0.0], [0.0, 5.0], [-1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    best, rest = combine(queries, [2.0, 1.0, -1.0, -0.5, 0.0], "max")
    assert best.tolist() == [[1.0, 0.0], [0.0, 0.5]]
    assert rest.tolist() == [[0.5, -0.25]]


@pytest.mark.parametrize("how", ["mean", "max"])
def test_one_query_scores_its_cosine_whatever_its_weight(how: str) -> None:
    best, rest = combine(torch.tensor([[3.0, 4.0]]), [7.0], how)  # type: ignore[arg-type]
    np.testing.assert_allclose(best.numpy(), [[0.6, 0.8]], rtol=1e-7)
    assert len(rest) == 0


def test_queries_that_cannot_be_combined() -> None:
    with pytest.raises(ConfigError, match="positive weight"):
        combine(torch.ones(1, 2), [-1.0], "mean")
    with pytest.raises(ConfigError, match="query 2 has no direction"):
        combine(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), [1.0, 1.0], "mean")
    with pytest.raises(ConfigError, match="2 query weights"):
        combine(torch.ones(1, 2), [1.0, 1.0], "max")


def test_rowwise_is_the_cosine_of_each_row_with_its_own() -> None:
    left, right = Vectors.full(unit(6, 5, 0) * 3), Vectors.full(unit(6, 5, 1) * 0.1)
    left.valid[1], right.valid[2], left.values[3], right.values[4, 0] = False, False, 0.0, float("inf")
    found = rowwise(left, right)
    assert found.isnan().tolist() == [False, True, True, True, True, False]
    expected = torch.cosine_similarity(left.values, right.values, dim=1)
    torch.testing.assert_close(found[[0, 5]], expected[[0, 5]], atol=1e-6, rtol=0)
    with pytest.raises(ConfigError, match="embeddings of 5 and 4 dimensions do not share a space"):
        rowwise(left, Vectors.full(unit(6, 4, 1)))
    nothing = Vectors(torch.zeros((6, 0)), torch.zeros(6, dtype=torch.bool))
    assert rowwise(left, nothing).isnan().all()
