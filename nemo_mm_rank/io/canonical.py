"""From the rows of a manifest, whatever their names and types, to checked pairs in canonical columns."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nemo_mm_rank.config import PoolSource
from nemo_mm_rank.errors import MediaError, PoolError, nearest
from nemo_mm_rank.io.bad_row import BadRow, shown
from nemo_mm_rank.io.manifest import Column, Rows, plain, taken
from nemo_mm_rank.io.references import References
from nemo_mm_rank.io.seen import Seen
from nemo_mm_rank.schema import ANNOTATION, DATA, DATA_BYTES, MEDIA_ROOT, MODALITY, PAIR_ID, POOL, Modality

DATA_PATH, ANNOTATION_PATH = "data_path", "annotation_path"
MEDIA = [str(modality) for modality in Modality if modality.is_media]

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class PoolBatch:
    """Some rows of a pool, in the manifest's order: those that are pairs, and those that are not.

    Attributes:
        rows_in: how many rows there were.
        pairs: canonical columns, `MEDIA_ROOT`, and `DATA_BYTES` where the rows carry content; n values each.
        extras: the user's own columns as they were read, n values each.
        stamps: ``(n, 2)`` int64 size and modification time (ns) of media files; -1 where there is none to look at.
        bad: the other rows, by line.
        reads_texts: whether text came from files that the manifest names.
    """

    rows_in: int
    pairs: dict[str, pa.Array]
    extras: dict[str, Column]
    stamps: Ints
    bad: list[BadRow]
    reads_texts: bool = False


@dataclass
class _Faults:
    """The first fault of each row."""

    found: dict[int, tuple[str, str, str]] = field(default_factory=dict)

    def add(
        self, rows: Iterable[int], name: str, expected: str, found: Sequence[str] | Mapping[int, str] | str
    ) -> None:
        for row in rows:
            self.found.setdefault(int(row), (name, expected, found if isinstance(found, str) else found[int(row)]))


def canonical(rows: Rows, source: PoolSource, pool: str, references: References, seen: Seen) -> PoolBatch:
    """Check ``rows`` and put them into canonical columns.

    Args:
        rows: as read.
        source: the pool's configuration: field map, fixed modality.
        pool: the name of the pool for rows that do not say.
        references: opens what the rows refer to.
        seen: the ids of the run so far; those of these rows are added.

    Raises:
        PoolError: a column of the user's own has a canonical name.
    """
    n = len(rows.lines)
    table = _Fields(rows, source)
    faults = _Faults()

    ids, wrong = strings(table.get(PAIR_ID), n, numbers=True)
    faults.add(wrong, PAIR_ID, "a string or a number", wrong)
    faults.add(_rows(_blank(ids)), PAIR_ID, "a non-empty string", _shown(ids))

    modality, wrong = strings(table.get(MODALITY), n)
    faults.add(wrong, MODALITY, "a string", wrong)
    if source.modality is not None:
        modality = modality.fill_null(str(source.modality))
    unknown = _rows(_not(pc.is_in(modality, pa.array([str(known) for known in Modality]))))
    faults.add(unknown, MODALITY, f"one of {', '.join(Modality)}", _unknown(modality, unknown, table.absence(MODALITY)))

    pools, wrong = strings(table.get(POOL), n)
    faults.add(wrong, POOL, "a string", wrong)
    pools = pools.fill_null(pool)

    media = _mask(pc.is_in(modality, pa.array(MEDIA)))
    data, payload, wrong = _data(table, n, media)
    faults.add(wrong, DATA, "a string or bytes", wrong)
    data, reads = _from_files(table, DATA_PATH, DATA, data, ~media, references, faults, payload)
    faults.add(_rows(pc.is_null(data)), DATA, "a non-empty string", table.absence(DATA))
    faults.add(_rows(_blank(data)), DATA, "a non-empty string", _shown(data))

    annotation, wrong = strings(table.get(ANNOTATION), n)
    faults.add(wrong, ANNOTATION, "a string", wrong)
    every = np.ones(n, dtype=bool)
    annotation, also_reads = _from_files(table, ANNOTATION_PATH, ANNOTATION, annotation, every, references, faults)
    faults.add(_rows(pc.is_null(annotation)), ANNOTATION, "a non-empty string", table.absence(ANNOTATION))
    faults.add(_rows(_blank(annotation)), ANNOTATION, "a non-empty string", _shown(annotation))

    ids = _with_made_ids(ids, pools, data, annotation, payload, faults)
    _check_unique(ids, rows, seen, faults)
    stamps = _stamps(data, media if payload is None else media & _mask(pc.is_null(payload)), references, faults)

    pairs = {PAIR_ID: ids, POOL: pools, MODALITY: modality, DATA: data, ANNOTATION: annotation}
    pairs[MEDIA_ROOT] = pa.repeat(pa.scalar(references.root, pa.string()), n)
    if payload is not None:
        pairs[DATA_BYTES] = payload
    bad = [
        BadRow(
            rows.file, int(rows.lines[row]), *fault, *(pairs[name][row].as_py() for name in (PAIR_ID, POOL, MODALITY))
        )
        for row, fault in faults.found.items()
    ]
    keep = np.setdiff1d(np.arange(n), list(faults.found))
    extras = table.extras()
    if len(keep) < n:
        pairs = {name: column.take(pa.array(keep)) for name, column in pairs.items()}
        extras = {name: taken(column, keep) for name, column in extras.items()}
    bad = sorted([*bad, *rows.bad], key=lambda row: row.line)
    return PoolBatch(n + len(rows.bad), pairs, extras, stamps[keep], bad, reads or also_reads)


class _Fields:
    """The rows' columns by our names."""

    def __init__(self, rows: Rows, source: PoolSource) -> None:
        ours = (PAIR_ID, POOL, MODALITY, DATA, ANNOTATION, DATA_BYTES, DATA_PATH, ANNOTATION_PATH)
        self.names = {name: source.fields.get(name, name) for name in ours}
        self.columns = rows.columns
        for name in ours:
            if name in self.columns and name not in self.names.values():
                theirs = self.names[name]
                raise PoolError(
                    f"{rows.file}: column {name!r} is there, but {name!r} is mapped to {theirs!r}; drop one"
                )

    def get(self, ours: str) -> Column | None:
        return self.columns.get(self.names[ours])

    def absence(self, ours: str) -> str:
        """What is found where a row has no value for one of our fields."""
        theirs = self.names[ours]
        if theirs in self.columns or not self.columns:
            return "nothing"
        return f"no field {theirs!r}{nearest(theirs, self.columns)} (there are: {', '.join(list(self.columns)[:8])})"

    def extras(self) -> dict[str, Column]:
        used = set(self.names.values())
        return {name: column for name, column in self.columns.items() if name not in used}


