"""What all jobs share that choose a blend in another way: where their pairs come from, and what they leave behind."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field, model_validator
from rich.console import Console

from nemo_mm_rank import __version__
from nemo_mm_rank.arrays import Ints
from nemo_mm_rank.config import Budget, EngineSettings, Importing, Pools
from nemo_mm_rank.console import SafeConsole
from nemo_mm_rank.engine import Engine, make_engine
from nemo_mm_rank.errors import UserError
from nemo_mm_rank.io.export import write_blend
from nemo_mm_rank.io.files import file_digest, table_digest
from nemo_mm_rank.io.ingest import ingest
from nemo_mm_rank.io.owned import Claim
from nemo_mm_rank.io.pool import manifests
from nemo_mm_rank.ranking import attach_rows
from nemo_mm_rank.run.finished import State
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.run.outcome import write_quarantine
from nemo_mm_rank.run.progress import Reporter
from nemo_mm_rank.run.store import ShardStore, take_through
from nemo_mm_rank.schema import ANNOTATION, DATA, MEDIA_ROOT, MODALITY, PAIR_ID, POOL
from nemo_mm_rank.steps import Step


class StrategyConfig(Importing):
    """A whole job. Either ``pools`` or ``run`` has to be given."""

    pools: Pools = ()
    run: str | None = Field(None, description="folder of a finished run whose pool is to be used")
    budget: Budget = Field(default_factory=lambda: Budget(fraction=0.2))
    output: str
    on_bad_row: Literal["fail", "quarantine"] = "quarantine"
    rows_per_shard: int = Field(1024, ge=1)
    shards: int | None = Field(None, ge=1, description="this many shards instead")
    engine: EngineSettings = Field(default_factory=EngineSettings)

    @model_validator(mode="after")
    def _one_source(self) -> StrategyConfig:
        if bool(self.pools) == bool(self.run):
            raise ValueError("give either pools or the folder of a finished run")
        return self


@dataclass(frozen=True)
class Pool:
    """The pairs that a job chooses from.

    Attributes:
        shards: in canonical columns, with the users' own.
        embedded: the same with what the steps of a finished run have added, where they come from one.
        pairs: good rows.
        rows: all rows.
        bad_rows: those that never became pairs.
        inputs: the manifests with digests of their bytes.
    """

    shards: ShardStore
    embedded: ShardStore
    pairs: int
    rows: int
    bad_rows: int
    inputs: list[dict[str, str]]


@dataclass
class Job:
    """A job at work in its folder.

    Attributes:
        config: the whole job.
        folder: where everything goes; locked.
        engine: where the work is done.
        reporter: where progress goes.
        pool: what is chosen from.
    """

    config: StrategyConfig
    folder: RunFolder
    engine: Engine
    reporter: Reporter
    pool: Pool

    def through(self, steps: Sequence[Step], shards: ShardStore) -> ShardStore:
        """Take all shards through some steps, those that are not done yet."""
        return take_through(steps, shards, self.pool.pairs, self.folder, self.engine, self.reporter)

    def write(self, chosen: pa.Table, places: Ints, shards: ShardStore) -> tuple[pa.Table, pa.Table]:
        """Write the blend, with the users' own columns, and the quarantine; return both.

        The manifest of an earlier run goes first: it vouches for these files.

        Args:
            chosen: best first, with ``pair_id, rank, score, modality, pool``.
            places: ``(k, 2)`` shard and row of each.
            shards: after the last step, with every ``error``.
        """
        self.folder.manifest.unlink(missing_ok=True)
        own = [name for name in self.pool.shards.columns() if name not in (PAIR_ID, POOL, MODALITY, MEDIA_ROOT)]
        wide = attach_rows(chosen, places, self.pool.shards, own)
        first = [PAIR_ID, "rank", "score", MODALITY, POOL, DATA, ANNOTATION]
        blend = wide.select([*first, *(name for name in wide.column_names if name not in first)])
        write_blend(blend, self.folder.blend)
        return blend, write_quarantine(self.folder, shards)

    def manifest(
        self,
        strategy: str,
        libraries: Sequence[str],
        about: Mapping[str, Any],
        counts: Mapping[str, Any],
        blend: pa.Table,
        quarantine: pa.Table,
    ) -> dict[str, Any]:
        """Return where a blend comes from. The same for the same input, settings and versions.

        Args:
            strategy: its name.
            libraries: whose version can change what comes out.
            about: what else there is to say: first of all the ``config``.
            counts: the strategy's own.
            blend: the chosen pairs.
            quarantine: those that could not be judged.
        """
        return {
            "nemo_mm_rank": __version__,
            "python": platform.python_version(),
            "versions": {name: version(name) for name in libraries},
            "strategy": strategy,
            **about,
            "inputs": self.pool.inputs,
            "counts": {
                "pool": {"rows": self.pool.rows, "bad_rows": self.pool.bad_rows},
                **counts,
                "quarantined": quarantine.num_rows,
                "blend": dict(sorted(Counter(blend[MODALITY].to_pylist()).items())),
            },
            "blend": {"pairs": blend.num_rows, "digest": table_digest(blend)},
        }


@contextmanager
def at_work(
    kind: str, config: StrategyConfig, console: Console | None, engine: Engine | None, overwrite: bool
) -> Iterator[Job]:
    """Hold the output folder and an engine for a job, with its pool read.

    Args:
        kind: of job, one of `owned.KINDS`.
        config: the whole job.
        console: where progress goes.
        engine: where the work is done; default: what ``config.engine`` says. The caller's is left open.
        overwrite: whether a job on other pools that is in the folder may be replaced.

    Raises:
        UserError: the folder is not ours to write or holds something else, or the pool has no usable pair.
    """
    claim = Claim(kind, config.pools, [config.run] if config.run is not None else [], overwrite)
    folder = RunFolder(claim.check(config.output))
    reporter = Reporter(console or SafeConsole(quiet=True))
    own = engine or make_engine(config.engine)
    try:
        with folder.claimed(claim):
            yield Job(config, folder, own, reporter, _pool(config, folder))
    finally:
        if engine is None:
            own.close()


def _pool(config: StrategyConfig, folder: RunFolder) -> Pool:
    """Return the pool in canonical columns: a finished run's, or read now."""
    if config.run is not None:
        run = RunFolder.at(config.run)
        state = State.load(run)
        embedded = state.open(run)
        shards = ShardStore(embedded.stages[:1], state.shards)
        return Pool(shards, embedded, state.pairs, state.rows, state.bad_rows, state.inputs)
    files = [manifest.file for pool in config.pools for manifest in manifests(pool)]
    report = ingest(
        config.pools,
        folder.pool,
        rows_per_shard=config.rows_per_shard,
        shards=config.shards,
        on_bad_row=config.on_bad_row,
    )
    if not report.good:
        raise UserError(f"the pool has no usable pair: {report.rows_in} rows in, {report.bad} of them bad")
    inputs = [{"file": file, "digest": file_digest(file)} for file in files]
    shards = ShardStore((folder.pool,), report.shards)
    return Pool(shards, shards, report.good, report.rows_in, report.bad, inputs)
