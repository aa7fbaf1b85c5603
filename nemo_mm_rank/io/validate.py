"""What is wrong with a pool, all of it, before a run is started on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from nemo_mm_rank.config import PoolSource
from nemo_mm_rank.console import printable
from nemo_mm_rank.errors import PoolError
from nemo_mm_rank.io.bad_row import BadRow
from nemo_mm_rank.io.canonical import PoolBatch
from nemo_mm_rank.io.pool import manifests, read_manifest
from nemo_mm_rank.io.seen import Seen
from nemo_mm_rank.schema import MODALITY, POOL, Modality


@dataclass
class Report:
    """What was found.

    Attributes:
        rows_in: rows of the manifests that could be read.
        bad: how many of them are bad.
        bad_rows: those, by manifest and line; only so many as were to be kept.
        by_field: bad rows by the field at fault (``row``: cannot be read at all).
        counts: good rows by pool and modality.
        errors: one line for each manifest that cannot be read (to its end).
    """

    rows_in: int = 0
    bad: int = 0
    bad_rows: list[BadRow] = field(default_factory=list)
    by_field: Counter[str] = field(default_factory=Counter)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every manifest can be read, every row is good, and there is one."""
        return not self.bad and not self.errors and self.rows_in > 0

    def lines(self) -> Iterator[str]:
        """Yield the report as lines of text, printable: unreadable manifests, bad rows, then the counts."""
        return map(printable, self._lines())

    def _lines(self) -> Iterator[str]:
        yield from (f"error: {error}" for error in self.errors)
        yield from map(str, self.bad_rows)
        if self.bad > len(self.bad_rows):
            yield f"... and {self.bad - len(self.bad_rows):,} more bad rows"
        several = sorted({modality for _, modality in self.counts} - set(Modality))
        modalities = [*map(str, Modality), *several]
        table = [["pool", *modalities, "all"]]
        for pool in sorted({pool for pool, _ in self.counts}):
            numbers = [self.counts[pool, modality] for modality in modalities]
            table.append([printable(pool), *(f"{number:,}" for number in (*numbers, sum(numbers)))])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for name, *cells in table if self.counts else []:
            numbers_right = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
            yield "  ".join([name.ljust(widths[0]), *numbers_right])
        faults = ", ".join(f"{number:,} {name}" for name, number in sorted(self.by_field.items()))
        good = self.rows_in - self.bad
        yield f"{self.rows_in:,} rows: {good:,} good, {self.bad:,} bad" + (f" ({faults})" if faults else "")


def validate(pools: Sequence[PoolSource], check_files: bool = True, most: int = 10_000) -> Report:
    """Read the pools and report everything that is wrong with them; only the pools' configuration can raise.

    Args:
        pools: checked as one run would, so that ids are unique over all of them.
        check_files: see that every local media file is there.
        most: how many bad rows are kept to be listed; all are counted.
    """
    report, seen = Report(), Seen()
    for source in pools:
        try:
            found = manifests(source)
        except PoolError as error:
            report.errors.append(str(error))
            continue
        for manifest in found:
            try:
                for batch in read_manifest(manifest, source, seen, check_files):
                    _count(report, batch, most)
            except PoolError as error:
                report.errors.append(str(error))
    return report


def _count(report: Report, batch: PoolBatch, most: int) -> None:
    report.rows_in += batch.rows_in
    report.bad += len(batch.bad)
    report.bad_rows += batch.bad[: most - len(report.bad_rows)]
    report.by_field.update(row.field for row in batch.bad)
    groups = pa.table({name: batch.pairs[name] for name in (POOL, MODALITY)}).group_by([POOL, MODALITY])
    for row in groups.aggregate([([], "count_all")]).to_pylist():
        report.counts[row[POOL], row[MODALITY]] += row["count_all"]
