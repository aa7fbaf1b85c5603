from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemo_mm_rank.sns import gate, nucleus, threshold

SIMILARITY = st.floats(-1, 1, width=32)


def test_gate_exactly() -> None:
    original = np.array([0.5, 0.5, 0.5, -0.2, 0.0, np.nan, 0.5], dtype=np.float32)
    candidate = np.array([0.5, 0.45, 0.44, 0.0, 0.05, 0.9, np.nan], dtype=np.float32)
    assert gate(original, candidate, 0.9, 0.1).tolist() == [True, True, False, False, False, False, False]
    assert gate(original, candidate, 1.0, 0.05).tolist() == [True, False, False, False, True, False, False]
    assert gate(0.2, 0.3, 1.5, 1e-6).tolist() is False
    assert gate(torch.tensor([0.25]), torch.tensor([0.5]), 2.0, 1e-6).tolist() == [True]


def test_gate_gives_bools() -> None:
    assert gate([0.1, 0.2], [0.1, 0.1], 1.0, 1e-6).dtype == np.bool_


@given(st.lists(st.tuples(SIMILARITY, SIMILARITY), min_size=1, max_size=20), st.floats(0, 2), st.floats(1e-6, 0.5))
def test_gate_is_its_definition(pairs: list[tuple[float, float]], ratio: float, eps: float) -> None:
    original, candidate = map(list, zip(*pairs, strict=True))
    assert gate(original, candidate, ratio, eps).tolist() == [c >= ratio * max(o, eps) for o, c in pairs]


@given(SIMILARITY, st.floats(1e-6, 0.5))
def test_an_unchanged_pair_passes_iff_it_is_above_eps(similarity: float, eps: float) -> None:
    assert bool(gate(similarity, similarity, 1.0, eps)) == (similarity >= eps)


def test_threshold_exactly() -> None:
    scores = np.array([0.1, 0.35, np.nan, 0.9], dtype=np.float32)
    assert threshold(scores, float(np.float32(0.35))).tolist() == [False, True, False, True]


def test_nucleus_exactly() -> None:
    scores = np.log(np.array([0.5, 0.3, 0.2, 0.25, 0.25, 0.25, 0.25, 1.0]))
    owner = np.array([0, 0, 0, 1, 1, 1, 1, 2])
    assert nucleus(scores, owner, 0.5, 1.0).tolist() == [True, False, False, True, True, False, False, True]
    assert nucleus(scores, owner, 0.7, 1.0).tolist() == [True, True, False, True, True, True, False, True]
    assert nucleus(scores, owner, 1.0, 1.0).tolist() == [True] * 8


def test_nucleus_passes_over_nan_and_owners_without_parts() -> None:
    scores = np.array([np.nan, 0.2, np.nan, 0.1, 0.9], dtype=np.float32)
    owner = np.array([0, 0, 2, 5, 5])
    assert nucleus(scores, owner, 1.0, 0.1).tolist() == [False, True, False, True, True]
    assert nucleus(np.zeros(0), np.zeros(0, dtype=int), 0.5, 1.0).tolist() == []


GROUPS = st.lists(st.lists(SIMILARITY | st.just(float("nan")), min_size=1, max_size=6), min_size=1, max_size=8)


@given(GROUPS, st.floats(0.01, 1), st.floats(0.01, 2))
def test_nucleus_is_the_smallest_set_that_reaches_the_mass(
    groups: list[list[float]], mass: float, temperature: float
) -> None:
    scores = np.array([score for group in groups for score in group], dtype=np.float32)
    owner = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    kept = nucleus(scores, owner, mass, temperature)
    for i in range(len(groups)):
        group, chosen = scores[owner == i].astype(np.float64), kept[owner == i]
        judged = ~np.isnan(group)
        assert not (chosen & ~judged).any()
        if not judged.any():
            continue
        weights = np.where(judged, np.exp((group - np.nanmax(group)) / temperature), 0)
        share = weights / weights.sum()
        assert chosen.any()
        assert share[chosen].sum() >= mass - 1e-9
        if chosen.sum() > 1:
            assert share[chosen].sum() - share[chosen].min() < mass + 1e-9
        worst, left_out = np.flatnonzero(chosen), np.flatnonzero(~chosen & judged)
        assert all(group[a] > group[b] or (group[a] == group[b] and a < b) for a in worst for b in left_out)


@given(GROUPS, st.floats(0.01, 1))
def test_an_owner_is_judged_as_if_it_were_alone(groups: list[list[float]], mass: float) -> None:
    scores = np.array([score for group in groups for score in group], dtype=np.float32)
    owner = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    together = nucleus(scores, owner, mass, 0.1)
    alone = [nucleus(np.array(g, dtype=np.float32), np.zeros(len(g), dtype=int), mass, 0.1) for g in groups]
    assert together.tolist() == np.concatenate(alone).tolist()


@pytest.mark.parametrize("temperature", [1e-3, 1e3])
def test_extreme_temperatures_stay_finite(temperature: float) -> None:
    kept = nucleus(np.array([1.0, -1.0, 1.0]), np.zeros(3, dtype=int), 0.9, temperature)
    assert kept.tolist() == ([True, False, True] if temperature < 1 else [True, True, True])
