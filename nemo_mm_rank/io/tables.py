"""Batches of a pool as tables of one schema, though each batch shows only some of what the pool's columns hold."""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa

from nemo_mm_rank.errors import PoolError
from nemo_mm_rank.io import extras
from nemo_mm_rank.io.canonical import PoolBatch
from nemo_mm_rank.io.manifest import MAX_COLUMNS
from nemo_mm_rank.schema import CANONICAL, DATA_BYTES, MEDIA_ROOT


@dataclass
class PoolTypes:
    """The columns that pools bring besides the canonical ones, with the types known so far.

    Attributes:
        types: column -> type; `extras.MIXED` for one that has several.
    """

    types: dict[str, pa.DataType] = field(default_factory=dict)

    def learn(self, batch: PoolBatch) -> bool:
        """Take in what ``batch`` shows; whether that is anything new.

        Raises:
            PoolError: there are more columns than anybody can mean.
        """
        before = dict(self.types)
        if DATA_BYTES in batch.pairs:
            self.types[DATA_BYTES] = pa.binary()
        for name, column in batch.extras.items():
            self.types[name] = extras.joined(self.types.get(name), extras.typed(column))
        if len(self.types) > MAX_COLUMNS:
            raise PoolError(f"the pools have more than {MAX_COLUMNS} different fields; keys of a row are field names")
        return before != self.types

    def table(self, batch: PoolBatch) -> pa.Table | None:
        """Return the pairs of ``batch`` in the types known so far, None where one does not fit (it is known then)."""
        n = len(batch.stamps)
        columns = {name: batch.pairs[name] for name in (*CANONICAL, MEDIA_ROOT)}
        if DATA_BYTES in self.types:
            columns[DATA_BYTES] = batch.pairs.get(DATA_BYTES, pa.nulls(n, pa.binary()))
        fits = True
        for name, kind in self.types.items():
            if name != DATA_BYTES:
                column = extras.converted(batch.extras.get(name, [None] * n), extras.settled(kind))
                if column is None:
                    self.types[name], fits = extras.MIXED, False
                columns[name] = column
        return pa.table(columns) if fits else None
