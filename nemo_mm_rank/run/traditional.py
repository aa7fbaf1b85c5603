"""The text-only baseline as a job: from pools, or a finished run's pool, to a blend of the same budget."""

from __future__ import annotations

import platform
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field, model_validator
from rich import box
from rich.console import Console
from rich.table import Table

from nemo_mm_rank import __version__
from nemo_mm_rank.config import Budget, EngineSettings, Pools, Settings
from nemo_mm_rank.errors import UserError
from nemo_mm_rank.io.blend import write_blend
from nemo_mm_rank.io.digest import file_digest, table_digest
from nemo_mm_rank.io.ingest import ingest
from nemo_mm_rank.io.parquet import write_json, write_table
from nemo_mm_rank.io.pool import manifests
from nemo_mm_rank.quality import Choice, TraditionalSettings, TraditionalStep, choose
from nemo_mm_rank.ranking import attach_rows
from nemo_mm_rank.run.curation import Result
from nemo_mm_rank.run.engine import Engine, make_engine
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.run.outcome import write_quarantine
from nemo_mm_rank.run.progress import Reporter
from nemo_mm_rank.run.state import State
from nemo_mm_rank.run.store import Shards, Stage, digest
from nemo_mm_rank.schema import ANNOTATION, DATA, MEDIA_ROOT, MODALITY, PAIR_ID, POOL

DUPLICATES = "duplicates.parquet"
"""Pairs that fail a filter of duplicates, in the run's folder; Curator's removal stage reads it too."""

VERSIONS = ("nemo-curator", "numpy", "pandas", "pyarrow")
"""Libraries whose version can change what comes out."""


class TraditionalConfig(Settings):
    """A whole job. Either ``pools`` or ``run`` has to be given."""

    pools: Pools = ()
    run: str | None = Field(None, description="folder of a finished run whose pool is to be used")
    budget: Budget = Field(default_factory=lambda: Budget(fraction=0.2))
    output: str = "traditional-run"
    on_bad_row: Literal["fail", "quarantine"] = "quarantine"
    rows_per_shard: int = Field(1024, ge=1)
    shards: int | None = Field(None, ge=1, description="this many shards instead")
    traditional: TraditionalSettings = Field(default_factory=TraditionalSettings)
    engine: EngineSettings = Field(default_factory=EngineSettings)

    @model_validator(mode="after")
    def _one_source(self) -> TraditionalConfig:
        if bool(self.pools) == bool(self.run):
            raise ValueError("give either pools or the folder of a finished run")
        return self


@dataclass(frozen=True)
class TraditionalResult(Result):
    """A finished job: ``blend``, ``quarantine`` and ``manifest`` as the main job's."""

    def print(self, console: Console | None = None) -> None:
        """Print by filter and modality how many pairs it keeps."""
        counts = self.manifest["counts"]["filters"]
        table = Table(box=box.SIMPLE, title="pairs that pass")
        for column in ("filter", *counts):
            table.add_column(column, justify="left" if column == "filter" else "right")
        table.add_row("(pairs)", *(f"{entry['pairs']:,}" for entry in counts.values()))
        for name in next(iter(counts.values()), {"passed": ()})["passed"]:
            table.add_row(name, *(f"{entry['passed'][name]:,}" for entry in counts.values()))
        table.add_row("(all filters)", *(f"{entry['passed_all']:,}" for entry in counts.values()))
        (console or Console()).print(table)


def curate(
    config: TraditionalConfig, console: Console | None = None, engine: Engine | None = None
) -> TraditionalResult:
    """Fill the budget by the text-only baseline; finished shards of an earlier run in the same folder are kept.

    The output folder holds ``blend.parquet``, ``quarantine.parquet``, ``duplicates.parquet`` and ``manifest.json``.
    A share as the budget counts all pairs of the pool whose annotation can be judged: media are not opened, so pairs
    that the main job quarantines are among them. To fill the same budget as a blend, give its number of pairs.

    Args:
        config: the whole job.
        console: where progress goes.
        engine: where the work is done; default: what ``config.engine`` says. The caller's is left open.

    Raises:
        UserError: anything that the user can mend, in one line.
    """
    folder = RunFolder.at(config.output)
    if folder.config.exists():
        raise UserError(f"{folder.path} holds a run of the main job; choose another output")
    step = TraditionalStep(config.traditional)
    identity = step.identity()
    reporter = Reporter(console or Console(quiet=True))
    own = engine or make_engine(config.engine)
    try:
        with folder.locked():
            pool = _pool(config, folder)
            stage = Stage(
                step, pool.shards, folder.stage(step.name, digest(identity)), digest(identity), own.backend, own.device
            )
            todo = [part for part in range(pool.shards.count) if not stage.done(part)]
            done = pool.pairs - sum(pool.shards.rows(part) for part in todo)
            with reporter.step(step.name, pool.pairs, done) as advance:
                for _, rows in own.map(stage, todo):
                    advance(rows)
            judged = pool.shards.then(stage.folder)
            with reporter.step("choose", pool.pairs) as advance:
                choice = choose(judged, config.traditional, config.budget)
                advance(pool.pairs)
            return _write(config, folder, pool, judged, choice, identity)
    finally:
        if engine is None:
            own.close()


@dataclass(frozen=True)
class _Pool:
    shards: Shards
    pairs: int
    rows: int
    bad_rows: int
    inputs: list[dict[str, str]]


def _pool(config: TraditionalConfig, folder: RunFolder) -> _Pool:
    """Return the pool in canonical columns: a finished run's, or read now."""
    if config.run is not None:
        run = RunFolder.at(config.run)
        state = State.load(run)
        shards = Shards(state.open(run).stages[:1], state.shards)
        return _Pool(shards, state.pairs, state.rows, state.bad_rows, state.inputs)
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
    return _Pool(Shards((folder.pool,), report.shards), report.good, report.rows_in, report.bad, inputs)


def _write(
    config: TraditionalConfig, folder: RunFolder, pool: _Pool, judged: Shards, choice: Choice, identity: dict[str, Any]
) -> TraditionalResult:
    """Write the blend, the quarantine, the duplicates, and the manifest that vouches for them."""
    folder.manifest.unlink(missing_ok=True)
    own = [name for name in pool.shards.columns() if name not in (*choice.chosen.column_names, MEDIA_ROOT)]
    wide = attach_rows(choice.chosen, choice.places, pool.shards, own)
    first = [PAIR_ID, "rank", "score", MODALITY, POOL, DATA, ANNOTATION]
    blend: pa.Table = wide.select([*first, *(name for name in wide.column_names if name not in first)])
    write_blend(blend, folder.blend)
    write_table(folder.path / DUPLICATES, choice.duplicates)
    quarantine = write_quarantine(folder, judged)
    manifest = {
        "nemo_mm_rank": __version__,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in VERSIONS},
        "strategy": "traditional",
        "judged": ANNOTATION,
        "config": {"budget": config.budget.model_dump(mode="json", exclude_none=True), **identity["settings"]},
        "inputs": pool.inputs,
        "counts": {
            "pool": {"rows": pool.rows, "bad_rows": pool.bad_rows},
            "filters": choice.counts,
            "duplicates": dict(sorted(Counter(choice.duplicates["filter"].to_pylist()).items())),
            "quarantined": quarantine.num_rows,
            "blend": dict(sorted(Counter(blend[MODALITY].to_pylist()).items())),
        },
        "blend": {"pairs": blend.num_rows, "digest": table_digest(blend)},
    }
    write_json(folder.manifest, manifest)
    return TraditionalResult(folder.path, manifest)
