"""Features by hand on tiny vectors, and that no row's features depend on its neighbours."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nemo_mm_rank.config import CLASSICAL_MODELS
from nemo_mm_rank.frames import Vectors
from nemo_mm_rank.matching.features import (
    Pairs,
    SentenceFeatures,
    Space,
    WholeFeatures,
    bank_of,
    least,
    resemblance,
    usual,
)
from nemo_mm_rank.models.expert import load_encoder
from nemo_mm_rank.models.sentences import Spoken
from nemo_mm_rank.vectors import take

FUSED = Space("fused", "emb_fused", "text")
S = 0.5**0.5


def full(rows: list[list[float]]) -> Vectors:
    return Vectors.full(torch.tensor(rows))


def test_usual_cosines_by_hand() -> None:
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    rows = Vectors(
        torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0], [9.0, 9.0]]), torch.tensor([True, True, True, False])
    )
    found = usual(rows, bank)
    cosines = np.array([[1, 0, -1], [0, 1, 0], [S, S, -S]])
    np.testing.assert_allclose(found[:3], np.stack([cosines.mean(1), cosines.std(1)], 1), atol=1e-7)
    assert np.isnan(found[3]).all()
    assert np.isnan(usual(rows, torch.zeros((0, 2)))).all()


def test_resemblance_leaves_equal_ones_out() -> None:
    bank = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]), dim=1)
    found = resemblance(full([[3.0, 0.0], [0.0, -1.0]]), bank)
    # The first is twice in the bank: two others are left; the nearest five are as many as there are, the equal ones -1.
    np.testing.assert_allclose(found[0], [(S + 0) / 2, (S + 0 - 1 - 1) / 4], atol=1e-6)
    np.testing.assert_allclose(found[1], [(-S - 1) / 4] * 2, atol=1e-6)


def test_features_of_whole_annotations_by_hand() -> None:
    data, annotations = [[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]], [[1.0, 1.0], [0.0, 1.0], [-1.0, 0.0]]
    pairs = Pairs({"fused": full(data)}, {"text": full(annotations)})
    bank = bank_of(pairs, np.array([0, 2]), torch.zeros((0, 2)))
    whole = WholeFeatures([FUSED], "text", pairs, bank)
    found = whole(np.array([0, 0, 2]), np.array([0, 1, 2]))
    assert found.shape == (3, 7)
    np.testing.assert_allclose(found[:, 0], [S, 0, -S], atol=1e-7)
    # Data with the bank's annotations, which are the first and the third.
    np.testing.assert_allclose(found[0, 1:3], [np.mean([S, -1]), np.std([S, -1])], atol=1e-6)
    # The annotation with the bank's data.
    np.testing.assert_allclose(found[1, 3:5], [np.mean([0, S]), np.std([0, S])], atol=1e-6)
    # And with the bank's annotations.
    np.testing.assert_allclose(found[1, 5:], [np.mean([S, 0])] * 2, atol=1e-6)


def test_features_of_sentences_by_hand() -> None:
    pairs = Pairs({"fused": full([[1.0, 0.0], [0.0, 1.0]])}, {"text": full([[1.0, 0.0], [0.0, 1.0]])})
    said = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    bank = bank_of(pairs, np.array([0, 1]), said)
    whole = WholeFeatures([FUSED], "text", pairs, bank)
    owner = np.array([0, 0, 1])
    vectors = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    sentences = SentenceFeatures(whole, "text", owner, vectors, torch.tensor([[0.0, 5.0]]), bank)
    own = sentences.own()
    assert own.shape == (3, 5 + 1 + 2 + 1 + 2)
    np.testing.assert_allclose(own[:, 0], [1, 0, S], atol=1e-7)
    np.testing.assert_allclose(own[:, 5], [0, 0, 0], atol=1e-7)  # the rest of the first says the other thing
    assert own[:, 8].tolist() == [1, 1, 0]  # whether there is a rest
    added = sentences.added(np.array([0, 1]), np.array([0, 3]))
    np.testing.assert_allclose(added[:, 0], [1, 1], atol=1e-7)
    np.testing.assert_allclose(added[:, 5], [S, S], atol=1e-6)  # with all that stands there
    assert added[:, 8].tolist() == [1, 1]


def test_no_row_depends_on_its_neighbours() -> None:
    generator = torch.Generator().manual_seed(0)
    n, d = 700, 37
    there = torch.rand(n, generator=generator) > 0.1
    data = Vectors(torch.randn(n, d, generator=generator) * there[:, None], there)
    annotations = Vectors.full(torch.randn(n, d, generator=generator))
    pairs = Pairs({"fused": data}, {"text": annotations})
    bank = bank_of(pairs, np.arange(0, n, 6), torch.randn(90, d, generator=generator))

    def of(rows: np.ndarray) -> np.ndarray:
        some = Pairs({"fused": take(data, rows)}, {"text": take(annotations, rows)})
        whole = WholeFeatures([FUSED], "text", some, bank)
        every = np.arange(len(rows))
        spoken = SentenceFeatures(whole, "text", every, some.annotations["text"].values, torch.zeros((0, 0)), bank)
        return np.concatenate([whole(every, every), spoken.own()], axis=1)

    whole = of(np.arange(n))
    assert np.isnan(whole[~there.numpy(), 0]).all()
    order = np.random.default_rng(1).permutation(n)
    np.testing.assert_array_equal(of(order), whole[order])
    for rows in (np.array([3]), np.arange(10, 300), np.array([699, 0])):
        np.testing.assert_array_equal(of(rows), whole[rows])


def test_each_sentence_once_and_whose_it_is() -> None:
    encoder = load_encoder("text", {"text": CLASSICAL_MODELS["text"]})
    spoken = Spoken.of(["A dog. A cat. A dog.", "", "A cat", "It rains. A cat."], encoder)
    assert spoken.texts == ["A dog.", "A cat.", "A cat", "It rains."]
    assert spoken.place.tolist() == [0, 1, 2, 3, 1]
    assert spoken.owner.tolist() == [0, 0, 2, 3, 3]


def test_the_lowest_of_each() -> None:
    encoder = load_encoder("text", {"text": CLASSICAL_MODELS["text"]})
    spoken = Spoken.of(["A dog. A cat. A dog.", "", "A boat."], encoder)
    assert [spoken.texts[place] for place in spoken.place] == ["A dog.", "A cat.", "A boat."]  # each once
    assert spoken.owner.tolist() == [0, 0, 2]
    assert [found.tolist() for found in spoken.lowest(np.array([0.5, 0.1, 0.9]))] == [[0, 2], [1, 2]]
    assert [found.tolist() for found in spoken.lowest(np.array([0.1, 0.1, 0.9]))] == [[0, 2], [0, 2]]
    assert least(np.array([3.0, 1.0, 2.0]), np.array([0, 0, 2]), 3).tolist() == [
        1,
        pytest.approx(np.nan, nan_ok=True),
        2,
    ]
    assert Spoken.of(["", " "], encoder).vectors.shape == (0, encoder.dim)
