"""A finished run as something to build on: how its pairs were embedded, projected and scored."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nemo_mm_rank.config import Config, ModelSpec, SNSSettings, parse
from nemo_mm_rank.console import Note
from nemo_mm_rank.errors import DamagedError, UserError
from nemo_mm_rank.io.files import file_names, read_sealed, read_table, write_sealed
from nemo_mm_rank.io.part_files import STAMPED, STAMPS, part_name, stamps_now
from nemo_mm_rank.models.loader import STATISTICS
from nemo_mm_rank.ranking.examples import Likeness
from nemo_mm_rank.ranking.queries import likenesses
from nemo_mm_rank.ranking.scoring import Scoring
from nemo_mm_rank.run.fits import damaged, whole
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.run.store import ShardStore
from nemo_mm_rank.run.trust import NOTHING, Trust
from nemo_mm_rank.schema import MEDIA_ROOT, PAIR_ID


@dataclass(frozen=True)
class Pool:
    """The pairs that a job chooses from.

    Attributes:
        shards: in canonical columns, with the users' own, and with what the steps of a finished run have added.
        rows: all rows.
        bad_rows: those that never became pairs.
        inputs: the manifests with digests of their bytes.
        notes: what a reader of a blend has to know of its columns.
    """

    shards: ShardStore
    rows: int
    bad_rows: int
    inputs: list[dict[str, str]]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class State:
    """The embedded shards, and what belongs to them. Paths are relative to the run's folder.

    Attributes:
        stages: folders of the shards' files, the pool first.
        shards: how many.
        rows: all rows of the pool.
        bad_rows: those that never became pairs.
        inputs: the manifests with digests of their bytes.
        notes: what a reader of a blend has to know of its columns.
        models: the models of the configuration.
        statistics: model -> file of what it counted in this pool.
        projection: folder of the fitted projection.
        matcher: folder of what tells own annotations from others.
        cuts: file of the cut scores that SNS took from the pool; "" for none.
        ranked: folders of the shards' files that the last ranking added; none while it is not finished.
        scoring: file of how the last ranking put scores together.
        examples: files of the embedded examples of its queries, in the order of those.
    """

    stages: tuple[str, ...]
    shards: int
    rows: int
    bad_rows: int
    inputs: list[dict[str, str]]
    models: dict[str, dict[str, Any]]
    statistics: dict[str, str]
    projection: str
    matcher: str
    cuts: str = ""
    ranked: tuple[str, ...] = ()
    scoring: str = ""
    notes: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()

    def save(self, folder: RunFolder) -> None:
        """Write it into the run's folder."""
        write_sealed(folder.state, asdict(self))

    @classmethod
    def load(cls, folder: RunFolder) -> State:
        """Read it back, where what was fitted for it is as it was.

        Raises:
            UserError: the run has not come that far, or a file of these is damaged.
        """
        if not folder.state.exists():
            raise UserError(f"{folder.path} contains no finished run: start curate again")
        values = read_sealed(folder.state)
        try:
            tuples = {name: tuple(values.get(name, ())) for name in ("stages", "ranked", "notes", "examples")}
            state = cls(**{**values, **tuples})
        except (KeyError, TypeError) as error:
            raise DamagedError(folder.state) from error
        for fitted in (*state.statistics.values(), *filter(None, [state.cuts]), state.projection, state.matcher):
            if (file := damaged(folder.path / fitted)) is not None:
                raise DamagedError(file)
        return state

    def open(self, folder: RunFolder) -> ShardStore:
        """Return the embedded shards.

        Raises:
            UserError: a file of theirs is gone.
        """
        return self._there(folder, self.stages)

    def as_pool(self, folder: RunFolder) -> Pool:
        """Return the embedded shards as something to choose from; raises as `open`."""
        return Pool(self.open(folder), self.rows, self.bad_rows, self.inputs, self.notes)

    def pool(self, folder: RunFolder) -> ShardStore:
        """Return the shards as they were before their first step; raises as `open`."""
        return self._there(folder, self.stages[:1])

    def _there(self, folder: RunFolder, stages: Sequence[str]) -> ShardStore:
        for stage in stages:
            written = file_names(folder.path / stage)
            for name in map(part_name, range(self.shards)):
                if name not in written:
                    raise UserError(
                        f"{folder.path}: {stage}/{name} is missing; "
                        "the command that made the run makes it again and keeps the others"
                    )
        return ShardStore(tuple(folder.path / stage for stage in stages), self.shards)

    def scored(self, folder: RunFolder) -> ShardStore:
        """Return the embedded shards with the scores of the last ranking.

        Raises:
            UserError: that ranking is not finished, or a file of a shard is gone.
        """
        self._check_ranked(folder)
        return self._there(folder, (*self.stages, *self.ranked))

    def _check_ranked(self, folder: RunFolder) -> None:
        if not self.ranked or not folder.manifest.exists():
            raise UserError(f"{folder.path}: the ranking is not finished; start the run again")

    def scored_by(self, folder: RunFolder) -> Scoring:
        """Return how the last ranking put scores together.

        Raises:
            UserError: that ranking is not finished, or its file is damaged.
        """
        self._check_ranked(folder)
        if not whole(folder.path / self.scoring):
            raise UserError(f"{folder.path}: {self.scoring} is missing or damaged; rank the run again")
        return Scoring.load(folder.path / self.scoring)

    def shown(self, folder: RunFolder) -> tuple[Path, ...]:
        """Return the files of the examples of the last ranking's queries.

        Raises:
            UserError: that ranking is not finished, or a file is damaged.
        """
        self._check_ranked(folder)
        files = tuple(folder.path / name for name in self.examples)
        for file in files:
            if not whole(file):
                raise UserError(f"{folder.path}: {file.name} is missing or damaged; rank the run again")
        return files

    def likes(self, folder: RunFolder) -> list[Likeness]:
        """Return how the last ranking scored by examples; raises as `shown`."""
        # The configuration in the manifest, because a run can be ranked again with other queries.
        files = self.shown(folder)
        return likenesses(parse(Config, read_sealed(folder.manifest)["config"]), files) if files else []

    def trimmed_by(self, config: Config, folder: RunFolder) -> SNSSettings:
        """Return the settings of SNS, with the run's cut scores."""
        return config.sns.model_copy(update={"cuts": str(folder.path / self.cuts)}) if self.cuts else config.sns

    def specs(self, folder: RunFolder) -> dict[str, ModelSpec]:
        """Return the models as they were used, with their statistics."""
        counted = {name: {STATISTICS: str(folder.path / file)} for name, file in self.statistics.items()}
        return {name: parse(ModelSpec, {**values, **counted.get(name, {})}) for name, values in self.models.items()}


