"""What a finished run has embedded, written down so that it can be ranked again without looking at the pool."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from nemo_mm_rank.config import Config, ModelSpec, parse
from nemo_mm_rank.errors import UserError
from nemo_mm_rank.io.digest import file_digest
from nemo_mm_rank.io.parquet import write_json
from nemo_mm_rank.io.pool import manifests
from nemo_mm_rank.models.loader import STATISTICS
from nemo_mm_rank.ranking.feedback import FeedbackStep
from nemo_mm_rank.ranking.score import ScoreStep
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.run.store import Shards


@dataclass(frozen=True)
class State:
    """The embedded shards, and what belongs to them. Paths are relative to the run's folder.

    Attributes:
        stages: folders of the shards' files, the pool first.
        shards: how many.
        pairs: good rows of the pool.
        rows: all rows of the pool.
        bad_rows: those that never became pairs.
        inputs: the manifests with digests of their bytes.
        models: the models of the configuration.
        statistics: model -> file of what it counted in this pool.
        projection: folder of the fitted projection.
        matcher: folder of what tells own annotations from others.
    """

    stages: tuple[str, ...]
    shards: int
    pairs: int
    rows: int
    bad_rows: int
    inputs: list[dict[str, str]]
    models: dict[str, dict[str, Any]]
    statistics: dict[str, str]
    projection: str
    matcher: str

    def save(self, folder: RunFolder) -> None:
        """Write it into the run's folder."""
        write_json(folder.state, asdict(self))

    @classmethod
    def load(cls, folder: RunFolder) -> State:
        """Read it back.

        Raises:
            UserError: the run has not come that far.
        """
        try:
            values = json.loads(folder.state.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UserError(f"{folder.path} holds no finished run: start it again with curate") from error
        return cls(**{**values, "stages": tuple(values["stages"])})

    def open(self, folder: RunFolder) -> Shards:
        """Return the embedded shards."""
        return Shards(tuple(folder.path / stage for stage in self.stages), self.shards)

    def scored(self, folder: RunFolder) -> Shards:
        """Return the embedded shards with the scores of the last ranking.

        Raises:
            UserError: that ranking is not finished.
        """
        scores, feedback = (folder.stages(step.name) for step in (ScoreStep, FeedbackStep))
        if len(scores) != 1 or len(feedback) > 1 or not folder.manifest.exists():
            raise UserError(f"{folder.path}: the ranking is not finished; start the run again")
        return Shards((*self.open(folder).stages, *scores, *feedback), self.shards)

    def specs(self, folder: RunFolder) -> dict[str, ModelSpec]:
        """Return the models as they were used, with their statistics."""
        counted = {name: {STATISTICS: str(folder.path / file)} for name, file in self.statistics.items()}
        return {name: parse(ModelSpec, {**values, **counted.get(name, {})}) for name, values in self.models.items()}


def inputs(config: Config) -> list[dict[str, str]]:
    """Return the manifests of all pools with digests of their bytes."""
    files = [manifest.file for pool in config.pools for manifest in manifests(pool)]
    return [{"file": file, "digest": file_digest(file)} for file in files]
