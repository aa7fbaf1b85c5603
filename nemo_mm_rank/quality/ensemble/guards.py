"""Labeling functions that say nothing, or the opposite: an ensemble is only as good as the worst that goes unseen.

In the demo of EcoDatum's authors the two functions on mirrored pictures always select: their threshold is 0. So nobody
is left to back CLIP, the model comes to believe the opposite of it, and the ten pairs chosen have the *lower* CLIP
scores. Leaving the two out does not mend that; a threshold like CLIP's own does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from nemo_mm_rank.quality.ensemble.patterns import PatternCounts
from nemo_mm_rank.quality.ensemble.summary import summarise

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
            f"is believed to be right in {weights[function]:.1%} of its votes, less than by chance",
        )
        for function in np.flatnonzero(weights < 0.5)
    ]
