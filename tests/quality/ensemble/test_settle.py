"""Which functions are left: idle ones go, inverted ones one by one, and never so many that there is nothing to fit."""

from __future__ import annotations

from typing import Any

import numpy as np

from nemo_mm_rank.config import parse
from nemo_mm_rank.quality import LabelModel
from nemo_mm_rank.quality.ensemble.fit import settle
from nemo_mm_rank.quality.ensemble.model import idle
from nemo_mm_rank.quality.ensemble.settings import EnsembleSettings
from nemo_mm_rank.quality.ensemble.votes import PatternCounts


def votes(*accuracies: float, n: int = 4_000) -> np.ndarray:
    """Votes that are right as often as that; 1 and 0 stand for functions that always and never vote."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, n)
    columns = []
    for accuracy in accuracies:
        right = random.random(n) < accuracy
        voted = np.where(right, labels, 1 - labels)
        columns.append(np.ones(n) if accuracy == 1 else -np.ones(n) if accuracy == 0 else voted)
    return np.stack(columns, axis=1).astype(np.int8)


def settings(**changes: Any) -> EnsembleSettings:
    return parse(EnsembleSettings, {"functions": {"x": {"column": "x", "select": 1.0}}, **changes})


def test_functions_that_tell_nothing_go_and_the_rest_is_fitted_alone() -> None:
    made = votes(0.9, 1, 0.8, 0, 0.7)
    settled = settle(PatternCounts.of(made), settings())
    assert settled is not None
    assert {place: fault.kind for place, fault in settled.left_out.items()} == {1: "constant", 3: "silent"}
    assert settled.left_out[1].message == "selects 100.0% of the pairs"
    assert settled.model.mu.tobytes() == LabelModel().fit(made[:, [0, 2, 4]]).mu.tobytes()
    np.testing.assert_array_equal(settled.counted.counts, PatternCounts.of(made[:, [0, 2, 4]]).counts)


def test_functions_that_are_turned_round_go_unless_they_are_to_be_kept() -> None:
    made = votes(0.9, 0.2, 0.85, 0.8, 0.4)
    counted = PatternCounts.of(made)
    settled = settle(counted, settings())
    assert settled is not None
    assert {place: fault.kind for place, fault in settled.left_out.items()} == {1: "inverted", 4: "inverted"}
    assert list(settled.left_out) == [1, 4]  # the least believed first
    assert settled.model.inverted == []
    kept = settle(counted, settings(inverted="keep"))
    assert kept is not None
    assert kept.left_out == {}
    assert [fault.function for fault in kept.model.inverted] == [1, 4]


def test_three_stay_in_any_case_and_two_are_too_few() -> None:
    settled = settle(PatternCounts.of(votes(0.9, 0.9, 0.1)), settings())
    assert settled is not None
    assert settled.left_out == {}
    assert [fault.function for fault in settled.model.inverted] == [2]
    assert settle(PatternCounts.of(votes(0.9, 0.9, 1)), settings()) is None


def test_how_much_is_too_alike_is_for_the_user_to_say() -> None:
    made = votes(0.9, 0.9, 0.9)
    made[: int(0.97 * len(made)), 0] = 1
    counted = PatternCounts.of(made)
    share = float((made[:, 0] == 1).mean())
    assert [fault.function for fault in idle(counted, alike=share)] == [0]
    assert idle(counted, alike=share + 1e-9) == []
