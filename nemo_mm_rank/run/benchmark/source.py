"""What a benchmark is about: the pool, spoilt where that is asked for, and the validation pairs, which left it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nemo_mm_rank.arrays import Bools
from nemo_mm_rank.config import Pools, PoolSource
from nemo_mm_rank.demo import make_demo_pool
from nemo_mm_rank.errors import ConfigError, UserError, nearest
from nemo_mm_rank.evaluation.leaks import FINGERPRINT, leaks
from nemo_mm_rank.evaluation.planting import Planted, PlantSettings, plant
from nemo_mm_rank.evaluation.selection import Labels
from nemo_mm_rank.io.ingest import ingest
from nemo_mm_rank.io.parquet import write_table
from nemo_mm_rank.io.parts import part_name
from nemo_mm_rank.quality.operators import MediaStep
from nemo_mm_rank.quality.operators.fingerprints import Fingerprints
from nemo_mm_rank.run.benchmark.settings import BenchmarkConfig, Relevance
from nemo_mm_rank.run.engine import Engine
from nemo_mm_rank.run.progress import Reporter
from nemo_mm_rank.run.store import Shards, Stage, digest
from nemo_mm_rank.schema import ANNOTATION, DATA, ERROR, MODALITY, PAIR_ID


@dataclass(frozen=True)
class Source:
    """What strategies choose from, and what they are judged by.

    Attributes:
        planted: the pool to choose from, and what was planted in it.
        shards: the same in canonical columns.
        pairs: how many.
        labels: which of them are clean and on topic.
        relevant: whether anything is known of topics.
        validation: the held-out pairs, in canonical columns.
        held_out: how many.
        removed: pairs that left the pool because they were too near to a held-out one.
        leaks: what is left of that in the pool (`evaluation.leaks.SCHEMA`): nothing, or something is wrong.
    """

    planted: Planted
    shards: Shards
    pairs: int
    labels: Labels
    relevant: bool
    validation: Shards
    held_out: int
    removed: int
    leaks: pa.Table


def prepare(
    config: BenchmarkConfig, folder: Path, engine: Engine, reporter: Reporter, overwrite: bool = False
) -> Source:
    """Make the pool and the validation set; what an earlier run has made is taken, or else may be overwritten.

    Validation pairs are drawn before anything is planted, from pairs on topic whose media open, so they are clean, and
    no noise is made of them. They leave the pool with all that is near to them (`evaluation.leaks`), and the pool that
    comes out is looked through again.

    Writes ``truth.parquet`` (``pair_id, clean, kinds, donor, relevant``) and ``leaks.parquet``.

    Raises:
        UserError: too few pairs on topic to draw from, or a column that is not there.
        PoolError: a pool that cannot be read.
    """
    pools = config.pools or (PoolSource(path=str(make_demo_pool(folder / "demo", config.demo or 0, config.seed))),)
    source, everything = _read(pools, folder / "source", config, engine, reporter)
    relevant = _relevant(everything, config.relevant, list(source.columns()))
    if config.validation.pools:
        held, held_out = _read(config.validation.pools, folder / "held-out", config, engine, reporter)
        validation = held
    else:
        drawn = _draw(everything, relevant, config)
        held_out = everything.filter(pa.array(drawn))
        validation = _filtered(source, drawn, folder / "validation")
    near = leaks(everything, held_out)
    gone = set(near[PAIR_ID].to_pylist())
    planted = plant(
        pools,
        folder / "planted",
        config.plant or PlantSettings(total=0.0),
        config.seed,
        config.media,
        gone,
        overwrite,
    )
    shards, pairs = _read((planted.pool,), folder / "pool", config, engine, reporter)
    kept = {pair_id: bool(on) for pair_id, on in zip(everything[PAIR_ID].to_pylist(), relevant, strict=True)}
    labels = Labels.of(planted.truth, np.array([kept[pair_id] for pair_id in planted.truth[PAIR_ID].to_pylist()]))
    write_table(folder / "truth.parquet", planted.truth.append_column("relevant", pa.array(labels.relevant)))
    left = leaks(pairs, held_out)
    write_table(
        folder / "leaks.parquet",
        pa.concat_tables(
            table.append_column("removed", pa.array([removed] * len(table), pa.bool_()))
            for table, removed in ((near, True), (left, False))
        ),
    )
    return Source(
        planted,
        Shards(shards.stages[:1], shards.count),
        len(pairs),
        labels,
        config.relevant is not None,
        Shards(validation.stages[:1], validation.count),
        len(held_out),
        len(gone.difference(held_out[PAIR_ID].to_pylist())),
        left,
    )


def _read(
    pools: Pools, folder: Path, config: BenchmarkConfig, engine: Engine, reporter: Reporter
) -> tuple[Shards, pa.Table]:
    """Return pools as shards with fingerprints, and as a table of what is compared."""
    report = ingest(pools, folder, config.rows_per_shard, config.shards, config.on_bad_row)
    shards = Shards((folder,), report.shards)
    step = MediaStep((Fingerprints(config.media.threads),), config.media, name="fingerprints")
    identity = digest(step.identity())
    stage = Stage(step, shards, folder / "fingerprints", identity, engine.backend, engine.device)
    todo = [part for part in range(shards.count) if not stage.done(part)]
    with reporter.step(
        f"{folder.name} fingerprints", report.good, report.good - sum(map(shards.rows, todo))
    ) as advance:
        for _, rows in engine.map(stage, todo):
            advance(rows)
    shards = shards.then(stage.folder)
    own = [config.relevant.column] if config.relevant else []
    columns = list(dict.fromkeys([PAIR_ID, MODALITY, DATA, ANNOTATION, FINGERPRINT, ERROR, *own]))
    return shards, pa.concat_tables(
        (shards.read(part, columns) for part in range(shards.count)), promote_options="permissive"
    ).combine_chunks()


def _relevant(table: pa.Table, relevance: Relevance | None, names: Sequence[str]) -> Bools:
    """Return which pairs are on topic; all where nothing is said of that. ``names``: the pool's columns."""
    if relevance is None:
        return np.ones(len(table), dtype=bool)
    if relevance.column not in table.column_names:
        raise ConfigError(f"relevant.column: no {relevance.column!r} here{nearest(relevance.column, names)}")
    column = table[relevance.column]
    if relevance.pattern is not None:
        if not pa.types.is_string(column.type):
            raise ConfigError(f"relevant.pattern: {relevance.column!r} is {column.type}, not text")
        found = pc.match_substring_regex(column, relevance.pattern, ignore_case=True)
        return np.asarray(pc.fill_null(found, False).to_numpy(), dtype=bool)
    wanted: list[Any] = list(relevance.values)
    return np.array([value in wanted for value in column.to_pylist()], dtype=bool)


def _draw(table: pa.Table, relevant: Bools, config: BenchmarkConfig) -> Bools:
    """Draw the validation pairs among those on topic that nothing is wrong with."""
    fit = np.flatnonzero(relevant & pc.is_null(table[ERROR]).to_numpy())
    wanted = config.validation.pairs
    if wanted >= len(fit):
        raise UserError(f"validation.pairs: {wanted:,} of {len(fit):,} pairs on topic would leave none to choose")
    drawn = np.zeros(len(table), dtype=bool)
    drawn[np.random.default_rng([config.seed, 2]).choice(fit, wanted, replace=False)] = True
    return drawn


def _filtered(shards: Shards, keep: Bools, folder: Path) -> Shards:
    """Write the kept rows of the pool's own columns as one shard."""
    pool = Shards(shards.stages[:1], shards.count)
    table = pa.concat_tables([pool.read(part) for part in range(pool.count)], promote_options="permissive")
    key = digest([[pool.key(part) for part in range(pool.count)], np.flatnonzero(keep).tolist()])
    path = folder / part_name(0)
    if Shards((folder,), 1).key(0) != key:
        write_table(path, table.filter(pa.array(keep)).combine_chunks(), {"key": key})
    return Shards((folder,), 1)
