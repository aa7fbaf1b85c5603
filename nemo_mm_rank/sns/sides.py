"""The two sides of many pairs, whole and trimmed, and what decides which parts of them to keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nemo_mm_rank.arrays import Bools, Ints, Vectors
from nemo_mm_rank.config import SNSSettings
from nemo_mm_rank.errors import PairError
from nemo_mm_rank.sns.parts import Parts, Scored
from nemo_mm_rank.sns.selection import nucleus, threshold
from nemo_mm_rank.sns.standards import Standard

Spans = list[list[float]]


@dataclass(frozen=True)
class Cut:
    """What trimming one side of one pair would keep.

    Attributes:
        spans: the kept parts; None where the side stays whole.
        what: how much that is, or why it stays whole, in words.
    """

    spans: Spans | None
    what: str


UNTOUCHED = Cut(None, "")
ONE, ALL, NONE = (Cut(None, what) for what in ("one segment", "every segment is relevant", "no segment is relevant"))


@dataclass(frozen=True)
class Side:
    """One side of ``n`` pairs.

    Attributes:
        whole: ``(n, d)`` float32, the side as it is; NaN where it has no vector.
        cuts: what trimming would keep of each.
        trimmed: ``(n, d)`` float32, that and nothing else; NaN where there is no cut.
        errors: position -> why the side as it is has no vector.
    """

    whole: Vectors
    cuts: list[Cut]
    trimmed: Vectors
    errors: dict[int, PairError]


@dataclass(frozen=True)
class Selector:
    """Decides which parts of one side to keep: by how they score, as the settings say.

    Attributes:
        settings: nucleus, threshold, or what the pool says.
        tau: least relevance, of the threshold.
        standard: what the pool says; None keeps everything.
        bank: the other sides of some of the pool's pairs, for scores by contrast.
        phrases: of some of its pairs' annotations, likewise: what media are looked through for.
    """

    settings: SNSSettings
    tau: float
    standard: Standard | None = None
    bank: Parts | None = None
    phrases: Sequence[Sequence[str]] = ()

    def __call__(self, scored: Scored) -> Bools:
        """Return which parts to keep."""
        how = self.settings.chosen_by
        if how == "threshold":
            return threshold(scored.relevance, self.tau)
        if how == "nucleus":
            return nucleus(scored.relevance, scored.owner, self.settings.nucleus, self.settings.temperature)
        return (self.standard or Standard()).keep(scored)


def make_cut(spans: Spans, kept: int, of: int, noun: str) -> Cut:
    """Return the cut that leaves ``spans``, where ``kept`` of ``of`` parts are relevant; parts are called ``noun``."""
    if of < 2:
        return ONE
    if not kept:
        return NONE
    return ALL if kept == of else Cut(spans, f"{kept} of {of} {noun}")


def per_pair(values: npt.NDArray[Any], counts: Ints) -> list[npt.NDArray[Any]]:
    """Return each pair's own part of ``values``, which are laid end to end."""
    return np.split(values, np.cumsum(counts)[:-1])
