"""From pools to the shards of a run: Parquet parts in canonical columns, all of one schema, in the manifests' order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from nemo_mm_rank.config import PoolSource
from nemo_mm_rank.errors import DamagedError, EmptyPoolError, PoolError
from nemo_mm_rank.io import mirror
from nemo_mm_rank.io.bad_rows import SCHEMA, BadRow, bad_rows_table
from nemo_mm_rank.io.canonical import PoolBatch
from nemo_mm_rank.io.columns import PoolTypes
from nemo_mm_rank.io.files import file_digest, is_sound, read_sealed, write_sealed, write_table
from nemo_mm_rank.io.owned import Claim, clear
from nemo_mm_rank.io.part_files import STAMPS, PartWriter, files_unchanged, is_part
from nemo_mm_rank.io.pool import manifests, read_pools
from nemo_mm_rank.modality import registered

RECORD, BAD_ROWS = "ingest.json", "bad_rows.parquet"
_FORMAT = 1
_SHOWN = 5


@dataclass(frozen=True)
class IngestReport:
    """What became of the pools' rows.

    Attributes:
        rows_in: rows of the manifests; ``good + bad``.
        shards: number of part files.
        digests: of each part's content and of its media files' sizes and modification times.
        renamed: columns whose names a run adds -> the names that they go by.
        gathered: whether there were too many columns for a table, so that all are JSON in ``other_fields``.
        fresh: False where an earlier ingest of the same input was found and kept.
    """

    rows_in: int
    good: int
    bad: int
    shards: int
    digests: tuple[str, ...]
    fresh: bool = True
    renamed: Mapping[str, str] = field(default_factory=dict)
    gathered: bool = False


def ingest(
    pools: Sequence[PoolSource],
    folder: Path,
    rows_per_shard: int = 2048,
    shards: int | None = None,
    on_bad_row: Literal["fail", "quarantine"] = "quarantine",
    check_files: bool = True,
    progress: Callable[[int], None] | None = None,
) -> IngestReport:
    """Write the pools to ``folder`` as ``part-00000.parquet`` ..., the bad rows to ``bad_rows.parquet``.

    Every part has the same columns: the canonical ones, ``media_root``, ``data_bytes`` where any row carries
    content, and the user's own. A column of the user's that has several types becomes JSON text. Rows keep the
    order of the manifests. The note of a part has ``key`` (digest of the content), ``rows`` and ``files``.

    The manifests are read once, or twice where types turn out to differ later on or ``shards`` is given. Memory: one
    part, 16 bytes for each row's id and 16 for the stamps of its media, and the bad rows.

    Args:
        pools: in the order they are read.
        folder: for the parts; an ingest of the same input into it is recognised and kept.
        rows_per_shard: most rows of a part (fewer where rows carry so much content that 256 MiB are full before).
        shards: this many parts instead, of equal size up to one row (fewer only where there are fewer rows).
        on_bad_row: leave bad rows out, or fail.
        check_files: see that every local media file is there.
        progress: called with the number of rows read, again and again.

    Raises:
        PoolError: a manifest cannot be read, or a bad row where those are to fail.
        EmptyPoolError: no good row at all; the bad ones are written.
        UserError: the folder is not ours to write.
    """
    folder = Claim("pool").make(folder)
    settings = {"rows_per_shard": rows_per_shard, "shards": shards, "on_bad_row": on_bad_row, "check": check_files}
    key = _fingerprint(pools, settings)
    if (known := _earlier(folder, key)) is not None:
        return known
    mirror.unlink(folder / RECORD)
    clear(folder)

    work = _Ingest(pools, folder, on_bad_row, check_files, progress)
    sizes = None
    outcome = work.read(None) if shards is not None else None
    if outcome is not None and shards is not None:
        sizes = _equal_sizes(outcome.good, shards)
    while outcome is None or not outcome.written:
        if outcome is not None:
            _refuse(outcome, on_bad_row, folder)
        outcome = work.read(PartWriter(folder, sizes or [rows_per_shard], bounded=sizes is None))
    _refuse(outcome, on_bad_row, folder)
    write_table(folder / BAD_ROWS, outcome.bad_table)
    parts = outcome.parts
    keys = tuple(part["key"] for part in parts)
    report = IngestReport(
        outcome.rows_in,
        outcome.good,
        outcome.bad,
        len(parts),
        keys,
        renamed=outcome.renamed,
        gathered=work.types.gathered,
    )
    written = {part["name"] for part in parts}
    for path in folder.glob("part-*.parquet"):
        if path.name not in written and is_part(path):
            mirror.unlink(path)
    write_sealed(folder / RECORD, {"key": key, "report": asdict(report), "parts": parts, "again": outcome.again})
    return report


@dataclass
class _Outcome:
    """One reading of the pools."""

    rows_in: int = 0
    good: int = 0
    bad: int = 0
    bad_tables: list[pa.Table] = field(default_factory=list)
    first_bad: list[BadRow] = field(default_factory=list)
    written: bool = False
    parts: list[dict[str, Any]] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    again: bool = False
    """Whether the result depends on files that neither the manifests' digests nor the parts' stamps cover."""

    @property
    def bad_table(self) -> pa.Table:
        return pa.concat_tables([SCHEMA.empty_table(), *self.bad_tables])

    def count(self, batch: PoolBatch) -> None:
        self.rows_in += batch.rows_in
        self.good += batch.rows_in - len(batch.bad)
        self.bad += len(batch.bad)
        self.first_bad += batch.bad[: _SHOWN - len(self.first_bad)]
        self.renamed |= batch.renamed
        self.again |= batch.reads_texts or any(bad.missing_file for bad in batch.bad)
        if batch.bad:
            self.bad_tables.append(bad_rows_table(batch.bad))


@dataclass
class _Ingest:
    """Readings of the pools, each of which may teach what types the user's columns have."""

    pools: Sequence[PoolSource]
    folder: Path
    on_bad_row: str
    check_files: bool
    progress: Callable[[int], None] | None
    types: PoolTypes = field(default_factory=PoolTypes)

    def read(self, writer: PartWriter | None) -> _Outcome:
        """Read everything, and write it while the types known so far hold.

        Types are judged over whole pools, never over what happens to be in one part: so where a batch brings a new
        one after others were written, the rest is only looked at, and everything is written in another reading.
        """
        outcome = _Outcome()
        for batch in read_pools(self.pools, self.check_files, faults_as_rows=True):
            outcome.count(batch)
            if self.progress is not None:
                self.progress(batch.rows_in)
            changed = self.types.learn(batch)
            if writer is not None and ((changed and writer.rows) or (outcome.bad and self.on_bad_row == "fail")):
                writer = None
            if writer is not None:
                table = self.types.table(batch)
                if table is None:
                    writer = None
                else:
                    writer.add(table, batch.stamps)
        if writer is not None:
            outcome.parts = writer.close()
            outcome.written = True
        return outcome


