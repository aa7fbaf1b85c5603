"""A frame as the one shard of a pool."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import pyarrow as pa


class InMemory:
    """Shards that are a frame."""

    count = 1

    def __init__(self, frame: pd.DataFrame) -> None:
        self._table = pa.Table.from_pandas(frame, preserve_index=False)

    def read(self, part: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Read it; names that it does not have are left out."""
        names = self._table.column_names if columns is None else columns
        return self._table.select([name for name in names if name in self._table.column_names])
