"""Sentences of annotations: whose they are, and which is the least."""

import numpy as np

from nemo_mm_rank.models.sentences import Sentences

TEXTS = ["A dog. A cat. A dog.", "", "A cat", "It rains. A cat."]


def test_each_sentence_once_and_whose_it_is() -> None:
    found = Sentences.of(TEXTS)
    assert found.texts == ["A dog.", "A cat.", "A cat", "It rains."]
    assert found.place.tolist() == [0, 1, 2, 3, 1]
    assert found.owner.tolist() == [0, 0, 2, 3, 3]


def test_annotations_of_too_few_are_passed_by() -> None:
    found = Sentences.of(TEXTS, fewest=2)
    assert (found.texts, found.owner.tolist()) == (["A dog.", "A cat.", "It rains."], [0, 0, 3, 3])
    nothing = Sentences.of(["one", ""], fewest=2)
    assert (nothing.texts, len(nothing.place), len(nothing.owner)) == ([], 0, 0)


def test_the_least_is_the_first_of_equal_ones_and_never_one_without_a_score() -> None:
    found = Sentences.of(TEXTS)
    rows, least = found.least(np.array([0.5, 0.5, 0.1, np.nan, 0.9]))
    assert (rows.tolist(), least.tolist()) == ([0, 2, 3], [0, 2, 4])
    rows, least = found.least(np.array([0.5, 0.2, np.nan, np.nan, np.nan]))
    assert (rows.tolist(), least.tolist()) == ([0], [1])
