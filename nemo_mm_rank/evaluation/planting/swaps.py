"""Annotations that go round: every pair gets one that differs from its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nemo_mm_rank.errors import UserError

Ints = npt.NDArray[np.int64]
_ROUNDS = 1000


def derange(label: Sequence[str], also: Sequence[str], rng: np.random.Generator) -> Ints:
    """Return for each item the item it gets something from, none from one with the same ``label`` or ``also``.

    Sorted by label and turned by the size of the largest group, no item meets its own label; what then meets an equal
    ``also`` trades with others at random.

    Args:
        label: ``(n,)``.
        also: ``(n,)``.
        rng: decides the order within labels, and of them.

    Returns:
        ``(n,)`` a permutation.

    Raises:
        UserError: more than half of the items have one label, so that there is no way.
    """
    n = len(label)
    if not n:
        return np.zeros(0, dtype=np.int64)
    codes, others = (
        np.unique(np.asarray(names, dtype=object).astype(str), return_inverse=True)[1] for names in (label, also)
    )
    sizes = np.bincount(codes)
    if 2 * sizes.max() > n:
        raise UserError(f"annotations cannot be swapped: {sizes.max()} of {n} are alike")
    order = np.lexsort((rng.permutation(n), rng.permutation(len(sizes))[codes]))
    source = np.empty(n, dtype=np.int64)
    source[order] = np.roll(order, sizes.max())

    def wrong(rows: Ints) -> npt.NDArray[np.bool_]:
        given = source[rows]
        found: npt.NDArray[np.bool_] = (codes[given] == codes[rows]) | (others[given] == others[rows])
        return found

    for _ in range(_ROUNDS):
        bad = np.flatnonzero(wrong(np.arange(n)))
        if not len(bad):
            return source
        pair = np.array([bad[0], rng.integers(n)])
        source[pair] = source[pair[::-1]]
        if wrong(pair).any() and len(np.flatnonzero(wrong(np.arange(n)))) > len(bad):
            source[pair] = source[pair[::-1]]
    raise UserError(f"annotations cannot be swapped: too many of {n} are alike")
