"""The geometry of a space with intervals: every measure of held-out pairs, and what resampling them does to it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from nemo_mm_rank.arrays import Floats, Ints
from nemo_mm_rank.evaluation.gaps import matched_gap_square, modality_gap_square, pooled
from nemo_mm_rank.evaluation.geometry import Array, codes_of, potentials, ranks
from nemo_mm_rank.evaluation.statistics import Interval, bootstrap_interval

RECALLS = (1, 5, 10)


def geometry(
    data: Array,
    annotation: Array,
    modality: Sequence[str],
    seed: int,
    samples: int = 1000,
    folds: npt.NDArray[np.int64] | None = None,
    contents: Sequence[str] | None = None,
) -> dict[str, Interval]:
    """Return the geometry of a space, with bootstrap intervals over its pairs.

    ``gap`` and ``matched_gap`` (both as `gaps` has them, without the noise of few pairs), ``uniformity`` (of the data),
    and, of both directions, ``recall_at_{1,5,10}_annotation_to_data`` and ``..._data_to_annotation``. Gaps are
    resampled within modalities, recall over the searching pairs, the gallery as it is. Uniformity is a U-statistic, of
    which resampling takes the linear part (twice the row means; Hoeffding, 1948).

    Args:
        data: ``(n, d)`` floats of pairs that no fit has seen, normalised here.
        annotation: ``(n, d)`` floats of the same pairs.
        modality: ``(n,)`` names.
        seed: of the resampling.
        samples: how many.
        folds: ``(n,)`` of each pair, where each fold was projected by a network of its own, whose offsets are its own:
            gaps are measured in each; default: all pairs are of one space.
        contents: ``(n,)`` annotations, say: pairs of equal ones are not independent (`gaps`); default: all are.

    Raises:
        ValueError: wrong shapes, fewer than two pairs, or a value that is not finite.
    """
    left, right = (F.normalize(torch.as_tensor(side).float(), dim=1) for side in (data, annotation))
    n, names = len(left), np.asarray(modality)
    parts = [np.arange(n)] if folds is None else [np.flatnonzero(folds == fold) for fold in np.unique(folds)]
    same = np.arange(n) if contents is None else codes_of(contents, n, "contents")
    squares = {
        "gap": [modality_gap_square(left[rows], names[rows], same[rows], seed, samples) for rows in parts],
        "matched_gap": [
            matched_gap_square(left[rows], right[rows], names[rows], same[rows], seed, samples) for rows in parts
        ],
    }
    found = {name: pooled(ones).gap() for name, ones in squares.items()}
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
