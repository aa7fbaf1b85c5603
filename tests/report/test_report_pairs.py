"""Which pairs of a pool a page shows."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nemo_mm_rank.measures.plane import flatten
from nemo_mm_rank.report.run import leading


def test_modalities_and_orders_take_turns() -> None:
    modality = np.array([0, 0, 0, 0, 1, 1])
    best = np.array([0, 1, 2, 3, 4, 5])
    assert leading([best], modality, overall=2, each=1).tolist() == [0, 4, 1]
    assert leading([best, best[::-1]], modality, overall=1, each=1).tolist() == [0, 4, 5, 3]
    assert leading([best], modality, overall=0, each=9).tolist() == [0, 4, 1, 5, 2, 3]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(0, 6), st.integers(0, 4), st.randoms())
def test_leading_has_what_it_promises_once(codes: list[int], overall: int, each: int, random: object) -> None:
    modality = np.array(codes)
    rng = np.random.default_rng(len(codes))
    orders = [rng.permutation(len(codes)) for _ in range(3)]
    found = leading(orders, modality, overall, each).tolist()
    assert len(found) == len(set(found))
    expected: set[int] = set()
    for order in orders:
        expected |= set(order[:overall].tolist())
        for code in set(codes):
            expected |= set(order[modality[order] == code][:each].tolist())
    assert set(found) == expected


def test_a_map_keeps_neighbours_and_stays_the_same() -> None:
    rng = np.random.default_rng(0)
    centres = np.repeat(np.eye(3, 20, dtype=np.float32), 20, axis=0)
    points = centres + 0.05 * rng.standard_normal((60, 20)).astype(np.float32)
    plane = flatten(points, seed=1)
    assert plane.shape == (60, 2)
    distances = np.linalg.norm(plane[:, None] - plane[None], axis=2) + 1e9 * np.eye(60)
    assert (distances.argmin(axis=1) // 20 == np.arange(60) // 20).all()
    assert np.array_equal(plane, flatten(points * 7, seed=1).round(12)) or np.allclose(plane, flatten(points, seed=1))
    assert np.array_equal(flatten(points, seed=1), plane)
