"""Gaps without the noise of few pairs: unbiased estimates of squared distances between means, with intervals.

A mean of n vectors of total variance ``tr`` lies ``sqrt(tr / n)`` from where it should, so that two means are apart
wherever pairs are few. The squared distance is too large by ``tr / n`` on average, which can be taken off.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from nemo_mm_rank.evaluation.geometry import Array, as_matrix, as_pair, codes_of
from nemo_mm_rank.evaluation.statistics import Floats, Interval, centred_interval

SAMPLES = 256
_CELLS = 1 << 22  # drawn rows at a time


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
        value: where there is no gap, it falls on either side of 0; NaN where no modality has two pairs.
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
    seed: int = 0,
    samples: int = SAMPLES,
) -> Square:
    """Return the mean over modalities of the squared norm of the mean residual, data less own annotation.

    ``1 / M * sum of (|| mean ||^2 - tr / n)``, ``tr`` the trace of the residuals' sample covariance. A modality of one
    pair is left out: nothing tells its noise. The root is what `geometry.matched_gap` is for n without bound (but for
    the order of root and mean).

    Args:
        data: ``(n, d)`` floats, row i belonging to row i of ``annotation``.
        annotation: ``(n, d)`` floats.
        modality: ``(n,)`` names or integer codes.
        seed: of the resampling.
        samples: how many.

    Raises:
        ValueError: wrong shapes, no rows, or a value that is not finite.
    """
    left, right = as_pair(data, annotation)
    means, noise, errors = _moments(left.double() - right.double(), codes_of(modality, len(left)), seed, samples)
    return _square(means, noise, errors, len(left))


def modality_gap_square(
    embeddings: Array, modality: Sequence[str] | Sequence[int] | Array, seed: int = 0, samples: int = SAMPLES
) -> Square:
    """Return the mean over pairs of modalities of the squared distance of their means.

    ``|| mean of a - mean of b ||^2 - tr_a / n_a - tr_b / n_b`` of each two (`geometry.modality_gap` has the poster's
    plain distances). Modalities of one pair are left out; 0 where there are fewer than two modalities.

    Args:
        embeddings: ``(n, d)`` floats.
        modality: ``(n,)`` names or integer codes.
        seed: of the resampling.
        samples: how many.

    Raises:
        ValueError: wrong shapes, no rows, or a value that is not finite.
    """
    vectors = as_matrix(embeddings, "embeddings")
    codes = codes_of(modality, len(vectors))
    if int(codes.max()) == 0:
        return Square(0.0, np.zeros(samples), len(vectors))
    means, noise, errors = _moments(vectors.double(), codes, seed, samples)
    first, second = np.array(list(itertools.combinations(range(len(means)), 2)), dtype=np.int64).reshape(-1, 2).T
    return _square(
        means[first] - means[second], noise[first] + noise[second], errors[first] - errors[second], len(vectors)
    )


def _square(means: torch.Tensor, noise: torch.Tensor, errors: torch.Tensor, n: int) -> Square:
    """Return the mean of ``|mean|^2 - noise``: ``(k, d)``, ``(k,)``, and errors of the means ``(k, samples, d)``."""
    if not len(means):
        return Square(np.nan, np.full(errors.shape[1], np.nan), n)
    length = means.square().sum(1)
    squares = length - noise
    # What is left of a mean once its own noise is off: resampling about the whole mean would count that noise twice.
    left = means * (squares.clamp(min=0) / length.clamp(min=torch.finfo(torch.float64).tiny)).sqrt()[:, None]
    around = torch.stack(
        [(centre + error).square().sum(1) for centre, error in zip(left, errors.double(), strict=True)]
    )
    return Square(float(squares.mean()), (around - noise[:, None]).mean(0).numpy(), n)


def _moments(
    vectors: torch.Tensor, codes: npt.NDArray[np.int64], seed: int, samples: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return of every modality of two rows or more its mean ``(k, d)``, the noise of its square ``(k,)``, and errors.

    Errors ``(k, samples, d)`` are those of resampled means: how often each row was drawn, times the rows.
    """
    rng = np.random.default_rng(seed)
    vectors = vectors.cpu()
    means, noise, errors = [], [], []
    for code in range(int(codes.max()) + 1):
        rows = vectors[torch.from_numpy(np.flatnonzero(codes == code))]
        n = len(rows)
        if n < 2:
            continue
        mean = rows.mean(0)
        centred = rows - mean
        means.append(mean)
        noise.append(centred.square().sum() / (n - 1) / n)
        at_once = max(1, _CELLS // n)
        drawn = [
            _drawn(rng, min(at_once, samples - done), n).float() @ centred.float()
            for done in range(0, samples, at_once)
        ]
        errors.append(torch.cat(drawn) / n * (n / (n - 1)) ** 0.5)
    if not means:
        return (
            vectors.new_zeros(0, vectors.shape[1]),
            vectors.new_zeros(0),
            vectors.new_zeros(0, samples, vectors.shape[1]),
        )
    return torch.stack(means), torch.stack(noise), torch.stack(errors)


def _drawn(rng: np.random.Generator, samples: int, n: int) -> torch.Tensor:
    """Return how often each of n rows is drawn, n times in each sample: ``(samples, n)``."""
    rows = rng.integers(n, size=(samples, n)) + n * np.arange(samples)[:, None]
    return torch.from_numpy(np.bincount(rows.reshape(-1), minlength=samples * n).reshape(samples, n))
