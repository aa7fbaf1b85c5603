"""A finished run as something to build on: how its pairs were embedded, projected and scored."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from nemo_mm_rank.config import Config, ModelSpec, parse
from nemo_mm_rank.errors import UserError
from nemo_mm_rank.io.parquet import read_table
from nemo_mm_rank.ranking.blend import Ranking
from nemo_mm_rank.ranking.feedback import load_means
from nemo_mm_rank.ranking.scoring import Scoring
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.run.state import State
from nemo_mm_rank.run.store import Shards
from nemo_mm_rank.run.trust import NOTHING, Trust
from nemo_mm_rank.schema import MEDIA_ROOT, PAIR_ID


@dataclass(frozen=True)
class FinishedRun:
    """What it takes to do to other pairs as a run did to its own.

    Attributes:
        config: as it was ranked last: with the queries and weights behind the blend that is there.
        models: with the statistics that they took from the pool.
        projection: folder of the fitted projection.
        matcher: folder of what tells own annotations from others.
        scoring: from cosines to scores, by the statistics of the run's pairs.
    """

    config: Config
    models: dict[str, ModelSpec]
    projection: Path
    matcher: Path
    scoring: Scoring

    @classmethod
    def load(cls, run: str | Path, trust: Trust | None = NOTHING) -> FinishedRun:
        """Read a run's folder; the statistics are taken anew from its scored shards, in one pass.

        Args:
            run: the folder.
            trust: which code it may have executed by the models that it names; None where nobody will load them.

        Raises:
            UserError: it is no run, or not finished, or names code that is not trusted.
        """
        folder = RunFolder.at(run)
        folder.load_config()
        state = State.load(folder)
        models = state.specs(folder)
        if trust is not None:
            models = trust.admit(models, folder, describing=True)
        scored = state.scored(folder)
        # The configuration in the manifest, because a run can be ranked again with other queries.
        config = parse(Config, json.loads(folder.manifest.read_text(encoding="utf-8"))["config"])
        columns = Ranking.load(folder.ranking).columns
        scoring = replace(Scoring.fit(scored, columns, config.ranked_by), means=load_means(folder.feedback))
        return cls(config, models, folder.path / state.projection, folder.path / state.matcher, scoring)


def read_blend(run: str | Path) -> tuple[Config, pa.Table]:
    """Return a finished run's configuration, and its blend with where each pair's media are (`MEDIA_ROOT`).

    That is a place on this machine, which the blend itself does not name.

    Raises:
        UserError: it is no run, or not finished.
    """
    folder = RunFolder.at(run)
    config = folder.load_config()
    if not folder.manifest.exists():
        raise UserError(f"{folder.path}: the ranking is not finished; start the run again")
    blend = read_table(folder.blend)
    state = State.load(folder)
    pool = Shards(state.open(folder).stages[:1], state.shards)
    found = []
    for part in range(pool.count):
        rows = pool.read(part, [PAIR_ID, MEDIA_ROOT])
        found.append(rows.filter(pc.is_in(rows[PAIR_ID], value_set=blend[PAIR_ID].combine_chunks())))
    chosen = pa.concat_tables(found)
    places = pc.index_in(blend[PAIR_ID], value_set=chosen[PAIR_ID].combine_chunks())
    return config, blend.append_column(MEDIA_ROOT, chosen[MEDIA_ROOT].combine_chunks().take(places))
