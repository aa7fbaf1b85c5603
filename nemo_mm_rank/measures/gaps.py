"""Gaps without the noise of few pairs: unbiased estimates of squared distances between means, with intervals.

A mean of n vectors of total variance ``tr`` lies ``sqrt(tr / n)`` from where it should, so that two means are apart
wherever pairs are few. The squared norm of a mean is the mean of the products of all its vectors with all others and
with themselves; without those with themselves, it is right on average (a U-statistic; Hoeffding, 1948). Vectors of one
content (captions that are equal, say) are no more independent than one with itself, and are left out likewise.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from nemo_mm_rank.arrays import Floats, Ints
from nemo_mm_rank.measures.geometry import Array, as_matrix, as_pair, codes_of, potentials, ranks
from nemo_mm_rank.measures.statistics import Interval, bootstrap_interval, centred_interval

Contents = Sequence[str] | Sequence[int] | Array

SAMPLES = 256
_CELLS = 1 << 22  # drawn contents at a time


def gap_text(measures: Mapping[str, Any], name: str) -> str:
    """Return a gap of a projection's metrics as a table shows it: ``0.033 [0.012, 0.045]``; a dash where it is None."""
    value, low, high = (measures.get(key) for key in (name, f"{name}_low", f"{name}_high"))
    if value is None:
        return "\N{EN DASH}"
    return f"{value:.3f}" + ("" if low is None or high is None else f" [{low:.3f}, {high:.3f}]")


@dataclass(frozen=True)
class Square:
    """An unbiased estimate of a squared gap.

    Attributes:
        value: where there is no gap, it falls on either side of 0; NaN where no modality has two contents.
        resampled: ``(samples,)`` as `value` would come out for other pairs of the same kind.
        n: pairs.
    """

    value: float
    resampled: Floats
    n: int

    def gap(self, confidence: float = 0.95) -> Interval:
        """Return the gap: the root of the square's positive part, and of the ends of its bootstrap interval."""
        if np.isnan(self.value):
            return Interval(np.nan, np.nan, np.nan, self.n)
        square = centred_interval(self.value, self.resampled, self.n, confidence)
        value, low, high = (float(np.sqrt(max(0.0, end))) for end in (square.value, square.low, square.high))
        return Interval(value, low, high, self.n)


def pooled(squares: Sequence[Square]) -> Square:
    """Return the mean of independent estimates, those of folds, of which each has a space of its own.

    Raises:
        ValueError: no estimate at all.
    """
    if not squares:
        raise ValueError("a mean needs at least one estimate")
    known = [one for one in squares if not np.isnan(one.value)] or list(squares)
    value = float(np.mean([one.value for one in known]))
    resampled: Floats = np.mean([one.resampled for one in known], axis=0)
    return Square(value, resampled, sum(one.n for one in squares))


def matched_gap_square(
    data: Array,
    annotation: Array,
    modality: Sequence[str] | Sequence[int] | Array,
    contents: Contents | None = None,
    seed: int = 0,
    samples: int = SAMPLES,
) -> Square:
    """Return the mean over modalities of the squared norm of the mean residual, data less own annotation.

    With contents that all differ it is ``1 / M * sum of (|| mean ||^2 - tr / n)``, ``tr`` the trace of the residuals'
    sample covariance. A modality of one content is left out: nothing tells its noise. The root is, for n without
    bound, the mean distance from the data's centroid to that of their own annotations (but for the order of root and
    mean).

    Args:
        data: ``(n, d)`` floats, row i belonging to row i of ``annotation``.
        annotation: ``(n, d)`` floats.
        modality: ``(n,)`` names or integer codes.
        contents: ``(n,)`` equal for rows that are not independent (those of one annotation); default: all are.
        seed: of the resampling.
        samples: how many.

    Raises:
        ValueError: wrong shapes, no rows, or a value that is not finite.
    """
    left, right = as_pair(data, annotation)
    sums = _sums(left.double() - right.double(), modality, contents)
    return _square([one.mean for one in sums], [one.square() for one in sums], _errors(sums, seed, samples), len(left))


def modality_gap_square(
    embeddings: Array,
    modality: Sequence[str] | Sequence[int] | Array,
    contents: Contents | None = None,
    seed: int = 0,
    samples: int = SAMPLES,
) -> Square:
    """Return the mean over pairs of modalities of the squared distance of their means.

    With contents that all differ it is ``|| mean of a - mean of b ||^2 - tr_a / n_a - tr_b / n_b`` of each two
    (the poster has plain distances, arXiv 2605.01163). Where modalities have contents in common, that part of
    the means' noise which they share is known to be so. Modalities of one content are left out; 0 where there is but
    one modality.

    Args:
        embeddings: ``(n, d)`` floats.
        modality: ``(n,)`` names or integer codes.
        contents: ``(n,)`` equal for rows that are not independent, within a modality or between two; default: all are.
        seed: of the resampling.
        samples: how many.

    Raises:
        ValueError: wrong shapes, no rows, or a value that is not finite.
    """
    vectors = as_matrix(embeddings, "embeddings")
    if int(codes_of(modality, len(vectors)).max()) == 0:
        return Square(0.0, np.zeros(samples), len(vectors))
    sums = _sums(vectors.double(), modality, contents)
    errors = _errors(sums, seed, samples)
    own = [one.square() for one in sums]
    pairs = list(itertools.combinations(range(len(sums)), 2))
    return _square(
        [sums[a].mean - sums[b].mean for a, b in pairs],
        [own[a] + own[b] - 2 * sums[a].product(sums[b]) for a, b in pairs],
        torch.stack([errors[a] - errors[b] for a, b in pairs]) if pairs else errors[:0],
        len(vectors),
    )


