"""The columns of a manifest by our names, and what may stand in them: strings, numbers, bytes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nemo_mm_rank.arrays import Bools
from nemo_mm_rank.config import PoolSource
from nemo_mm_rank.errors import PoolError, nearest
from nemo_mm_rank.io.arrow_rows import plain
from nemo_mm_rank.io.bad_rows import shown
from nemo_mm_rank.io.rows import Column, Rows
from nemo_mm_rank.modality import combined, is_media, names
from nemo_mm_rank.schema import ANNOTATION, DATA, DATA_BYTES, DATA_PARTS, MODALITY, PAIR_ID, PARTS, POOL, Modality

DATA_PATH, ANNOTATION_PATH = "data_path", "annotation_path"


class Fields:
    """The rows' columns by our names."""

    def __init__(self, rows: Rows, source: PoolSource) -> None:
        ours = (PAIR_ID, POOL, MODALITY, DATA, ANNOTATION, DATA_BYTES, DATA_PARTS, DATA_PATH, ANNOTATION_PATH)
        self.names = {name: source.fields.get(name, name) for name in ours}
        self.columns = dict(rows.columns)
        self.rename = source.rename
        for name in ours:
            if name in self.columns and name not in self.names.values():
                theirs = self.names[name]
                raise PoolError(f"{rows.file}: column {name!r} exists, but {name!r} is mapped to {theirs!r}; drop one")

    def get(self, ours: str) -> Column | None:
        """Return a column by our name, None where there is none."""
        return self.columns.get(self.names[ours])

    def replace(self, ours: str, column: Column) -> None:
        """Put another column in the place of one of ours."""
        self.columns[self.names[ours]] = column

    def absence(self, ours: str) -> str:
        """Say what is found where a row has no value for one of our fields."""
        theirs = self.names[ours]
        if theirs in self.columns or not self.columns:
            return "nothing"
        there = ", ".join(list(self.columns)[:8])
        how = f"name yours with --field {ours}=NAME" + (
            " or the modality of all rows with --modality" * (ours == MODALITY)
        )
        return f"no field {theirs!r}{nearest(theirs, self.columns)} (the fields are: {there}; {how})"

    def extras(self) -> dict[str, Column]:
        """Return the columns that are none of ours, by the names that they are to be kept under."""
        used = set(self.names.values())
        return {self.rename.get(name, name): column for name, column in self.columns.items() if name not in used}


def strings(column: Column | None, n: int, numbers: bool = False) -> tuple[pa.Array, dict[int, str]]:
    """Return a column as ``n`` strings, null where there is none (or NaN), and what stood where it is none.

    Args:
        column: JSON values or an Arrow array, or None for a column that is not there.
        n: length.
        numbers: take numbers too, as their text.
    """
    if column is None:
        return pa.nulls(n, pa.string()), {}
    if isinstance(column, pa.Array):
        if pa.types.is_string(column.type):
            return column, {}
        if pa.types.is_null(column.type) or (numbers and pa.types.is_integer(column.type)):
            return column.cast(pa.string()), {}
    else:
        try:
            return pa.array(column, pa.string()), {}
        except (pa.ArrowTypeError, pa.ArrowInvalid):
            pass
    wrong: dict[int, str] = {}
    out: list[str | None] = [None] * n
    for row, value in enumerate(column if isinstance(column, list) else column.to_pylist()):
        if isinstance(value, float) and math.isnan(value):  # what dataframes make of nothing
            continue
        if isinstance(value, bytes):  # as Arrow takes them for texts, where they are
            with suppress(UnicodeDecodeError):
                value = value.decode()
        if isinstance(value, str):
            out[row] = value
        elif numbers and isinstance(value, (int, float)) and not isinstance(value, bool):
            out[row] = str(value)
        elif value is not None:
            wrong[row] = f"{type(value).__name__} {shown(value)}"
    return pa.array(out, pa.string()), wrong


