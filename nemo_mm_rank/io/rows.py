"""Rows as they were read, whatever file or batch they are from: columns, numbers, and what could not be read."""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nemo_mm_rank.errors import PoolError
from nemo_mm_rank.io.bad_rows import BadRow
from nemo_mm_rank.media.pretenders import pretender

MAX_LINE_BYTES = 16 * 2**20
MAX_COLUMNS = 1000
BATCH_ROWS = 2048  # few enough for the rows, as Python objects, to stay in the processor's cache
BLOCK_BYTES = 4 * 2**20
OTHER_FIELDS = "other_fields"
"""Where rows have more different keys than a table can have columns: all but the most frequent, as JSON."""
FREQUENT = 100
"""Keys that are columns all the same."""
Column: TypeAlias = list[Any] | pa.Array
"""One field of several rows: JSON values as they are, or an Arrow array from a Parquet file."""


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of one manifest.

    Attributes:
        lines: ``(n,)`` int64, line (JSONL), row (Parquet) or sample (WebDataset) numbers from 1.
        columns: name -> n values; a key that a JSON row lacks is None.
        bad: rows between these that cannot be read at all.
        texts: of JSON, the n objects as they are written.
        parts: where a format has taken data apart: position -> ``(modality, data)`` of each part, one of a modality.
        media: where a format has found several media: position -> ``(modality, reference)`` of each.
        carried: where a row carries some of several media: position -> the content of each, None for a file.
        features: of Parquet that Hugging Face's library wrote, its columns of media -> Image, Audio or Video.
    """

    file: str
    lines: npt.NDArray[np.int64]
    columns: dict[str, Column]
    bad: tuple[BadRow, ...] = ()
    texts: Sequence[str] = ()
    features: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[int, list[tuple[str, str]]] = field(default_factory=dict)
    media: Mapping[int, list[tuple[str, str]]] = field(default_factory=dict)
    carried: Mapping[int, list[bytes | None]] = field(default_factory=dict)


@contextmanager
def uncollected() -> Iterator[None]:
    """Hold Python's collector of cycles off while a batch is made of many small values, which have none.

    It takes a third of the time otherwise: after every few rows it searches all that there is.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def refuse_pretender(file: str, head: bytes) -> None:
    """Refuse a file whose first bytes show that it is not what its name says.

    Raises:
        PoolError: naming what it is, and what to do.
    """
    if what := pretender(head, text=True):
        raise PoolError(f"{file}: cannot be read: it is {what}")


def gathered(
    file: str, rows: Sequence[dict[str, Any]], numbers: Sequence[int], bad: Sequence[BadRow], texts: Sequence[str] = ()
) -> Rows:
    """Return rows read one by one, with their numbers, as columns; of too many, the rarest as `OTHER_FIELDS`."""
    names = Counter(chain.from_iterable(rows))
    frequent = names if len(names) <= MAX_COLUMNS else dict(names.most_common(FREQUENT))
    columns: dict[str, Column] = {name: [row.get(name) for row in rows] for name in names if name in frequent}
    if len(frequent) < len(names):
        others = [{name: value for name, value in row.items() if name not in frequent} for row in rows]
        columns[OTHER_FIELDS] = [json.dumps(other, ensure_ascii=False) if other else None for other in others]
    return Rows(file, np.array(numbers, dtype=np.int64), columns, tuple(bad), texts)


def taken(column: Column, rows: npt.NDArray[np.int64]) -> Column:
    """Return the values at ``rows``."""
    return [column[row] for row in rows] if isinstance(column, list) else column.take(pa.array(rows))
