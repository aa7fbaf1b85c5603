"""What a projection is trained to do: find its own annotation, and carry no trace of its modality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

Modalities: TypeAlias = Sequence[str] | Sequence[int] | npt.NDArray[Any] | torch.Tensor
"""A name or an integer code for each row."""


def contrastive_loss(
    projected: torch.Tensor, anchors: torch.Tensor, temperature: float, groups: Modalities | None = None
) -> torch.Tensor:
    """Return the mean of the two cross entropies of finding one's own other half in the batch.

    ``(CE(S, i) + CE(S^T, i)) / 2`` with ``S = cosine(projected, anchors) / temperature`` (symmetric InfoNCE; poster,
    arXiv 2605.01163, and NeMo Curator's pull request 2069). Both sides are normalised here.

    Args:
        projected: ``(n, d)`` float.
        anchors: ``(n, d)`` float, row i belonging to row i of ``projected``.
        temperature: above 0.
        groups: ``(n,)`` ids; rows of one id (identical annotations) are not each other's negatives.

    Returns:
        A scalar; 0 where there is nothing to tell apart.

    Raises:
        ValueError: wrong shapes, a temperature that is not positive, or a value that is not finite.

    >>> alike = torch.eye(2)
    >>> round(contrastive_loss(alike, alike, temperature=1.0).item(), 4)  # log(1 + 1 / e)
    0.3133
    """
    check_vectors(projected, "projected")
    check_vectors(anchors, "anchors", projected)
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    twins = None
    if groups is not None:
        ids = codes(groups, len(projected), projected.device)
        if int(ids.max()) + 1 < len(ids):  # codes leave none out: where all differ, there are as many as rows
            twins = (ids[:, None] == ids).fill_diagonal_(False)
    loss: torch.Tensor = _CrossEntropies.apply(
        F.normalize(projected, dim=1), F.normalize(anchors, dim=1), temperature, twins
    )
    return loss


class _CrossEntropies(torch.autograd.Function):
    """Both cross entropies of a matrix of cosines, whose gradient is known in closed form: softmaxes less ones.

    About half of the time that two losses and their graph take.
    """

    @staticmethod
    def forward(
        ctx: Any, left: torch.Tensor, right: torch.Tensor, temperature: float, twins: torch.Tensor | None
    ) -> torch.Tensor:
        logits = (left @ right.T).div_(temperature)
        if twins is not None:
            logits.masked_fill_(twins, float("-inf"))
        rows, columns = logits.logsumexp(1, keepdim=True), logits.logsumexp(0, keepdim=True)
        loss = ((rows.view(-1) + columns.view(-1)) / 2 - logits.diagonal()).mean()
        slope = (logits - rows).exp_().add_(logits.sub_(columns).exp_())
        slope.diagonal().sub_(2)
        ctx.save_for_backward(left, right, slope.div_(2 * len(left) * temperature))
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        left, right, slope = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        of_left = slope @ right * gradients[0] if wanted[0] else None
        of_right = slope.T @ left * gradients[0] if wanted[1] else None
        return of_left, of_right, None, None


def alignment_loss(projected: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
    """Return the mean of one minus the cosine of each row with its own anchor.

    Half the alignment of Wang & Isola (2020, arXiv 2005.10242, section 4.2), whose squared distance it is for
    normalised vectors. Where `contrastive_loss` looks for what tells a pair from others, this looks for what they have
    in common with their annotations, which is what a broad objective asks for.

    Args:
        projected: ``(n, d)`` float.
        anchors: ``(n, d)`` float, row i belonging to row i of ``projected``.

    Returns:
        A scalar between 0 and 2.

    Raises:
        ValueError: wrong shapes, or a value that is not finite.

    >>> alignment_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])).item()
    1.0
    """
    check_vectors(projected, "projected")
    check_vectors(anchors, "anchors", projected)
    return (1 - F.cosine_similarity(projected, anchors, dim=1)).mean()


def cluster_bias_loss(projected: torch.Tensor, modality: Modalities) -> torch.Tensor:
    """Return how far the modalities' centroids lie from the common one.

    The squared differences between a modality's centroid and the centroid of all rows, averaged over dimensions and
    then over modalities (poster, arXiv 2605.01163, as written in NeMo Curator's pull request 2069). It acts on the
    vectors as given: on unnormalised ones, shrinking them satisfies it.

    Args:
        projected: ``(n, d)`` float.
        modality: ``(n,)`` names or integer codes.

    Returns:
        A scalar; 0 where there is but one modality.

    Raises:
        ValueError: wrong shapes, or a value that is not finite.
    """
    check_vectors(projected, "projected")
    member, count = _membership(modality, projected)
    if len(count) < 2:
        return projected.sum() * 0
    centroids = (member @ projected) / count[:, None]
    return (centroids - projected.mean(0)).square().mean()


def scale_bias_loss(projected: torch.Tensor, modality: Modalities) -> torch.Tensor:
    """Return how much the modalities differ in spread.

    A spread is the mean distance of rows to their centroid; the loss is the squared difference between a modality's
    spread and that of all rows, averaged over modalities (poster, arXiv 2605.01163, as written in NeMo Curator's
    pull request 2069). Like `cluster_bias_loss`, it acts on the vectors as given.

    Args:
        projected: ``(n, d)`` float.
        modality: ``(n,)`` names or integer codes.

    Returns:
        A scalar; 0 where there is but one modality.

    Raises:
        ValueError: wrong shapes, or a value that is not finite.
    """
    check_vectors(projected, "projected")
    member, count = _membership(modality, projected)
    if len(count) < 2:
        return projected.sum() * 0
    centroids = (member @ projected) / count[:, None]
    spread = (member @ _lengths(projected - member.T @ centroids)) / count
    return (spread - _lengths(projected - projected.mean(0)).mean()).square().mean()


def residual_bias_loss(projected: torch.Tensor, anchors: torch.Tensor, modality: Modalities) -> torch.Tensor:
    """Return what the modality alone predicts of the error.

    The squared norm of each modality's mean residual (projected minus its own anchor, both normalised), averaged
    over modalities. Unlike a distance between centroids it leaves alone what modalities truly differ in, their
    content, because each row is measured against its own annotation (this project's term).

    Args:
        projected: ``(n, d)`` float.
        anchors: ``(n, d)`` float, row i belonging to row i of ``projected``.
        modality: ``(n,)`` names or integer codes.

    Returns:
        A scalar between 0 and 4.

    Raises:
        ValueError: wrong shapes, or a value that is not finite.
    """
    check_vectors(projected, "projected")
    check_vectors(anchors, "anchors", projected)
    member, count = _membership(modality, projected)
    residual = F.normalize(projected, dim=1) - F.normalize(anchors, dim=1)
    return ((member @ residual) / count[:, None]).square().sum(1).mean()


def codes(names: Modalities, rows: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return names as integer codes ``0 .. m - 1``: ``(rows,)`` int64 on ``device``.

    Raises:
        ValueError: where there is not exactly one for each row.
    """
    if isinstance(names, torch.Tensor):
        ids: torch.Tensor = torch.unique(names.to(device), return_inverse=True)[1]
    else:
        ids = torch.from_numpy(np.unique(np.asarray(names), return_inverse=True)[1].reshape(-1)).to(device)
    if ids.shape != (rows,):
        raise ValueError(f"there must be one name for each of {rows} rows, not {len(names)}")
    return ids


def _membership(modality: Modalities, projected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``(m, n)`` ones where a row is of a modality, and the ``(m,)`` counts, both in the vectors' dtype."""
    member = F.one_hot(codes(modality, len(projected), projected.device)).T.to(projected.dtype)
    return member, member.sum(1)


def _lengths(differences: torch.Tensor) -> torch.Tensor:
    # The gradient of a norm is undefined at zero, where a modality has one member: nothing is learnt from it.
    squares = differences.square().sum(1)
    there = squares > 0
    return torch.where(there, torch.where(there, squares, 1).sqrt(), 0)


def check_vectors(vectors: torch.Tensor, name: str, like: torch.Tensor | None = None) -> None:
    """Raise `ValueError` for what is no matrix, of another shape than ``like``, or not finite."""
    if vectors.ndim != 2 or not len(vectors):
        raise ValueError(f"{name} must be a matrix with at least one row, not of shape {tuple(vectors.shape)}")
    if like is not None and vectors.shape != like.shape:
        raise ValueError(f"{name} must be of shape {tuple(like.shape)}, not {tuple(vectors.shape)}")
    # A sum is one pass; it tells of a value that is not finite, or of large ones that are to be looked at.
    if not bool(torch.isfinite(vectors.detach().sum())) and not bool(torch.isfinite(vectors).all()):
        raise ValueError(f"{name}: NaN or infinite values")
