"""Texts cut at what was kept, and numbers as people read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_mm_rank.report.details import excerpt, pieces
from nemo_mm_rank.tables import counted, number, share


def test_pieces_by_hand() -> None:
    text = "One. Two. Three."
    assert pieces(text, None, 99) == [[text, True]]
    assert pieces(text, [[0, 4], [10, 16]], 99) == [["One.", True], [" Two. ", False], ["Three.", True]]
    assert pieces(text, [[10, 16], [0, 4]], 99) == pieces(text, [[0, 4], [10, 16]], 99)
    assert pieces(text, [[0, 4], [5, 9]], 99) == [["One. Two.", True], [" Three.", False]]  # the blank is no loss
    assert pieces(text, [[5, 9]], 7) == [["One. ", False], ["Tw", True], ["…", True]]


@given(
    st.text(max_size=60),
    st.none() | st.lists(st.tuples(st.integers(0, 70), st.integers(0, 70)).map(sorted), max_size=4),
    st.integers(1, 80),
)
def test_pieces_are_the_text(text: str, spans: list[list[int]] | None, limit: int) -> None:
    found = pieces(text, spans, limit)
    shown = found[:-1] if len(text) > limit else found
    assert "".join(str(piece) for piece, _ in shown) == text[:limit]
    assert (found[-1:] == [["…", True]]) or len(text) <= limit
    place = 0
    for piece, kept in shown:
        for character in str(piece):
            inside = spans is None or any(start <= place < end for start, end in spans)
            assert kept == inside or (kept and not character.strip())
            place += 1


def test_excerpts_are_one_line() -> None:
    assert excerpt("a\n b\t c", 10) == "a b c"
    assert excerpt("word " * 9, 10) == "word word…"
    assert len(excerpt("x" * 50, 20)) == 20


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (number(-0.0004), "0.000"),
        (number(-1.5, 1), "\N{MINUS SIGN}1.5"),
        (number(2, 2), "2.00"),
        (share(1, 8), "12 %"),
        (share(0, 8), "0 %"),
        (share(1, 5000), "< 0.1 %"),
        (share(1, 0), "\N{EN DASH}"),
        (counted(1, "pair"), "1 pair"),
        (counted(1200, "strategy", "strategies"), "1,200 strategies"),
    ],
)
def test_numbers(said: str, expected: str) -> None:
    assert said == expected
