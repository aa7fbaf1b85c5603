"""All shards taken through some steps: those that are not done, and only as long as enough pairs are left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import torch

from nemo_mm_rank.config import JobSettings, PoolSource
from nemo_mm_rank.engine import Engine
from nemo_mm_rank.errors import EmptyPoolError, FailedError
from nemo_mm_rank.io.files import file_names, read_table, write_table
from nemo_mm_rank.io.ingest import BAD_ROWS, IngestReport, ingest
from nemo_mm_rank.io.part_files import part_name
from nemo_mm_rank.io.pool import gathered_note, renamed_note
from nemo_mm_rank.models import loader
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.run.outcome import write_quarantine
from nemo_mm_rank.run.progress import Reporter
from nemo_mm_rank.run.reasons import in_short, may_pass, reasons
from nemo_mm_rank.run.store import Chain, ShardStore, Stage, digest
from nemo_mm_rank.run.summary import StepCounts, count_steps
from nemo_mm_rank.schema import MODALITY
from nemo_mm_rank.steps import Step


def take_in(pools: Sequence[PoolSource], into: Path, settings: JobSettings, folder: RunFolder) -> IngestReport:
    """Read the pools into a run's first shards.

    Args:
        pools: one or several.
        into: the shards' folder.
        settings: how many shards, and what a bad row leads to.
        folder: of the run, for a quarantine where nothing is left.

    Raises:
        FailedError: there is no good row; the quarantine is written.
        PoolError: a manifest cannot be read, or a bad row where those are to fail.
    """
    try:
        return ingest(
            pools,
            into,
            rows_per_shard=settings.rows_per_shard,
            shards=settings.shards,
            on_bad_row=settings.on_bad_row,
        )
    except EmptyPoolError:
        bad = read_table(into / BAD_ROWS)
        if not bad.num_rows:
            raise
        folder.manifest.unlink(missing_ok=True)  # it vouches for the files beside it
        write_table(folder.quarantine, bad)
        raise FailedError(_nothing_left(bad, folder)) from None


def pool_notes(report: IngestReport) -> tuple[str, ...]:
    """Return what has become of the users' own columns, line by line, where it is not what they are called."""
    renamed = (renamed_note(report.renamed),) if report.renamed else ()
    gathered = (gathered_note(),) if report.gathered else ()
    return (*renamed, *gathered)


def take_through(
    steps: Sequence[Step],
    shards: ShardStore,
    pairs: int,
    folder: RunFolder,
    engine: Engine,
    reporter: Reporter,
    settings: JobSettings,
) -> ShardStore:
    """Take all shards through some steps, those that are not done yet, and return them with the columns added.

    Args:
        steps: one after the other, shard by shard.
        shards: as they are before.
        pairs: how many they hold.
        folder: of the run.
        engine: where the work is done.
        reporter: where progress goes.
        settings: what to do about pairs that fail.

    Raises:
        FailedError: no pair is left, or a step failed for nearly all of a modality; the quarantine is written.
    """
    # Models compute in another type on another kind of device, so a run goes on only on the kind that it began on.
    device = torch.device(loader.pick_device(engine.device)).type
    stages = []
    for step in steps:
        identity = digest([step.identity(), device])
        stage = folder.stage(step.name, identity)
        stages.append(Stage(step, shards, stage, identity, engine.backend, engine.device, settings.retry_failed))
        shards = shards.then(stage)
    # Shard by shard through all of them: what one step has embedded, the next one still remembers.
    chain = Chain(tuple(stages))
    there = set.intersection(set(map(part_name, range(shards.count))), *(file_names(one.folder) for one in stages))
    todo = [part for part in range(shards.count) if part_name(part) not in there or not chain.done(part)]
    done = pairs - sum(shards.rows(part) for part in todo)
    with reporter.step(chain.name, pairs, done) as advance:
        for _, rows in engine.map(chain, todo):
            advance(rows)
    _check(count_steps(shards)[-len(steps) :] if steps else [], shards, folder, settings)
    return shards


def _check(counted: Sequence[StepCounts], shards: ShardStore, folder: RunFolder, settings: JobSettings) -> None:
    """Raise where too many pairs failed in the steps that were ``counted``."""
    nothing = bool(counted) and counted[-1].live == 0
    hopeless = [(step, modality) for step in counted for modality in step.hopeless(settings.allow_failures)]
    if not nothing and not hopeless:
        return
    folder.manifest.unlink(missing_ok=True)  # it vouches for the files beside it
    quarantine = write_quarantine(folder, shards)
    if nothing:
        raise FailedError(_nothing_left(quarantine, folder))
    step, modality = hopeless[0]
    of_it = pc.and_(pc.equal(quarantine["step"], step.step), pc.equal(quarantine[MODALITY], modality))
    found = reasons(quarantine.filter(of_it))
    raise FailedError(
        f"{step.said(modality, found[0])} ({folder.quarantine} has all); once that is mended, start the same command "
        "again, with --retry-failed where neither pool nor settings changed, or go on without these pairs: "
        "--allow-failures 100% (allow_failures in YAML)"
    )


def _nothing_left(quarantine: pa.Table, folder: RunFolder) -> str:
    again = "".join(f"; {line}" for line in may_pass(quarantine))
    return (
        f"no pair is left of {quarantine.num_rows:,} rows: {in_short(reasons(quarantine))} "
        f"({folder.quarantine} has all){again}"
    )
