"""Labeling functions: edges to the last bit, abstentions, and who has the last word."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_mm_rank.errors import ConfigError, MissingColumnError
from nemo_mm_rank.quality import LabelingFunction, label_votes

EDGES = [0.21 + 0.02, np.nextafter(0.21 + 0.02, 0), 0.21 - 0.02, np.nextafter(0.21 - 0.02, 1), math.nan]


def test_a_vote_changes_between_two_neighbouring_doubles() -> None:
    frame = pd.DataFrame({"clip": EDGES})
    votes = label_votes(frame, [("clip", 0.21 - 0.02, 0.21 + 0.02, (0, 1))])
    assert votes.dtype == np.int8
    assert votes[:, 0].tolist() == [1, -1, 0, -1, -1]


@pytest.mark.parametrize("kind", ["float64", "float32", "Float64", "arrow", "object"])
def test_any_column_of_numbers_will_do(kind: str) -> None:
    values = [0.0, 0.25, 0.5, None]
    column = pd.Series(values, dtype=pd.ArrowDtype(pa.float32()) if kind == "arrow" else kind)
    assert label_votes(pd.DataFrame({"x": column}), [("x", 0.0, 0.5, (0, 1))])[:, 0].tolist() == [0, -1, 1, -1]


def test_integers_and_truths_are_numbers_too() -> None:
    frame = pd.DataFrame({"boxes": [0, 3, 5], "english": [True, False, True]})
    functions = [LabelingFunction("boxes", 0, 5), LabelingFunction("english", 1, 1, (0,))]
    assert label_votes(frame, functions).tolist() == [[0, -1], [-1, 0], [1, -1]]


def test_a_vote_that_is_not_allowed_is_an_abstention_even_where_the_other_would_do() -> None:
    frame = pd.DataFrame({"x": [0.1, 0.33, 0.5]})
    functions = [("x", 0.33, 0.33, (0,)), ("x", 0.33, 0.33, (1,)), ("x", 0.33, 0.33, (0, 1))]
    assert label_votes(frame, functions).T.tolist() == [[0, -1, -1], [-1, 1, 1], [0, 1, 1]]


def test_a_float32_score_is_the_double_that_it_is() -> None:
    frame = pd.DataFrame({"x": np.array([0.21, 0.23], dtype=np.float32)})  # .20999999 and .23000000417
    assert label_votes(frame, [("x", -1.0, 0.21, (0, 1)), ("x", -1.0, 0.23, (0, 1))]).tolist() == [[-1, -1], [1, 1]]


def test_columns_go_by_name_whatever_their_order() -> None:
    frame = pd.DataFrame({"v": [1.0, 0.0], "h": [0.0, 1.0]})
    functions = [("h", 0.0, 1.0, (0, 1)), ("v", 0.0, 1.0, (0, 1))]
    assert label_votes(frame, functions).tolist() == label_votes(frame[["h", "v"]], functions).tolist()


def test_what_cannot_be_meant_is_refused() -> None:
    frame = pd.DataFrame({"x": [1.0]})
    with pytest.raises(MissingColumnError, match="labeling functions: the frame has no column 'y'"):
        label_votes(frame, [("y", 0.0, 1.0, (0, 1))])
    with pytest.raises(ConfigError, match=r"'x': rejects at or below 2, but selects at or above 1"):
        label_votes(frame, [("x", 2.0, 1.0, (0, 1))])
    with pytest.raises(ConfigError, match=r"allowed votes are 0 \(reject\) and 1 \(select\), not \(-1, 1\)"):
        label_votes(frame, [("x", 0.0, 1.0, (-1, 1))])


@given(
    st.lists(st.floats(allow_nan=True), min_size=1, max_size=30),
    st.floats(-5, 5),
    st.floats(0, 5),
    st.sampled_from([(0,), (1,), (0, 1)]),
)
def test_votes_are_those_of_the_definition(
    scores: list[float], low: float, gap: float, allowed: tuple[int, ...]
) -> None:
    high = low + gap

    def defined(score: float) -> int:
        vote = 1 if score >= high else 0 if score <= low else -1
        return vote if vote in allowed else -1

    votes = label_votes(pd.DataFrame({"x": scores}), [("x", low, high, allowed)])
    assert votes[:, 0].tolist() == [defined(score) for score in scores]
