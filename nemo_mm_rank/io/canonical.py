"""From the rows of a manifest, whatever their names and types, to checked pairs in canonical columns."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nemo_mm_rank.arrays import Bools, Ints
from nemo_mm_rank.config import PoolSource
from nemo_mm_rank.errors import MediaError, nearest
from nemo_mm_rank.io.bad_rows import BadRow, Seen, shown
from nemo_mm_rank.io.fields import (
    ANNOTATION_PATH,
    DATA_PATH,
    Fields,
    Part,
    Several,
    contents,
    mask,
    parts_array,
    read_parts,
    strings,
)
from nemo_mm_rank.io.formats import ROWS
from nemo_mm_rank.io.formats.base import Format
from nemo_mm_rank.io.references import References, folded
from nemo_mm_rank.io.rows import Column, Rows, taken, uncollected
from nemo_mm_rank.modality import is_media, media_names, names
from nemo_mm_rank.schema import (
    ANNOTATION,
    CONTENTS,
    DATA,
    DATA_BYTES,
    DATA_PARTS,
    MEDIA_ROOT,
    MODALITY,
    PAIR_ID,
    PARTS,
    POOL,
    SOURCE_CONTENTS,
    SOURCE_MEDIA,
    SOURCE_RECORD,
)


@dataclass(frozen=True)
class PoolBatch:
    """Some rows of a pool, in the manifest's order: those that are pairs, and those that are not.

    Attributes:
        rows_in: how many rows there were.
        lines: ``(n,)`` int64, the number of the row that each pair was made of.
        pairs: canonical columns, `MEDIA_ROOT`, `DATA_BYTES` where rows carry content, `DATA_PARTS` where data is in
            several parts, `SOURCE_RECORD`, `SOURCE_MEDIA` and `SOURCE_CONTENTS` where rows have them; n values each.
        extras: the user's own columns as they were read, n values each.
        stamps: ``(n, 2)`` int64 size and modification time (ns) of media files (of several, a digest of them); -1
            where there is none to look at.
        bad: the other rows, by line.
        reads_texts: whether text came from files that the manifest names.
        renamed: columns of the user's that have names of ours -> the names in ``extras``.
        format: what the manifest is written in.
    """

    rows_in: int
    lines: Ints
    pairs: dict[str, pa.Array]
    extras: dict[str, Column]
    stamps: Ints
    bad: list[BadRow]
    reads_texts: bool = False
    renamed: Mapping[str, str] = field(default_factory=dict)
    format: Format = ROWS


@dataclass
class _Faults:
    """The first fault of each row."""

    found: dict[int, tuple[str, str, str]] = field(default_factory=dict)

    def add(
        self, rows: Iterable[int], name: str, expected: str, found: Sequence[str] | Mapping[int, str] | str
    ) -> None:
        for row in rows:
            self.found.setdefault(int(row), (name, expected, found if isinstance(found, str) else found[int(row)]))


@uncollected()
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
    table = Fields(rows, source)
    faults = _Faults()

    ids = _read(table, PAIR_ID, n, faults, numbers=True)
    _check_blank(ids, PAIR_ID, faults)

    several = Several(dict(rows.parts)) if rows.parts else read_parts(table, faults.add)
    modality = _read(table, MODALITY, n, faults)
    if several is not None:
        modality = several.modality(modality, faults.add)
    if source.modality is not None:
        modality = modality.fill_null(str(source.modality))
    unknown = _rows(pc.invert(pc.is_in(modality, pa.array(names()))))
    if several is not None:
        unknown = [row for row in unknown if row not in several.rows]
    faults.add(unknown, MODALITY, f"one of {', '.join(names())}", _unknown(modality, unknown, table.absence(MODALITY)))

    pools = _read(table, POOL, n, faults).fill_null(pool)
    _check_blank(pools, POOL, faults)

    media = mask(pc.is_in(modality, pa.array(media_names())))
    data, payload, wrong = contents(table, n, media if several is None else media | several.with_media(n))
    faults.add(wrong, DATA, "a string or bytes", wrong)
    if several is not None:
        several.rows.update(_all_settled(several.rows, references))
        data = several.data(data)
    data, reads = _from_files(table, DATA_PATH, DATA, data, ~media, references, faults)
    data = _settled(data, media if payload is None else media & mask(pc.is_null(payload)), references)
    _check_there(data, DATA, table, faults)

    annotation = _read(table, ANNOTATION, n, faults)
    every = np.ones(n, dtype=bool)
    annotation, also_reads = _from_files(table, ANNOTATION_PATH, ANNOTATION, annotation, every, references, faults)
    _check_there(annotation, ANNOTATION, table, faults)

    extras = table.extras()
    made = _made(extras)
    listed = dict(rows.media) if several is None else {**several.media, **rows.media}
    if SOURCE_MEDIA in made:
        column: pa.Array = made[SOURCE_MEDIA]
        listed = {at: [(one[MODALITY], one[DATA]) for one in own] for at, own in enumerate(column.to_pylist()) if own}
    ids = _with_made_ids(ids, pools, data, annotation, payload, listed, faults)
    _check_unique(ids, rows, seen, faults)
    stamps = _stamps(data, media if payload is None else media & mask(pc.is_null(payload)), references, faults)
    parts = {} if several is None else several.rows
    files: dict[int, Sequence[tuple[str, str]]] = {row: own for row, own in parts.items() if len(own) > 1}
    if listed:
        listed = _all_settled(listed, references)
        files |= listed
        made[SOURCE_MEDIA] = parts_array(listed, n)
    if rows.carried:
        made[SOURCE_CONTENTS] = pa.array([rows.carried.get(row) for row in range(n)], CONTENTS)
    if SOURCE_CONTENTS in made:
        _check_carried(made[SOURCE_CONTENTS], listed, references, faults)
    carried = set() if payload is None else set(np.flatnonzero(mask(pc.is_valid(payload))).tolist())
    _stamp_several({row: own for row, own in files.items() if row not in carried}, stamps, references, faults)

    pairs = {PAIR_ID: ids, POOL: pools, MODALITY: modality, DATA: data, ANNOTATION: annotation}
    pairs[MEDIA_ROOT] = pa.repeat(pa.scalar(references.root, pa.string()), n)
    if payload is not None:
        pairs[DATA_BYTES] = payload
    if several is not None and (apart := several.column(n)) is not None:
        pairs[DATA_PARTS] = apart
    pairs |= made
    bad = [
        BadRow(
            rows.file, int(rows.lines[row]), *fault, *(pairs[name][row].as_py() for name in (PAIR_ID, POOL, MODALITY))
        )
        for row, fault in faults.found.items()
    ]
    keep = np.setdiff1d(np.arange(n), list(faults.found))
    if len(keep) < n:
        pairs = {name: column.take(pa.array(keep)) for name, column in pairs.items()}
        extras = {name: taken(column, keep) for name, column in extras.items()}
    bad = sorted([*bad, *rows.bad], key=lambda row: row.line)
    return PoolBatch(n + len(rows.bad), rows.lines[keep], pairs, extras, stamps[keep], bad, reads or also_reads)


def _read(table: Fields, name: str, n: int, faults: _Faults, numbers: bool = False) -> pa.Array:
    values, wrong = strings(table.get(name), n, numbers)
    faults.add(wrong, name, "a string or a number" if numbers else "a string", wrong)
    return values


def _check_there(values: pa.Array, name: str, table: Fields, faults: _Faults) -> None:
    faults.add(_rows(pc.is_null(values)), name, "a non-empty string", table.absence(name))
    _check_blank(values, name, faults)


def _check_blank(values: pa.Array, name: str, faults: _Faults) -> None:
    """Find strings of nothing but white space."""
    rows = _rows(pc.equal(pc.binary_length(pc.utf8_trim_whitespace(values)), 0))
    faults.add(rows, name, "a non-empty string", {row: shown(values[row].as_py()) for row in rows})


def _from_files(
    table: Fields,
    path_field: str,
    field_name: str,
    values: pa.Array,
    is_text: Bools,
    references: References,
    faults: _Faults,
) -> tuple[pa.Array, bool]:
    """Fill in what the rows give as the path of a text file (for media: as the path of the media itself)."""
    paths, wrong = strings(table.get(path_field), len(values))
    faults.add(wrong, path_field, "a string", wrong)
    given = mask(pc.is_valid(paths))
    if not given.any():
        return values, False
    doubled = mask(pc.is_valid(values)) & given
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


def _settled(data: pa.Array, media: Bools, references: References) -> pa.Array:
    """Return the data with references as the root takes them."""
    values = data.to_pylist()
    settled = {row: references.settled(values[row]) for row in np.flatnonzero(media).tolist() if values[row]}
    changed = {row: reference for row, reference in settled.items() if reference != values[row]}
    if not changed:
        return data
    return pa.array([changed.get(row, value) for row, value in enumerate(values)], pa.string())


def _made(extras: dict[str, Column]) -> dict[str, pa.Array]:
    """Take those columns of ours out of the user's own that an earlier run may have left there."""
    made: dict[str, pa.Array] = {}
    for name, kind in ((SOURCE_RECORD, pa.string()), (SOURCE_MEDIA, PARTS), (SOURCE_CONTENTS, CONTENTS)):
        own = extras.get(name)
        try:
            column = own if isinstance(own, pa.Array) or own is None else pa.array(own, kind)
        except (pa.ArrowInvalid, pa.ArrowTypeError):  # the user's, of the same name
            continue
        if column is not None and column.type == kind and (column is own or column.to_pylist() == own):
            made[name] = column
            del extras[name]
    return made


