"""A fitted ensemble: thresholds as scores, label model and vetoes. Votes and scores frames shard by shard."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nemo_mm_rank import frames
from nemo_mm_rank.arrays import Floats
from nemo_mm_rank.errors import UserError
from nemo_mm_rank.frames import Frame
from nemo_mm_rank.io.owned import Claim
from nemo_mm_rank.io.parquet import write_json
from nemo_mm_rank.quality.ensemble.model import LabelModel
from nemo_mm_rank.quality.ensemble.vetoes import vetoed
from nemo_mm_rank.quality.ensemble.votes import ABSTAIN, LabelingFunction, Votes, label_votes
from nemo_mm_rank.schema import MODALITY
from nemo_mm_rank.steps import by_value

FILE = "ensemble.json"

Functions = Mapping[str, tuple[LabelingFunction, ...]]
"""Modality -> the labeling functions as it has them: the same ones, each with thresholds of its own."""


@dataclass(frozen=True)
class Ensemble:
    """Labeling functions, and the label model that was fitted to the votes of those that are no veto.

    Attributes:
        names: of the ``m`` functions.
        functions: by modality.
        model: fitted.
        vetoes: names of the functions that veto.
    """

    names: tuple[str, ...]
    functions: Functions
    model: LabelModel
    vetoes: frozenset[str] = frozenset()

    @cached_property
    def voters(self) -> tuple[str, ...]:
        """Names of the functions that vote in the label model, in its order."""
        return tuple(name for name in self.names if name not in self.vetoes)

    def votes(self, frame: Frame) -> Votes:
        """Return ``(n, m)`` votes; nobody votes for a pair of a modality that the ensemble has not seen."""
        return vote_by_modality(frame, self.functions, len(self.names))

    def predict(self, votes: Votes) -> Floats:
        """Return ``(n,)`` P(good | votes), lowered by vetoes, of ``(n, m)`` votes."""
        veto = np.array([name in self.vetoes for name in self.names], dtype=bool)
        return vetoed(self.model.predict_proba(votes[:, ~veto]), votes[:, veto])

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON-able values; infinite thresholds are null."""
        return {
            "names": list(self.names),
            "vetoes": sorted(self.vetoes),
            "functions": {
                modality: [[f.column, _finite(f.low), _finite(f.high), list(f.allowed)] for f in functions]
                for modality, functions in self.functions.items()
            },
            "mu": self.model.mu.tolist(),
            "coverage": self.model.coverage.tolist(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Ensemble:
        """Return the ensemble that `as_json` described, to the bit."""
        functions = {
            modality: tuple(
                LabelingFunction(
                    column,
                    -math.inf if low is None else low,
                    math.inf if high is None else high,
                    tuple(allowed),
                )
                for column, low, high, allowed in found
            )
            for modality, found in values["functions"].items()
        }
        model = LabelModel.restored(np.array(values["mu"]), np.array(values["coverage"]))
        return cls(tuple(values["names"]), functions, model, frozenset(values.get("vetoes", ())))

    def save(self, folder: Path) -> None:
        """Write it into a folder, in one file.

        Raises:
            UserError: the folder is not ours to write.
        """
        folder = Claim("ensemble").make(folder)
        write_json(folder / FILE, self.as_json())

    @classmethod
    def load(cls, folder: Path) -> Ensemble:
        """Read it back.

        Raises:
            UserError: there is none.
        """
        try:
            return cls.from_json(json.loads((folder / FILE).read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise UserError(f"{folder} holds no fitted ensemble (no {FILE})") from error


def vote_by_modality(frame: Frame, functions: Functions, m: int) -> Votes:
    """Return ``(n, m)`` votes, each pair's by the functions of its modality; -1 where there are none.

    Raises:
        MissingColumnError: the frame lacks a column of scores.
    """
    votes = np.full((len(frame), m), ABSTAIN, dtype=np.int8)
    for modality, rows in by_value([str(value) for value in frames.strings(frame, MODALITY)]).items():
        if modality in functions:
            votes[rows] = label_votes(frame.iloc[rows], functions[modality])
    return votes


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
