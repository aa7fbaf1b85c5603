"""Blends that were exported as Hugging Face data sets (`io.exports.hub`): pairs again, with the media they carry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa

from nemo_mm_rank.io.bad_rows import shown
from nemo_mm_rank.io.fields import DATA_PATH
from nemo_mm_rank.io.formats.base import About, FaultError, Format, kept, listed
from nemo_mm_rank.io.formats.conversations import named
from nemo_mm_rank.io.rows import Column, Rows
from nemo_mm_rank.modality import is_media, modalities_of
from nemo_mm_rank.schema import ANNOTATION, DATA, DATA_BYTES, MODALITY, PAIR_ID, Modality

TEXT = "text"
"""The column with the text of the data; with code beside it, that has a column of its name."""
_File = tuple[str, bytes | None]  # name, content


def _fits(rows: Rows, about: About) -> bool:
    """Whether there is all that an export has, and none of what rows of pairs have in its place."""
    fields = {name: about.source.fields.get(name, name) for name in (PAIR_ID, MODALITY, ANNOTATION)}
    others = (DATA, DATA_BYTES, DATA_PATH)
    there = rows.columns.keys()
    return {*fields.values(), TEXT} <= there and not there & set(others) and DATA not in about.source.fields


def _read(rows: Rows, about: About) -> Rows:
    n = len(rows.lines)
    kinds = [str(kind) for kind in Modality if is_media(kind)]
    media = {kind: [name for name in (f"{kind}s", kind) if name in rows.columns] for kind in kinds}
    used = [MODALITY, ANNOTATION, TEXT, Modality.CODE, *(name for names in media.values() for name in names)]
    columns = {name: listed(rows, name) for name in used if name in rows.columns}
    data: list[str | None] = [None] * n
    contents: list[bytes | None] = [None] * n
    parts: dict[int, list[tuple[str, str]]] = {}
    every: dict[int, list[tuple[str, str]]] = {}
    carried: dict[int, list[bytes | None]] = {}
    faults: dict[int, FaultError] = {}
    for row in range(n):
        try:
            found = _parts({name: column[row] for name, column in columns.items()}, media)
        except FaultError as fault:
            faults[row] = fault
            continue
        files = [(kind, *one) for kind, own in found for one in own if is_media(kind)]
        if len(found) > 1:
            parts[row] = [(kind, own[0][0]) for kind, own in found]
        else:
            data[row] = found[0][1][0][0]
        contents[row] = next((content for _, _, content in files if content is not None), None)
        if len(files) > 1:
            every[row] = [(kind, name) for kind, name, _ in files]
            carried[row] = [content for _, _, content in files]
    made: dict[str, Column] = {
        MODALITY: columns[MODALITY],
        DATA: data,
        DATA_BYTES: pa.array(contents, pa.binary()),
        ANNOTATION: rows.columns[ANNOTATION],
    }
    return kept(replace(rows, parts=parts, media=every, carried=carried), made, used, faults)


def _parts(row: Mapping[str, Any], media: Mapping[str, list[str]]) -> list[tuple[str, list[_File]]]:
    """Return the parts of one row: modality, and the text or the files.

    Raises:
        FaultError: its class is none, or a part is not there.
    """
    try:
        kinds = modalities_of(row[MODALITY] if isinstance(row[MODALITY], str) else "")
    except ValueError as error:
        raise FaultError(MODALITY, "a class of data", shown(row[MODALITY])) from error
    found: list[tuple[str, list[_File]]] = []
    for kind in kinds:
        if not is_media(kind):
            name = kind if kind == Modality.CODE and Modality.TEXT in kinds else TEXT
            if not isinstance(row.get(name), str):
                raise FaultError(name, f"the {kind} of the data", shown(row.get(name)))
            found.append((kind, [(row[name], None)]))
            continue
        name = next((one for one in media.get(kind, ()) if row.get(one)), kind)
        value = row.get(name)
        files = [_file(one, kind, name) for one in (value if isinstance(value, list) and value else [value])]
        found.append((kind, files))
    return found


def _file(value: Any, kind: str, name: str) -> _File:
    path, content = (value.get("path"), value.get("bytes")) if isinstance(value, dict) else (value, None)
    if isinstance(content, bytes) and content and isinstance(path, str | None):
        return path or named(content), content
    if isinstance(path, str) and path and content is None:
        return path, content
    raise FaultError(name, f"the {kind} of the data, {{bytes, path}}", shown(value))


HUB = Format("hf", "a blend as a Hugging Face data set", _fits, _read)