@dataclass(frozen=True)
class _Sums:
    """The vectors of one modality, added up by content.

    Attributes:
        contents: ``(k,)`` ids, ascending.
        sums: ``(k, d)`` float64.
        counts: ``(k,)`` float64.
    """

    contents: Ints
    sums: torch.Tensor
    counts: torch.Tensor

    @property
    def mean(self) -> torch.Tensor:
        """``(d,)``"""
        return self.sums.sum(0) / self.counts.sum()

    def square(self) -> torch.Tensor:
        """Return the squared norm of the mean, by products of vectors of different contents alone."""
        products = self.sums.sum(0).square().sum() - self.sums.square().sum()
        return products / (self.counts.sum().square() - self.counts.square().sum())

    def product(self, other: _Sums) -> torch.Tensor:
        """Return the product of two means, by vectors of different contents alone."""
        _, mine, theirs = np.intersect1d(self.contents, other.contents, assume_unique=True, return_indices=True)
        first, second = torch.from_numpy(mine), torch.from_numpy(theirs)
        shared = (self.sums[first] * other.sums[second]).sum()
        pairs = self.counts.sum() * other.counts.sum() - (self.counts[first] * other.counts[second]).sum()
        if not pairs:  # one and the same content
            return self.mean @ other.mean
        return (self.sums.sum(0) @ other.sums.sum(0) - shared) / pairs


def _sums(
    vectors: torch.Tensor, modality: Sequence[str] | Sequence[int] | Array, contents: Contents | None
) -> list[_Sums]:
    """Return the sums of every modality of two contents or more."""
    vectors = vectors.cpu()
    codes = codes_of(modality, len(vectors))
    ids = np.arange(len(vectors)) if contents is None else codes_of(contents, len(vectors), "contents")
    found = []
    for code in range(int(codes.max()) + 1):
        rows = np.flatnonzero(codes == code)
        own, place, counts = np.unique(ids[rows], return_inverse=True, return_counts=True)
        if len(own) < 2:
            continue
        sums = vectors.new_zeros(len(own), vectors.shape[1])
        sums.index_add_(0, torch.from_numpy(place.reshape(-1)), vectors[torch.from_numpy(rows)])
        found.append(_Sums(own.astype(np.int64), sums, torch.from_numpy(counts.astype(np.float64))))
    return found


def _errors(sums: Sequence[_Sums], seed: int, samples: int) -> torch.Tensor:
    """Return errors of the means ``(k, samples, d)``: how often each content was drawn, times its part of the mean.

    A content is drawn for all modalities that have it at once.
    """
    if not sums:
        return torch.zeros(0, samples, 1)
    rng = np.random.default_rng(seed)
    ids = np.unique(np.concatenate([one.contents for one in sums]))
    places = [torch.from_numpy(np.searchsorted(ids, one.contents)) for one in sums]
    parts = []
    for one in sums:
        few = (len(one.contents) / (len(one.contents) - 1)) ** 0.5
        parts.append((few * (one.sums - one.counts[:, None] * one.mean) / one.counts.sum()).float())
    at_once = max(1, _CELLS // len(ids))
    found: list[list[torch.Tensor]] = [[] for _ in sums]
    for done in range(0, samples, at_once):
        drawn = _drawn(rng, min(at_once, samples - done), len(ids)).float()
        for errors, place, part in zip(found, places, parts, strict=True):
            errors.append(drawn[:, place] @ part)
    return torch.stack([torch.cat(errors) for errors in found])


def _drawn(rng: np.random.Generator, samples: int, n: int) -> torch.Tensor:
    """Return how often each of n is drawn, n times in each sample: ``(samples, n)``."""
    rows = rng.integers(n, size=(samples, n)) + n * np.arange(samples)[:, None]
    return torch.from_numpy(np.bincount(rows.reshape(-1), minlength=samples * n).reshape(samples, n))


def _square(means: Sequence[torch.Tensor], squares: Sequence[torch.Tensor], errors: torch.Tensor, n: int) -> Square:
    """Return the mean of unbiased squares of means ``(d,)``, resampled by the means' errors ``(k, samples, d)``."""
    if not means:
        return Square(np.nan, np.full(errors.shape[1], np.nan), n)
    around = []
    for mean, square, error in zip(means, squares, errors.double(), strict=True):
        length = mean.square().sum()
        # What is left of a mean once its noise is off: resampling about the whole mean would count that noise twice.
        left = mean * (square.clamp(min=0) / length.clamp(min=torch.finfo(torch.float64).tiny)).sqrt()
        around.append((left + error).square().sum(1))
    return Square(float(torch.stack(list(squares)).mean()), torch.stack(around).mean(0).numpy(), n)


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