def contents(table: Fields, n: int, media: Bools) -> tuple[pa.Array, pa.Array | None, dict[int, str]]:
    """Return the data side's text or name, the content where rows carry it, and what stood where it is neither."""
    column, payload = table.get(DATA), table.get(DATA_BYTES)
    if isinstance(column, pa.Array) and pa.types.is_struct(column.type) and "bytes" in [f.name for f in column.type]:
        # The layout of Hugging Face data sets: {"bytes": ..., "path": ...}, either of which may be null.
        payload = plain(pc.struct_field(column, "bytes"))
        has_path = "path" in [f.name for f in column.type]
        column = plain(pc.struct_field(column, "path")) if has_path else None
    elif isinstance(column, pa.Array) and pa.types.is_binary(column.type):
        column, payload = None, column
    elif payload is None and isinstance(column, list) and any(isinstance(value, bytes) for value in column):
        payload = pa.array([value if isinstance(value, bytes) else None for value in column], pa.binary())
        column = [None if isinstance(value, bytes) else value for value in column]
    data, wrong = strings(column, n)
    if payload is None or (isinstance(payload, pa.Array) and pa.types.is_null(payload.type)):
        return data, None, wrong
    if not (isinstance(payload, pa.Array) and pa.types.is_binary(payload.type)):
        stray = payload if isinstance(payload, list) else payload.to_pylist()
        wrong.update({row: shown(value) for row, value in enumerate(stray) if value is not None})
        return data, None, wrong
    there = mask(pc.is_valid(payload))
    values = data.to_pylist()
    for row in np.flatnonzero(there).tolist():
        content = payload[row].as_py()
        if not content:
            wrong[row] = "no bytes"
        elif not media[row]:
            try:
                values[row] = content.decode()
            except UnicodeDecodeError:
                wrong[row] = f"bytes that are not UTF-8: {shown(content[:20])}"
        elif not values[row]:
            values[row] = hashlib.blake2b(content, digest_size=16).hexdigest()
    payload = pc.if_else(pa.array(media), payload, pa.scalar(None, pa.binary()))
    return pa.array(values, pa.string()), payload, wrong


def mask(array: pa.Array) -> Bools:
    """Return an Arrow array of booleans as numpy's, False for null."""
    return np.asarray(pc.fill_null(array, False).to_numpy(zero_copy_only=False), dtype=bool)


Fault = Callable[[list[int], str, str, str], None]
"""Takes the rows, the field at fault, what was expected, and what was found."""

Part = tuple[str, str]  # modality, data

EXPECTED = "a list of parts {modality, data}"


@dataclass
class Several:
    """The rows of a batch whose data is given in parts.

    Attributes:
        rows: position -> its parts, at least one, one of each modality, in the order of `modality.names`.
        media: position -> all media of a row that has several of a modality, in their own order.
    """

    rows: dict[int, list[Part]] = field(default_factory=dict)
    media: dict[int, list[Part]] = field(default_factory=dict)

    def with_media(self, n: int) -> Bools:
        """Return which of ``n`` rows have a part that comes as a file, ``(n,)``."""
        found = np.zeros(n, dtype=bool)
        media = {name for name in names() if is_media(name)}
        found[[row for row, parts in self.rows.items() if any(kind in media for kind, _ in parts)]] = True
        return found

    def modality(self, said: pa.Array, fault: Fault) -> pa.Array:
        """Return the rows' modalities, those of rows in parts being what the parts are; what contradicts is a fault."""
        values = said.to_pylist()
        known: dict[tuple[str, ...], str] = {}
        for row, parts in self.rows.items():
            kinds = tuple([kind for kind, _ in parts])
            found = known.get(kinds) or known.setdefault(kinds, combined(kinds))
            if values[row] is not None and {name.strip() for name in values[row].split("+")} != set(found.split("+")):
                fault([row], MODALITY, f"{found!r}, as its parts are", shown(values[row]))
            values[row] = found
        return pa.array(values, pa.string())

    def data(self, values: pa.Array) -> pa.Array:
        """Return the rows' data, that of rows in parts being the parts' own, line by line."""
        texts = values.to_pylist()
        for row, parts in self.rows.items():
            texts[row] = "\n".join([data for _, data in parts])
        return pa.array(texts, pa.string())

    def column(self, n: int) -> pa.Array | None:
        """Return `DATA_PARTS` of ``n`` rows, or None where none has more than one part."""
        several = {row: parts for row, parts in self.rows.items() if len(parts) > 1}
        return parts_array(several, n) if several else None


