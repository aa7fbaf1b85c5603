"""How many pairs each group may give, and which candidates of a ranking are taken."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from nemo_mm_rank.errors import ConfigError, UserError
from nemo_mm_rank.ranking.near import NearIndex

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
        raise ConfigError(f"ranking.quotas: shares must be between 0 and 1, not {dict(shares)}")
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
        raise UserError(
            f"too few pairs for the quotas: {'; '.join(short)} (choose what should happen with "
            "ranking.shortage: fill or leave)"
        )


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


_BLOCK = 1024


class DistinctFirst:
    """Takes the best of each group until it is full, passing by those near-equal to one that is taken.

    Candidates are looked at in rank order, so the best-ranked of near-equal ones stays. A candidate is compared with
    the taken ones (of every group) that may be near, and with those of its block of 1,024.

    Attributes:
        taken: ``(n,)`` bool, which candidates are taken, by rank.
        double_of: ``(n,)`` int64, the rank of the taken one that a candidate was passed by for, -1 for none.
    """

    def __init__(self, vectors: npt.NDArray[np.float32], similarity: float) -> None:
        """Give the candidates' ``(n, d)`` embeddings in rank order, and from which cosine on two are near-equal.

        An embedding of zeros (a pair without one) is near to none.
        """
        self._index = NearIndex(vectors, similarity)
        self.taken: npt.NDArray[np.bool_] = np.zeros(len(vectors), dtype=bool)
        self.double_of = np.full(len(vectors), -1, dtype=np.int64)

    def take(
        self, candidates: npt.NDArray[np.int64], groups: npt.NDArray[np.int64], room: npt.NDArray[np.int64]
    ) -> None:
        """Take from each group ``g`` up to ``room[g]`` candidates; arguments as for `select.BestFirst.take`."""
        room = room.copy()
        for start in range(0, len(candidates), _BLOCK):
            if not room.any():
                return
            block, group = candidates[start : start + _BLOCK], groups[start : start + _BLOCK]
            open_ = room[group] > 0
            self._take_block(block[open_], group[open_], room)

    def _take_block(
        self, block: npt.NDArray[np.int64], groups: npt.NDArray[np.int64], room: npt.NDArray[np.int64]
    ) -> None:
        double = self.double_of[block]
        single = np.flatnonzero(double < 0)
        double[single] = self._index.first(block[single])
        near = self._index.matrix(block, block)
        # Whether one is taken depends on those before it, so this part is sequential: one look per candidate.
        for row, group in enumerate(groups.tolist()):
            if not room[group]:
                continue
            if double[row] < 0:
                nearest = np.flatnonzero(near[row, :row] & self.taken[block[:row]])
                double[row] = block[nearest[0]] if len(nearest) else -1
            if double[row] < 0:
                self.taken[block[row]] = True
                room[group] -= 1
            else:
                self.double_of[block[row]] = double[row]
        self._index.add(block[self.taken[block]])
