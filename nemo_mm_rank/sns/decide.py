"""What becomes of each pair: the gate on every direction and on both, the fall back, and the reason in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nemo_mm_rank.arrays import Floats32
from nemo_mm_rank.config import SNSSettings
from nemo_mm_rank.errors import PairError
from nemo_mm_rank.schema import ANNOTATION_SPANS, DATA_SPANS, SNS_REASON, SPANS
from nemo_mm_rank.sns.parts import cosines
from nemo_mm_rank.sns.selection import gate
from nemo_mm_rank.sns.sides import Cut, Side, Spans
from nemo_mm_rank.steps import Added

BEFORE, AFTER = "sns_before", "sns_after"

KEEP, FORWARD, BACKWARD, BOTH = range(4)


def choose(
    before: Floats32, forward: Floats32, backward: Floats32, both: Floats32, ratio: float, eps: float
) -> npt.NDArray[np.int64]:
    """Choose for each pair what to keep: both sides trimmed, or else the better one, or else the original.

    Both are kept where each direction and the two together pass the gate. Of two single directions that are equal
    the forward one is kept. NaN stands for a candidate that does not exist.

    Args:
        before: ``(n,)`` similarity of the original pairs.
        forward: ``(n,)`` of the data that is left and the whole annotation.
        backward: ``(n,)`` of the whole data and the annotation that is left.
        both: ``(n,)`` of what is left of both.
        ratio: of the gate.
        eps: of the gate.

    Returns:
        ``(n,)`` of `KEEP`, `FORWARD`, `BACKWARD`, `BOTH`.
    """
    data, annotation, joint = (gate(before, candidate, ratio, eps) for candidate in (forward, backward, both))
    return np.select(
        [data & annotation & joint, data & ~(annotation & (backward > forward)), annotation],
        [BOTH, FORWARD, BACKWARD],
        KEEP,
    )


def reason(chosen: int, data: Cut, annotation: Cut) -> str:
    """Say in words what was kept of a pair, or why nothing was cut away."""
    if chosen == KEEP:
        if data.spans or annotation.spans:
            return "untrimmed: refused by the gate"
        if data.what and annotation.what and data.what != annotation.what:
            return f"untrimmed: data: {data.what}; annotation: {annotation.what}"
        return f"untrimmed: {data.what or annotation.what}"
    if chosen == BOTH:
        return f"bidirectional: kept {data.what} and {annotation.what}"
    name, what = ("forward", data.what) if chosen == FORWARD else ("backward", annotation.what)
    if data.spans and annotation.spans:
        return f"bidirectional refused by the gate, kept {name}: {what}"
    return f"{name}: kept {what}"


VERDICTS = {
    "bidirectional: ": "both cut",
    "bidirectional refused": "one of both refused",
    "forward": "data cut",
    "backward": "annotation cut",
    "untrimmed: refused": "all refused",
    "untrimmed": "nothing to cut",
}
"""How a `reason` begins -> what became of the pair; the first that fits counts."""


def verdict(why: str) -> str:
    """Return in a few words what became of a pair, given its `reason`.

    >>> verdict("bidirectional refused by the gate, kept forward: 2 of 3 sentences")
    'one of both refused'
    """
    return next(said for begins, said in VERDICTS.items() if why.startswith(begins))


class Decisions:
    """The step's columns under construction.

    Args:
        n: rows.

    Attributes:
        errors: row -> why it must be quarantined.
    """

    def __init__(self, n: int) -> None:
        self.errors: dict[int, PairError] = {}
        self._data: list[Spans | None] = [None] * n
        self._annotation: list[Spans | None] = [None] * n
        self._reasons: list[str | None] = [None] * n
        self._before = np.full(n, np.nan, dtype=np.float32)
        self._after = np.full(n, np.nan, dtype=np.float32)

    def leave(self, rows: Iterable[int], why: str) -> None:
        """Keep pairs whole without having looked at them."""
        for row in rows:
            self._reasons[row] = f"untrimmed: {why}"

    def take(self, rows: Sequence[int], data: Side, annotation: Side, settings: SNSSettings) -> None:
        """Decide on pairs by both of their sides."""
        for side in (data, annotation):
            for position, error in side.errors.items():
                self.errors.setdefault(rows[position], error)
        before = cosines(data.whole, annotation.whole)
        forward = cosines(data.trimmed, annotation.whole)
        backward = cosines(data.whole, annotation.trimmed)
        both = cosines(data.trimmed, annotation.trimmed)
        choice = choose(before, forward, backward, both, settings.gate_ratio, settings.gate_eps)
        self._before[rows] = before
        self._after[rows] = np.choose(choice, [before, forward, backward, both])
        for position, (row, chosen) in enumerate(zip(rows, choice.tolist(), strict=True)):
            data_cut, annotation_cut = data.cuts[position], annotation.cuts[position]
            if chosen in (FORWARD, BOTH):
                self._data[row] = data_cut.spans
            if chosen in (BACKWARD, BOTH):
                self._annotation[row] = annotation_cut.spans
            self._reasons[row] = reason(chosen, data_cut, annotation_cut)

    def added(self) -> Added:
        """Return the columns, null where a row failed."""
        for row in self.errors:
            self._data[row] = self._annotation[row] = self._reasons[row] = None
            self._before[row] = self._after[row] = np.nan
        return Added(
            {
                DATA_SPANS: pa.array(self._data, SPANS),
                ANNOTATION_SPANS: pa.array(self._annotation, SPANS),
                SNS_REASON: pa.array(self._reasons, pa.string()),
                BEFORE: pa.array(self._before, mask=np.isnan(self._before)),
                AFTER: pa.array(self._after, mask=np.isnan(self._after)),
            },
            self.errors,
        )
