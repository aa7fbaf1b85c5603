"""Data of several parts: each trimmed on its own, and what is left of all of them held against the annotation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nemo_mm_rank.arrays import Vectors
from nemo_mm_rank.config import SNSSettings
from nemo_mm_rank.errors import PairError
from nemo_mm_rank.media.parts import Apart
from nemo_mm_rank.sns.relevance import Parts, cosines
from nemo_mm_rank.sns.selection import gate
from nemo_mm_rank.sns.sides import Cut, Side


def together(apart: Apart, sides: Sequence[Side], annotations: Vectors, settings: SNSSettings) -> Side:
    """Return the data side of pairs from those of its parts.

    A part's cut stands where what is left of it passes the gate against the whole annotation, as it would in a pair
    of its own. The data's vector, whole or trimmed, is the mean of those of its parts, normalised; its spans are
    theirs, the number of the part before each (`schema.SPANS`).

    Args:
        apart: what the parts are.
        sides: of each part, ``n`` pairs.
        annotations: ``(n, d)`` float32, of the whole annotations.
        settings: of the gate.
    """
    before = np.stack([cosines(side.whole, annotations) for side in sides])
    after = np.stack([cosines(side.trimmed, annotations) for side in sides])
    stands = gate(before, after, settings.gate_ratio, settings.gate_eps)
    whole = np.stack([side.whole for side in sides])
    trimmed = mean(np.where(stands[..., None], np.stack([side.trimmed for side in sides]), whole))
    trimmed[~stands.any(axis=0)] = np.nan
    errors: dict[int, PairError] = {}
    for number, side in enumerate(sides):
        for row, error in side.errors.items():
            errors.setdefault(row, apart.named(number, error))
    cuts = [_cut(apart, [side.cuts[row] for side in sides], stands[:, row]) for row in range(whole.shape[1])]
    return Side(mean(whole), cuts, trimmed, errors)


def mean(vectors: npt.NDArray[np.float32]) -> Vectors:
    """Return the normalised means over the first dimension: ``(p, n, d)`` -> ``(n, d)``; NaN where one is NaN."""
    sums = vectors.mean(axis=0)
    lengths = np.sqrt(cosines(sums, sums))[:, None]
    return np.asarray(np.divide(sums, lengths, out=np.full_like(sums, np.nan), where=lengths > 0))


def side_by_side(parts: Sequence[Parts]) -> Parts:
    """Return what the annotations' sentences are held against: the parts' own parts, pair by pair."""
    owner = np.concatenate([own.owner for own in parts])
    order = np.argsort(owner, kind="stable")
    counts = np.stack([own.counts for own in parts]).sum(axis=0)
    return Parts(np.concatenate([own.vectors for own in parts])[order], counts)


def _cut(apart: Apart, cuts: Sequence[Cut], stands: npt.NDArray[np.bool_]) -> Cut:
    """Return what the cuts of a pair's parts come to."""
    spans = [[float(number), *span] for number, cut in enumerate(cuts) if stands[number] for span in cut.spans or ()]
    what = [
        f"{kind}: {cut.what if stands[number] or not cut.spans else 'refused by the gate'}"
        for number, (kind, cut) in enumerate(zip(apart.kinds, cuts, strict=True))
        if (stands[number] or not spans) and cut.what
    ]
    return Cut(spans or None, ", ".join(what))