def _with_made_ids(
    ids: pa.Array,
    pools: pa.Array,
    data: pa.Array,
    annotation: pa.Array,
    payload: pa.Array | None,
    media: Mapping[int, Sequence[tuple[str, str]]],
    faults: _Faults,
) -> pa.Array:
    """Give rows without an id one made of their pool and content, the same wherever the row stands."""
    missing = [row for row in _rows(pc.is_null(ids)) if row not in faults.found]
    if not missing:
        return ids
    out = ids.to_pylist()
    for row in missing:
        content = payload[row].as_py() if payload is not None else None
        more = [name.encode() for _, name in media[row]] if len(media.get(row, ())) > 1 else []
        sides = (content or data[row].as_py().encode(), annotation[row].as_py().encode(), *more)
        digest = hashlib.blake2b(b"".join(len(side).to_bytes(8, "little") + side for side in sides), digest_size=8)
        out[row] = f"{pools[row].as_py()}-{digest.hexdigest()}"
    return pa.array(out, pa.string())


def _check_unique(ids: pa.Array, rows: Rows, seen: Seen, faults: _Faults) -> None:
    """Find ids that were there before, whether or not that row was a good one."""
    there = np.flatnonzero(mask(pc.is_valid(ids)))
    again = seen.add(ids.drop_null().to_pylist(), rows.file, rows.lines[there])
    for position, place in again.items():
        faults.add([there[position]], PAIR_ID, "an id that no other row has", f"the id of {place} again")


