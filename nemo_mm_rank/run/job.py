"""A job at work in its folder: pools read into shards, shards taken through steps, and what is left for the user."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from pydantic import Field, model_validator
from rich.console import Console

from nemo_mm_rank import __version__
from nemo_mm_rank.arrays import Ints
from nemo_mm_rank.config import Budget, Config, JobSettings, Pools, PoolSource
from nemo_mm_rank.console import SafeConsole
from nemo_mm_rank.engine import Engine, using
from nemo_mm_rank.errors import EmptyPoolError, FailedError
from nemo_mm_rank.io import mirror
from nemo_mm_rank.io.files import file_digest, file_names, read_table, table_digest, write_sealed, write_table
from nemo_mm_rank.io.ingest import BAD_ROWS, ingest
from nemo_mm_rank.io.owned import Claim, drop, take
from nemo_mm_rank.io.part_files import part_name
from nemo_mm_rank.io.pool import gathered_note, manifests, renamed_note
from nemo_mm_rank.models import loader
from nemo_mm_rank.run import outcome
from nemo_mm_rank.run.finished import Pool, State
from nemo_mm_rank.run.fits import Fits
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.run.progress import Reporter
from nemo_mm_rank.run.reasons import in_short, may_pass, reasons
from nemo_mm_rank.run.store import Chain, ShardStore, Stage, StepCounts, count_steps, digest
from nemo_mm_rank.schema import MODALITY
from nemo_mm_rank.steps import Step


@dataclass
class Job:
    """A job at work in its folder.

    Attributes:
        config: how pairs are read and worked on, and what to do about those that fail.
        folder: where everything goes.
        engine: where the work is done.
        reporter: where progress goes.
    """

    config: JobSettings
    folder: RunFolder
    engine: Engine
    reporter: Reporter

    @property
    def fits(self) -> Fits:
        """What is fitted on the pairs, each made once and kept in the folder."""
        return Fits(self.folder.fitted, self.engine, self.reporter)

    def take_in(self, pools: Sequence[PoolSource], into: Path | None = None) -> Pool:
        """Read pools into the first shards.

        Args:
            pools: one or several.
            into: the shards' folder; default: `RunFolder.pool`.

        Raises:
            FailedError: there is no good row; the quarantine is written.
            PoolError: a manifest cannot be read, or a bad row where those are to fail.
        """
        config, place = self.config, into or self.folder.pool
        files = [manifest.file for pool in pools for manifest in manifests(pool)]
        try:
            report = ingest(
                pools,
                place,
                rows_per_shard=config.rows_per_shard,
                shards=config.shards,
                on_bad_row=config.on_bad_row,
            )
        except EmptyPoolError:
            bad = read_table(place / BAD_ROWS)
            if not bad.num_rows:
                raise
            mirror.unlink(self.folder.manifest)  # it vouches for the files beside it
            write_table(self.folder.quarantine, bad)
            raise FailedError(self._nothing_left(bad)) from None
        renamed = (renamed_note(report.renamed),) if report.renamed else ()
        gathered = (gathered_note(),) if report.gathered else ()
        inputs = [{"file": file, "digest": file_digest(file)} for file in files]
        shards = ShardStore((place,), report.shards)
        return Pool(shards, report.rows_in, report.bad, inputs, (*renamed, *gathered))

    def take_through(self, steps: Sequence[Step], shards: ShardStore) -> ShardStore:
        """Take all shards through some steps, those that are not done yet, and return them with the columns added.

        Args:
            steps: one after the other, shard by shard.
            shards: as they are before.

        Raises:
            FailedError: no pair is left, or a step failed for nearly all of a modality; the quarantine is written.
        """
        engine = self.engine
        # Models compute in another type on another kind of device, so a run goes on only on the kind that it began on.
        device = torch.device(loader.pick_device(engine.device, here=False)).type
        shards = shards.as_of_now()
        pairs, stages = shards.pairs, []
        for step in steps:
            identity = digest([step.identity(), device])
            folder = self.folder.stage(step.name, identity)
            again = self.config.retry_failed
            stages.append(Stage(step, shards, folder, identity, engine.backend, engine.device, again))
            shards = shards.then(folder)
            mirror.fetch(folder)
        # Shard by shard through all of them: what one step has embedded, the next one still remembers.
        chain = Chain(tuple(stages))
        written = (file_names(stage.folder) for stage in stages)
        complete = set.intersection(set(map(part_name, range(shards.count))), *written)
        todo = [part for part in range(shards.count) if part_name(part) not in complete or not chain.done(part)]
        with self.reporter.step(chain.name, pairs, pairs - sum(map(shards.rows, todo))) as advance:
            for _, rows in engine.map(chain, todo):
                advance(rows)
        for stage in stages:
            mirror.refresh(stage.folder)
            mirror.fetch(stage.folder)
        self._check(count_steps(shards)[-len(steps) :] if steps else [], shards)
        return shards

    def _check(self, counted: Sequence[StepCounts], shards: ShardStore) -> None:
        """Raise where too many pairs failed in the steps that were ``counted``."""
        nothing = bool(counted) and counted[-1].live == 0
        hopeless = [(step, modality) for step in counted for modality in step.hopeless(self.config.allow_failures)]
        if not nothing and not hopeless:
            return
        mirror.unlink(self.folder.manifest)  # it vouches for the files beside it
        quarantine = outcome.write_quarantine(self.folder, shards)
        if nothing:
            raise FailedError(self._nothing_left(quarantine))
        step, modality = hopeless[0]
        of_modality = pc.and_(pc.equal(quarantine["step"], step.step), pc.equal(quarantine[MODALITY], modality))
        first = reasons(quarantine.filter(of_modality))[0]
        raise FailedError(
            f"{step.summary(modality, first)} ({self.folder.quarantine} has all of them); once that is mended, start "
            "the same command again, with --retry-failed if neither the pool nor the settings changed, or continue "
            "without these pairs: "
            "--allow-failures 100% (allow_failures in YAML)"
        )

    def _nothing_left(self, quarantine: pa.Table) -> str:
        again = "".join(f"; {line}" for line in may_pass(quarantine))
        return (
            f"no pair is left of {quarantine.num_rows:,} rows: {in_short(reasons(quarantine))} "
            f"({self.folder.quarantine} has all of them){again}"
        )

    def finish(
        self,
        pool: Pool,
        chosen: pa.Table,
        places: Ints,
        shards: ShardStore,
        counts: Mapping[str, Any],
        told: Sequence[str] = (),
        jsonl: bool = False,
        files: Mapping[str, pa.Table | None] | None = None,
        notes: Sequence[str] = (),
        **about: Any,
    ) -> dict[str, Any]:
        """Write everything that the job leaves behind, the manifest that vouches for it last, and return that.

        The manifest of an earlier run goes first. It is the same for the same input, settings, versions and kind of
        CPU.

        Args:
            pool: that was chosen from.
            chosen: best first, with ``pair_id, rank, score, modality, pool``; the users' own columns are added.
            places: ``(k, 2)`` shard and row of each.
            shards: after the last step, with every ``error``.
            counts: the job's own.
            told: more columns of the shards that the blend is to have.
            jsonl: whether the blend is written as JSON lines, too.
            files: name -> what else is written; None takes away what an earlier run has left.
            notes: what a reader of the blend has to know, besides what the pool's notes say.
            about: what else the manifest says.
        """
        folder, config = self.folder, self.config
        mirror.unlink(folder.manifest)
        blend = outcome.write_chosen(folder, chosen, places, shards, told, jsonl)
        quarantine = outcome.write_quarantine(folder, shards)
        for name, table in (files or {}).items():
            if table is None:
                drop(folder.path, name)
            else:
                write_table(take(folder.path, name), table)
        manifest = {
            "nemo_mm_rank": __version__,
            "python": platform.python_version(),
            "versions": {name: version(name) for name in config.libraries},
            "cpu": outcome.cpu(),
            "config": config.recorded(),
            **about,
            "inputs": pool.inputs,
            "notes": [*notes, *pool.notes, *may_pass(quarantine)],
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


class StrategyConfig(JobSettings):
    """A whole job that chooses a blend in another way. Either ``pools`` or ``run`` has to be given."""

    pools: Pools = ()
    run: str | None = Field(None, description="Folder of the finished run whose pool is used.")
    budget: Budget = Field(default_factory=lambda: Budget(fraction=0.2))
    output: str

    @model_validator(mode="after")
    def _one_source(self) -> StrategyConfig:
        if bool(self.pools) == bool(self.run):
            raise ValueError("give either pools or the folder of a finished run")
        return self

    def recorded(self) -> dict[str, Any]:
        """Return the settings without where the pairs come from, either: inputs have digests."""
        return {name: value for name, value in super().recorded().items() if name not in ("pools", "run", "trust_run")}

    def pool(self, job: Job) -> Pool:
        """Return the pool: a finished run's, with what that has embedded, or read now."""
        if self.run is None:
            return job.take_in(self.pools)
        run = RunFolder.at(self.run)
        return State.load(run).as_pool(run)


@contextmanager
def at_work(
    config: Config | StrategyConfig, console: Console | None, engine: Engine | None, overwrite: bool
) -> Iterator[Job]:
    """Hold the output folder and an engine for a job.

    Args:
        config: the whole job.
        console: where progress goes.
        engine: where the work is done; default: what ``config.engine`` says. The caller's is left open.
        overwrite: whether a job on other pools that is in the folder may be replaced.

    Raises:
        UserError: the folder is not ours to write or holds something else.
    """
    loader.pick_device(config.engine.device, here=engine is None and config.engine.scheduler_address is None)
    runs = [config.run] if isinstance(config, StrategyConfig) and config.run is not None else []
    claim = Claim(config.kind, config.pools, runs, overwrite)
    folder = RunFolder(claim.check(config.output))
    with folder.claimed(claim), using(engine, config.engine) as held:
        yield Job(config, folder, held, Reporter(console or SafeConsole(quiet=True)))
