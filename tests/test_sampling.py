"""Stable hashes and folds, and what a sample must hold."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemo_mm_rank.errors import ModelError
from nemo_mm_rank.frames import Vectors
from nemo_mm_rank.projection import folds_of
from nemo_mm_rank.sampling import hashes
from tests.projection.pool import made_up


def test_hashes_stay_what_they_are() -> None:
    # Written down: another value would give every pair of an old run another fold.
    assert hashes(["a dog", ""], 0).tolist() == [4597474899003249331, 7218554834331689347]


@given(st.lists(st.text(), max_size=20), st.integers(2, 20), st.integers(0, 2**70))
def test_a_fold_depends_on_text_and_seed_alone(texts: list[str], folds: int, seed: int) -> None:
    found = folds_of(texts, folds, seed)
    assert found.shape == (len(texts),)
    assert all(0 <= fold < folds for fold in found)
    assert [int(folds_of([text], folds, seed)[0]) for text in texts] == found.tolist()


def test_folds_are_even_and_differ_by_seed() -> None:
    texts = [f"text {row}" for row in range(4000)]
    found = folds_of(texts, 4, 0)
    assert np.bincount(found).min() > 900
    assert 0.2 < float((found == folds_of(texts, 4, 1)).mean()) < 0.3


def test_lone_surrogates_have_a_fold_too() -> None:
    assert 0 <= int(folds_of(["\ud800"], 4, 0)[0]) < 4


def test_a_sample_is_checked() -> None:
    sample = made_up(8)
    sample.check()
    broken = sample.anchors.clone()
    broken[3, 0] = math.nan
    cases = [
        (replace(sample, modality=["image"]), "'modality' has 1 rows, the anchors have 8"),
        (replace(sample, annotations=["x"] * 9), "'annotations' has 9 rows"),
        (replace(sample, sources={"words": Vectors.full(torch.zeros(7, 3))}), "'words' has 7 rows"),
        (replace(sample, sources={}), "at least one pair and one source"),
        (
            replace(sample, sources={"words": Vectors(torch.zeros(8, 3), torch.zeros(8, dtype=torch.bool))}),
            "no expert embedded any pair",
        ),
        (replace(sample, anchor_space=("sight",)), "'sight' is not a source in the anchor's space"),
        (replace(sample, anchors=broken), "the anchors hold NaN or infinite values in 1 of 8 rows"),
        (replace(sample, sources={**sample.sources, "words": Vectors.full(broken)}), "words hold NaN"),
    ]
    for case, message in cases:
        with pytest.raises(ModelError, match=message):
            case.check()
