"""Geometry with intervals: the value is the measure's own, and the interval is that of a plain bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nemo_mm_rank.measures.gaps import geometry, matched_gap_square, modality_gap_square
from tests.measures.plain import matched_gap, modality_gap, recall_at_k, uniformity


def a_space(n: int = 120) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(n, 8, generator=generator)
    annotation = data + 0.5 * torch.randn(n, 8, generator=generator)
    modality = ["image" if row % 3 else "text" for row in range(n)]
    data[[row for row in range(n) if not row % 3]] += 1.0
    return *(torch.nn.functional.normalize(side, dim=1) for side in (data, annotation)), modality  # type: ignore[return-value]


def test_uniformity_by_hand() -> None:
    # Two opposite points: |x - y|^2 = 4; three at right angles: 2.
    assert uniformity(np.array([[1.0, 0.0], [-2.0, 0.0]])) == pytest.approx(-8)
    assert uniformity(np.eye(3)) == pytest.approx(-4)
    assert uniformity(np.ones((5, 3))) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="two rows"):
        uniformity(np.ones((1, 3)))


def test_uniformity_is_that_of_the_paper() -> None:
    data, _, _ = a_space()
    expected = torch.pdist(data.double()).pow(2).mul(-2).exp().mean().log()  # the authors' code
    assert uniformity(data) == pytest.approx(float(expected), rel=1e-5)


def test_values_are_the_measures_own() -> None:
    data, annotation, modality = a_space()
    found = geometry(data, annotation, modality, seed=0, samples=200)
    assert found["gap"].value == pytest.approx(modality_gap_square(data, modality).gap().value)
    assert found["matched_gap"].value == pytest.approx(matched_gap_square(data, annotation, modality).gap().value)
    assert found["uniformity"].value == pytest.approx(uniformity(data))
    for k in (1, 5, 10):
        recall = recall_at_k(data, annotation, k)
        for way in ("annotation_to_data", "data_to_annotation"):
            assert found[f"recall_at_{k}_{way}"].value == pytest.approx(recall[way])
    for interval in found.values():
        assert interval.low <= interval.value <= interval.high
        assert interval.n == 120
    assert geometry(data, annotation, modality, seed=0, samples=200) == found


def test_offsets_of_folds_do_not_make_up_for_each_other() -> None:
    data, annotation, modality = a_space()
    folds = np.arange(120) % 2
    shifted = data + 0.5 * torch.from_numpy(np.where(folds[:, None] == 0, 1.0, -1.0)).float()
    together = geometry(shifted, annotation, modality, seed=0, samples=50)["matched_gap"].value
    apart = geometry(shifted, annotation, modality, seed=0, samples=50, folds=folds)["matched_gap"].value
    assert apart > 2 * together


def test_intervals_of_gaps_are_as_wide_as_those_of_resampled_rows() -> None:
    data, annotation, modality = a_space()
    names = np.array(modality)
    rng = np.random.default_rng(1)
    groups = [np.flatnonzero(names == name) for name in ("image", "text")]
    gaps, matched = [], []
    for _ in range(1500):
        rows = np.concatenate([rng.choice(group, len(group)) for group in groups])
        gaps.append(modality_gap(data[rows], names[rows]))
        matched.append(matched_gap(data[rows], annotation[rows], names[rows]))
    found = geometry(data, annotation, modality, seed=0, samples=1500)
    width = found["gap"].high - found["gap"].low
    assert width == pytest.approx(np.diff(np.quantile(gaps, [0.025, 0.975]))[0], rel=0.1)
    assert found["gap"].low < float(modality_gap(data, names)) < found["gap"].high
