"""The objective's terms against hand-computed values and their invariances."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_mm_rank.projection import (
    alignment_loss,
    cluster_bias_loss,
    contrastive_loss,
    residual_bias_loss,
    scale_bias_loss,
)

SEEDS = st.integers(0, 10_000)


def _random(seed: int, n: int, d: int = 4) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_contrastive_by_hand() -> None:
    projected, anchors = torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    # Cosines / .5: [[1.2, 0], [1.6, 2]].
    rows = math.log(math.exp(1.2) + 1) - 1.2 + math.log(math.exp(1.6) + math.exp(2)) - 2
    columns = math.log(math.exp(1.2) + math.exp(1.6)) - 1.2 + math.log(1 + math.exp(2)) - 2
    assert float(contrastive_loss(projected, anchors, 0.5)) == pytest.approx((rows + columns) / 4, abs=1e-6)


@given(SEEDS, st.integers(1, 12), st.sampled_from([1e-3, 0.05, 2.0]))
@settings(max_examples=30, deadline=None)
def test_the_gradient_of_contrastive_is_that_of_the_cross_entropies(seed: int, n: int, temperature: float) -> None:
    projected, anchors = (_random(seed + more, n).requires_grad_() for more in (0, 1))
    groups = torch.from_numpy(np.random.default_rng(seed).integers(n, size=n))
    logits = F.normalize(projected, dim=1) @ F.normalize(anchors, dim=1).T / temperature
    logits = logits.masked_fill((groups[:, None] == groups).fill_diagonal_(False), float("-inf"))
    own = torch.arange(n)
    plain = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    found = contrastive_loss(projected, anchors, temperature, groups)
    torch.testing.assert_close(found, plain)
    torch.testing.assert_close(
        torch.autograd.grad(3 * found, (projected, anchors)), torch.autograd.grad(3 * plain, (projected, anchors))
    )


@given(SEEDS, st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_contrastive_is_the_mean_of_two_cross_entropies(seed: int, n: int) -> None:
    projected, anchors = _random(seed, n), _random(seed + 1, n)
    cosine = F.normalize(projected, dim=1) @ F.normalize(anchors, dim=1).T / 0.1
    both = [F.cross_entropy(side, torch.arange(n)) for side in (cosine, cosine.T)]
    loss = contrastive_loss(projected, anchors, 0.1)
    assert float(loss) == pytest.approx(float(sum(both)) / 2)
    assert float(contrastive_loss(projected * 7, anchors / 3, 0.1)) == pytest.approx(float(loss))
    assert float(contrastive_loss(anchors, projected, 0.1)) == pytest.approx(float(loss))
    distinct = [f"annotation {row}" for row in range(n)]
    assert float(contrastive_loss(projected, anchors, 0.1, distinct)) == pytest.approx(float(loss))


@given(SEEDS, st.integers(2, 12))
@settings(max_examples=30, deadline=None)
def test_identical_annotations_are_never_negatives(seed: int, n: int) -> None:
    groups = np.random.default_rng(seed).integers(0, max(2, n // 2), n)
    projected = _random(seed, n)
    anchors = _random(seed + 1, n)[groups]  # one anchor for each annotation
    logits = F.normalize(projected, dim=1) @ F.normalize(anchors, dim=1).T / 0.2
    rows, columns = [], []
    for i in range(n):
        rivals = [j for j in range(n) if j == i or groups[j] != groups[i]]
        rows.append(torch.logsumexp(logits[i, rivals], 0) - logits[i, i])
        columns.append(torch.logsumexp(logits[rivals, i], 0) - logits[i, i])
    expected = (torch.stack(rows).mean() + torch.stack(columns).mean()) / 2
    loss = contrastive_loss(projected, anchors, 0.2, torch.from_numpy(groups))
    assert float(loss) == pytest.approx(float(expected))


def test_one_annotation_leaves_nothing_to_tell_apart() -> None:
    projected = _random(0, 3).requires_grad_()
    loss = contrastive_loss(projected, _random(1, 1).expand(3, -1), 0.1, ["same"] * 3)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0.0
    assert projected.grad is not None
    assert float(projected.grad.abs().max()) == 0.0


def test_alignment_by_hand() -> None:
    projected, anchors = torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([[0.6, 0.8], [0.0, -1.0]])
    assert float(alignment_loss(projected, anchors)) == pytest.approx((0.4 + 2) / 2)


@given(SEEDS, st.integers(1, 12))
@settings(max_examples=20, deadline=None)
def test_alignment_is_half_the_squared_distance_of_normalised_vectors(seed: int, n: int) -> None:
    projected, anchors = _random(seed, n), _random(seed + 1, n)
    distances = (F.normalize(projected, dim=1) - F.normalize(anchors, dim=1)).square().sum(1)
    assert float(alignment_loss(projected, anchors)) == pytest.approx(float(distances.mean()) / 2)
    # With one modality, what its mean does not explain is left: the residual bias is never larger.
    assert (
        float(residual_bias_loss(projected, anchors, ["a"] * n))
        <= 2 * float(alignment_loss(projected, anchors)) + 1e-12
    )


def test_cluster_bias_by_hand() -> None:
    projected = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    # Centroids (2, 0) and (0, 4), of all (4/3, 4/3): squares (4/9 + 16/9) / 2 and (16/9 + 64/9) / 2.
    assert float(cluster_bias_loss(projected, ["a", "a", "b"])) == pytest.approx((20 / 18 + 80 / 18) / 2)


def test_scale_bias_by_hand() -> None:
    projected = torch.tensor([[0.0], [2.0], [4.0], [10.0]])
    # Spreads 1 and 3; of all, about 4: (4 + 2 + 0 + 6) / 4 = 3.
    assert float(scale_bias_loss(projected, [0, 0, 1, 1])) == pytest.approx(((1 - 3) ** 2 + (3 - 3) ** 2) / 2)


def test_residual_bias_by_hand() -> None:
    projected = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, -5.0]])
    anchors = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 3.0]])
    # a: residuals (1, -1) and (-1, 1) cancel; b: (0, -2).
    assert float(residual_bias_loss(projected, anchors, ["a", "a", "b"])) == pytest.approx((0 + 4) / 2)
    assert float(residual_bias_loss(anchors * 9, anchors, ["a", "a", "b"])) == pytest.approx(0, abs=1e-12)


@given(SEEDS, st.integers(1, 20), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_biases_do_not_depend_on_order_or_names(seed: int, n: int, kinds: int) -> None:
    projected, anchors = _random(seed, n), _random(seed + 1, n)
    rng = np.random.default_rng(seed)
    modality, order = rng.integers(0, kinds, n), torch.from_numpy(rng.permutation(n))
    names = [f"kind {9 - int(code)}" for code in modality[order.numpy()]]
    for loss in (cluster_bias_loss, scale_bias_loss):
        assert float(loss(projected[order], names)) == pytest.approx(float(loss(projected, modality)), abs=1e-12)
        # Both are blind to where the whole space lies.
        assert float(loss(projected + 3, modality)) == pytest.approx(float(loss(projected, modality)), abs=1e-9)
    residual = residual_bias_loss(projected, anchors, torch.from_numpy(modality))
    assert float(residual_bias_loss(projected[order], anchors[order], names)) == pytest.approx(float(residual))
    assert 0 <= float(residual) <= 4 + 1e-9


def test_shrinking_satisfies_cluster_and_scale_but_not_residual() -> None:
    projected, anchors, modality = _random(0, 8), _random(1, 8), ["a", "b"] * 4
    small = projected / 1000
    assert float(cluster_bias_loss(small, modality)) < 1e-5 * float(cluster_bias_loss(projected, modality))
    assert float(scale_bias_loss(small, modality)) < 1e-5 * float(scale_bias_loss(projected, modality))
    assert float(residual_bias_loss(small, anchors, modality)) == pytest.approx(
        float(residual_bias_loss(projected, anchors, modality))
    )


@pytest.mark.parametrize("loss", [cluster_bias_loss, scale_bias_loss])
def test_one_modality_has_no_bias(loss: Callable[..., torch.Tensor]) -> None:
    projected = _random(0, 4).requires_grad_()
    value = loss(projected, ["image"] * 4)
    value.backward()  # type: ignore[no-untyped-call]
    assert float(value.detach()) == 0.0


def test_a_modality_with_one_member_has_finite_gradients() -> None:
    projected, anchors, modality = _random(0, 5).requires_grad_(), _random(1, 5), ["a", "a", "b", "c", "c"]
    total = (
        cluster_bias_loss(projected, modality)
        + scale_bias_loss(projected, modality)
        + residual_bias_loss(projected, anchors, modality)
        + contrastive_loss(projected, anchors, 0.07)
    )
    total.backward()  # type: ignore[no-untyped-call]
    assert projected.grad is not None
    assert bool(torch.isfinite(projected.grad).all())


BROKEN = torch.tensor([[0.0, math.nan], [1.0, 0.0]])
GOOD = torch.eye(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: contrastive_loss(BROKEN, GOOD, 0.1), "projected: NaN"),
        (lambda: contrastive_loss(GOOD, BROKEN, 0.1), "anchors: NaN"),
        (lambda: contrastive_loss(GOOD, torch.eye(3), 0.1), "anchors must be of shape"),
        (lambda: contrastive_loss(GOOD, GOOD, 0.0), "temperature must be positive"),
        (lambda: contrastive_loss(GOOD, GOOD, 0.1, [1]), "one name for each of 2 rows"),
        (lambda: contrastive_loss(torch.zeros(2), torch.zeros(2), 0.1), "must be a matrix"),
        (lambda: alignment_loss(GOOD, BROKEN), "anchors: NaN"),
        (lambda: alignment_loss(GOOD, torch.eye(3)), "anchors must be of shape"),
        (lambda: cluster_bias_loss(BROKEN, ["a", "b"]), "projected: NaN"),
        (lambda: cluster_bias_loss(GOOD, ["a", "b", "c"]), "one name for each of 2 rows"),
        (lambda: scale_bias_loss(BROKEN, ["a", "b"]), "projected: NaN"),
        (lambda: scale_bias_loss(GOOD[:0], []), "at least one row"),
        (lambda: residual_bias_loss(GOOD, BROKEN, ["a", "b"]), "anchors: NaN"),
        (lambda: residual_bias_loss(GOOD, GOOD, torch.zeros(2, 2)), "one name for each of 2 rows"),
    ],
)
def test_mistakes_are_named(call: Callable[[], torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
