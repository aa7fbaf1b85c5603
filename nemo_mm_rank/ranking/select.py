"""How many pairs each group may give, and which candidates of a ranking are taken."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from nemo_mm_rank.errors import ConfigError, UserError

REST = "*"
"""The group of all pairs whose own group has no quota."""


def quota_counts(total: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Divide ``total`` by largest remainder (Hamilton's method): exact counts that sum to ``total``.

    Args:
        total: pairs in the blend.
        shares: group -> share of the blend, in [0, 1], read as the decimal numbers they are written as; what they
            leave goes to `REST`.

    Returns:
        group -> count, `REST` last where it has a share; equal remainders go to the first group by name, `REST` last.

    Raises:
        ConfigError: a share out of [0, 1], or shares that sum to more than 1.
    """
    exact = {name: Fraction(str(share)) for name, share in sorted(shares.items())}
    if any(not 0 <= share <= 1 for share in exact.values()):
        raise ConfigError(f"ranking.quotas: shares are between 0 and 1, not {dict(shares)}")
    left = 1 - sum(exact.values(), Fraction(0))
    if left < 0:
        raise ConfigError(f"ranking.quotas: the shares sum to {float(1 - left):g}, more than 1")
    if left:
        exact[REST] = left
    counts = {name: int(share * total) for name, share in exact.items()}
    # Sorting is stable, so names decide between equal remainders.
    by_remainder = sorted(exact, key=lambda name: counts[name] - exact[name] * total)
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def check_shortage(wanted: Mapping[str, int], there: Mapping[str, int]) -> None:
    """Refuse groups with fewer pairs than their quota (policy ``fail``).

    Raises:
        UserError: naming every short group, with both numbers.
    """
    short = [
        f"{name} has {there.get(name, 0):,} of {count:,}"
        for name, count in wanted.items()
        if there.get(name, 0) < count
    ]
    if short:
        raise UserError(f"too few pairs for the quotas: {'; '.join(short)} (ranking.shortage: fill or leave)")


class BestFirst:
    """Takes the best of each group until it is full.

    Attributes:
        taken: ``(n,)`` bool, which candidates are taken, by rank.
    """

    def __init__(self, n: int) -> None:
        self.taken: npt.NDArray[np.bool_] = np.zeros(n, dtype=bool)

    def take(
        self, candidates: npt.NDArray[np.int64], groups: npt.NDArray[np.int64], room: npt.NDArray[np.int64]
    ) -> None:
        """Take from each group ``g`` the first ``room[g]`` candidates.

        Args:
            candidates: ``(m,)`` ranks that are looked at, ascending.
            groups: ``(m,)`` each candidate's group.
            room: ``(g,)`` how many each group may take.
        """
        for group, count in enumerate(room.tolist()):
            self.taken[candidates[groups == group][:count]] = True
