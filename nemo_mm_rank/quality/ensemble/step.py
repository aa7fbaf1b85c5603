"""A fitted ensemble as a step: adds each pair's quality, and the votes that it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nemo_mm_rank import frames
from nemo_mm_rank.errors import EmbeddingError, PairError, UserError
from nemo_mm_rank.frames import Frame
from nemo_mm_rank.io.files import file_digest, read_table
from nemo_mm_rank.quality.ensemble.fit import DUPLICATE_OF, LABELLED, Ensemble
from nemo_mm_rank.quality.ensemble.votes import VETO
from nemo_mm_rank.schema import MODALITY, PAIR_ID
from nemo_mm_rank.steps import Added, Step

QUALITY, VOTES = "quality", "votes"


@dataclass
class EnsembleStep(Step):
    """Adds ``quality``, P(good | votes) in [0, 1], and ``votes``, one number per labeling function.

    A pair for which nobody votes has a half; one of a modality that the ensemble was not fitted on is quarantined.
    Where duplicates are known, that a better pair stays in the place of this one is a veto too, though no vote.

    Args:
        ensemble: fitted.
    """

    ensemble: Ensemble
    name: str = "quality-ensemble"

    @property
    def requires(self) -> Mapping[str, pa.DataType]:
        """Modality and scores."""
        columns = {function.column for functions in self.ensemble.functions.values() for function in functions}
        return {MODALITY: pa.string(), **dict.fromkeys(sorted(columns), pa.float32())}

    @property
    def uses(self) -> tuple[str, ...]:
        """Which pairs are duplicates of better ones."""
        return (DUPLICATE_OF,)

    @property
    def provides(self) -> Mapping[str, pa.DataType]:
        """Quality and votes."""
        return {QUALITY: pa.float32(), VOTES: pa.list_(pa.int8())}

    def identity(self) -> dict[str, Any]:
        """Functions, thresholds, the model's parameters, and what a veto is worth."""
        return {"step": self.name, "veto": VETO, **self.ensemble.as_json()}

    def process(self, rows: Frame) -> Added:
        """Vote, and look each pattern of votes up."""
        votes = self.ensemble.votes(rows)
        modalities = frames.strings(rows, MODALITY)
        errors: dict[int, PairError] = {
            row: EmbeddingError(f"the ensemble was fitted without {modality}, and has no thresholds for it")
            for row, modality in enumerate(modalities)
            if modality not in self.ensemble.functions
        }
        failed = np.zeros(len(votes), dtype=bool)
        failed[list(errors)] = True
        mask = pa.array(failed)
        offsets = pa.array(np.arange(len(votes) + 1, dtype=np.int32) * votes.shape[1])
        lists = pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(votes).ravel()), mask=mask)
        quality = self.ensemble.predict(votes)
        if DUPLICATE_OF in rows.columns:
            there = np.array(frames.array(rows, DUPLICATE_OF).is_valid())
            quality = np.where(there, VETO * quality, quality)
        return Added({QUALITY: pa.array(quality.astype(np.float32), mask=failed), VOTES: lists}, errors)


@dataclass
class LookUpStep(Step):
    """Adds a column of a file, by ``pair_id``; null for pairs that are not in it.

    Args:
        file: Parquet with ``pair_id`` and the column.
        column: its name in the file.
        adds: its name here.
        dtype: its type here.
    """

    file: Path
    column: str
    adds: str
    dtype: pa.DataType
    name: str

    @property
    def requires(self) -> Mapping[str, pa.DataType]:
        """The id."""
        return {PAIR_ID: pa.string()}

    @property
    def provides(self) -> Mapping[str, pa.DataType]:
        """The column."""
        return {self.adds: self.dtype}

    def identity(self) -> dict[str, Any]:
        """What the file says."""
        return {"step": self.name, "file": file_digest(str(self.file))}

    def process(self, rows: Frame) -> Added:
        """Look the ids up.

        Raises:
            UserError: the file lacks a column.
        """
        table = read_table(self.file)
        for name in (PAIR_ID, self.column):
            if name not in table.column_names:
                raise UserError(
                    f"{self.file}: has to have the columns {PAIR_ID!r} and {self.column!r}, and lacks {name!r}"
                )
        ids = pa.array(frames.strings(rows, PAIR_ID), pa.string())
        place = pc.index_in(ids, value_set=table[PAIR_ID].cast(pa.string()).combine_chunks())
        return Added({self.adds: table[self.column].cast(self.dtype).combine_chunks().take(place)})


def label_step(truth: str | Path) -> LookUpStep:
    """Return the step that adds ``labelled``: true or false for pairs of the labelled set, null for all others.

    Args:
        truth: a Parquet file with ``pair_id`` and ``clean``, such as `benchmark.planting.plant` writes.
    """
    return LookUpStep(Path(truth), "clean", LABELLED, pa.bool_(), "labelled")
