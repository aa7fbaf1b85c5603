"""Gaps without noise: by hand, on average over many draws, and as often within their intervals as these say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_mm_rank.measures.gaps import Square, gap_text, matched_gap_square, modality_gap_square, pooled
from tests.measures.plain import matched_gap, modality_gap

NAMES = ["image"] * 12 + ["sound"] * 6


def pairs(rng: np.random.Generator, names: list[str], gap: float, d: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Draw pairs whose data lie ``gap`` from their annotations on average, with noise of variance 1 in all."""
    annotation = rng.normal(size=(len(names), d))
    off = np.zeros(d)
    off[0] = gap
    return annotation + off + rng.normal(size=(len(names), d)) / np.sqrt(d), annotation


def test_matched_gap_by_hand() -> None:
    data = np.array([[3.0, 0.0], [5.0, 0.0], [0.0, 1.0], [0.0, 3.0], [0.0, 5.0], [9.0, 9.0]])
    # x: mean (4, 0), variance 2, of two rows; y: mean (0, 3), variance 4, of three; z: one row alone says nothing.
    found = matched_gap_square(data, np.zeros((6, 2)), ["x", "x", "y", "y", "y", "z"])
    assert found.value == pytest.approx(((16 - 2 / 2) + (9 - 4 / 3)) / 2)
    assert found.n == 6
    assert found.gap().value == pytest.approx(np.sqrt((15 + 23 / 3) / 2))


def test_modality_gap_by_hand() -> None:
    embeddings = np.array([[0.0, 0.0], [2.0, 0.0], [4.0, 0.0], [4.0, 2.0], [0.0, 5.0], [0.0, 7.0]])
    # Means (1, 0), (4, 1), (0, 6), each of two rows of variance 2, whose noise is 1.
    found = modality_gap_square(embeddings, ["a", "a", "b", "b", "c", "c"])
    assert found.value == pytest.approx(((10 - 2) + (37 - 2) + (41 - 2)) / 3)
    assert modality_gap_square(embeddings, ["a"] * 6).gap().value == 0


def test_one_pair_of_each_modality_says_nothing() -> None:
    found = matched_gap_square(np.eye(2), np.zeros((2, 2)), ["a", "b"])
    assert np.isnan(found.value)
    assert np.isnan(found.gap().value)
    assert pooled([found, Square(4.0, np.full(len(found.resampled), 4.0), 10)]).gap().value == 2
    assert np.isnan(pooled([found]).value)
    with pytest.raises(ValueError, match="at least one estimate"):
        pooled([])


@pytest.mark.parametrize("gap", [0.0, 0.3, 1.0])
def test_estimates_are_right_on_average_where_plain_ones_are_too_large(gap: float) -> None:
    rng = np.random.default_rng(0)
    matched, plain, between = [], [], []
    for _ in range(400):
        data, annotation = pairs(rng, NAMES, gap)
        matched.append(matched_gap_square(data, annotation, NAMES, samples=1).value)
        plain.append(matched_gap(data, annotation, NAMES) ** 2)
        noise = rng.normal(size=(len(NAMES), 16)) / 4
        noise[:12, 0] += gap
        between.append(modality_gap_square(noise, NAMES, samples=1).value)
    for values in (matched, between):
        assert abs(np.mean(values) - gap**2) < 4 * np.std(values) / np.sqrt(len(values))
    assert np.mean(plain) > gap**2 + 0.08  # noise of 1 / 12 and 1 / 6


@given(st.integers(0, 2**32 - 1), st.integers(2, 400))
def test_the_square_is_the_plain_one_less_its_noise(seed: int, n: int) -> None:
    names = ["a"] * n
    data, annotation = pairs(np.random.default_rng(seed), names, 2.0, 4)
    noise = (data - annotation).var(0, ddof=1).sum() / n
    square = matched_gap_square(data, annotation, names, samples=2).value
    assert square == pytest.approx(matched_gap(data, annotation, names) ** 2 - noise)


def test_for_many_pairs_it_is_the_plain_gap() -> None:
    rng = np.random.default_rng(0)
    many = np.repeat([[0.0, 0.0], [3.0, 4.0]], 50_000, axis=0) + rng.normal(size=(100_000, 2))
    names = ["a"] * 50_000 + ["b"] * 50_000
    assert modality_gap_square(many, names, samples=1).gap().value == pytest.approx(modality_gap(many, names), rel=1e-4)
    matched = matched_gap_square(many, np.zeros((100_000, 2)), ["a"] * 100_000, samples=1).gap().value
    assert matched == pytest.approx(matched_gap(many, np.zeros((100_000, 2)), ["a"] * 100_000), rel=1e-4)


