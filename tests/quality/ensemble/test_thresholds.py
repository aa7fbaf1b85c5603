"""Outliers: Tukey's fence by hand, and what must not be taken for one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_mm_rank.config import parse
from nemo_mm_rank.errors import ConfigError
from nemo_mm_rank.quality import LabelingFunction, label_votes
from nemo_mm_rank.quality.ensemble.fit import FEW, resolve, thresholds
from nemo_mm_rank.quality.ensemble.settings import EnsembleSettings, FunctionSettings, default_functions
from tests.quality.ensemble.shards import InMemory


def function(**levels: Any) -> FunctionSettings:
    return parse(FunctionSettings, {"column": "x", **levels})


def resolved(scores: list[float], **levels: Any) -> LabelingFunction:
    return resolve(function(**levels), np.sort(np.array(scores, dtype=np.float64)))


def rejected(scores: list[float], **levels: Any) -> list[float]:
    votes = label_votes(pd.DataFrame({"x": scores}), [resolved(scores, **levels)])[:, 0]
    return [score for score, vote in zip(scores, votes, strict=True) if vote == 0]


def test_an_outlier_is_below_the_fence_and_the_fence_is_none() -> None:
    # Of 40 scores the quartiles are the 10th and the 30th: 10 - 1.5 (30 - 10) = -20.
    scores = [-20.5, -20.0, *map(float, range(3, 41))]
    assert rejected(scores, reject="outliers") == [-20.5]
    low = resolved(scores, reject="outliers").low
    assert low == np.nextafter(-20, -math.inf)


def test_of_scores_that_are_nearly_all_alike_the_common_one_is_never_rejected() -> None:
    common = float(np.float32(0.1))
    scores = [0.05] * 5 + [common] * 30 + [0.9] * 5
    assert rejected(scores, reject="outliers") == [0.05] * 5
    assert rejected([common] * 100, reject="outliers") == []


def test_few_scores_have_no_outliers() -> None:
    assert FEW == 30
    scores = [-1000.0, *map(float, range(28))]
    assert len(scores) == 29
    assert resolved(scores, reject="outliers") == LabelingFunction("x", -math.inf, math.inf, (0,))
    assert rejected([*scores, 28.0], reject="outliers") == [-1000.0]
    assert resolved([], reject="outliers").low == -math.inf


def test_of_several_levels_the_highest_counts() -> None:
    scores = [-20.5, -20.0, *map(float, range(3, 41))]
    assert resolved(scores, reject=[5.0, "outliers"]).low == 5
    assert resolved(scores, reject=["outliers", -30.0]).low == np.nextafter(-20, -math.inf)
    assert resolved(scores, reject=[3.5, "bottom 10%"]).low == 4
    assert resolved(scores[:20], reject=[-20.0, "outliers"]).low == -20  # too few for outliers


def test_what_is_selected_is_no_outlier() -> None:
    scores = [-20.5, -20.0, *map(float, range(3, 41))]
    found = resolved(scores, select=-100.0, reject="outliers")
    assert (found.low, found.high) == (-100, -100)
    assert label_votes(pd.DataFrame({"x": scores}), [found])[:, 0].tolist() == [1] * 40


def test_infinite_scores_have_a_place_too() -> None:
    assert rejected([math.inf] * 39 + [5.0], reject="outliers") == [5.0]
    assert rejected([1.0] * 20 + [math.inf] * 20, reject="outliers") == []


@given(st.lists(st.floats(-1e6, 1e6), min_size=FEW, max_size=80))
def test_outliers_are_those_of_the_definition(scores: list[float]) -> None:
    ordered = np.sort(scores)
    first, third = np.quantile(ordered, [0.25, 0.75], method="inverted_cdf")
    fence = first - 1.5 * (third - first)
    assert rejected(scores, reject="outliers") == [score for score in scores if score < fence]


def test_outliers_are_those_of_the_modality() -> None:
    scores = [*map(float, range(40)), -35.0, *(np.arange(40) * 100.0), -35.0]
    frame = pd.DataFrame({"modality": ["image"] * 41 + ["video"] * 41, "x": scores})

    def lows(**changes: Any) -> list[list[float]]:
        settings = parse(EnsembleSettings, {"functions": {"x": {"column": "x", "reject": "outliers"}}, **changes})
        found = thresholds(InMemory(frame), settings)
        votes = {name: label_votes(frame[frame["modality"] == name], found[name])[:, 0] for name in found}
        return [frame["x"][frame["modality"] == name][mine == 0].tolist() for name, mine in votes.items()]

    # 41 scores, the 11th and the 31st: 9 - 1.5 (29 - 9) = -21, and a hundred times that.
    assert lows() == [[-35.0], []]
    assert lows(by_modality=False) == [[], []]


def test_settings_come_back_as_they_were_written() -> None:
    for levels in (
        {"reject": "outliers"},
        {"reject": [0.28, "outliers"], "veto": True},
        {"reject": ["bottom 5%", 0.1], "select": "top 40%"},
    ):
        settings = function(**levels)
        assert parse(FunctionSettings, settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ({"reject": "outlier"}, "a threshold is a score, or a share like 'bottom 40%', or 'outliers', not 'outlier'"),
        ({"select": "outliers"}, "a threshold is a score, or a share like 'top 40%', not 'outliers'"),
        ({"reject": []}, "reject"),
        ({"veto": True}, "give select, reject or both"),
        ({"select": "top 10%", "reject": 0.1, "veto": True}, "a veto may only reject"),
        ({"select": 0.2, "reject": ["outliers", 0.3]}, "it rejects at or below 0.3, but selects at or above 0.2"),
        ({"select": "top 60%", "reject": [0.1, "bottom 50%"]}, "cannot select 60 % and reject 50 % of the same pairs"),
    ],
)
def test_what_cannot_be_meant_is_refused(levels: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        function(**levels)
    assert message in str(caught.value)


def test_operators_without_thresholds_say_what_they_fairly_can() -> None:
    both = {"select": "top 50%", "reject": "bottom 30%"}
    heard: dict[str, dict[str, Any]] = {
        "blurry": {"reject": [0.28, "outliers"], "veto": True},
        "words": {"reject": "outliers"},
        "concrete_words": both,
        "language": {"reject": 0.0},
        "agreement_words": both,
        "icc": both,
    }
    found = default_functions([f"quality__{name}" for name in [*heard, "resolution", "characters"]])
    assert found == {
        name: function(**levels).model_copy(update={"column": f"quality__{name}"}) for name, levels in heard.items()
    }


def test_the_plain_proxy_is_heard_only_where_a_label_model_would_have_too_few_others() -> None:
    names = ["concrete_words", "agreement", "agreement_words", "weakest_words"]
    assert list(default_functions([f"quality__{name}" for name in names])) == names[1:]
    assert list(default_functions([f"quality__{name}" for name in names[:3]])) == names[:3]
