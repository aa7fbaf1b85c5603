"""The label model against Snorkel's own, and what must not matter: order of rows, shards, copies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nemo_mm_rank.errors import ConfigError
from nemo_mm_rank.quality import LabelModel, lf_summary
from nemo_mm_rank.quality.ensemble.votes import PatternCounts


def random_votes(n: int, m: int, seed: int) -> np.ndarray:
    """Votes of functions that are right now and then, about labels that nobody sees."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, n)
    votes = np.full((n, m), -1, dtype=np.int8)
    for function in range(m):
        right = random.random(n) < random.uniform(0.55, 0.95)
        voted = random.random(n) < random.uniform(0.1, 1.0)
        votes[voted, function] = np.where(right, labels, 1 - labels)[voted]
    return votes


votes_of_any_kind = st.tuples(st.integers(1, 60), st.integers(3, 6)).flatmap(
    lambda shape: arrays(np.int8, shape, elements=st.integers(-1, 1))
)


@pytest.mark.parametrize(("n", "m", "seed"), [(50, 3, 0), (1_000, 5, 1), (7_777, 8, 2), (3_000, 11, 3)])
@pytest.mark.parametrize("l2", [0.0, 0.001, 0.1])
def test_equals_snorkel(n: int, m: int, seed: int, l2: float) -> None:
    model: Any = pytest.importorskip("snorkel.labeling.model").LabelModel(cardinality=2, verbose=False)
    votes = random_votes(n, m, seed)
    model.fit(votes.astype(int), n_epochs=200, lr=0.01, l2=l2, seed=123 + seed, progress_bar=False)
    ours = LabelModel(epochs=200, lr=0.01, l2=l2, seed=123 + seed).fit(votes)
    np.testing.assert_allclose(ours.mu, model.mu.detach().numpy(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(ours.predict_proba(votes), model.predict_proba(votes)[:, 1], rtol=0, atol=5e-6)
    np.testing.assert_allclose(ours.weights, model.get_weights(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_summary_is_snorkels_to_the_last_bit(seed: int) -> None:
    analysis = pytest.importorskip("snorkel.labeling").LFAnalysis
    votes = random_votes(501, 7, seed)
    theirs = analysis(votes.astype(int))
    ours = lf_summary(votes)
    assert ours.functions.coverage.tolist() == theirs.lf_coverages().tolist()
    assert ours.functions.overlap.tolist() == theirs.lf_overlaps().tolist()
    assert ours.functions.conflict.tolist() == theirs.lf_conflicts().tolist()
    assert ours.data.coverage == theirs.label_coverage()
    assert ours.data.overlap == theirs.label_overlap()
    assert ours.data.conflict == theirs.label_conflict()


def test_summary_by_hand() -> None:
    votes = np.array([[1, 0, -1], [1, 1, -1], [-1, -1, -1], [-1, 0, -1]], dtype=np.int8)
    summary = lf_summary(votes)
    assert summary.functions.coverage.tolist() == [0.5, 0.75, 0.0]
    assert summary.functions.overlap.tolist() == [0.5, 0.5, 0.0]
    assert summary.functions.conflict.tolist() == [0.25, 0.25, 0.0]
    assert (summary.data.coverage, summary.data.overlap, summary.data.conflict) == (0.75, 0.5, 0.25)
    assert summary.selects.tolist() == [0.5, 0.25, 0.0]
    assert summary.rejects.tolist() == [0.0, 0.5, 0.0]


@given(votes_of_any_kind, st.data())
@settings(max_examples=50, deadline=None)
def test_neither_the_order_of_rows_nor_shards_change_a_bit(votes: np.ndarray, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(votes))))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(votes)), max_size=3)))
    shards = np.split(votes[order], cuts)
    merged = PatternCounts.merged([PatternCounts.of(shard) for shard in shards])
    whole = PatternCounts.of(votes)
    np.testing.assert_array_equal(merged.patterns, whole.patterns)
    np.testing.assert_array_equal(merged.counts, whole.counts)
    one, other = LabelModel().fit(votes), LabelModel().fit_counts(merged.patterns, merged.counts)
    assert one.mu.tobytes() == other.mu.tobytes()
    assert one.predict_proba(votes[order]).tobytes() == one.predict_proba(votes)[order].tobytes()


@given(votes_of_any_kind, st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_counts_say_how_often_each_pattern_is_there(votes: np.ndarray, shard: int) -> None:
    counted = PatternCounts.merged([PatternCounts.of(votes[i : i + shard]) for i in range(0, len(votes), shard)])
    patterns, counts = np.unique(votes, axis=0, return_counts=True)
    np.testing.assert_array_equal(counted.patterns, patterns)
    np.testing.assert_array_equal(counted.counts, counts)
    assert counted.n == len(votes)


@pytest.mark.parametrize("m", [8, 9, 14, 20, 21, 40])
def test_any_number_of_functions_is_counted_and_scored_alike(m: int) -> None:
    votes = random_votes(300, m, m)
    counted = PatternCounts.of(votes)
    patterns, counts = np.unique(votes, axis=0, return_counts=True)
    np.testing.assert_array_equal(counted.patterns, patterns)
    np.testing.assert_array_equal(counted.counts, counts)
    model = LabelModel(epochs=50).fit(votes)
    odds = np.zeros(len(votes))
    for function in range(m):
        voted = votes[:, function] >= 0
        row = model.mu[2 * function + votes[voted, function]]
        odds[voted] += np.log(row[:, 1] / row[:, 0])
    np.testing.assert_allclose(model.predict_proba(votes), 1 / (1 + np.exp(-odds)), rtol=1e-12)


def test_a_pair_that_nobody_votes_for_has_a_half() -> None:
    model = LabelModel().fit(random_votes(100, 4, 0))
    assert model.predict_proba(np.full((2, 4), -1, dtype=np.int8)).tolist() == [0.5, 0.5]


def test_better_functions_weigh_more() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 20_000)
    accuracies = np.array([0.95, 0.8, 0.7, 0.6])
    right = random.random((20_000, 4)) < accuracies
    votes = np.where(right, labels[:, None], 1 - labels[:, None]).astype(np.int8)
    model = LabelModel(epochs=2_000, l2=0.0).fit(votes)
    np.testing.assert_allclose(model.weights, accuracies, atol=0.02)


def test_two_functions_are_too_few_and_so_are_no_pairs() -> None:
    with pytest.raises(ConfigError, match="at least 3 labeling functions, not 2"):
        LabelModel().fit(random_votes(10, 2, 0))
    with pytest.raises(ConfigError, match="needs pairs to learn from"):
        LabelModel().fit(np.zeros((0, 3), dtype=np.int8))


@pytest.mark.parametrize(
    ("votes", "message"),
    [
        (np.full((2, 3), 2, dtype=np.int8), "votes are 1"),
        (np.full((2, 3), 0.5), r"an \(n, m\) array of integers, not float64"),
        (np.zeros(3, dtype=np.int8), r"shape \(3,\)"),
        (np.zeros((1, 41), dtype=np.int8), "41 labeling functions; 40 are the most"),
    ],
)
def test_what_is_no_votes_is_refused(votes: np.ndarray, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        lf_summary(votes)


def test_a_model_of_other_functions_scores_nothing() -> None:
    model = LabelModel().fit(random_votes(20, 3, 0))
    with pytest.raises(ConfigError, match="fitted with 3 labeling functions, not 4"):
        model.predict_proba(random_votes(20, 4, 0))
