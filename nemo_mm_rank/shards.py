"""The shards that a ranking reads: as little of them at a time as it needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nemo_mm_rank import frames
from nemo_mm_rank.arrays import Ints
from nemo_mm_rank.io.files import read_schema, read_table
from nemo_mm_rank.schema import ERROR


class Shards(Protocol):
    """Row-aligned shards of a pool, read by number (`run.store.Shards`, or `Files`)."""

    @property
    def count(self) -> int:
        """Number of shards."""
        ...

    def read(self, part: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one shard; names that it does not have are left out."""
        ...


@dataclass(frozen=True)
class Files:
    """Shards that are Parquet files, each side by side with others of the same rows.

    Attributes:
        parts: per shard, the files that hold its columns (the last one that has a column counts).
    """

    parts: tuple[tuple[Path, ...], ...]

    @property
    def count(self) -> int:
        """Number of shards."""
        return len(self.parts)

    def read(self, part: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one shard; names that it does not have are left out."""
        source = {name: path for path in self.parts[part] for name in read_schema(path).names}
        wanted = [name for name in (source if columns is None else columns) if name in source]
        tables = {
            path: read_table(path, [name for name in wanted if source[name] == path])
            for path in dict.fromkeys(source[name] for name in wanted)
        }
        return pa.table({name: tables[source[name]][name] for name in wanted})


def live(shards: Shards, columns: Sequence[str]) -> Iterator[tuple[int, Ints, pa.Table]]:
    """Yield per shard its number, the positions of the rows without an error, and ``columns`` of those rows."""
    for part in range(shards.count):
        yield part, *live_rows(shards, part, columns)


def live_rows(shards: Shards, part: int, columns: Sequence[str]) -> tuple[Ints, pa.Table]:
    """Return of one shard the positions of the rows without an error, and ``columns`` of those rows."""
    table = shards.read(part, [*columns, ERROR])
    if ERROR not in table.column_names:
        return np.arange(table.num_rows), table
    alive = pc.is_null(table[ERROR]).to_numpy()
    rows = np.flatnonzero(alive)
    table = table.drop_columns([ERROR])
    return rows, table if len(rows) == len(alive) else table.take(pa.array(rows))


def attach_rows(chosen: pa.Table, places: Ints, shards: Shards, columns: Sequence[str]) -> pa.Table:
    """Return ``chosen`` with more columns of the same pairs, read from the shards.

    Reads one shard's columns at a time and only shards that hold a chosen pair.

    Args:
        chosen: ``k`` rows, for example `blend.Ranking.chosen`.
        places: ``(k, 2)`` shard number and row of each, for example `blend.Ranking.places`.
        shards: where the columns are.
        columns: those to add; a shard that lacks one gives nulls.

    Raises:
        TakenColumnError: ``chosen`` has one of them already.
    """
    frames.check_free(chosen.column_names, columns, "blend")
    # Where nothing was chosen, the columns are still there.
    pieces = [] if len(places) or not shards.count else [shards.read(0, columns).slice(0, 0)]
    order = []
    for part, mine in by_part(places[:, 0]):
        pieces.append(shards.read(part, columns).take(pa.array(places[mine, 1])))
        order.append(mine)
    if not pieces:
        return chosen
    found = pa.concat_tables(pieces, promote_options="permissive")
    if order:
        found = found.take(pa.array(np.argsort(np.concatenate(order))))
    for name in found.column_names:
        chosen = chosen.append_column(found.schema.field(name), found[name])
    return chosen


def read_vectors(places: Ints, shards: Shards, column: str) -> npt.NDArray[np.float32]:
    """Return ``(k, d)`` embeddings of the rows at ``places`` ``(k, 2)``; zeros where a row has none."""
    vectors = np.zeros((len(places), 0), dtype=np.float32)
    for part, mine in by_part(places[:, 0]):
        table = shards.read(part, [column]).take(pa.array(places[mine, 1]))
        found = frames.vectors(frames.from_table(table), column).values.numpy()
        if found.shape[1]:
            if not vectors.shape[1]:
                vectors = np.zeros((len(places), found.shape[1]), dtype=np.float32)
            vectors[mine] = found
    return vectors


def by_part(parts: Ints) -> Iterator[tuple[int, Ints]]:
    """Yield each shard that ``parts`` ``(k,)`` name, ascending, with the positions that name it."""
    order = np.argsort(parts, kind="stable")
    found, starts, counts = np.unique(parts[order], return_index=True, return_counts=True)
    for part, start, count in zip(found.tolist(), starts.tolist(), counts.tolist(), strict=True):
        yield part, order[start : start + count]
