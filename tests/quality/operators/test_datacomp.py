"""DataComp's baselines, each bound on both of its sides."""

from __future__ import annotations

import numpy as np
import torch

from nemo_mm_rank.quality.operators import datacomp

CAPTION = "a small dog"


def kept(language: str = "en", text: str = CAPTION, width: int = 640, height: int = 480) -> bool:
    return bool(datacomp.basic([language], [text], np.array([width]), np.array([height]))[0])


def test_basic() -> None:
    assert kept()
    assert not kept(language="de")
    assert not kept(text="two words")
    assert not kept(text="a b c")  # five characters
    assert kept(text="a b cd")
    assert kept(width=200, height=200)
    assert not kept(width=199, height=400)
    assert kept(width=600, height=200)
    assert not kept(width=601, height=200)
    assert not kept(width=200, height=601)


def test_a_fraction_keeps_the_place_behind_it_too_and_ties() -> None:
    scores = np.array([0.1, 0.5, 0.3, 0.3, 0.2, np.nan, 0.4, 0.0, 0.25, 0.35])
    threshold = datacomp.clip_threshold(scores, 0.3)
    assert threshold == 0.3  # the fourth best
    assert datacomp.clip_score(scores, threshold).sum() == 5
    assert not datacomp.clip_score(scores, -1.0)[5]


def test_laion2b() -> None:
    scores = np.array([0.28, 0.2799, 0.9, np.nan])
    assert datacomp.laion2b(["en", "en", "fr", "en"], scores).tolist() == [True, False, False, False]


def test_image_based_asks_for_the_nearest_centroid() -> None:
    centroids = torch.eye(3)
    features = torch.tensor([[0.9, 0.1, 0.0], [0.1, 0.9, 0.0], [0.0, 0.2, 0.3], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    texts = [CAPTION, CAPTION, CAPTION, "onewordonly", CAPTION]
    languages = ["en", "en", "en", "en", None]
    found = datacomp.image_based(languages, texts, features, centroids, np.array([0, 2]))
    assert found.tolist() == [True, False, True, False, False]


def test_nearest_centroids_in_blocks() -> None:
    generator = torch.Generator().manual_seed(0)
    features, centroids = torch.randn(9000, 8, generator=generator), torch.randn(50, 8, generator=generator)
    expected = (features.double() @ centroids.double().T).argmax(dim=1).numpy()
    assert (datacomp.nearest_centroids(features, centroids) == expected).mean() > 0.999
    assert datacomp.nearest_centroids(features[:0], centroids).shape == (0,)


def test_words_are_those_of_fasttext() -> None:
    # A line end is a word of its own there, and spaces of other scripts part nothing.
    assert datacomp.fasttext_words(["a b", "one\ntwo\n", "", "x\u2003y"]).tolist() == [2, 4, 0, 1]
