"""Fused cosines of each modality, put where the cosines of its own annotations lie.

An objective such as MAMCL leaves it open how far the modalities' fused embeddings lie apart, so a query may prefer one
whatever the meaning. Annotations are texts in one space whatever they describe, so what they say of a modality is
comparable: within each, fused cosines take the mean and deviation of the annotations' cosines. Unlike scores
standardised by modality, this leaves what modalities truly differ in.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from nemo_mm_rank.ranking.calibrate import Moments, Values
from nemo_mm_rank.ranking.score import PREFIX

FUSED_COSINE, ANNOTATION_COSINE = PREFIX + "fused", PREFIX + "annotation"

Inside = Mapping[str, npt.NDArray[np.int64]]
"""Modality -> positions of its rows."""


def _empty() -> defaultdict[str, Moments]:
    return defaultdict(Moments)


@dataclass(frozen=True)
class Matched:
    """Statistics of both cosines within each modality, exact however the pool is sharded.

    Attributes:
        fused: modality -> moments of the fused cosines.
        annotation: modality -> moments of the annotations' cosines.
    """

    fused: dict[str, Moments] = field(default_factory=_empty)
    annotation: dict[str, Moments] = field(default_factory=_empty)

    def add(self, fused: Values, annotation: Values, inside: Inside) -> None:
        """Count ``(n,)`` cosines of both kinds; NaN where there is none."""
        for modality, rows in inside.items():
            self.fused[modality] += Moments.of(fused[rows])
            self.annotation[modality] += Moments.of(annotation[rows])

    def match(self, fused: Values, inside: Inside) -> npt.NDArray[np.floating[Any]]:
        """Return ``(n,)`` float64 fused cosines on the scale of the annotations'; every modality must be known."""
        out = np.full(len(fused), np.nan)
        for modality, rows in inside.items():
            target = self.annotation[modality]
            out[rows] = self.fused[modality].standardise(fused[rows]) * target.std + target.mean
        return out
