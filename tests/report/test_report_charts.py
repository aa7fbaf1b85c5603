"""Drawings by their numbers: where values lie, what bins hold, and that nothing leaves the frame."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_mm_rank.measures.statistics import Interval, mean_interval
from nemo_mm_rank.report.charts import Curve, Scale, curves, distributions, intervals, mixes
from nemo_mm_rank.report.content import Chart

NUMBERS = re.compile(r"-?\d+(?:\.\d+)?")


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 12))
def test_ticks_are_round_within_and_not_too_many(low: float, width: float, most: int) -> None:
    scale = Scale(low, low + width, 0, 100)
    ticks = scale.ticks(most)
    assert len(ticks) <= most + 1
    assert all(low - 1e-6 * width <= tick <= low + width + 1e-6 * width for tick in ticks)
    steps = np.diff(ticks)
    if len(steps):
        assert np.allclose(steps, steps[0], rtol=1e-3)
        mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-9)
        assert min(abs(mantissa - round_one) for round_one in (1, 2, 2.5, 5, 10)) < 1e-3


def test_a_scale_by_hand() -> None:
    assert [Scale(0, 10, 100, 200)(value) for value in (0, 5, 10)] == [100, 150, 200]
    assert Scale(0, 10, 200, 100)(2.5) == 175
    assert Scale(3, 3, 0, 10)(3) == 0
    assert Scale(-1, 1, 0, 1).ticks(4) == [-1, -0.5, 0, 0.5, 1]


def marks(chart: Chart, shape: str) -> list[str]:
    return [mark.d for mark in chart.marks if mark.shape == shape]


def test_distributions_have_a_row_each_and_the_cut() -> None:
    scores = np.linspace(-1, 1, 101)
    chart = distributions("t", [("image", 2, scores, scores[80:]), ("text", 0, scores, scores[:0])], 0.6, "", "score")
    said = [label.text for label in chart.labels]
    assert {"image", "text", "21 of 101", "0 of 101", "cut 0.60", "score"} <= set(said)
    pale, full = marks(chart, "pale"), marks(chart, "area")
    assert len(pale) == len(full) == 2
    rule = float(NUMBERS.findall(marks(chart, "rule")[0])[0])
    left_of_chosen = float(NUMBERS.findall(full[0])[0])
    assert left_of_chosen <= rule <= left_of_chosen + 12  # the cut is in the first bin that is filled
    assert full[1] == "M0 0"


def test_mixes_fill_their_bars() -> None:
    chart = mixes("t", ["a", "b", "c"], [0, 1, 2], {"pool": [0.5, 0.25, 0.25], "blend": [0.0, 1.0, 0.0]})
    bars = [NUMBERS.findall(mark) for mark in marks(chart, "bar")]
    assert len(bars) == 4  # none for what is not there
    widths = [float(bar[2]) - float(bar[0]) for bar in bars]
    assert widths[0] == pytest.approx(2 * widths[1], rel=0.02)
    assert widths[3] == pytest.approx(sum(widths[:3]), rel=0.02)
    assert chart.legend == [(0, "a"), (1, "b"), (2, "c")]
    assert [label.text for label in chart.labels if label.style == "inside"] == ["50 %", "25 %", "25 %", "100 %"]


def test_curves_stay_within_the_frame_and_their_names_apart() -> None:
    lines = [
        Curve(f"s{place}", place, [1, 2], [Interval(5, 4, 6, 3), Interval(4 + place / 1000, 3, 5, 3)], place == 0)
        for place in range(9)
    ]
    chart = curves("t", lines, "step", "perplexity", "")
    for mark in chart.marks:
        if mark.shape in ("line", "line strong", "band"):
            values = [float(value) for value in NUMBERS.findall(mark.d)]
            assert all(0 <= x <= chart.width for x in values[::2])
            assert all(0 <= y <= chart.height for y in values[1::2])
    ends = sorted(label.y for label in chart.labels if "end" in label.style)
    assert len(ends) == 9
    assert np.diff(ends).min() >= 15 - 1e-6
    assert marks(chart, "line strong")[0] == [mark.d for mark in chart.marks if mark.shape.startswith("line")][-1]


def test_a_band_that_says_nothing_does_not_flatten_the_lines() -> None:
    wide = [Interval(value, -900, 900, 3) for value in (50, 40)]
    lines = [Curve("a", 0, [1, 2], wide), Curve("b", 1, [1, 2], [mean_interval([60]), mean_interval([50])])]
    chart = curves("t", lines, "step", "perplexity", "")
    first, second = ([float(value) for value in NUMBERS.findall(mark)[1::2]] for mark in marks(chart, "line"))
    assert max(first) - min(second) > 100  # of 334 pixels between the axes
    band = [float(value) for value in NUMBERS.findall(marks(chart, "band")[0])[1::2]]
    assert (min(band), max(band)) == (14, 348)  # from edge to edge


def test_differences_show_zero() -> None:
    rows = [("a - b", 0, Interval(0.3, 0.2, 0.4, 3)), ("a - c", 0, mean_interval([0.5]))]
    chart = intervals("t", rows, "x", differences=True)
    assert {"+0.300 \N{PLUS-MINUS SIGN} 0.100", "+0.500"} <= {label.text for label in chart.labels}
    zero = float(NUMBERS.findall(marks(chart, "rule")[0])[0])
    points = [float(NUMBERS.findall(mark)[0]) for mark in marks(chart, "point")]
    whisker = [float(value) for value in NUMBERS.findall(marks(chart, "whisker")[0])]
    assert zero < whisker[0] < points[0] < whisker[2] < points[1]
    assert len(marks(chart, "whisker")) == 1