@dataclass(frozen=True)
class FinishedRun:
    """What it takes to do to other pairs as a run did to its own.

    Attributes:
        config: as it was ranked last: with the queries and weights behind the blend that is there.
        models: with the statistics that they took from the pool.
        projection: folder of the fitted projection.
        matcher: folder of what tells own annotations from others.
        scoring: from cosines to scores, by the statistics of the run's pairs.
        examples: files of the embedded examples of its queries.
    """

    config: Config
    models: dict[str, ModelSpec]
    projection: Path
    matcher: Path
    scoring: Scoring
    examples: tuple[Path, ...] = ()

    @classmethod
    def load(cls, run: str | Path, trust: Trust | None = NOTHING) -> FinishedRun:
        """Read a run's folder: what it has fitted, and none of its shards.

        Args:
            run: the folder.
            trust: which code it may have executed by the models and conditions that it names; None where nobody will
                load them.

        Raises:
            UserError: it is no run, or not finished, or names code that is not trusted.
        """
        folder = RunFolder.at(run)
        folder.load_config()
        state = State.load(folder)
        models, scoring = state.specs(folder), state.scored_by(folder)
        # The configuration in the manifest, because a run can be ranked again with other queries.
        config = parse(Config, read_sealed(folder.manifest)["config"])
        config = config.model_copy(update={"sns": state.trimmed_by(config, folder)})
        if trust is not None:
            trust.admit(models, folder, describing=True)
            trust.admit(config.ranking.computed, folder, kind="condition")
        projection, matcher = folder.path / state.projection, folder.path / state.matcher
        return cls(config, models, projection, matcher, scoring, state.shown(folder))


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
    read_sealed(folder.manifest)
    blend = read_table(folder.blend)
    rows = rows_of(folder, blend[PAIR_ID])
    if (note := replaced(rows)) is not None:
        warnings.warn(note, Note, stacklevel=2)
    places = pc.index_in(blend[PAIR_ID], value_set=rows[PAIR_ID].combine_chunks())
    return config, blend.append_column(MEDIA_ROOT, rows[MEDIA_ROOT].combine_chunks().take(places))


def rows_of(folder: RunFolder, pair_ids: pa.ChunkedArray) -> pa.Table:
    """Return what says which media some pairs of a run's pool have (`STAMPED`), and the stamps that ingest saw."""
    state = State.load(folder)
    pool = state.pool(folder)
    tables, places, first = [], [], 0
    for part in range(pool.count):
        rows = pool.read(part, [PAIR_ID, *STAMPED])
        chosen = pc.is_in(rows[PAIR_ID], value_set=pair_ids.combine_chunks())
        tables.append(rows.filter(chosen))
        places.append(first + np.flatnonzero(chosen))
        first += rows.num_rows
    stamps = read_table(pool.stages[0] / STAMPS).take(pa.array(np.concatenate(places)))
    rows = pa.concat_tables(tables)
    for name in stamps.column_names:
        rows = rows.append_column(f"{_SEEN}{name}", stamps[name])
    return rows


_SEEN, _NAMED = "seen_", 5


def replaced(rows: pa.Table) -> str | None:
    """Say which of some pairs (`rows_of`) have media files of other sizes or times than the run read; None for none."""
    before = np.stack([rows[f"{_SEEN}bytes"].to_numpy(), rows[f"{_SEEN}time"].to_numpy()], axis=1)
    other = np.flatnonzero((before[:, 0] >= 0) & (before != stamps_now(rows)).any(axis=1))
    if not len(other):
        return None
    names = rows[PAIR_ID].take(pa.array(other[:_NAMED])).to_pylist()
    more = f" and {len(other) - _NAMED:,} more" if len(other) > _NAMED else ""
    return (
        f"{len(other):,} of {rows.num_rows:,} pairs of the blend have media that were replaced or lost after the run "
        f"read them (another size or time): {', '.join(map(repr, names))}{more}; curate with the same configuration "
        "reads them again"
    )