@pytest.mark.parametrize(("gap", "folds"), [(0.0, 1), (0.1, 4), (0.3, 1), (1.0, 1)])
def test_intervals_hold_the_true_gap_as_often_as_they_say(gap: float, folds: int) -> None:
    rng = np.random.default_rng(1)
    names = ["image"] * 40 + ["sound"] * 12
    held = 0
    for _ in range(300):
        found = pooled([matched_gap_square(*pairs(rng, names, gap), names, seed=fold) for fold in range(folds)]).gap()
        assert found.low <= found.value <= found.high
        held += found.low <= gap <= found.high
    assert 0.90 <= held / 300 <= (0.99 if gap > 0.2 else 1)  # the square of no gap has no other side


def test_intervals_between_modalities_hold_the_true_gap() -> None:
    rng = np.random.default_rng(2)
    names = ["a"] * 30 + ["b"] * 20 + ["c"] * 10
    off = np.zeros((60, 16))
    off[30:50, 0], off[50:, 1] = 0.5, 0.5
    true = np.sqrt((0.25 + 0.25 + 0.5) / 3)
    found = [modality_gap_square(off + rng.normal(size=(60, 16)) / 4, names).gap() for _ in range(300)]
    assert 0.90 <= np.mean([one.low <= true <= one.high for one in found]) <= 0.99


def test_equal_contents_are_no_independent_evidence() -> None:
    data = np.array([[2.0, 0.0], [4.0, 0.0], [0.0, 6.0], [1.0, 0.0], [1.0, 2.0]])
    found = matched_gap_square(data, np.zeros((5, 2)), ["x", "x", "x", "y", "y"], ["p", "p", "q", "r", "r"])
    # x: products of p and q alone, (2, 0) (0, 6) and (4, 0) (0, 6), are 0; y is one content, which says nothing.
    assert found.value == 0
    rng = np.random.default_rng(0)
    contents = np.repeat(np.arange(6), 4)
    values, taken_for_more = [], []
    for _ in range(500):
        drawn = rng.normal(size=(6, 8))[contents]
        values.append(matched_gap_square(drawn, np.zeros((24, 8)), ["x"] * 24, contents, samples=1).value)
        taken_for_more.append(matched_gap_square(drawn, np.zeros((24, 8)), ["x"] * 24, samples=1).value)
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(500)
    assert np.mean(taken_for_more) > 1  # of the noise of six contents, 8 / 6


@given(st.integers(0, 2**32 - 1))
def test_of_contents_in_both_modalities_only_the_differences_count(seed: int) -> None:
    rng = np.random.default_rng(seed)
    content = 10 * rng.normal(size=(12, 4))
    image, sound = content + np.eye(4)[0], content + 0.1 * rng.normal(size=(12, 4))
    both = modality_gap_square(np.concatenate([image, sound]), ["i"] * 12 + ["s"] * 12, [*range(12), *range(12)])
    paired = matched_gap_square(image, sound, ["x"] * 12)
    assert both.value == pytest.approx(paired.value)
    assert both.gap().high - both.gap().low == pytest.approx(paired.gap().high - paired.gap().low, rel=0.01)
    assert abs(both.gap().value - 1) < 0.2


def test_the_same_seed_gives_the_same_interval() -> None:
    data, annotation = pairs(np.random.default_rng(3), NAMES, 0.5)
    first, second = (matched_gap_square(data, annotation, NAMES, seed=4).gap() for _ in range(2))
    assert first == second
    order = np.random.default_rng(0).permutation(len(NAMES))
    again = matched_gap_square(data[order], annotation[order], [NAMES[row] for row in order], seed=4)
    assert again.value == pytest.approx(matched_gap_square(data, annotation, NAMES).value)


def test_a_gap_is_shown_with_its_interval_where_there_is_one() -> None:
    measures = {"gap": 0.0334, "gap_low": 0.0, "gap_high": 0.0507, "matched_gap": None, "old": 0.25}
    assert gap_text(measures, "gap") == "0.033 [0.000, 0.051]"
    assert gap_text(measures, "matched_gap") == "\N{EN DASH}"
    assert gap_text(measures, "old") == "0.250"  # of a run from before there were intervals


def test_mistakes_are_told() -> None:
    with pytest.raises(ValueError, match="one shape"):
        matched_gap_square(np.eye(2), np.eye(3), ["a", "b"])
    with pytest.raises(ValueError, match="modality must name each of 2 rows"):
        modality_gap_square(np.eye(2), ["a"])
    with pytest.raises(ValueError, match="contents must name each of 2 rows"):
        modality_gap_square(np.eye(2), ["a", "b"], ["x"])
