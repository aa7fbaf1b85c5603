"""A small labelled set among the pool's pairs, as a step: which pairs are known to be clean, or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nemo_mm_rank import frames
from nemo_mm_rank.errors import UserError
from nemo_mm_rank.frames import Frame
from nemo_mm_rank.io.digest import file_digest
from nemo_mm_rank.io.parquet import read_table
from nemo_mm_rank.quality.ensemble.fit import LABELLED
from nemo_mm_rank.schema import PAIR_ID
from nemo_mm_rank.steps import Added, Step


@dataclass
class LabelStep(Step):
    """Adds ``labelled``: true or false for pairs of the labelled set, null for all others.

    Args:
        truth: a Parquet file with ``pair_id`` and ``clean``, such as `evaluation.plant` writes.
    """

    truth: Path
    name: str = "labelled"

    @property
    def requires(self) -> Mapping[str, pa.DataType]:
        """The id."""
        return {PAIR_ID: pa.string()}

    @property
    def provides(self) -> Mapping[str, pa.DataType]:
        """The label."""
        return {LABELLED: pa.bool_()}

    def identity(self) -> dict[str, Any]:
        """What the file says."""
        return {"step": self.name, "truth": file_digest(str(self.truth))}

    def process(self, rows: Frame) -> Added:
        """Look the ids up.

        Raises:
            UserError: the file lacks a column.
        """
        truth = read_table(self.truth)
        for name in (PAIR_ID, "clean"):
            if name not in truth.column_names:
                raise UserError(
                    f"{self.truth}: a labelled set has the columns 'pair_id' and 'clean', this one no {name!r}"
                )
        ids = pa.array(frames.strings(rows, PAIR_ID), pa.string())
        place = pc.index_in(ids, value_set=truth[PAIR_ID].cast(pa.string()).combine_chunks())
        return Added({LABELLED: truth["clean"].cast(pa.bool_()).combine_chunks().take(place)})
