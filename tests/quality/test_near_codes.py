"""Codes within a radius, found without comparing all with all: against comparing all with all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import connected_components

from nemo_mm_rank.arrays import Ints, UInt64s
from nemo_mm_rank.quality import duplicates as module
from nemo_mm_rank.quality.duplicates import band_count, distances, near


def all_pairs(codes: UInt64s, salts: UInt64s, radius: int) -> Ints:
    apart = np.array([[int(a ^ b).bit_count() for b in codes.tolist()] for a in codes.tolist()]).reshape(
        len(codes), len(codes)
    )
    linked = (apart <= radius) & (salts[:, None] == salts[None])
    labels: Ints = connected_components(linked, directed=False)[1]
    return labels


def same_partition(one: Ints, other: Ints) -> bool:
    return bool(((one[:, None] == one[None]) == (other[:, None] == other[None])).all())


def planted(n: int, flips: int, seed: int) -> UInt64s:
    """Half of them random, the others copies with up to ``flips`` bits turned."""
    random = np.random.default_rng(seed)
    base = random.integers(0, 2**64, n // 2, dtype=np.uint64)
    masks = np.zeros(len(base), dtype=np.uint64)
    for _ in range(flips):
        masks ^= np.uint64(1) << random.integers(0, 64, len(base)).astype(np.uint64)
    return np.concatenate([base, base ^ masks])


@pytest.mark.parametrize("radius", [0, 1, 2, 3, 5, 8, 12, 16])
def test_against_all_pairs(radius: int) -> None:
    codes = planted(300, radius + 1, seed=radius)
    salts = np.arange(300).astype(np.uint64) % np.uint64(2)
    assert same_partition(near(codes, salts, radius), all_pairs(codes, salts, radius))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 1)), max_size=12), st.integers(0, 16))
@example([], 3)
@example([(5, 0)], 0)
@example([(0, 0), (0xFFFF, 0), (0xFF, 0)], 8)  # a chain: the ends are farther apart than the radius
def test_any_codes(pairs: list[tuple[int, int]], radius: int) -> None:
    codes = np.array([code for code, _ in pairs], dtype=np.uint64)
    salts = np.array([salt for _, salt in pairs], dtype=np.uint64)
    assert same_partition(near(codes, salts, radius), all_pairs(codes, salts, radius))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 255), min_size=1, max_size=20), st.integers(0, 4))
def test_codes_that_share_all_but_one_band(codes: list[int], radius: int) -> None:
    array = np.array(codes, dtype=np.uint64)
    salts = np.zeros(len(array), dtype=np.uint64)
    assert same_partition(near(array, salts, radius), all_pairs(array, salts, radius))


def test_many_in_one_band_are_compared_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    codes, salts = planted(200, 2, seed=1) & np.uint64(0xFFFF), np.zeros(200, dtype=np.uint64)
    whole = near(codes, salts, 3)
    monkeypatch.setattr(module, "PAIRS_AT_ONCE", 7)
    assert same_partition(near(codes, salts, 3), whole)


def test_bands_that_make_least_work() -> None:
    assert band_count(0, 0) == 1
    assert band_count(1_000, 3) == 4
    assert band_count(1_000_000, 4) == 5
    assert band_count(10_000_000, 4) == 3  # looked up in more ways, so that few are found by chance


def test_distances() -> None:
    left = np.array([0, 1, 2**64 - 1, 0xF0F0], dtype=np.uint64)
    right = np.array([0, 2, 0, 0x0F0F], dtype=np.uint64)
    assert distances(left, right).tolist() == [0, 2, 64, 16]
