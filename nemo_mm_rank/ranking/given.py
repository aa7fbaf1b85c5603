"""Scores that come from elsewhere: a column of a Parquet file, joined to the pairs by ``pair_id``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nemo_mm_rank.errors import ConfigError
from nemo_mm_rank.io.digest import file_digest
from nemo_mm_rank.schema import PAIR_ID


@dataclass(frozen=True)
class Given:
    """One such score.

    Attributes:
        name: what it is called among the components.
        path: a Parquet file that every worker sees.
        column: the file's column.
        digest: of the file's bytes.
    """

    name: str
    path: str
    column: str
    digest: str

    @classmethod
    def open(cls, name: str, path: str, column: str) -> Given:
        """Check the file and take its digest.

        Raises:
            ConfigError: it cannot be read, lacks a column, names a pair twice, or holds something infinite.
        """
        try:
            schema = pq.read_schema(path)
        except (OSError, pa.ArrowInvalid) as error:
            line = " ".join(str(error).split())
            raise ConfigError(f"ranking.scores.{name}: {path} cannot be read as Parquet: {line}") from error
        for wanted in (PAIR_ID, column):
            if wanted not in schema.names:
                raise ConfigError(f"ranking.scores.{name}: {path} has no column {wanted!r}; {', '.join(schema.names)}")
        kind = schema.field(column).type
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
            raise ConfigError(f"ranking.scores.{name}: column {column!r} of {path} is {kind}, not a number")
        given = cls(name, path, column, file_digest(path))
        ids, values = _read(path, column, given.digest)
        if pc.count_distinct(ids, mode="all").as_py() != len(ids):
            raise ConfigError(f"ranking.scores.{name}: {path} names a {PAIR_ID} more than once, or none")
        if np.isinf(values).any():
            raise ConfigError(f"ranking.scores.{name}: column {column!r} of {path} holds infinite values")
        return given

    def of(self, pair_ids: pa.Array) -> pa.Array:
        """Return the pairs' scores, ``(n,)`` float64, null for those that have none (or NaN)."""
        ids, values = _read(self.path, self.column, self.digest)
        places = pc.index_in(pair_ids.cast(pa.string()), value_set=ids)
        found = np.append(values, np.nan)[places.fill_null(len(values)).to_numpy(zero_copy_only=False)]
        return pa.array(found, pa.float64(), mask=np.isnan(found))


@lru_cache(maxsize=4)
def _read(path: str, column: str, digest: str) -> tuple[pa.Array, npt.NDArray[np.float64]]:
    # The digest is part of the key so that a file that was written anew is read anew.
    table = pq.read_table(path, columns=[PAIR_ID, column], partitioning=None).combine_chunks()
    ids, values = (table[name].combine_chunks() for name in (PAIR_ID, column))
    return ids.cast(pa.string()), values.cast(pa.float64()).to_numpy(zero_copy_only=False)
