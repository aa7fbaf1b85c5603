"""Against the demo of EcoDatum's authors: the same votes, the same model, the same ten; and what is wrong with it."""

from __future__ import annotations

import numpy as np
import pytest

from nemo_mm_rank.quality import LabelModel, label_votes
from nemo_mm_rank.quality.ensemble.model import idle
from nemo_mm_rank.quality.ensemble.votes import PatternCounts
from nemo_mm_rank.ranking import top_k
from tests.quality.ensemble.oracle import FUNCTIONS, Demo, demo


@pytest.fixture(scope="module")
def authors() -> Demo:
    return demo()


@pytest.fixture(scope="module")
def fitted(authors: Demo) -> LabelModel:
    settings = authors.model
    model = LabelModel(settings["epochs"], settings["lr"], settings["l2"], settings["seed"])
    return model.fit(label_votes(authors.scores, FUNCTIONS))


def test_votes_are_the_authors(authors: Demo) -> None:
    votes = label_votes(authors.scores, FUNCTIONS)
    assert votes.dtype == np.int8
    np.testing.assert_array_equal(votes, authors.votes)
    assert {int(vote): int((votes == vote).sum()) for vote in (1, 0, -1)} == {1: 95, 0: 45, -1: 100}


def test_parameters_are_the_authors(authors: Demo, fitted: LabelModel) -> None:
    np.testing.assert_allclose(fitted.mu, authors.model["mu"], rtol=0, atol=1e-6)


def test_weights_are_the_authors_but_for_functions_that_never_vote(authors: Demo, fitted: LabelModel) -> None:
    silent = (authors.votes == -1).all(axis=0)
    assert np.isnan(fitted.weights[silent]).all()
    theirs = np.array(authors.model["weights"])
    assert theirs[silent].tolist() == [1.0, 1.0]
    np.testing.assert_allclose(fitted.weights[~silent], theirs[~silent], rtol=0, atol=1e-6)


def test_scores_and_the_chosen_ten_are_the_authors(authors: Demo, fitted: LabelModel) -> None:
    quality = fitted.predict_proba(authors.votes)
    np.testing.assert_allclose(quality, authors.quality, rtol=0, atol=1e-6)
    assert set(top_k(quality, 10).tolist()) == authors.selected


def test_two_functions_are_constant_and_clip_is_turned_round_and_all_of_it_is_reported(
    authors: Demo, fitted: LabelModel
) -> None:
    names = authors.model["lfs"]
    faults = [*idle(PatternCounts.of(authors.votes)), *fitted.inverted]
    assert {names[fault.function]: fault.kind for fault in faults} == {
        "blurry": "silent",
        "geometric": "silent",
        "hclip": "constant",
        "vclip": "constant",
        "clip": "inverted",
    }
    chosen = np.isin(np.arange(30), list(authors.selected))
    clip = authors.scores["image_text_similarity"]
    assert clip[chosen].mean() == pytest.approx(0.205, abs=5e-4)
    assert clip[~chosen].mean() == pytest.approx(0.252, abs=5e-4)


def test_leaving_the_constant_functions_out_is_not_enough_and_thresholds_of_their_own_are(authors: Demo) -> None:
    counted = PatternCounts.of(authors.votes)
    faults = {fault.function for fault in idle(counted)}
    left = counted.only([place for place in range(8) if place not in faults])
    names = ["clip", "lang", "icc", "gdino"]
    model = LabelModel().fit_counts(left.patterns, left.counts)
    assert [names[fault.function] for fault in model.inverted] == ["clip"]  # nobody is left to back it
    mended = [
        function._replace(low=0.21 - 0.02, high=0.21 + 0.02) if "clip_" in function.column else function
        for function in FUNCTIONS
    ]
    votes = label_votes(authors.scores, mended)
    model = LabelModel().fit(votes)
    assert "clip" not in [authors.model["lfs"][fault.function] for fault in model.inverted]
    quality = model.predict_proba(votes)
    chosen = np.isin(np.arange(30), top_k(quality, 10))
    clip = authors.scores["image_text_similarity"]
    assert clip[chosen].mean() == pytest.approx(0.277, abs=5e-4)
    assert clip[~chosen].mean() == pytest.approx(0.216, abs=5e-4)
    assert len(authors.selected & set(np.flatnonzero(chosen).tolist())) == 2
