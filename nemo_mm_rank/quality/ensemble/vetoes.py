"""Vetoes: defects that no agreement makes up for.

A label model knows of one hidden cause. What looks at a defect that is no matter of agreement would be outvoted in it,
or taken to be wrong; so a veto is no part of it, and lowers the probability that comes out.
"""

from __future__ import annotations

from nemo_mm_rank.arrays import Floats
from nemo_mm_rank.quality.ensemble.votes import REJECT, Votes

VETO = 0.05
"""What every veto against a pair multiplies its quality by."""


def vetoed(quality: Floats, vetoes: Votes) -> Floats:
    """Return ``(n,)`` qualities, lowered for every veto.

    Args:
        quality: ``(n,)``.
        vetoes: ``(n, v)`` votes, of which rejections count.
    """
    lowered: Floats = quality * VETO ** (vetoes == REJECT).sum(axis=1)
    return lowered
