"""How far modalities lie apart in an embedding space, and how well each pair finds its other half."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

Array: TypeAlias = torch.Tensor | npt.NDArray[Any]

# Similarities held at a time; the whole matrix of a pool of n pairs would be n * n.
_CELLS = 1 << 22


def recalls(data: Array, annotation: Array, ks: Iterable[int]) -> dict[int, dict[str, float]]:
    """Return for each ``k`` the share of pairs whose other half is among the ``k`` most similar by cosine.

    Of equally similar ones, the lower index comes first. Similarities are computed in chunks of bounded size.

    Args:
        data: ``(n, d)`` floats, row i belonging to row i of ``annotation``.
        annotation: ``(n, d)`` floats.
        ks: each at least 1.

    Returns:
        ``annotation_to_data`` (annotations search the data), ``data_to_annotation``, and their ``average``.

    Raises:
        ValueError: wrong shapes, no rows, a ``k`` below 1, or a value that is not finite.
    """
    wanted = list(ks)
    if min(wanted) < 1:
        raise ValueError(f"k must be at least 1, not {min(wanted)}")
    there, back = ranks(data, annotation)
    found = {}
    for k in wanted:
        shares = float((there < k).double().mean()), float((back < k).double().mean())
        found[k] = {"annotation_to_data": shares[0], "data_to_annotation": shares[1], "average": sum(shares) / 2}
    return found


def potentials(embeddings: Array, t: float = 2.0) -> torch.Tensor:
    """Return ``(n,)`` float64: each row's mean of ``exp(-t |x - y|^2)`` over all other rows, normalised.

    The logarithm of their mean is the uniformity (Wang and Isola, 2020, section 4.1.2): the lower, the more evenly the
    directions fill the sphere; 0 where all are one.

    Args:
        embeddings: ``(n, d)`` floats, normalised here.
        t: of the Gaussian potential.

    Raises:
        ValueError: wrong shape, fewer than two rows, or a value that is not finite.
    """
    rows = F.normalize(as_matrix(embeddings, "embeddings"), dim=1)
    n = len(rows)
    if n < 2:
        raise ValueError("uniformity needs at least two rows")
    step = max(1, _CELLS // n)
    sums = [
        # On the sphere |x - y|^2 = 2 - 2 xy. A row's own potential is 1 and not counted.
        torch.exp(-2 * t * (1 - rows[first : first + step] @ rows.T)).double().sum(1) - 1
        for first in range(0, n, step)
    ]
    return torch.cat(sums) / (n - 1)


def average_precision(scores: Array | Sequence[float], relevant: Array | Sequence[bool]) -> float:
    """Return the mean, over the relevant items, of the precision at their rank (ties: lower index first).

    Args:
        scores: ``(n,)`` floats, higher is better.
        relevant: ``(n,)`` bool.

    Raises:
        ValueError: wrong shapes, a score that is NaN, or nothing relevant.
    """
    values, hits = np.asarray(scores, dtype=np.float64), np.asarray(relevant, dtype=bool)
    if values.ndim != 1 or values.shape != hits.shape:
        raise ValueError(f"scores and relevant must be two vectors of one length, not {values.shape} and {hits.shape}")
    if np.isnan(values).any():
        raise ValueError("scores: NaN")
    if not hits.any():
        raise ValueError("average precision needs at least one relevant item")
    found = hits[np.argsort(-values, kind="stable")]
    ranks = np.flatnonzero(found) + 1
    return float(np.mean(np.arange(1, len(ranks) + 1) / ranks))


def ranks(data: Array, annotation: Array) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how many come before each pair's other half, by cosine, lower index first of equal ones.

    Args:
        data: ``(n, d)`` floats, row i belonging to row i of ``annotation``.
        annotation: ``(n, d)`` floats.

    Returns:
        Twice ``(n,)`` int64: where annotations search the data, and where data search the annotations.

    Raises:
        ValueError: wrong shapes, no rows, or a value that is not finite.
    """
    left, right = (F.normalize(side, dim=1) for side in as_pair(data, annotation))
    return _ranks(right, left), _ranks(left, right)


def _ranks(queries: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    """Return for each query i the number of items that come before item i: ``(n,)`` int64."""
    n = len(queries)
    index = torch.arange(n, device=queries.device)
    step = max(1, _CELLS // n)
    ranks = []
    for first in range(0, n, step):
        rows = index[first : first + step]
        last = first + len(rows)
        similarity = queries[rows] @ items.T
        own = similarity[index[: len(rows)], rows][:, None]
        before = similarity > own
        # Of equal ones, those of a lower index come before.
        before[:, :first] = similarity[:, :first] >= own
        before[:, first:last] |= (similarity[:, first:last] == own).tril(-1)
        ranks.append(before.view(torch.uint8).sum(1, dtype=torch.int32))  # ten times as fast as of bools
    return torch.cat(ranks).long()


def as_matrix(values: Array, name: str) -> torch.Tensor:
    """Return ``(n, d)`` floats as a tensor of at least single precision.

    Raises:
        ValueError: another shape, no rows, or a value that is not finite; ``name`` says whose.
    """
    matrix = torch.as_tensor(values)
    if matrix.ndim != 2 or not len(matrix):
        raise ValueError(f"{name} must be a matrix with at least one row, not of shape {tuple(matrix.shape)}")
    if not matrix.is_floating_point():
        matrix = matrix.double()
    elif matrix.dtype in (torch.float16, torch.bfloat16):
        matrix = matrix.float()
    if not bool(torch.isfinite(matrix).all()):
        raise ValueError(f"{name}: NaN or infinite values")
    return matrix


def as_pair(data: Array, annotation: Array) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both sides of pairs as tensors of one type, on the device of the data.

    Raises:
        ValueError: shapes that differ, no rows, or a value that is not finite.
    """
    left, right = as_matrix(data, "data"), as_matrix(annotation, "annotation")
    if left.shape != right.shape:
        raise ValueError(f"data and annotation must be of one shape, not {tuple(left.shape)} and {tuple(right.shape)}")
    dtype = torch.promote_types(left.dtype, right.dtype)
    return left.to(dtype), right.to(left.device, dtype)


def codes_of(names: Sequence[str] | Sequence[int] | Array, n: int, what: str = "modality") -> npt.NDArray[np.int64]:
    """Return ``(n,)`` codes 0 .. M - 1 of names or numbers, in their order.

    Raises:
        ValueError: where there is not exactly one for each row; ``what`` says of what.
    """
    values = names.cpu().numpy() if isinstance(names, torch.Tensor) else np.asarray(names)
    if values.shape != (n,):
        raise ValueError(f"{what} must name each of {n} rows, not be of shape {values.shape}")
    return np.unique(values, return_inverse=True)[1].reshape(-1).astype(np.int64)
