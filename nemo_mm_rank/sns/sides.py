"""The two sides of many pairs, whole and trimmed, as vectors: what the gate compares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nemo_mm_rank.arrays import Bools, Vectors
from nemo_mm_rank.config import SNSSettings
from nemo_mm_rank.errors import PairError
from nemo_mm_rank.sns.selection import nucleus, threshold

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
    """Decides which parts to keep: by their relevance, as the settings say."""

    settings: SNSSettings
    tau: float

    def __call__(self, relevance: npt.NDArray[np.float32], owner: npt.NDArray[np.int64]) -> Bools:
        """Return which parts to keep."""
        if self.settings.select == "threshold":
            return threshold(relevance, self.tau)
        return nucleus(relevance, owner, self.settings.nucleus, self.settings.temperature)


def make_cut(spans: Spans, kept: int, of: int, noun: str) -> Cut:
    """Return the cut that leaves ``spans``, where ``kept`` of ``of`` parts are relevant; parts are called ``noun``."""
    if of < 2:
        return ONE
    if not kept:
        return NONE
    return ALL if kept == of else Cut(spans, f"{kept} of {of} {noun}")


def per_pair(values: npt.NDArray[Any], counts: npt.NDArray[np.int64]) -> list[npt.NDArray[Any]]:
    """Return each pair's own part of ``values``, which are laid end to end."""
    return np.split(values, np.cumsum(counts)[:-1])