def strings(column: Column | None, n: int, numbers: bool = False) -> tuple[pa.Array, dict[int, str]]:
    """Return a column as ``n`` strings, null where there is none, and what stood where it is none.

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
        except pa.ArrowTypeError:
            pass
    wrong: dict[int, str] = {}
    out: list[str | None] = [None] * n
    for row, value in enumerate(column if isinstance(column, list) else column.to_pylist()):
        if isinstance(value, str):
            out[row] = value
        elif numbers and isinstance(value, (int, float)) and not isinstance(value, bool):
            out[row] = str(value)
        elif value is not None:
            wrong[row] = f"{type(value).__name__} {shown(value)}"
    return pa.array(out, pa.string()), wrong


def _data(table: _Fields, n: int, media: Mask) -> tuple[pa.Array, pa.Array | None, dict[int, str]]:
    """Return the data side's text or name, the content where rows carry it, and what stood where it is neither."""
    column, payload = table.get(DATA), table.get(DATA_BYTES)
    if isinstance(column, pa.Array) and pa.types.is_struct(column.type) and "bytes" in [f.name for f in column.type]:
        # The layout of Hugging Face data sets: {"bytes": ..., "path": ...}, either of which may be null.
        payload = plain(pc.struct_field(column, "bytes"))
        has_path = "path" in [f.name for f in column.type]
        column = plain(pc.struct_field(column, "path")) if has_path else None
    elif isinstance(column, pa.Array) and pa.types.is_binary(column.type):
        column, payload = None, column
    data, wrong = strings(column, n)
    if payload is None or (isinstance(payload, pa.Array) and pa.types.is_null(payload.type)):
        return data, None, wrong
    if not (isinstance(payload, pa.Array) and pa.types.is_binary(payload.type)):
        stray = payload if isinstance(payload, list) else payload.to_pylist()
        wrong.update({row: shown(value) for row, value in enumerate(stray) if value is not None})
        return data, None, wrong
    there = _mask(pc.is_valid(payload))
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


