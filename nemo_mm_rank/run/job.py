"""What all jobs share that choose a blend in another way: where their pairs come from, and what they leave behind."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field, model_validator
from rich.console import Console

from nemo_mm_rank import __version__
from nemo_mm_rank.arrays import Ints
from nemo_mm_rank.config import MEDIA_NO_MATTER, Budget, JobSettings, Pools
from nemo_mm_rank.console import SafeConsole
from nemo_mm_rank.engine import Engine, using
from nemo_mm_rank.io.export import write_blend
from nemo_mm_rank.io.files import file_digest, table_digest, write_sealed, write_table
from nemo_mm_rank.io.owned import Claim, drop, take
from nemo_mm_rank.io.pool import manifests
from nemo_mm_rank.models import loader
from nemo_mm_rank.ranking import attach_rows
from nemo_mm_rank.run.finished import State
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.run.outcome import cpu, write_quarantine
from nemo_mm_rank.run.progress import Reporter
from nemo_mm_rank.run.reasons import may_pass
from nemo_mm_rank.run.store import ShardStore
from nemo_mm_rank.run.through import pool_notes, take_in, take_through
from nemo_mm_rank.schema import ANNOTATION, DATA, MEDIA_ROOT, MODALITY, PAIR_ID, POOL
from nemo_mm_rank.steps import Step


class StrategyConfig(JobSettings):
    """A whole job. Either ``pools`` or ``run`` has to be given."""

    kind: ClassVar[str]
    """Of job, one of `owned.KINDS`."""
    libraries: ClassVar[tuple[str, ...]]
    """Those whose version can change what comes out."""

    pools: Pools = ()
    run: str | None = Field(None, description="Folder of the finished run whose pool is used.")
    budget: Budget = Field(default_factory=lambda: Budget(fraction=0.2))
    output: str

    @model_validator(mode="after")
    def _one_source(self) -> StrategyConfig:
        if bool(self.pools) == bool(self.run):
            raise ValueError("give either pools or the folder of a finished run")
        return self


_WHERE: dict[str, Any] = {
    **dict.fromkeys(("pools", "run", "engine", "output", "import_from", "trust_run", "shards", "rows_per_shard"), True),
    **dict.fromkeys(("allow_failures", "retry_failed"), True),
    "media": MEDIA_NO_MATTER,
}
"""Settings that say where and how the work is done, and change nothing of what comes out (inputs have digests)."""


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
        notes: what a reader of a blend has to know of its columns.
    """

    shards: ShardStore
    embedded: ShardStore
    pairs: int
    rows: int
    bad_rows: int
    inputs: list[dict[str, str]]
    notes: tuple[str, ...]


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

    def take_through(self, steps: Sequence[Step], shards: ShardStore) -> ShardStore:
        """Take all shards through some steps, those that are not done yet."""
        return take_through(steps, shards, self.pool.pairs, self.folder, self.engine, self.reporter, self.config)

    def step(self, name: str) -> AbstractContextManager[None]:
        """Report what is done inside as one step over all pairs."""
        return self.reporter.whole(name, self.pool.pairs)

    def finish(
        self,
        chosen: pa.Table,
        places: Ints,
        shards: ShardStore,
        files: Mapping[str, pa.Table | None],
        steps: Sequence[Step],
        counts: Mapping[str, Any],
        **about: Any,
    ) -> dict[str, Any]:
        """Write everything that the job leaves behind, the manifest that vouches for it last, and return that.

        The manifest of an earlier run goes first. It is the same for the same input, settings and versions.

        Args:
            chosen: best first, with ``pair_id, rank, score, modality, pool``; the users' own columns are added.
            places: ``(k, 2)`` shard and row of each.
            shards: after the last step, with every ``error``.
            files: name -> what else is written; None takes away what an earlier run has left.
            steps: that the manifest identifies.
            counts: the strategy's own.
            about: what else the manifest says.
        """
        folder, config, pool = self.folder, self.config, self.pool
        folder.manifest.unlink(missing_ok=True)
        own = [name for name in pool.shards.columns() if name not in (PAIR_ID, POOL, MODALITY, MEDIA_ROOT)]
        wide = attach_rows(chosen, places, pool.shards, own)
        first = [PAIR_ID, "rank", "score", MODALITY, POOL, DATA, ANNOTATION]
        blend = wide.select([*first, *(name for name in wide.column_names if name not in first)])
        write_blend(blend, folder.blend)
        quarantine = write_quarantine(folder, shards)
        for name, table in files.items():
            if table is None:
                drop(folder.path, name)
            else:
                write_table(take(folder.path, name), table)
        manifest = {
            "nemo_mm_rank": __version__,
            "python": platform.python_version(),
            "versions": {name: version(name) for name in config.libraries},
            "cpu": cpu(),
            "strategy": config.kind,
            "config": config.model_dump(mode="json", by_alias=True, exclude=_WHERE, exclude_none=True),
            "steps": [step.identity() for step in steps],
            **about,
            "inputs": pool.inputs,
            "notes": [*pool.notes, *may_pass(quarantine)],
            "counts": {
                "pool": {"rows": pool.rows, "bad_rows": pool.bad_rows},
                **counts,
                "quarantined": quarantine.num_rows,
                "blend": dict(sorted(Counter(blend[MODALITY].to_pylist()).items())),
            },
            "blend": {"pairs": blend.num_rows, "digest": table_digest(blend)},
        }
        write_sealed(folder.manifest, manifest)
        return manifest


@contextmanager
def at_work(config: StrategyConfig, console: Console | None, engine: Engine | None, overwrite: bool) -> Iterator[Job]:
    """Hold the output folder and an engine for a job, with its pool read.

    Args:
        config: the whole job.
        console: where progress goes.
        engine: where the work is done; default: what ``config.engine`` says. The caller's is left open.
        overwrite: whether a job on other pools that is in the folder may be replaced.

    Raises:
        UserError: the folder is not ours to write or holds something else, or the pool has no usable pair.
    """
    loader.pick_device(config.engine.device)
    claim = Claim(config.kind, config.pools, [config.run] if config.run is not None else [], overwrite)
    folder = RunFolder(claim.check(config.output))
    reporter = Reporter(console or SafeConsole(quiet=True))
    with using(engine, config.engine) as held, folder.claimed(claim):
        yield Job(config, folder, held, reporter, _pool(config, folder))


def _pool(config: StrategyConfig, folder: RunFolder) -> Pool:
    """Return the pool in canonical columns: a finished run's, or read now."""
    if config.run is not None:
        run = RunFolder.at(config.run)
        state = State.load(run)
        embedded = state.open(run)
        return Pool(embedded.pool, embedded, state.pairs, state.rows, state.bad_rows, state.inputs, state.notes)
    files = [manifest.file for pool in config.pools for manifest in manifests(pool)]
    report = take_in(config.pools, folder.pool, config, folder)
    inputs = [{"file": file, "digest": file_digest(file)} for file in files]
    shards = ShardStore((folder.pool,), report.shards)
    return Pool(shards, shards, report.good, report.rows_in, report.bad, inputs, pool_notes(report))
