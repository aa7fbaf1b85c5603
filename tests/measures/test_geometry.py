"""Geometry against hand-computed values and a brute-force oracle."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_mm_rank.measures import average_precision
from tests.measures.plain import matched_gap, modality_gap, recall_at_k


def _random(seed: int, n: int, d: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_modality_gap_by_hand() -> None:
    embeddings = np.array([[0.0, 0.0], [0.0, 2.0], [3.0, 1.0], [0.0, 5.0]])
    # Centroids (0, 1), (3, 1), (0, 5): distances 3, 4, 5.
    assert modality_gap(embeddings, ["a", "a", "b", "c"]) == pytest.approx(4.0)
    assert modality_gap(torch.from_numpy(embeddings), torch.tensor([7, 7, 1, 2])) == pytest.approx(4.0)


def test_one_modality_has_no_gap() -> None:
    assert modality_gap(_random(0, 5, 3), ["image"] * 5) == 0.0


def test_matched_gap_by_hand() -> None:
    data = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
    annotation = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 4.0]])
    assert matched_gap(data, annotation, ["x", "x", "y"]) == pytest.approx((2 + 3) / 2)
    assert matched_gap(data, data.numpy(), [0, 0, 1]) == 0.0


@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_gaps_do_not_depend_on_order_names_or_position(seed: int, n: int, kinds: int) -> None:
    data, annotation = _random(seed, n, 4), _random(seed + 1, n, 4)
    rng = np.random.default_rng(seed)
    modality, order = rng.integers(0, kinds, n), rng.permutation(n)
    names = [f"m{9 - code}" for code in modality[order]]
    assert modality_gap(data[order], names) == pytest.approx(modality_gap(data, modality), abs=1e-12)
    assert matched_gap(data[order], annotation[order], names) == pytest.approx(
        matched_gap(data, annotation, modality), abs=1e-12
    )
    assert modality_gap(data + 5, modality) == pytest.approx(modality_gap(data, modality), abs=1e-12)


def _brute_recall(data: torch.Tensor, annotation: torch.Tensor, k: int) -> tuple[float, float]:
    left = torch.nn.functional.normalize(data, dim=1)
    right = torch.nn.functional.normalize(annotation, dim=1)
    hits = []
    for queries, items in ((right, left), (left, right)):
        order = torch.argsort(queries @ items.T, dim=1, descending=True, stable=True)
        hits.append(float(np.mean([i in order[i, :k].tolist() for i in range(len(order))])))
    return hits[0], hits[1]


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_recall_against_a_full_sort(seed: int, n: int, k: int) -> None:
    data, annotation = _random(seed, n, 3), _random(seed + 1, n, 3)
    found = recall_at_k(data, annotation, k)
    there, back = _brute_recall(data, annotation, k)
    assert found["annotation_to_data"] == pytest.approx(there)
    assert found["data_to_annotation"] == pytest.approx(back)
    assert found["average"] == pytest.approx((there + back) / 2)


def test_recall_puts_the_lower_index_first_among_ties() -> None:
    same = np.ones((4, 2), dtype=np.float32)
    assert [recall_at_k(same, same, k)["average"] for k in (1, 2, 3, 4, 9)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_recall_is_chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    data, annotation = _random(0, 57, 5), _random(0, 57, 5) + 0.7 * _random(1, 57, 5)
    whole = recall_at_k(data, annotation, 3)
    monkeypatch.setattr("nemo_mm_rank.measures.geometry._CELLS", 57 * 4)
    assert recall_at_k(data, annotation, 3) == whole


def test_average_precision_by_hand() -> None:
    # Ranked: relevant, not, relevant, not.
    assert average_precision([0.9, 0.8, 0.7, 0.1], [True, False, True, False]) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(torch.zeros(3), torch.tensor([False, True, True])) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert average_precision([-math.inf, 1.0], [True, False]) == 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: modality_gap(torch.zeros(0, 3), []), "at least one row"),
        (lambda: modality_gap(torch.zeros(2, 3), ["a"]), "each of 2 rows"),
        (lambda: modality_gap(torch.tensor([[math.nan]]), ["a"]), "embeddings: NaN"),
        (lambda: matched_gap(torch.zeros(2, 3), torch.zeros(2, 4), ["a", "b"]), "one shape"),
        (lambda: matched_gap(torch.zeros(2, 3), torch.full((2, 3), math.inf), ["a", "b"]), "annotation: NaN"),
        (lambda: recall_at_k(torch.zeros(2, 3), torch.zeros(3, 3), 1), "one shape"),
        (lambda: recall_at_k(torch.zeros(2, 3), torch.zeros(2, 3), 0), "at least 1"),
        (lambda: average_precision([1.0], [False]), "at least one relevant"),
        (lambda: average_precision([math.nan], [True]), "scores: NaN"),
        (lambda: average_precision([1.0, 2.0], [True]), "one length"),
    ],
)
def test_mistakes_are_named(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=message):
        call()
