from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_mm_rank.benchmark.downstream.vocabulary import END, UNKNOWN, Vocabulary

TEXTS = ["A dog runs.", "a dog sleeps", "The café, again", "the the"]


def read(vocabulary: Vocabulary, ids: torch.Tensor) -> list[str]:
    return [vocabulary.pieces[number] for number in ids.tolist()]


def test_words_that_come_twice_are_tokens_and_the_others_are_spelled() -> None:
    vocabulary = Vocabulary.fit(TEXTS, 256)
    tokens = vocabulary.encode(["The DOG runs."], 64)
    assert read(vocabulary, tokens.ids) == ["the", "dog", "r", "##u", "##n", "##s", ".", "<end>"]
    assert vocabulary.pieces[END] == "<end>"
    assert len(set(vocabulary.pieces)) == len(vocabulary)


def test_a_character_that_was_not_seen_is_unknown_and_compatible_forms_are_one() -> None:
    vocabulary = Vocabulary.fit(TEXTS, 256)
    assert vocabulary.encode(["q"], 64).ids.tolist() == [UNKNOWN, END]
    assert vocabulary.encode(["cafe\u0301"], 64).ids.tolist() == vocabulary.encode(["CAFÉ"], 64).ids.tolist()


def test_an_annotation_is_cut_and_its_end_with_it() -> None:
    vocabulary = Vocabulary.fit(TEXTS, 256)
    tokens = vocabulary.encode(["the dog the dog", "", "dog"], 3)
    assert tokens.lengths.tolist() == [3, 1, 2]
    assert read(vocabulary, tokens.ids) == ["the", "dog", "the", "<end>", "dog", "<end>"]


def test_characters_have_a_quarter_of_the_places_and_the_most_frequent_words_the_rest() -> None:
    texts = ["ab ab ab", "cd cd", "efg efg efg efg"]
    vocabulary = Vocabulary.fit(texts, 12)
    assert len(vocabulary) == 8  # two, three of the characters, and all three words
    assert vocabulary.pieces[5:] == ("efg", "ab", "cd")
    assert Vocabulary.fit(texts, 7).pieces[3:] == ("efg", "ab", "cd")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=12), min_size=1, max_size=8), st.integers(8, 64), st.randoms())
def test_every_annotation_is_written_and_their_order_changes_nothing(
    texts: list[str],
    size: int,
    random: st.Random,  # type: ignore[name-defined]
) -> None:
    vocabulary = Vocabulary.fit(texts, size)
    shuffled = list(texts)
    random.shuffle(shuffled)
    assert Vocabulary.fit(shuffled, size) == vocabulary
    assert 2 <= len(vocabulary) <= size
    tokens = vocabulary.encode(texts, 1000)
    assert len(tokens.lengths) == len(texts)
    for row in range(len(texts)):
        own = tokens.ids[tokens.starts[row] : tokens.starts[row + 1]]
        assert own[-1] == END
        assert int((own == END).sum()) == 1
