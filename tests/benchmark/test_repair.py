"""What counts as repaired: shares of planted and own content that are cut, in sentences, seconds and pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.repair import (
    ANSWER,
    BESIDE,
    FOREIGN,
    Case,
    Figures,
    Pieces,
    answer_pieces,
    at_random,
    figures,
    insert,
    judged,
    kept_share,
    last,
    sentences,
)

ROW = {"modality": "text", "data": "", "annotation": ""}


def pieces(*sides: Sequence[tuple[bool, float, float]]) -> Pieces:
    flat = [(number, *piece) for number, side in enumerate(sides) for piece in side]
    owner, planted, size, kept = zip(*flat, strict=True)
    return Pieces(np.array(owner), np.array(planted), np.array(size, dtype=float), np.array(kept, dtype=float))


def test_figures_by_hand() -> None:
    cut_right = [(False, 1, 1), (True, 1, 0), (False, 1, 1)]
    cut_own_too = [(False, 1, 0), (True, 1, 0)]
    cut_nothing = [(False, 1, 1), (True, 1, 1)]
    clean = [(False, 1, 1), (False, 1, 0)]
    found = figures(pieces(cut_right, cut_own_too, cut_nothing, clean))
    assert found == Figures(4, 3 / 4, 2 / 3, 2 / 4, 2 / 6, 1 / 3)


def test_a_tenth_is_forgiven_on_either_side() -> None:
    assert figures(pieces([(False, 10, 0.9), (True, 10, 0.1)])).repaired == 1
    assert figures(pieces([(False, 10, 0.89), (True, 10, 0.1)])).repaired == 0
    assert figures(pieces([(False, 10, 0.9), (True, 10, 0.11)])).repaired == 0


def test_what_cannot_be_counted_is_no_number() -> None:
    found = figures(pieces([(False, 1, 1)]))
    assert (found.pairs, found.cut, found.lost) == (1, 0, 0)
    assert all(np.isnan([found.recall, found.precision, found.repaired]))


sides = st.lists(
    st.lists(st.tuples(st.booleans(), st.floats(0.1, 100), st.floats(0, 1)), min_size=1, max_size=4),
    min_size=1,
    max_size=6,
)


@given(sides)
def test_figures_are_those_of_plain_loops(made: list[list[tuple[bool, float, float]]]) -> None:
    found = figures(pieces(*made))
    flat = [piece for side in made for piece in side]
    planted = sum(size for foreign, size, _ in flat if foreign)
    gone = sum(size * (1 - kept) for foreign, size, kept in flat if foreign)
    own_gone = sum(size * (1 - kept) for foreign, size, kept in flat if not foreign)
    if planted:
        assert found.recall == pytest.approx(gone / planted)
    if gone + own_gone > 1e-6:
        assert found.precision == pytest.approx(gone / (gone + own_gone))
    assert found.pairs == len(made)


def test_regions_of_texts_sounds_and_pictures() -> None:
    assert kept_share((0, 10), None) == 1
    assert kept_share((0, 10), [(0, 3), (5, 6), (9, 20)]) == pytest.approx(0.5)
    assert kept_share((10, 10, 10, 20), [(0, 0, 15, 20)]) == pytest.approx(0.25)
    assert kept_share((10, 10, 10, 20), [(20, 0, 5, 50)]) == 0


@pytest.mark.parametrize(
    ("place", "expected"), [(0, "Fish. One. Two."), (1, "One. Fish. Two."), (9, "One. Two. Fish.")]
)
def test_what_is_inserted_is_a_sentence_of_its_own(place: int, expected: str) -> None:
    text, where = insert("One. Two.", "Fish.", place, " ")
    assert text == expected
    assert [text[int(start) : int(end)] for (start, end), foreign in sentences(text, where) if foreign] == ["Fish."]
    assert len(sentences(text, where)) == 3


def test_the_sentence_with_the_answer_is_what_has_to_stay() -> None:
    row = {"data": "A fox. It is red. It barks.", "annotation": "What colour? red"}
    assert answer_pieces(row) == [((0, 6), True), ((7, 17), False), ((18, 27), True)]
    assert answer_pieces({**row, "annotation": "What colour? blue"}) is None
    assert answer_pieces({**row, "annotation": "What is it? It"}) is None  # in two sentences


def test_baselines_and_how_cases_are_judged() -> None:
    text, where = insert("One. Two.", "Fish.", 1, " ")
    case = Case(FOREIGN, "annotation", {**ROW, "annotation": text}, sentences(text, where))
    alone = Case(FOREIGN, "annotation", ROW, [((0, 4), False)])
    assert last([case, alone]) == [[1, 1, 0], [1]]
    drawn = at_random([case, alone], [[1, 0, 1], [1]], 0)
    assert (sorted(drawn[0]), drawn[1]) == ([0, 1, 1], [1])
    found = judged([case, alone], [[1, 0, 1], [1]])
    assert (found.owner.tolist(), found.planted.tolist()) == ([0, 0, 0, 1], [False, True, False, False])
    assert found.size.tolist() == [1, 1, 1, 1]
    sound = Case(BESIDE, "data", {**ROW, "modality": "audio"}, [((0, 5), False), ((5, 8), True)])
    assert judged([sound], [[1, 0]]).size.tolist() == [5, 3]
    answer = Case(ANSWER, "data", ROW, [((0, 9), False), ((9, 30), True)])
    assert figures(judged([answer], [[1, 0]])).repaired == 1