def parts_array(rows: Mapping[int, Sequence[Part]], n: int) -> pa.Array:
    """Return ``(n,)`` of `PARTS`, null for rows that are not named."""
    counts = np.zeros(n + 1, dtype=np.int32)
    for row, parts in rows.items():
        counts[row + 1] = len(parts)
    flat = [part for row in sorted(rows) for part in rows[row]]
    columns = [pa.array([part[side] for part in flat], pa.string()) for side in (0, 1)]
    values = pa.StructArray.from_arrays(columns, fields=list(PARTS.value_type))
    offsets = pa.array(np.cumsum(counts, dtype=np.int32))
    return pa.ListArray.from_arrays(offsets, values, type=PARTS, mask=pa.array(counts[1:] == 0))


def read_parts(table: Fields, fault: Fault) -> Several | None:
    """Take the data that is given in parts out of ``table``; None where there is none.

    Args:
        table: its data column is without them afterwards.
        fault: is told of parts that are none.
    """
    several = Several()
    found: dict[int, Any] = {}
    for name in (DATA_PARTS, DATA):
        column = table.get(name)
        if isinstance(column, pa.Array):
            if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
                continue
            values = column.to_pylist()
        elif column is not None and any(type(value) in (list, dict) for value in column):
            values = column
        else:
            continue
        values = [_alone(value) for value in values]
        lists = {row: value for row, value in enumerate(values) if isinstance(value, list)}
        found |= lists
        if name == DATA:
            table.replace(DATA, [None if row in lists else value for row, value in enumerate(values)])
    payload = table.get(DATA_BYTES)
    for row, value in found.items():
        try:
            several.rows[row], media = _parts(value)
            if len({kind for kind, _ in media}) < len(media):
                several.media[row] = media
            if payload is not None and _there(payload[row]) and len(media) != 1:
                fault([row], DATA_BYTES, "content of one part of media", f"parts of {shown(value)}")
        except _FaultError as error:
            fault([row], *error.args)
            several.rows[row] = [(str(Modality.TEXT), "")]
    return several if found else None


def _alone(value: Any) -> Any:
    """Return the only item of a list, and the content or else the path of a file as Hugging Face data sets keep it."""
    item = value[0] if isinstance(value, list) and len(value) == 1 else value
    if isinstance(item, dict) and item and item.keys() <= {"bytes", "path"}:
        item = item.get("bytes") or item.get("path")
    return item if item is None or isinstance(item, str | bytes) else value


class _FaultError(Exception):
    """Field, what was expected, what was found."""


def _parts(values: list[Any]) -> tuple[list[Part], list[Part]]:
    """Return the first part of each modality in the order of `modality.names`, and all media in their own."""
    found: dict[str, str] = {}
    media: list[Part] = []
    for number, value in enumerate(values, 1):
        kind, data = _part(value, number)
        if is_media(kind):
            media.append((kind, data))
        elif kind in found:
            raise _FaultError(DATA, f"one part of {kind}", f"another (part {number})")
        found.setdefault(kind, data)
    if not found:
        raise _FaultError(DATA, EXPECTED, "none")
    return [(kind, found[kind]) for kind in names() if kind in found], media


def _part(value: Any, number: int) -> Part:
    if not isinstance(value, dict):
        raise _FaultError(DATA, EXPECTED, f"{shown(value)} (part {number})")
    for key in value:
        if key not in (MODALITY, DATA) and value[key] is not None:
            raise _FaultError(DATA, EXPECTED, f"a key {shown(key)} (part {number}){nearest(key, (MODALITY, DATA))}")
    kind, data = value.get(MODALITY), value.get(DATA)
    if not isinstance(kind, str) or kind not in names():
        close = nearest(kind.lower(), names()) if isinstance(kind, str) else ""
        raise _FaultError(MODALITY, f"one of {', '.join(names())}", f"{shown(kind)} (part {number}){close}")
    if not isinstance(data, str) or not data.strip():
        raise _FaultError(DATA, "a non-empty string", f"{shown(data)} ({kind} part)")
    return kind, data


def _there(value: Any) -> bool:
    return bool(value.is_valid if isinstance(value, pa.Scalar) else value is not None)