def _stamps(data: pa.Array, media: Bools, references: References, faults: _Faults) -> Ints:
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


def _all_settled(rows: dict[int, list[Part]], references: References) -> dict[int, list[Part]]:
    """Return rows' parts with references as the root takes them."""
    if not references.settles:
        return rows
    return {
        row: [(kind, references.settled(one) if is_media(kind) else one) for kind, one in parts]
        for row, parts in rows.items()
    }


def _stamp_several(
    files: Mapping[int, Sequence[tuple[str, str]]], stamps: Ints, references: References, faults: _Faults
) -> None:
    """Fill in the stamps of rows that name several files or parts, one for all of a row's files."""
    media, known = frozenset(media_names()), dict[int, tuple[int, int]]()
    for row, parts in files.items() if references.check_files else ():
        found: list[tuple[int, int]] = []
        for kind, data in parts if row not in faults.found else ():
            if kind in media:
                try:
                    found.append(references.stamp(data))
                except MediaError as error:
                    faults.add([row], DATA, "a media file below the pool's root", f"{error} ({kind} part)")
                    break
        if found:
            known[row] = folded(found)
    if known:
        stamps[list(known)] = list(known.values())


def _check_carried(
    contents: pa.Array, media: Mapping[int, Sequence[tuple[str, str]]], references: References, faults: _Faults
) -> None:
    """Look whether those media are there that rows do not carry, which carry others."""
    for row, own in enumerate(contents.to_pylist()):
        if own is None:
            continue
        if len(own) != len(media.get(row, ())):
            faults.add([row], SOURCE_CONTENTS, f"as many contents as media ({len(media.get(row, ()))})", str(len(own)))
            continue
        for (kind, name), content in zip(media[row], own, strict=True):
            try:
                if content is None and references.check_files and row not in faults.found:
                    references.stamp(name)
            except MediaError as error:
                faults.add([row], DATA, "a media file below the pool's root", f"{error} ({kind} part)")


def _unknown(modality: pa.Array, rows: list[int], absence: str) -> dict[int, str]:
    values = {row: modality[row].as_py() for row in rows}
    return {
        row: absence if value is None else f"{shown(value)}{nearest(value.lower(), names())}"
        for row, value in values.items()
    }


def _rows(array: pa.Array) -> list[int]:
    rows: list[int] = np.flatnonzero(mask(array)).tolist()
    return rows
