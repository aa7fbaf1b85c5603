"""The geometry of a space with intervals: every measure of held-out pairs, and what resampling them does to it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from nemo_mm_rank.evaluation.geometry import Array, matched_gap, modality_gap, potentials, ranks
from nemo_mm_rank.evaluation.statistics import Floats, Interval, Ints, bootstrap_interval, centred_interval

RECALLS = (1, 5, 10)


def geometry(
    data: Array, annotation: Array, modality: Sequence[str], seed: int, samples: int = 1000
) -> dict[str, Interval]:
    """Return the geometry of a space, with bootstrap intervals over its pairs.

    ``gap`` (`modality_gap` of the data), ``matched_gap``, ``uniformity`` (of the data), and, of both directions,
    ``recall_at_{1,5,10}_annotation_to_data`` and ``..._data_to_annotation``. Gaps are resampled within modalities.
    Recall is resampled over the searching pairs, the gallery as it is. Uniformity is a U-statistic, of which resampling
    takes the linear part (twice the row means; Hoeffding, 1948).

    Args:
        data: ``(n, d)`` floats of pairs that no fit has seen, normalised here.
        annotation: ``(n, d)`` floats of the same pairs.
        modality: ``(n,)`` names.
        seed: of the resampling.
        samples: how many.

    Raises:
        ValueError: wrong shapes, fewer than two pairs, or a value that is not finite.
    """
    left, right = (F.normalize(torch.as_tensor(side).float(), dim=1) for side in (data, annotation))
    n = len(left)
    found = _gaps(left, right, np.asarray(modality), seed, samples)
    row = potentials(left).numpy()
    found["uniformity"] = bootstrap_interval(partial(_log_linear, row, float(row.mean())), n, seed, samples)
    for name, places in zip(("annotation_to_data", "data_to_annotation"), ranks(left, right), strict=True):
        for k in RECALLS:
            hits = (places < k).numpy().astype(np.float64)
            found[f"recall_at_{k}_{name}"] = bootstrap_interval(partial(_mean, hits), n, seed, samples)
    return found


def _mean(values: Floats, rows: Ints) -> Floats:
    found: Floats = values[rows].mean(1)
    return found


def _log_linear(values: Floats, mean: float, rows: Ints) -> Floats:
    found: Floats = np.log(np.maximum(2 * values[rows].mean(1) - mean, np.finfo(np.float64).tiny))
    return found


def _gaps(
    data: torch.Tensor, annotation: torch.Tensor, modality: npt.NDArray[np.str_], seed: int, samples: int
) -> dict[str, Interval]:
    """Return both gaps; a resampled centroid is a mean weighted by how often each row was drawn."""
    rng = np.random.default_rng(seed)
    names = np.unique(modality)
    centroids = torch.empty(2, samples, len(names), data.shape[1], dtype=torch.float64)
    for place, name in enumerate(names):
        rows = np.flatnonzero(modality == name)
        drawn = torch.from_numpy(rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=samples))
        for side, vectors in enumerate((data, annotation)):
            centroids[side, :, place] = drawn.float() @ vectors[torch.from_numpy(rows)] / len(rows)
    matched = torch.linalg.vector_norm(centroids[0] - centroids[1], dim=2).mean(1)
    pairs = torch.cdist(centroids[0], centroids[0], compute_mode="donot_use_mm_for_euclid_dist").sum((1, 2))
    gap = pairs / max(1, len(names) * (len(names) - 1))
    n = len(data)
    return {
        "gap": centred_interval(modality_gap(data, modality), gap.numpy(), n),
        "matched_gap": centred_interval(matched_gap(data, annotation, modality), matched.numpy(), n),
    }
