"""Chances that pairs are in agreement, against mixtures whose truth is known."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from nemo_mm_rank.ranking.agreement import FEWEST, FLOOR, Agreement, Judge

COLUMNS = ["agreement__fused", "agreement__words", "agreement__noise"]


def mixture(n: int, wrong: float, seed: int, apart: float = 3.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return cosines of pairs, ``wrong`` of them from the shuffled ones' distribution, shuffled ones, and the truth."""
    rng = np.random.default_rng(seed)
    clean = rng.random(n) >= wrong
    shift = np.array([apart, apart, 0.0])
    observed = rng.normal(size=(n, 3)) + clean[:, None] * shift
    return 0.1 + observed / 20, 0.1 + rng.normal(size=(4 * n, 3)) / 20, clean


def by_column(values: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(COLUMNS, values.T, strict=True))


@pytest.mark.parametrize("wrong", [0.0, 0.2, 0.4, 0.7])
def test_the_share_of_wrong_pairs_is_found(wrong: float) -> None:
    observed, shuffled, clean = mixture(4000, wrong, 1)
    judge = Judge.fit(COLUMNS, observed, shuffled)
    assert judge is not None
    assert judge.wrong == pytest.approx(wrong, abs=0.04)
    chances = judge(by_column(observed))
    # As many as are expected to be in agreement are, in the upper half and (at least `FLOOR`) in the lower one.
    for half in (chances > 0.5, chances <= 0.5):
        if half.sum() > 100:
            assert chances[half].mean() == pytest.approx(clean[half].mean(), abs=0.08)
    if not wrong:
        assert chances.mean() > 0.97


def test_a_chance_is_the_mixtures_own() -> None:
    observed, shuffled, _ = mixture(20_000, 0.4, 2, apart=2.0)
    judge = Judge.fit(COLUMNS[:1], observed[:, :1], shuffled[:, :1])
    assert judge is not None
    line = np.linspace(-1.0, 3.0, 9)
    exact = 0.6 * norm.pdf(line, 2.0) / (0.6 * norm.pdf(line, 2.0) + 0.4 * norm.pdf(line))
    found = judge({COLUMNS[0]: 0.1 + line / 20})
    np.testing.assert_allclose(found, np.maximum(exact, FLOOR), atol=0.09)


@given(st.integers(0, 10_000), st.floats(0, 0.9), st.integers(FEWEST, 400))
@settings(max_examples=40, deadline=None)
def test_more_agreement_is_never_a_lesser_chance(seed: int, wrong: float, n: int) -> None:
    observed, shuffled, _ = mixture(n, wrong, seed)
    judge = Judge.fit(COLUMNS, observed, shuffled)
    if judge is None:
        return
    assert min(judge.weights) >= 0
    better = observed + np.random.default_rng(seed).random(observed.shape)
    chances, more = judge(by_column(observed)), judge(by_column(better))
    assert (more >= chances).all()
    assert FLOOR <= chances.min() <= chances.max() <= 1
    # A pair's chance does not depend on the pairs beside it.
    some = np.random.default_rng(seed).permutation(n)[: n // 3]
    assert judge(by_column(observed[some])).tolist() == chances[some].tolist()


def test_who_cannot_tell_has_no_say() -> None:
    observed, shuffled, _ = mixture(3000, 0.4, 3)
    judge = Judge.fit(COLUMNS, observed, shuffled)
    assert judge is not None
    fused, words, noise = judge.weights
    assert fused == pytest.approx(words, rel=0.15)
    assert noise < 0.05 * fused


def test_nothing_is_said_where_nothing_can_be() -> None:
    observed, shuffled, _ = mixture(500, 0.4, 4)
    few = FEWEST - 1
    assert Judge.fit(COLUMNS, observed[:few], shuffled[:few]) is None
    assert Judge.fit(COLUMNS, shuffled[:500] - 1, observed) is None  # the own annotation is farther than others
    assert Judge.fit(COLUMNS, np.full((500, 3), np.nan), shuffled) is None
    assert Judge.fit(COLUMNS, np.full((500, 3), 0.5), np.full((500, 3), 0.5)) is None


def test_a_column_that_is_missing() -> None:
    observed, shuffled, _ = mixture(500, 0.4, 5)
    observed[:, 1] = shuffled[:, 1] = np.nan
    judge = Judge.fit(COLUMNS, observed, shuffled)
    assert judge is not None
    assert judge.columns == (COLUMNS[0], COLUMNS[2])
    values = by_column(observed)
    values[COLUMNS[0]] = np.where(np.arange(500) < 2, np.nan, values[COLUMNS[0]])
    values[COLUMNS[2]] = np.where(np.arange(500) < 1, np.nan, values[COLUMNS[2]])
    chances = judge(values)
    assert np.isnan(chances).tolist() == [True] + [False] * 499


def test_by_modality_and_back_from_json() -> None:
    images, shuffled_images, _ = mixture(400, 0.4, 6)
    sounds, shuffled_sounds, _ = mixture(400, 0.4, 7)
    judges = {
        "image": Judge.fit(COLUMNS, images, shuffled_images),
        "audio": Judge.fit(COLUMNS, sounds - 0.3, shuffled_sounds - 0.3),
    }
    agreement = Agreement({name: judge for name, judge in judges.items() if judge is not None})
    again = Agreement.of_json(json.loads(json.dumps(agreement.as_json())))
    assert again == agreement
    rows = {"image": np.array([0, 2]), "audio": np.array([1]), "video": np.array([3])}
    values = {name: np.full(4, 0.2) for name in COLUMNS}
    chances = again.chances(values, rows, 4)
    assert chances[0] == chances[2] < chances[1] == 1  # what is little for a picture is much for these sounds
    assert np.isnan(chances[3])
