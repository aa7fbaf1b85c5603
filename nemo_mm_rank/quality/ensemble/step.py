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