def _refuse(outcome: _Outcome, on_bad_row: str, folder: Path) -> None:
    """Raise for bad rows where those are to fail, and for pools without a pair, whose bad rows are kept."""
    if not outcome.bad and outcome.rows_in:
        return
    shown = [str(bad) for bad in outcome.first_bad]
    if outcome.bad > len(shown):
        shown.append(f"... and {outcome.bad - len(shown)} more")
    if on_bad_row == "fail" and outcome.bad:
        raise PoolError("\n".join([f"{outcome.bad} of {outcome.rows_in} rows are bad", *shown]))
    if not outcome.good:
        write_table(folder / BAD_ROWS, outcome.bad_table)
        said = f"the pool has no usable pair: {outcome.rows_in} rows, {outcome.bad} bad"
        raise EmptyPoolError("\n".join([said, *shown]))


def _equal_sizes(rows: int, shards: int) -> list[int]:
    shards = min(shards, max(1, rows))
    return [rows // shards + (part < rows % shards) for part in range(shards)]


def _fingerprint(pools: Sequence[PoolSource], settings: dict[str, Any]) -> str:
    read: list[Any] = [
        [asdict(manifest), file_digest(manifest.file), pool.model_dump(mode="json")]
        for pool in pools
        for manifest in manifests(pool)
    ]
    read += [registered()] if registered() else []
    return hashlib.blake2b(json.dumps([_FORMAT, settings, read]).encode(), digest_size=16).hexdigest()


def _earlier(folder: Path, key: str) -> IngestReport | None:
    """Return the report of an ingest of the same input, where its parts and their media files are as they were."""
    try:
        record = read_sealed(folder / RECORD)
    except DamagedError:
        return None
    if record.get("key") != key or record["again"] or not all(is_sound(folder / name) for name in (BAD_ROWS, STAMPS)):
        return None
    mirror.fetch(folder)
    if not all(files_unchanged(folder, part) for part in record["parts"]):
        return None
    report = record["report"]
    return IngestReport(**{**report, "digests": tuple(report["digests"]), "fresh": False})
