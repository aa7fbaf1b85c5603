"""A finished run's folder, opened for a report."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nemo_mm_rank.arrays import Floats, Ints
from nemo_mm_rank.config import Config, RankingSettings
from nemo_mm_rank.io.parquet import read_table
from nemo_mm_rank.ranking.blend import Ranking
from nemo_mm_rank.ranking.candidates import Groups
from nemo_mm_rank.ranking.scoring import Scoring
from nemo_mm_rank.report.pairs import Scored
from nemo_mm_rank.run.finished import FinishedRun
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.run.state import State
from nemo_mm_rank.run.store import Shards
from nemo_mm_rank.schema import MODALITY


@dataclass(frozen=True)
class Run:
    """What a report reads of a finished run.

    Attributes:
        folder: where it lies.
        manifest: what vouches for its blend.
        config: as it was ranked last.
        shards: the pool with all that steps have added, scores last.
        ranking: the blend and its summary.
        scoring: from cosines to scores.
        groups: those that have a quota, and the rest.
        scored: every ranked pair.
        quarantine: the pairs that were not ranked.
    """

    folder: RunFolder
    manifest: dict[str, Any]
    config: Config
    shards: Shards
    ranking: Ranking
    scoring: Scoring
    groups: Groups
    scored: Scored
    quarantine: pa.Table

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Read a run's folder: one pass over the columns of cosines for the statistics, one for the scores.

        Raises:
            UserError: it is no run, or not finished.
        """
        finished = FinishedRun.load(path, trust=None)
        folder = RunFolder.at(path)
        shards = State.load(folder).scored(folder)
        ranking = Ranking.load(folder.ranking)
        settings = RankingSettings.model_validate(ranking.summary["settings"])
        groups = Groups.of(settings.quota_by or MODALITY, settings.quotas)
        return cls(
            folder=folder,
            manifest=json.loads(folder.manifest.read_text(encoding="utf-8")),
            config=finished.config,
            shards=shards,
            ranking=ranking,
            scoring=finished.scoring,
            groups=groups,
            scored=Scored.read(finished.scoring, shards, groups, finished.config.seed),
            quarantine=read_table(folder.quarantine),
        )

    @property
    def cuts(self) -> list[float | None]:
        """The score of the last pair chosen, by group; where quotas were filled up by others, the lower of the two."""
        summary = self.ranking.summary
        filling = summary["filling"]["cut"]
        found = {entry["group"]: entry["cut"] for entry in summary["groups"]}
        cuts: list[float | None] = []
        for name in self.groups.names:
            scores = [cut["score"] for cut in (found.get(name), filling) if cut is not None]
            cuts.append(min(scores) if scores else None)
        return cuts

    @cached_property
    def distance(self) -> Floats:
        """``(n,)`` how far each score is from the cut of its group; NaN where nothing was chosen from that."""
        cuts = np.array([np.nan if cut is None else cut for cut in self.cuts])
        distance: Floats = self.scored.scores - cuts[self.scored.group]
        return distance

    @cached_property
    def chosen(self) -> Ints:
        """``(k,)`` the positions of the blend's pairs among the ranked ones, best first."""
        return self.scored.find(self.ranking.places)
