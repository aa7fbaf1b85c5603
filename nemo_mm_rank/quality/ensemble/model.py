"""The label model: from votes that contradict each other to the probability that a pair is good."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from nemo_mm_rank.arrays import Floats
from nemo_mm_rank.errors import ConfigError
from nemo_mm_rank.quality.ensemble.votes import ABSTAIN, REJECT, SELECT, PatternCounts, Votes, checked_votes, encode

T = TypeVar("T")


@dataclass(frozen=True)
class Rates(Generic[T]):
    """Shares of the pairs.

    Attributes:
        coverage: a function votes.
        overlap: it votes, and so does another one.
        conflict: it votes, and another one votes the opposite.
    """

    coverage: T
    overlap: T
    conflict: T


@dataclass(frozen=True)
class Summary:
    """How often labeling functions vote; "votes" is "does not abstain", where EcoDatum's paper prints "!= 0".

    Attributes:
        functions: ``(m,)`` each: pairs on which this function does (Snorkel's ``LFAnalysis``).
        data: pairs on which any function does (EcoDatum's equations 4 to 6, Snorkel's ``label_coverage`` and so on).
        selects, rejects: ``(m,)`` shares of the pairs that the function votes 1 and 0 for.
    """

    functions: Rates[Floats]
    data: Rates[float]
    selects: Floats
    rejects: Floats


def lf_summary(votes: Votes) -> Summary:
    """Return coverage, overlap and conflict per function and of the whole data set.

    Args:
        votes: ``(n, m)`` of 1, 0 and -1.
    """
    return summarise(PatternCounts.of(votes))


def summarise(counted: PatternCounts) -> Summary:
    """Return the same from counts. Shares of no pairs at all are 0."""
    patterns, counts = counted.patterns, counted.counts
    n = max(1, counted.n)
    voted = patterns != ABSTAIN
    overlaps = voted.sum(axis=1) > 1
    # Where votes differ at all, every function that votes has somebody against it.
    conflicts = (patterns == REJECT).any(axis=1) & (patterns == SELECT).any(axis=1)

    def of_functions(rows: npt.NDArray[np.bool_]) -> Floats:
        shares: Floats = counts @ rows / n
        return shares

    def of_data(rows: npt.NDArray[np.bool_]) -> float:
        return int(counts[rows].sum()) / n

    return Summary(
        Rates(*(of_functions(voted & rows[:, None]) for rows in (np.ones_like(overlaps), overlaps, conflicts))),
        Rates(*(of_data(rows) for rows in (voted.any(axis=1), overlaps, conflicts))),
        of_functions(patterns == SELECT),
        of_functions(patterns == REJECT),
    )


ALIKE = 0.99
"""A function that casts one vote on this share of the pairs has nothing to tell them apart by."""


@dataclass(frozen=True)
class Fault:
    """What is wrong with a labeling function.

    Attributes:
        function: its number.
        kind: ``silent``, ``constant`` or ``inverted``.
        message: in words.
    """

    function: int
    kind: Literal["silent", "constant", "inverted"]
    message: str


def idle(counted: PatternCounts, alike: float = ALIKE) -> list[Fault]:
    """Return the functions that tell no pairs apart: those that never vote, and those that always vote the same.

    Args:
        counted: patterns of votes.
        alike: the share of the pairs at which one vote of a function counts as all.
    """
    summary = summarise(counted)
    faults = []
    for function, (selects, rejects) in enumerate(zip(summary.selects, summary.rejects, strict=True)):
        if not selects + rejects:
            faults.append(Fault(function, "silent", "never votes"))
        elif max(selects, rejects) >= alike:
            what = "selects" if selects > rejects else "rejects"
            faults.append(Fault(function, "constant", f"{what} {max(selects, rejects):.1%} of the pairs"))
    return faults


def inverted(weights: npt.NDArray[np.float64]) -> list[Fault]:
    """Return the functions with a learnt accuracy below a half: their selections count against a pair.

    Args:
        weights: ``(m,)`` of `LabelModel`; NaN passes.
    """
    return [
        Fault(
            int(function),
            "inverted",
            f"is estimated to be right in only {weights[function]:.1%} of its votes, less than by chance",
        )
        for function in np.flatnonzero(weights < 0.5)
    ]


LEAST = 3
"""Functions: the agreement of two says nothing of which one errs."""
_PRECISION, _MOMENTUM = 0.7, 0.9
"""Snorkel's ``prec_init``, a guess of each function's accuracy to begin with, and the momentum of its SGD."""
_TOGETHER = 8
"""Functions whose votes are looked up at a time: a table of 3^8 sums."""


class LabelModel:
    """Learns each function's accuracy from agreement alone, and weighs votes by it.

    With ``O`` the ``(2m, 2m)`` shares of pairs on which function ``i`` votes ``a`` and ``j`` votes ``b``, and
    ``mu[2i + a, y] = P(function i votes a | label y)``, both labels alike in number (``P = I / 2``), it descends

        |O - mu P mu^T|^2 (outside the 2 x 2 blocks of a function with itself) + |mu p - diag O|^2
        + l2^2 |mu - mu_0|^2, with l2 also as the decay of weights

    from ``mu_0``, in which each function is right 7 times of 10.

    Args:
        epochs: steps of gradient descent.
        lr: their rate.
        l2: how strongly ``mu`` is held; EcoDatum's value by default.
        seed: of the one number that scales the start.
    """

    def __init__(self, epochs: int = 200, lr: float = 0.01, l2: float = 0.001, seed: int = 123) -> None:
        self.epochs, self.lr, self.l2, self.seed = epochs, lr, l2, seed

    @classmethod
    def restored(cls, mu: Floats, coverage: Floats) -> LabelModel:
        """Return a model as it was fitted: `mu` and `coverage` are all that it is."""
        model = cls()
        model.mu, model.coverage = mu, coverage
        return model

    mu: Floats
    """``(2m, 2)``: ``mu[2i + a, y]`` is the probability that function ``i`` votes ``a`` for a pair of label ``y``."""
    coverage: Floats
    """``(m,)``: the share of the pairs that each function voted on."""

    def fit(self, votes: Votes) -> LabelModel:
        """Fit ``(n, m)`` votes, and return itself. See `fit_counts`."""
        counted = PatternCounts.of(votes)
        return self.fit_counts(counted.patterns, counted.counts)

    def fit_counts(self, patterns: Votes, counts: npt.NDArray[np.integer]) -> LabelModel:
        """Fit counted patterns, and return itself.

        The same for the same counts in any order: shares are of integers, whose sums know no order.

        Args:
            patterns: ``(k, m)`` votes; one that is there twice counts twice.
            counts: ``(k,)`` pairs with each.

        Raises:
            ConfigError: fewer than three functions, or no pairs.
        """
        m = checked_votes(patterns).shape[1]
        n = int(counts.sum())
        if m < LEAST:
            raise ConfigError(f"a label model needs at least {LEAST} labeling functions, not {m}")
        if not n:
            raise ConfigError("a label model needs pairs to learn from")
        shares = _shares(patterns, counts, n)
        self.__dict__.pop("weights", None)
        self.mu = self._descend(shares, _start(shares), n)
        self.coverage = np.diag(shares).reshape(m, 2).sum(axis=1)
        return self

    def _descend(self, shares: Floats, start: Floats, n: int) -> Floats:
        m = len(shares) // 2
        outside = 1.0 - np.kron(np.eye(m), np.ones((2, 2)))
        alone = np.diag(shares)
        mu = start * np.random.RandomState(self.seed).random_sample()
        velocity = np.zeros_like(mu)
        # Of the loss above, with P = I / 2 and p = (1/2, 1/2): what is of the third degree in mu, linear, constant.
        linear = -2.0 * outside * shares + (2.0 * self.l2**2 + self.l2) * np.eye(2 * m)
        both = np.full((2, 2), 0.5)
        constant = -alone[:, None] - 2.0 * self.l2**2 * start
        for _ in range(self.epochs):
            gradient = (outside * (mu @ mu.T)) @ mu + linear @ mu + mu @ both + constant
            velocity = _MOMENTUM * velocity + gradient
            mu = mu - self.lr * velocity
        least = min(0.01, 10.0 ** -np.ceil(np.log10(n)))
        mu = np.clip(mu, least, 1 - least)
        # Nothing tells the two labels from each other but that functions are better than chance on the whole.
        right, wrong = (mu[::2, 0] + mu[1::2, 1]).sum(), (mu[::2, 1] + mu[1::2, 0]).sum()
        return mu[:, ::-1].copy() if wrong > right else mu

    @cached_property
    def weights(self) -> Floats:
        """``(m,)`` how often each function is right where it votes, as far as is learnt; NaN where it never votes.

        Snorkel's ``get_weights``, EcoDatum's "weights". They are for people to read: a score is made of `mu`.
        """
        right = (self.mu[::2, 0] + self.mu[1::2, 1]) / 2
        return np.where(
            self.coverage > 0, np.clip(right / np.where(self.coverage > 0, self.coverage, 1.0), 1e-6, 1.0), np.nan
        )

    @property
    def inverted(self) -> list[Fault]:
        """The functions that the model has learnt to believe the opposite of."""
        return inverted(self.weights)

    def predict_proba(self, votes: Votes) -> Floats:
        """Return ``(n,)`` P(good | votes): a half where nobody votes. An abstention says nothing.

        Args:
            votes: ``(n, m)``; looked up by pattern, so that a pair's score depends on nothing but its votes.

        Raises:
            ConfigError: another number of functions than the model was fitted with.
        """
        m = len(self.mu) // 2
        if checked_votes(votes).shape[1] != m:
            raise ConfigError(f"the label model was fitted with {m} labeling functions, not {votes.shape[1]}")
        evidence = np.zeros((m, 3))  # by vote + 1: none, of a rejection, of a selection
        evidence[:, 1:] = np.log(self.mu[:, 1] / self.mu[:, 0]).reshape(m, 2)
        odds: Floats = np.zeros(1)
        for first in range(0, m, _TOGETHER):
            block = slice(first, first + _TOGETHER)
            sums = np.zeros(1)
            for weights in evidence[block]:
                sums = (sums[:, None] + weights).ravel()
            if m <= _TOGETHER:
                table: Floats = 1.0 / (1.0 + np.exp(-sums))
                return table[encode(votes)]
            odds = odds + sums[encode(votes[:, block])]
        return 1.0 / (1.0 + np.exp(-odds))


def _shares(patterns: Votes, counts: npt.NDArray[np.integer], n: int) -> Floats:
    """Return ``O``, ``(2m, 2m)``: exact counts (below 2^53 doubles are), divided once."""
    voted = np.stack([patterns == REJECT, patterns == SELECT], axis=2).reshape(len(patterns), -1).astype(np.float64)
    shares: Floats = (voted * counts[:, None]).T @ voted / n
    return shares


def _start(shares: Floats) -> Floats:
    """Return ``mu_0``, ``(2m, 2)``: 7 of 10 votes for a label are right, and none is wrong."""
    start = np.zeros((len(shares), 2))
    rows = np.arange(len(shares))
    start[rows, rows % 2] = np.clip(np.diag(shares) * _PRECISION / 0.5, 0.0, 1.0)
    return start
