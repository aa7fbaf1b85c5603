"""One row of a manifest that cannot be a pair, and the table that such rows are kept in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from nemo_mm_rank.console import without_passwords
from nemo_mm_rank.schema import MODALITY, PAIR_ID, POOL

MISSING_FILE = "no such file"
"""What is found where a file is not there: begins the ``found`` of such a row."""


@dataclass(frozen=True)
class BadRow:
    """Where a row stands, what was expected of it, and what was found.

    Attributes:
        file: the manifest, as the user would name it.
        line: line number of a JSONL file, row number of a Parquet file; both from 1.
        field: the canonical field at fault, or ``row`` where the row itself cannot be read.
    """

    file: str
    line: int
    field: str
    expected: str
    found: str
    pair_id: str | None = None
    pool: str | None = None
    modality: str | None = None

    @property
    def message(self) -> str:
        """What is wrong, without the place."""
        return f"{self.field}: expected {self.expected}, found {self.found}"

    @property
    def missing_file(self) -> bool:
        """Whether all that is wrong is a file that is not there, which may come while the manifest stays."""
        return self.found.startswith(MISSING_FILE)

    def __str__(self) -> str:
        pair = "" if self.pair_id is None else f" pair {shown(self.pair_id)}:"
        return f"{self.file}:{self.line}:{pair} {self.message}"


def shown(value: Any, limit: int = 60) -> str:
    """Return ``value`` as it may stand in a message: on one line, printable, and short."""
    text = without_passwords(repr(value[: limit + 1]) if isinstance(value, (str, bytes)) else repr(value))
    return text if len(text) <= limit else f"{text[:limit]}..."


SCHEMA = pa.schema(
    [(name, pa.string()) for name in (PAIR_ID, POOL, MODALITY, "step", "error", "message", "file")]
    + [("line", pa.int64())]
)


def bad_rows_table(rows: Iterable[BadRow]) -> pa.Table:
    """Return bad rows as quarantined pairs: ``step`` is ``pool``, ``error`` is ``BadRow``."""
    return pa.Table.from_pylist(
        [
            {
                PAIR_ID: row.pair_id,
                POOL: row.pool,
                MODALITY: row.modality,
                "step": "pool",
                "error": "BadRow",
                "message": row.message,
                "file": row.file,
                "line": row.line,
            }
            for row in rows
        ],
        schema=SCHEMA,
    )