def _from_files(
    table: _Fields,
    path_field: str,
    field_name: str,
    values: pa.Array,
    is_text: Mask,
    references: References,
    faults: _Faults,
    payload: pa.Array | None = None,
) -> tuple[pa.Array, bool]:
    """Fill in what the rows give as the path of a text file (for media: as the path of the media itself)."""
    paths, wrong = strings(table.get(path_field), len(values))
    faults.add(wrong, path_field, "a string", wrong)
    given = _mask(pc.is_valid(paths))
    if not given.any():
        return values, False
    doubled = _mask(pc.is_valid(values)) & given
    faults.add(np.flatnonzero(doubled), path_field, f"either {field_name} or {path_field}", "both")
    texts: dict[int, str] = {}
    for row in np.flatnonzero(given & ~doubled).tolist():
        path = paths[row].as_py()
        try:
            texts[row] = references.text(path) if is_text[row] else path
        except MediaError as error:
            faults.add([row], path_field, "a text file below the pool's root", str(error))
            texts[row] = path
    filled = values.to_pylist()
    for row, text in texts.items():
        filled[row] = text
    return pa.array(filled, pa.string()), bool((given & is_text).any())


def _with_made_ids(
    ids: pa.Array, pools: pa.Array, data: pa.Array, annotation: pa.Array, payload: pa.Array | None, faults: _Faults
) -> pa.Array:
    """Give rows without an id one made of their pool and content, the same wherever the row stands."""
    missing = [row for row in _rows(pc.is_null(ids)) if row not in faults.found]
    if not missing:
        return ids
    out = ids.to_pylist()
    for row in missing:
        content = payload[row].as_py() if payload is not None else None
        sides = (content or data[row].as_py().encode(), annotation[row].as_py().encode())
        digest = hashlib.blake2b(b"".join(len(side).to_bytes(8, "little") + side for side in sides), digest_size=8)
        out[row] = f"{pools[row].as_py()}-{digest.hexdigest()}"
    return pa.array(out, pa.string())


def _check_unique(ids: pa.Array, rows: Rows, seen: Seen, faults: _Faults) -> None:
    """Find ids that were there before, whether or not that row was a good one."""
    there = np.flatnonzero(_mask(pc.is_valid(ids)))
    again = seen.add(ids.drop_null().to_pylist(), rows.file, rows.lines[there])
    for position, place in again.items():
        faults.add([there[position]], PAIR_ID, "an id that no other row has", f"the id of {place} again")


def _stamps(data: pa.Array, media: Mask, references: References, faults: _Faults) -> Ints:
    stamps = np.full((len(data), 2), -1, dtype=np.int64)
    if not references.check_files:
        return stamps
    values = data.to_pylist()
    for row in np.flatnonzero(media).tolist():
        if values[row] and row not in faults.found:
            try:
                stamps[row] = references.stamp(values[row])
            except MediaError as error:
                faults.add([row], DATA, "a media file below the pool's root", str(error))
    return stamps


def _unknown(modality: pa.Array, rows: list[int], absence: str) -> dict[int, str]:
    values = {row: modality[row].as_py() for row in rows}
    known = [str(name) for name in Modality]
    return {
        row: absence if value is None else f"{shown(value)}{nearest(value.lower(), known)}"
        for row, value in values.items()
    }


def _mask(array: pa.Array) -> Mask:
    return np.asarray(pc.fill_null(array, False).to_numpy(zero_copy_only=False), dtype=bool)


def _not(array: pa.Array) -> pa.Array:
    return pc.invert(array)


def _rows(array: pa.Array) -> list[int]:
    rows: list[int] = np.flatnonzero(_mask(array)).tolist()
    return rows


def _blank(array: pa.Array) -> pa.Array:
    """Rows with a string of nothing but white space."""
    return pc.equal(pc.binary_length(pc.utf8_trim_whitespace(array)), 0)


def _shown(array: pa.Array) -> Mapping[int, str]:
    return {row: shown(array[row].as_py()) for row in _rows(_blank(array))}
