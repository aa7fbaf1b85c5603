"""What a few seeds allow to say: intervals of means, paired differences, and intervals by resampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from nemo_mm_rank.arrays import Floats, Ints


@dataclass(frozen=True)
class Interval:
    """A value with an interval.

    Attributes:
        value: a mean, or a statistic of the whole sample.
        low, high: NaN where there is too little to say how sure it is.
        n: observations.
    """

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Difference(Interval):
    """A mean difference of pairs.

    Attributes:
        p: of the two-sided t test that the mean is 0; NaN where the interval is.
    """

    p: float

    @property
    def separable(self) -> bool:
        """Whether the interval excludes 0: False where nothing can be said."""
        return self.low > 0 or self.high < 0


def mean_interval(values: Sequence[float] | Floats, confidence: float = 0.95) -> Interval:
    """Return the mean with its interval by Student's t: ``mean +- t(n - 1) * s / sqrt(n)`` (Student, 1908).

    Args:
        values: ``(n,)`` independent observations; with fewer than two there is no interval.
        confidence: of the interval.

    Raises:
        ValueError: no value, or one that is not finite.
    """
    sample = _sample(values)
    n, mean = len(sample), float(sample.mean())
    if n < 2:
        return Interval(mean, np.nan, np.nan, n)
    half = float(special.stdtrit(n - 1, (1 + confidence) / 2) * sample.std(ddof=1) / np.sqrt(n))
    return Interval(mean, mean - half, mean + half, n)


def paired_difference(
    ours: Sequence[float] | Floats, theirs: Sequence[float] | Floats, confidence: float = 0.95
) -> Difference:
    """Return the mean of ``ours - theirs`` with its interval and the p value of the paired t test.

    Observations of one seed share what the seed decides (initial weights, order), which the difference takes out.
    Where all differences are equal, the interval has no width, and p is 1 if they are 0 and else 0.

    Args:
        ours, theirs: ``(n,)``, in the same order of seeds.
        confidence: of the interval.

    Raises:
        ValueError: lengths that differ, no value, or one that is not finite.
    """
    left, right = _sample(ours), _sample(theirs)
    if len(left) != len(right):
        raise ValueError(f"{len(left)} values cannot be paired with {len(right)}")
    found = mean_interval(left - right, confidence)
    if found.n < 2:
        p = np.nan
    elif (spread := float((left - right).std(ddof=1))) == 0:
        p = 1.0 if found.value == 0 else 0.0
    else:
        t = found.value / (spread / np.sqrt(found.n))
        p = float(2 * special.stdtr(found.n - 1, -abs(t)))
    return Difference(found.value, found.low, found.high, found.n, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values adjusted for being several (Holm, 1979): the k-th smallest of m times ``m - k + 1``, ascending.

    NaN stay, and do not count among the m.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p_values, dtype=np.float64)
    adjusted = values.copy()
    order = np.argsort(values, kind="stable")[: int((~np.isnan(values)).sum())]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * factors))
    found: list[float] = adjusted.tolist()
    return found


def bootstrap_interval(
    statistic: Callable[[Ints], Floats], n: int, seed: int, samples: int = 1000, confidence: float = 0.95
) -> Interval:
    """Return a statistic of ``n`` rows with its bootstrap interval, as `centred_interval` has it.

    Args:
        statistic: takes rows ``(s, n)`` of s samples and returns their values ``(s,)``.
        n: number of rows.
        seed: of the resampling.
        samples: how many.
        confidence: of the interval.
    """
    value = float(statistic(np.arange(n)[None])[0])
    if n < 2:
        return Interval(value, np.nan, np.nan, n)
    rng = np.random.default_rng(seed)
    at_once = max(1, (1 << 22) // n)
    found = np.concatenate(
        [statistic(rng.integers(n, size=(min(at_once, samples - done), n))) for done in range(0, samples, at_once)]
    )
    return centred_interval(value, found, n, confidence)


def centred_interval(value: float, resampled: Floats, n: int, confidence: float = 0.95) -> Interval:
    """Return the bootstrap interval of ``value``, given the statistic of every sample.

    ``[t - (q(high) - m), t - (q(low) - m)]`` with the quantiles q and the mean m over the samples: the basic interval
    (Davison and Hinkley, 1997, eq. 5.6) but for the bias ``m - t``, which it leaves in. Distances between means are
    biased upwards in small samples; the interval says how much the measure as it is defined varies.
    """
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    middle = value + float(resampled.mean())
    return Interval(value, middle - float(high), middle - float(low), n)


def _sample(values: Sequence[float] | Floats) -> Floats:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or not len(sample):
        raise ValueError(f"statistics need a vector of at least one value, not one of shape {sample.shape}")
    if not np.isfinite(sample).all():
        raise ValueError("statistics need finite values")
    return sample


def apportion(total: int, weights: Sequence[float] | npt.NDArray[np.float64], caps: Sequence[int] | Ints) -> Ints:
    """Divide ``total`` by largest remainder (Hamilton's method); what a full group cannot take the others share.

    Args:
        total: to be divided.
        weights: ``(g,)``, at least 0; groups of no weight get nothing.
        caps: ``(g,)`` most that each group can take.

    Returns:
        ``(g,)`` counts that sum to ``total``, or to the room there is; of equal remainders the first comes first.

    >>> apportion(10, [1, 1, 2], caps=[2, 10, 10]).tolist()
    [2, 3, 5]
    """
    share, room = np.asarray(weights, dtype=np.float64), np.asarray(caps, dtype=np.int64)
    counts = np.zeros(len(share), dtype=np.int64)
    open_ = (share > 0) & (room > 0)
    while open_.any() and (left := total - int(counts.sum())):
        exact = np.where(open_, share, 0.0) * left / share[open_].sum()
        full = open_ & (exact >= room)
        if not full.any():
            counts += np.floor(exact).astype(np.int64)
            counts[np.argsort(np.floor(exact) - exact, kind="stable")[: total - int(counts.sum())]] += 1
            break
        counts[full] = room[full]
        open_ &= ~full
    return counts
