"""What judges agreement, learnt from a bounded sample of a run's pairs, the same however the pool is sharded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nemo_mm_rank.frames import Vectors
from nemo_mm_rank.io.parquet import write_json
from nemo_mm_rank.ranking.agreement import Agreement, Judge
from nemo_mm_rank.ranking.cosine import rowwise
from nemo_mm_rank.ranking.pool import Shards
from nemo_mm_rank.ranking.score import Sides, spoken
from nemo_mm_rank.run.sample import gather
from nemo_mm_rank.schema import ANNOTATION, MODALITY

PAIRS = 16_384
"""Bound on the pairs that are read."""

_SHUFFLES = 4

Rows = npt.NDArray[np.int64]


def fit_agreement(shards: Shards, sides: Sequence[Sides], seed: int, file: Path) -> Agreement:
    """Return what judges agreement, from ``file`` where that is there already.

    Args:
        shards: with both sides' embeddings.
        sides: the spaces that hold data and annotations.
        seed: enters the hash that chooses the sample.
        file: where it is kept; its name must tell all that it depends on.
    """
    if file.exists():
        return Agreement.of_json(json.loads(file.read_text(encoding="utf-8")))
    vectors = dict.fromkeys(name for one in sides for name in one.columns)
    words, columns = gather(shards, [MODALITY, ANNOTATION], list(vectors), PAIRS, seed)
    used = [one for one in sides if one.data in columns and one.annotation in columns]
    judges = {}
    for modality in sorted(set(words[MODALITY].tolist())):
        rows = np.flatnonzero(words[MODALITY] == modality)
        # The sample is in the order of a hash, so the next pairs of the modality are any pairs.
        others = np.concatenate([np.roll(rows, -shift) for shift in range(1, _SHUFFLES + 1)])
        again = np.tile(rows, _SHUFFLES)
        equal = words[ANNOTATION][again] == words[ANNOTATION][others]
        judge = Judge.fit(
            [one.name for one in used],
            _cosines(columns, used, rows, rows),
            _cosines(columns, used, again[~equal], others[~equal]),
        )
        if judge is not None:
            judges[modality] = judge
    agreement = Agreement(judges)
    write_json(file, agreement.as_json())
    return agreement


def _cosines(
    columns: dict[str, Vectors], sides: Sequence[Sides], data: Rows, annotations: Rows
) -> npt.NDArray[np.float64]:
    """Return ``(n, k)`` cosines of some pairs' data with some pairs' annotations, in every space."""
    found = [
        rowwise(_rows(columns[one.data], data), _rows(_spoken(columns, one), annotations)).double().numpy()
        for one in sides
    ]
    return np.stack(found, axis=1) if found else np.zeros((len(data), 0))


def _spoken(columns: dict[str, Vectors], one: Sides) -> Vectors:
    return spoken(columns[one.annotation], columns.get(one.weakest) if one.weakest else None)


def _rows(column: Vectors, rows: Rows) -> Vectors:
    return Vectors(column.values[rows], column.valid[rows])
