from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_mm_rank.sns import gate
from nemo_mm_rank.sns.decide import BACKWARD, BOTH, FORWARD, KEEP, choose, reason
from nemo_mm_rank.sns.sides import ALL, NONE, ONE, UNTOUCHED, Cut

NAN = float("nan")


@pytest.mark.parametrize(
    ("before", "forward", "backward", "both", "expected"),
    [
        (0.5, 0.6, 0.6, 0.7, BOTH),
        (0.5, 0.6, 0.6, 0.5, BOTH),
        (0.5, 0.6, 0.55, 0.4, FORWARD),
        (0.5, 0.55, 0.6, 0.4, BACKWARD),
        (0.5, 0.6, 0.6, 0.4, FORWARD),
        (0.5, 0.6, 0.4, 0.9, FORWARD),
        (0.5, 0.4, 0.6, 0.9, BACKWARD),
        (0.5, 0.4, 0.4, 0.9, KEEP),
        (0.5, 0.6, NAN, NAN, FORWARD),
        (0.5, NAN, 0.6, NAN, BACKWARD),
        (0.5, NAN, NAN, NAN, KEEP),
        (0.5, 0.6, 0.7, NAN, BACKWARD),
        (-0.5, -0.1, 0.0, 0.1, KEEP),
        (-0.5, 0.1, 0.2, 0.05, BOTH),
    ],
)
def test_choices_exactly(before: float, forward: float, backward: float, both: float, expected: int) -> None:
    one = np.array([[before], [forward], [backward], [both]], dtype=np.float32)
    assert choose(one[0], one[1], one[2], one[3], 1.0, 1e-6).tolist() == [expected]


SIMILARITY = st.floats(-1, 1, width=32) | st.just(NAN)


@given(
    st.lists(st.tuples(SIMILARITY, SIMILARITY, SIMILARITY, SIMILARITY), min_size=1, max_size=10),
    st.floats(0, 2, width=32),
)
def test_what_is_kept_always_passed_the_gate(rows: list[tuple[float, float, float, float]], ratio: float) -> None:
    before, forward, backward, both = (np.array(column, dtype=np.float32) for column in zip(*rows, strict=True))
    choice = choose(before, forward, backward, both, ratio, 1e-6)
    passed = [gate(before, candidate, ratio, 1e-6) for candidate in (forward, backward, both)]
    for i, chosen in enumerate(choice.tolist()):
        if chosen == KEEP:
            assert not passed[0][i]
            assert not passed[1][i]
        else:
            assert passed[chosen - 1][i]
        if chosen == FORWARD and passed[1][i]:
            assert forward[i] >= backward[i]
            assert not passed[2][i]
        if chosen == BACKWARD and passed[0][i]:
            assert backward[i] > forward[i]
            assert not passed[2][i]


DATA = Cut([[0.0, 4.0]], "2 of 5 sentences")
ANNOTATION = Cut([[0.0, 4.0]], "1 of 2 annotation sentences")


@pytest.mark.parametrize(
    ("chosen", "data", "annotation", "expected"),
    [
        (FORWARD, DATA, UNTOUCHED, "forward: kept 2 of 5 sentences"),
        (FORWARD, DATA, ONE, "forward: kept 2 of 5 sentences"),
        (BACKWARD, UNTOUCHED, ANNOTATION, "backward: kept 1 of 2 annotation sentences"),
        (BOTH, DATA, ANNOTATION, "bidirectional: kept 2 of 5 sentences and 1 of 2 annotation sentences"),
        (FORWARD, DATA, ANNOTATION, "bidirectional refused by the gate, kept forward: 2 of 5 sentences"),
        (BACKWARD, DATA, ANNOTATION, "bidirectional refused by the gate, kept backward: 1 of 2 annotation sentences"),
        (KEEP, DATA, ANNOTATION, "untrimmed: refused by the gate"),
        (KEEP, DATA, ONE, "untrimmed: refused by the gate"),
        (KEEP, ONE, ONE, "untrimmed: one segment"),
        (KEEP, ONE, UNTOUCHED, "untrimmed: one segment"),
        (KEEP, UNTOUCHED, ALL, "untrimmed: every segment is relevant"),
        (KEEP, NONE, ONE, "untrimmed: data: no segment is relevant; annotation: one segment"),
    ],
)
def test_reasons_exactly(chosen: int, data: Cut, annotation: Cut, expected: str) -> None:
    assert reason(chosen, data, annotation) == expected
