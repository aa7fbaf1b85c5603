"""What a benchmark is about: the pool, spoilt where that is asked for, and the validation pairs, which left it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nemo_mm_rank.arrays import Bools, Ints
from nemo_mm_rank.benchmark.planting import Kind, Planted, PlantSettings, plant
from nemo_mm_rank.benchmark.settings import BenchmarkConfig, Relevance
from nemo_mm_rank.config import Pools, PoolSource
from nemo_mm_rank.demo import make_demo_pool
from nemo_mm_rank.engine import Engine
from nemo_mm_rank.errors import ConfigError, UserError, nearest
from nemo_mm_rank.io.files import write_table
from nemo_mm_rank.io.part_files import part_name
from nemo_mm_rank.measures.selection import Labels
from nemo_mm_rank.modality import is_media
from nemo_mm_rank.quality.duplicates import distances
from nemo_mm_rank.quality.operators.fingerprints import DATA_KEY as FINGERPRINT
from nemo_mm_rank.quality.operators.fingerprints import Fingerprints
from nemo_mm_rank.quality.operators.media import MediaStep
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.run.job import Job
from nemo_mm_rank.run.progress import Reporter
from nemo_mm_rank.run.store import ShardStore, digest
from nemo_mm_rank.schema import ANNOTATION, DATA, ERROR, MODALITY, PAIR_ID
from nemo_mm_rank.text.minhash import NearDuplicateSettings, band_keys

SCHEMA = pa.schema([(PAIR_ID, pa.string()), ("held_out", pa.string()), ("what", pa.string())])

TEXTS = NearDuplicateSettings(char_ngrams=8, bands=20, rows=8)
"""Texts are near where one band of MinHash is equal: about two thirds of their 8-character shingles in common, since
annotations are short."""

RADIUS = 3
"""Media are near where at most so many of the 64 bits of their perceptual hashes differ."""

_CELLS = 1 << 22
_SPACES = re.compile(r"[\W_]+")


def leaks(pool: pa.Table, held_out: pa.Table) -> pa.Table:
    """Return the pairs of a pool that are too near to a held-out one.

    A pair leaks where it has the same id; an annotation that is equal or near (`TEXTS`), case and punctuation aside;
    or data of its modality that is: text and code likewise, media by their perceptual hash (`RADIUS`).

    Args:
        pool: ``pair_id, modality, data, annotation`` and `FINGERPRINT` (uint64, null where media did not open).
        held_out: the same columns.

    Returns:
        ``pair_id, held_out, what`` (`SCHEMA`): ``what`` is ``pair_id``, ``annotation`` or ``data``; a pair may be there
        for several reasons, for each with the first held-out pair by row.
    """
    tables = [_table(pool, held_out, "pair_id", pc.index_in(pool[PAIR_ID], held_out[PAIR_ID].combine_chunks()))]
    tables.append(_table(pool, held_out, "annotation", _near_texts(pool[ANNOTATION], held_out[ANNOTATION])))
    for modality in pc.unique(pool[MODALITY]).to_pylist():
        ours, theirs = (table.filter(pc.equal(table[MODALITY], modality)) for table in (pool, held_out))
        if is_media(modality):
            tables.append(_table(ours, theirs, "data", _near_media(ours[FINGERPRINT], theirs[FINGERPRINT])))
        else:
            tables.append(_table(ours, theirs, "data", _near_texts(ours[DATA], theirs[DATA])))
    return pa.concat_tables(tables).combine_chunks()


def _table(pool: pa.Table, held_out: pa.Table, what: str, match: Ints | pa.ChunkedArray) -> pa.Table:
    places = match if isinstance(match, np.ndarray) else pc.fill_null(match, -1).to_numpy()
    rows = np.flatnonzero(places >= 0)
    columns = [
        pool[PAIR_ID].take(pa.array(rows)),
        held_out[PAIR_ID].take(pa.array(places[rows])),
        pa.array([what] * len(rows), pa.string()),
    ]
    return pa.table(columns, SCHEMA)


def _near_texts(pool: pa.ChunkedArray, held_out: pa.ChunkedArray) -> Ints:
    """Return for each text the first held-out one that it is near to, -1 for none."""
    match = np.full(len(pool), -1)
    if not len(pool) or not len(held_out):
        return match
    ours, theirs = (band_keys(_plain(texts.to_pylist()), TEXTS) for texts in (pool, held_out))
    for band in range(TEXTS.bands):
        order = np.argsort(theirs[:, band], kind="stable")
        keys = theirs[order, band]
        place = np.minimum(np.searchsorted(keys, ours[:, band]), len(keys) - 1)
        first_near = np.where(keys[place] == ours[:, band], order[place], -1)
        match = np.where((match < 0) | ((first_near >= 0) & (first_near < match)), first_near, match)
    return match


def _plain(texts: Sequence[str]) -> list[str]:
    return [_SPACES.sub(" ", text.casefold()).strip() or text for text in texts]


def _near_media(pool: pa.ChunkedArray, held_out: pa.ChunkedArray) -> Ints:
    """Return for each hash the first held-out one within the radius, -1 for none and where there is no hash."""
    match = np.full(len(pool), -1)
    ours, theirs = (np.flatnonzero(pc.is_valid(column).to_numpy()) for column in (pool, held_out))
    if not len(ours) or not len(theirs):
        return match
    codes, targets = pool.take(pa.array(ours)).to_numpy(), held_out.take(pa.array(theirs)).to_numpy()
    step = max(1, _CELLS // len(targets))
    for start in range(0, len(codes), step):
        block = codes[start : start + step]
        bits = distances(np.repeat(block, len(targets)), np.tile(targets, len(block))).reshape(len(block), -1)
        near = bits <= RADIUS
        match[ours[start : start + step]] = np.where(near.any(1), theirs[near.argmax(1)], -1)
    return match


@dataclass(frozen=True)
class Source:
    """What strategies choose from, and what they are judged by.

    Attributes:
        planted: the pool to choose from, and what was planted in it.
        shards: the same in canonical columns.
        pairs: how many.
        labels: which of them are clean and on topic.
        originals: pair id -> the annotation that it had before a foreign sentence was planted in it.
        validation: the held-out pairs, in canonical columns.
        held_out: how many.
        removed: pairs that left the pool because they were too near to a held-out one.
        leaks: what is left of that in the pool (`evaluation.leaks.SCHEMA`): nothing, or something is wrong.
    """

    planted: Planted
    shards: ShardStore
    pairs: int
    labels: Labels
    originals: dict[str, str]
    validation: ShardStore
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
        validation, held_out = _read(config.validation.pools, folder / "held-out", config, engine, reporter)
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
    on_topic = {pair_id: bool(on) for pair_id, on in zip(everything[PAIR_ID].to_pylist(), relevant, strict=True)}
    labels = Labels.of(planted.truth, np.array([on_topic[pair_id] for pair_id in planted.truth[PAIR_ID].to_pylist()]))
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
        shards.pool,
        len(pairs),
        labels,
        _originals(planted.truth, everything),
        validation.pool,
        len(held_out),
        len(gone.difference(held_out[PAIR_ID].to_pylist())),
        left,
    )


def _originals(truth: pa.Table, everything: pa.Table) -> dict[str, str]:
    """Return the own annotations of the pairs with a foreign sentence."""
    annotation = dict(zip(everything[PAIR_ID].to_pylist(), everything[ANNOTATION].to_pylist(), strict=True))
    kinds = zip(truth[PAIR_ID].to_pylist(), truth["kinds"].to_pylist(), strict=True)
    return {pair_id: annotation[pair_id] for pair_id, own in kinds if own == [Kind.FOREIGN_SENTENCE]}


def _read(
    pools: Pools, folder: Path, config: BenchmarkConfig, engine: Engine, reporter: Reporter
) -> tuple[ShardStore, pa.Table]:
    """Return pools as shards with fingerprints, and as a table of what is compared."""
    job = Job(config, RunFolder(folder), engine, reporter)
    step = MediaStep((Fingerprints(config.media.threads),), config.media, name="fingerprints")
    shards = job.take_through([step], job.take_in(pools, folder).shards)
    labels = [config.relevant.column] if config.relevant else []
    columns = list(dict.fromkeys([PAIR_ID, MODALITY, DATA, ANNOTATION, FINGERPRINT, ERROR, *labels]))
    return shards, shards.table(columns)


def _relevant(table: pa.Table, relevance: Relevance | None, names: Sequence[str]) -> Bools:
    """Return which pairs are on topic; all where nothing is said of that. ``names``: the pool's columns."""
    if relevance is None:
        return np.ones(len(table), dtype=bool)
    if relevance.column not in table.column_names:
        raise ConfigError(
            f"relevant.column: the pool has no column {relevance.column!r}{nearest(relevance.column, names)}"
        )
    column = table[relevance.column]
    if relevance.pattern is not None:
        if not pa.types.is_string(column.type):
            raise ConfigError(f"relevant.pattern: {relevance.column!r} is {column.type}, not text")
        matches = pc.match_substring_regex(column, relevance.pattern, ignore_case=True)
        return np.asarray(pc.fill_null(matches, False).to_numpy(), dtype=bool)
    values: list[Any] = list(relevance.values)
    return np.array([value in values for value in column.to_pylist()], dtype=bool)


def _draw(table: pa.Table, relevant: Bools, config: BenchmarkConfig) -> Bools:
    """Draw the validation pairs among those on topic that nothing is wrong with."""
    fit = np.flatnonzero(relevant & pc.is_null(table[ERROR]).to_numpy())
    count = config.validation.pairs
    if count >= len(fit):
        raise UserError(
            f"validation.pairs: {count:,} of {len(fit):,} pairs on topic would leave no pair to choose from"
        )
    drawn = np.zeros(len(table), dtype=bool)
    drawn[np.random.default_rng([config.seed, 2]).choice(fit, count, replace=False)] = True
    return drawn


def _filtered(shards: ShardStore, keep: Bools, folder: Path) -> ShardStore:
    """Write the kept rows of the pool's own columns as one shard."""
    pool = shards.pool
    key = digest([[pool.key(part) for part in range(pool.count)], np.flatnonzero(keep).tolist()])
    written = ShardStore((folder,), 1)
    if written.key(0) != key:
        write_table(folder / part_name(0), pool.table().filter(pa.array(keep)).combine_chunks(), {"key": key})
    return written
