"""The measures as they are defined, for all pairs of a pool: what estimates from few pairs are compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nemo_mm_rank.measures.geometry import Array, as_matrix, as_pair, codes_of, potentials, recalls

Names = Sequence[str] | Sequence[int] | Array


def modality_gap(embeddings: Array, modality: Names) -> float:
    """Return the mean distance between the centroids of different modalities.

    ``1 / (M (M - 1)) * sum over ordered pairs a != b of || mean of a - mean of b ||`` (poster, arXiv 2605.01163).
    The embeddings are taken as they are: normalise them first where spaces are to be compared. Contents differ by
    modality, so a gap of zero is not the aim; `matched_gap` takes the content out.

    Args:
        embeddings: ``(n, d)`` floats.
        modality: ``(n,)`` names or integer codes; M of them differ.

    Returns:
        The gap in the unit of the embeddings; 0 where there are fewer than two modalities.

    Raises:
        ValueError: wrong shapes, no rows, or a value that is not finite.
    """
    centroids = _centroids(as_matrix(embeddings, "embeddings"), modality)
    count = len(centroids)
    if count < 2:
        return 0.0
    return float(torch.cdist(centroids, centroids, compute_mode="donot_use_mm_for_euclid_dist").sum()) / (
        count * (count - 1)
    )


def matched_gap(data: Array, annotation: Array, modality: Names) -> float:
    """Return the mean over modalities of the distance from the data's centroid to that of their own annotations.

    What remains of the gap when the content is the same on both sides (this project's measure).

    Args:
        data: ``(n, d)`` floats, row i belonging to row i of ``annotation``.
        annotation: ``(n, d)`` floats.
        modality: ``(n,)`` names or integer codes.

    Raises:
        ValueError: wrong shapes, no rows, or a value that is not finite.
    """
    left, right = as_pair(data, annotation)
    return float(torch.linalg.vector_norm(_centroids(left, modality) - _centroids(right, modality), dim=1).mean())


def recall_at_k(data: Array, annotation: Array, k: int) -> dict[str, float]:
    """Return the share of pairs whose other half is among the ``k`` most similar by cosine.

    Of equally similar ones, the lower index comes first. Similarities are computed in chunks of bounded size.

    Args:
        data: ``(n, d)`` floats, row i belonging to row i of ``annotation``.
        annotation: ``(n, d)`` floats.
        k: at least 1.

    Returns:
        ``annotation_to_data`` (annotations search the data), ``data_to_annotation``, and their ``average``.

    Raises:
        ValueError: wrong shapes, no rows, ``k`` below 1, or a value that is not finite.
    """
    return recalls(data, annotation, [k])[k]


def uniformity(embeddings: Array, t: float = 2.0) -> float:
    """Return ``log mean exp(-t |x - y|^2)`` over all pairs of different rows (Wang and Isola, 2020, section 4.1.2).

    The lower, the more evenly the directions fill the sphere; 0 where all are one.

    Args:
        embeddings: ``(n, d)`` floats, normalised here.
        t: of the Gaussian potential.

    Raises:
        ValueError: wrong shape, fewer than two rows, or a value that is not finite.
    """
    return float(potentials(embeddings, t).mean().log())


def _centroids(embeddings: torch.Tensor, modality: Names) -> torch.Tensor:
    index = torch.from_numpy(codes_of(modality, len(embeddings))).to(embeddings.device)
    count = torch.bincount(index)
    # Summed in double precision: a pool has millions of rows.
    sums = torch.zeros(len(count), embeddings.shape[1], dtype=torch.float64, device=embeddings.device)
    sums.index_add_(0, index, embeddings.double())
    return sums / count[:, None]
