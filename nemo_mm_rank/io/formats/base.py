"""What a format is: a name, how it is told from the records themselves, and how records become rows of ours."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from nemo_mm_rank.config import PoolSource
from nemo_mm_rank.io.bad_rows import BadRow
from nemo_mm_rank.io.rows import Column, Rows, taken
from nemo_mm_rank.schema import PAIR_ID, SOURCE_RECORD

_LOOKED_AT = 50


@dataclass(frozen=True)
class About:
    """What is known of a manifest besides its records.

    Attributes:
        source: the pool's settings.
        pool: name of the pool, for ids.
        told: the entry of a ``dataset_info.json`` beside the manifest that is for it; empty where there is none.
    """

    source: PoolSource
    pool: str
    told: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Format:
    """One way of writing pairs down.

    Attributes:
        name: as settings name it.
        title: as people are told.
        fits: whether the first rows of a manifest are written so.
        read: makes rows of ours of them: canonical columns, beside the user's own; a record may become several.
        records: whether rows keep the record that they were made of (`SOURCE_RECORD`).
    """

    name: str
    title: str
    fits: Callable[[Rows, About], bool]
    read: Callable[[Rows, About], Rows]
    records: bool = False


class FaultError(Exception):
    """Why a record is no pair: the field at fault, what was expected of it, and what was found."""


def looked_at(rows: Rows, name: str) -> list[Any]:
    """Return the first values of a column, of which there may be none, that are something."""
    column = rows.columns.get(name, ())
    values = column if isinstance(column, (list, tuple)) else column.slice(0, _LOOKED_AT).to_pylist()
    return [value for value in islice(values, _LOOKED_AT) if value is not None]


def listed(rows: Rows, name: str) -> Sequence[Any]:
    """Return the values of a column as Python objects, None for each row where there is no such column."""
    column = rows.columns.get(name)
    if column is None:
        return [None] * len(rows.lines)
    return column if isinstance(column, list) else column.to_pylist()


def kept(rows: Rows, made: Mapping[str, Column], dropped: Sequence[str], faults: Mapping[int, FaultError]) -> Rows:
    """Return rows with columns that were made of others in their place, without those that are at fault.

    Args:
        rows: as read.
        made: n values each; a column of the user's that has the name of one goes by ``original_`` and its name.
        dropped: columns that are not to be kept beside them.
        faults: position -> what is wrong.
    """
    columns: dict[str, Column] = {}
    for name, column in rows.columns.items():
        if name not in dropped:
            columns[f"original_{name}" if name in made else name] = column
    columns |= made
    if not faults:
        return replace(rows, columns=columns)
    bad = [BadRow(rows.file, int(rows.lines[row]), *fault.args) for row, fault in faults.items()]
    keep = np.setdiff1d(np.arange(len(rows.lines)), list(faults))
    return Rows(
        rows.file,
        rows.lines[keep],
        {name: taken(column, keep) for name, column in columns.items()},
        (*rows.bad, *bad),
        [rows.texts[row] for row in keep] if rows.texts else (),
        parts={at: rows.parts[row] for at, row in enumerate(keep.tolist()) if row in rows.parts},
        media={at: rows.media[row] for at, row in enumerate(keep.tolist()) if row in rows.media},
        carried={at: rows.carried[row] for at, row in enumerate(keep.tolist()) if row in rows.carried},
    )


def records(rows: Rows, about: About) -> dict[str, Column]:
    """Return the rows as they were written (`SOURCE_RECORD`), and ids made of that where rows have none."""
    texts = rows.texts
    if not texts:
        names = list(rows.columns)
        values = zip(*(listed(rows, name) for name in names), strict=True)
        texts = [json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False, default=_written) for row in values]
    columns: dict[str, Column] = {SOURCE_RECORD: pa.array(texts, pa.string())}
    if about.source.fields.get(PAIR_ID, PAIR_ID) not in rows.columns:
        digests = (hashlib.blake2b(text.encode(), digest_size=8).hexdigest() for text in texts)
        columns[PAIR_ID] = [f"{about.pool}-{digest}" for digest in digests]
    return columns


def _written(value: Any) -> Any:
    """Return what JSON has for a value that it has no word for; contents are left out."""
    return None if isinstance(value, bytes) else str(value)
