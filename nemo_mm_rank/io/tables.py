"""Batches of a pool as tables of one schema, though each batch shows only some of what the pool's columns hold."""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa

from nemo_mm_rank.errors import PoolError
from nemo_mm_rank.io import extras
from nemo_mm_rank.io.canonical import PoolBatch
from nemo_mm_rank.io.manifest import MAX_COLUMNS
from nemo_mm_rank.schema import CANONICAL, DATA_BYTES, DATA_PARTS, MEDIA_ROOT, PARTS

OPTIONAL = {DATA_BYTES: pa.binary(), DATA_PARTS: PARTS}
"""Columns of ours that are there where any row of the pools has a value for them."""


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
        self.types |= {name: kind for name, kind in OPTIONAL.items() if name in batch.pairs}
        for name, column in batch.extras.items():
            self.types[name] = extras.joined(self.types.get(name), extras.typed(column))
        if len(self.types) > MAX_COLUMNS:
            raise PoolError(f"the pools have more than {MAX_COLUMNS} different fields; keys of a row are field names")
        return before != self.types

    def table(self, batch: PoolBatch) -> pa.Table | None:
        """Return the pairs of ``batch`` in the types known so far, None where one does not fit (it is known then)."""
        n = len(batch.stamps)
        columns = {name: batch.pairs[name] for name in (*CANONICAL, MEDIA_ROOT)}
        for name, kind in OPTIONAL.items():
            if name in self.types:
                columns[name] = batch.pairs.get(name, pa.nulls(n, kind))
        fits = True
        for name, kind in self.types.items():
            if name not in OPTIONAL:
                column = extras.converted(batch.extras.get(name, [None] * n), extras.settled(kind))
                if column is None:
                    self.types[name], fits = extras.MIXED, False
                columns[name] = column
        return pa.table(columns) if fits else None
